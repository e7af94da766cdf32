package tenant

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/mics-im/mics/internal/config"
	"github.com/mics-im/mics/internal/testkit"
	hookv1 "github.com/mics-im/mics/proto/mics/hook/v1"
)

// logText is a log that can be read while it is written.
type logText struct {
	mu   sync.Mutex
	text bytes.Buffer // guarded by mu
}

func (l *logText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// watched is a registry over a file of its own.
type watched struct {
	*Registry
	t    *testing.T
	path string
	log  *logText
}

func watch(t *testing.T, src Source, text string) *watched {
	t.Helper()
	w := &watched{t: t, path: filepath.Join(t.TempDir(), "tenants.yaml"), log: &logText{}}
	w.write(text)
	src.File, src.Settings, src.Log = w.path, DefaultSettings, slog.New(slog.NewJSONHandler(w.log, nil))
	r, err := New(src)
	if err != nil {
		t.Fatal(err)
	}
	w.Registry = r
	t.Cleanup(r.Close)
	return w
}

// write replaces what is in the file.
func (w *watched) write(text string) {
	w.t.Helper()
	if err := os.WriteFile(w.path, []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// replace puts another file in the file's place, as editors do.
func (w *watched) replace(text string) {
	w.t.Helper()
	other := w.path + ".new"
	if err := os.WriteFile(other, []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
	if err := os.Rename(other, w.path); err != nil {
		w.t.Fatal(err)
	}
}

func (w *watched) eventually(what string, cond func() bool) {
	w.t.Helper()
	testkit.Eventually(w.t, what, cond)
	if strings.Contains(w.log.String(), "hush") {
		w.t.Fatalf("a secret is in the log: %s", w.log.String())
	}
}

func (w *watched) get(name string) *Tenant {
	w.t.Helper()
	t, ok := w.Get(name)
	if !ok {
		w.t.Fatalf("no tenant %s", name)
	}
	return t
}

func TestTheFileIsReadAgain(t *testing.T) {
	w := watch(t, Source{AuthMap: `{"env":"http://env"}`}, "tenants: {acme: {auth_url: http://one, secret: hush1}}")
	acme, env := w.get("acme"), w.get("env")
	acme.Learn(&hookv1.TenantRuntimeConfig{HookBaseUrl: "http://said", TenantMaxMessageQps: 5})

	w.write("tenants: {acme: {auth_url: http://two, secret: hush2, tenant_max_message_qps: 9}, beta: {auth_url: http://beta}}")
	w.eventually("a tenant is added", func() bool { _, ok := w.Get("beta"); return ok })
	if w.get("acme") != acme || acme.Hooks().AuthBaseURL != "http://two" || acme.AuthSecret() != "hush2" || acme.MaxQPS() != 9 {
		t.Errorf("acme has %+v", acme.Hooks())
	}
	if acme.HookBaseURL() != "http://said" {
		t.Error("what the tenant said is forgotten")
	}

	w.replace("tenants: {acme: {auth_url: http://two, secret: hush3}}")
	w.eventually("a secret is rotated by a file in the file's place", func() bool { return acme.AuthSecret() == "hush3" })
	if acme.MaxQPS() != 5 {
		t.Errorf("without the override %d counts, not what the tenant said", acme.MaxQPS())
	}
	if _, ok := w.Get("beta"); ok || w.Len() != 2 {
		t.Error("a removed tenant is there")
	}

	w.replace("tenants: {beta: {auth_url: http://beta}}")
	w.eventually("acme is removed", acme.Removed)
	if w.get("env") != env || env.Removed() {
		t.Error("a tenant of the environment went with the file's")
	}
	w.replace("tenants: {acme: {auth_url: http://three}}")
	w.eventually("acme is back", func() bool { _, ok := w.Get("acme"); return ok })
	if again := w.get("acme"); again == acme || again.Removed() || !acme.Removed() || again.HookBaseURL() != "http://three" {
		t.Error("a tenant that is back is not a new one")
	}
}

func TestAFileWithAProblemIsRefusedAsAWhole(t *testing.T) {
	good := "tenants: {acme: {auth_url: http://one, secret: hush1}}"
	w := watch(t, Source{HookSecrets: `{"acme":"env"}`}, good)
	refusals := 0
	for what, spoil := range map[string]func(){
		"not YAML":               func() { w.write("tenants: {acme: {secret: 'hush") },
		"tenants.acme.secret":    func() { w.write("tenants: {beta: {auth_url: http://b}, acme: {secret: [hush]}}") },
		"no tenant left":         func() { w.write("") },
		"one without a base URL": func() { w.write("tenants: {beta: {auth_url: http://b}}") },
		"no file":                func() { _ = os.Remove(w.path) },
	} {
		spoil()
		refusals++
		w.eventually(what+": refused", func() bool { return strings.Count(w.log.String(), "tenants_file_refused") >= refusals })
		if acme := w.get("acme"); w.Len() != 1 || acme.AuthSecret() != "hush1" {
			t.Errorf("%s: the tenants changed", what)
		}
		before := strings.Count(w.log.String(), "tenants_file_taken")
		w.write(good)
		w.eventually("the good one is taken again", func() bool { return strings.Count(w.log.String(), "tenants_file_taken") > before })
	}
	if !strings.Contains(w.log.String(), "line 1") || !strings.Contains(w.log.String(), "tenants.acme.secret") {
		t.Errorf("the log does not say where: %s", w.log.String())
	}
}

// TestAMountedFileIsReadAgain: a mounted ConfigMap is a link to a link to a
// folder, and the one in the middle is replaced.
func TestAMountedFileIsReadAgain(t *testing.T) {
	dir := t.TempDir()
	version := func(n int) {
		sub := filepath.Join(dir, fmt.Sprintf("..v%d", n))
		if err := errors.Join(
			os.Mkdir(sub, 0o700),
			os.WriteFile(filepath.Join(sub, "tenants.yaml"), fmt.Appendf(nil, "tenants: {t%d: {auth_url: http://x}}", n), 0o600),
			os.Symlink(filepath.Base(sub), filepath.Join(dir, "..tmp")),
			os.Rename(filepath.Join(dir, "..tmp"), filepath.Join(dir, "..data")),
		); err != nil {
			t.Fatal(err)
		}
	}
	version(1)
	file := filepath.Join(dir, "tenants.yaml")
	if err := os.Symlink(filepath.Join("..data", "tenants.yaml"), file); err != nil {
		t.Fatal(err)
	}
	r, err := New(Source{File: file})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, ok := r.Get("t1"); !ok {
		t.Fatal("the first version")
	}
	version(2)
	testkit.Eventually(t, "the second version is read", func() bool { _, ok := r.Get("t2"); return ok })
}

func TestAFileThatIsNotThereOrBadEndsTheStart(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.yaml")
	big := filepath.Join(dir, "big.yaml")
	if err := errors.Join(
		os.WriteFile(bad, []byte("tenants: {a: {secret: hush}}"), 0o600),
		os.WriteFile(big, bytes.Repeat([]byte("#"), maxFile+1), 0o600),
	); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{
		filepath.Join(dir, "none.yaml"):      "no such file",
		filepath.Join(dir, "none", "x.yaml"): "no such file",
		dir:                                  "TENANTS_FILE",
		bad:                                  `"a"`,
		big:                                  "larger than",
	} {
		_, err := New(Source{File: file})
		refused(t, file, err, settingFile, want)
		if !errors.Is(err, config.ErrInvalid) {
			t.Errorf("%s: %v is no config.ErrInvalid", file, err)
		}
	}
}

func TestReadingAndLearningWhileTheFileChanges(t *testing.T) {
	w := watch(t, Source{}, "tenants: {acme: {auth_url: http://x0, hook_base_url: http://x0}}")
	acme := w.get("acme")
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for n := int32(0); ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				if h := acme.Hooks(); h.AuthBaseURL != h.BaseURL {
					t.Errorf("a mixed picture: %+v", h)
					return
				}
				if i == 0 {
					acme.Learn(&hookv1.TenantRuntimeConfig{TenantMaxMessageQps: n, HookBaseUrl: "http://said"})
				}
				if got, ok := w.Get("acme"); !ok || got != acme {
					t.Error("gone for a moment")
					return
				}
			}
		})
	}
	for n := range 3 {
		url := fmt.Sprintf("http://x%d", n+1)
		w.replace("tenants: {acme: {auth_url: '" + url + "', hook_base_url: '" + url + "'}}")
		w.eventually("the change is read", func() bool { return acme.Hooks().AuthBaseURL == url })
	}
	close(stop)
	wg.Wait()
}
