// Package playground is a page on which several clients talk to each other in
// a browser: plain HTML and JavaScript, as it is in the folder page.
package playground

import (
	"embed"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
)

//go:embed page
var page embed.FS

// Handler serves the page for these gateways (ws:// URLs) and this tenant,
// whose tokens are valid:USER.
func Handler(gateways []string, tenant string) (http.Handler, error) {
	files, err := fs.Sub(page, "page")
	if err != nil {
		return nil, fmt.Errorf("playground: %w", err)
	}
	config, err := json.Marshal(map[string]any{"gateways": gateways, "tenant": tenant})
	if err != nil {
		return nil, fmt.Errorf("playground: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /", http.FileServerFS(files))
	mux.HandleFunc("GET /config.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(config)
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		// Nothing but the page's own files, and sockets to the gateways.
		h.Set("Content-Security-Policy", "default-src 'self'; connect-src 'self' ws: wss:; frame-ancestors 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cache-Control", "no-cache")
		mux.ServeHTTP(w, r)
	}), nil
}
