package harness

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// Binaries of the services, built once for a test process.
type binaries struct {
	once sync.Once
	dir  string
	err  error
}

// built outlives every test of the process, and is removed by Main.
var built binaries

// Services that a cluster is made of.
const (
	gatewayBin      = "mics-gateway"
	routerBin       = "mics-router"
	controlplaneBin = "mics-controlplane"
)

// Binary builds the services, if no test has done so yet, and returns the path of
// the named one. MICS_TEST_RACE=1 builds them with the race detector; MICS_TEST_BIN
// names a directory of ready ones instead.
func Binary(t testing.TB, name string) string {
	t.Helper()
	if dir := os.Getenv("MICS_TEST_BIN"); dir != "" {
		return filepath.Join(dir, name)
	}
	built.once.Do(func() { built.dir, built.err = build() })
	if built.err != nil {
		t.Fatalf("build the services: %v", built.err)
	}
	return filepath.Join(built.dir, name)
}

func build() (dir string, err error) {
	root, err := sourceTree()
	if err != nil {
		return "", err
	}
	if dir, err = os.MkdirTemp("", "mics-bin-"); err != nil {
		return "", err
	}
	args := []string{"build"}
	if os.Getenv("MICS_TEST_RACE") == "1" {
		args = append(args, "-race")
	}
	args = append(args, "-o", dir+"/")
	for pkg, bin := range map[string]string{"gateway": gatewayBin, "router": routerBin, "controlplane": controlplaneBin} {
		args = append(args, "./"+pkg+"/cmd/"+bin)
	}
	cmd := exec.Command("go", args...)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", errors.Join(fmt.Errorf("%w:\n%s", err, out), os.RemoveAll(dir))
	}
	return dir, nil
}

// sourceTree is where the workspace is: a test runs in its package's folder.
func sourceTree() (string, error) {
	at, err := os.Getwd()
	for err == nil {
		if _, err := os.Stat(filepath.Join(at, "go.work")); err == nil {
			return at, nil
		}
		up := filepath.Dir(at)
		if up == at {
			return "", errors.New("no go.work above the working directory")
		}
		at = up
	}
	return "", err
}

// cleanup removes what was built.
func (b *binaries) cleanup() error { return os.RemoveAll(b.dir) }
