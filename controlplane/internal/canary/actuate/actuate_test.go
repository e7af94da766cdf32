package actuate

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mics-im/mics/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "weights")
	for form, want := range map[string]string{
		"": "{\"stable\":94.5,\"canary\":5.5}\n",
		"split_clients $remote_addr $mics_track { {{.Canary}}% canary; * stable; }\n": "split_clients $remote_addr $mics_track { 5.5% canary; * stable; }\n",
	} {
		f, err := NewFile(path, form)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := f.Apply(t.Context(), Of(550)); err != nil {
				t.Fatal(err)
			}
		}
		if got := read(t, path); got != want {
			t.Errorf("%q, want %q", got, want)
		}
		before, _ := os.Stat(path)
		if err := f.Apply(t.Context(), Of(550)); err != nil {
			t.Fatal(err)
		}
		if after, _ := os.Stat(path); !os.SameFile(before, after) {
			t.Error("written although nothing has changed: whoever watches the file reloads")
		}
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".mics-*")); len(left) != 0 {
		t.Errorf("left over: %v", left)
	}
}

func TestFileThatCannotBe(t *testing.T) {
	for _, form := range []string{"{{.Canry}}", "{{"} {
		if _, err := NewFile("x", form); err == nil {
			t.Errorf("%q is a template", form)
		}
	}
	f, err := NewFile(filepath.Join(t.TempDir(), "no", "such", "folder"), "")
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Apply(t.Context(), Of(0)); err == nil {
		t.Error("written nowhere")
	}
}

func TestHTTP(t *testing.T) {
	status := http.StatusNoContent
	var got string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		got = r.Method + " " + r.Header.Get("Content-Type") + " " + string(b)
		w.WriteHeader(status)
	}))
	defer srv.Close()
	h := NewHTTP(srv.URL)
	if err := h.Apply(t.Context(), Of(10000)); err != nil || got != `PUT application/json {"stable":0,"canary":100}` {
		t.Errorf("%q, %v", got, err)
	}
	status = http.StatusBadGateway
	if err := h.Apply(t.Context(), Of(0)); err == nil || !strings.Contains(err.Error(), "502") {
		t.Errorf("%v", err)
	}
}
