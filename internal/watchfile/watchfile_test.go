package watchfile

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mics-im/mics/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// record is what a follower told, owned by the goroutine that calls Look.
type record struct {
	taken, refused []string
}

func (r *record) options(files ...string) Options {
	var last string
	return Options{
		Files: files, MaxBytes: 10,
		Take: func(c [][]byte) error {
			parts := make([]string, len(c))
			for i, b := range c {
				parts[i] = string(b)
			}
			if last = strings.Join(parts, "|"); strings.Contains(last, "bad") {
				return errors.New("no good: " + last)
			}
			return nil
		},
		Taken:   func() { r.taken = append(r.taken, last) },
		Refused: func(err error) { r.refused = append(r.refused, err.Error()) },
	}
}

func TestVersionsAreTakenOrRefusedOnce(t *testing.T) {
	dir := t.TempDir()
	one, two := filepath.Join(dir, "one"), filepath.Join(dir, "two")
	write(t, one, "a")
	write(t, two, "b")
	var r record
	f, err := New(r.options(one, two))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := f.Close(); err != nil { // never started
			t.Error(err)
		}
	}()
	look := func() { f.Look(); f.Look() }
	look()
	if len(r.taken)+len(r.refused) != 0 {
		t.Fatalf("the first version is no news: %+v", r)
	}
	write(t, two, "c")
	look()
	write(t, one, "bad")
	look()
	write(t, one, strings.Repeat("x", 11))
	look()
	if err := os.Remove(one); err != nil {
		t.Fatal(err)
	}
	look()
	write(t, one, "a")
	look()
	if len(r.taken) != 2 || r.taken[0] != "a|c" || r.taken[1] != "a|c" {
		t.Errorf("taken %q", r.taken)
	}
	if len(r.refused) != 3 || !strings.Contains(r.refused[0], "no good") || !strings.Contains(r.refused[1], "larger than 10") || !strings.Contains(r.refused[2], one) {
		t.Errorf("refused %q", r.refused)
	}
}

func TestFilesOfSeveralFoldersAreWatched(t *testing.T) {
	one, two := filepath.Join(t.TempDir(), "a"), filepath.Join(t.TempDir(), "b")
	write(t, one, "")
	write(t, two, "")
	var r record
	o := r.options(one, two, one)
	seen := make(chan struct{}, 8)
	o.Taken = func() { seen <- struct{}{} }
	o.Refused = func(err error) { t.Error(err) }
	f, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	f.Start()
	for _, name := range []string{one, two} {
		write(t, name, "new")
		testkit.Eventually(t, "a change is taken of "+name, func() bool { return len(seen) == 1 })
		<-seen
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestNewFails(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "x"), "bad")
	for name, want := range map[string]string{
		filepath.Join(dir, "none", "x"): "none", filepath.Join(dir, "y"): "y", filepath.Join(dir, "x"): "no good",
	} {
		var r record
		if _, err := New(r.options(name)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
		if len(r.refused) != 0 {
			t.Error("told twice")
		}
	}
}
