package deps

import (
	"bytes"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// workspace returns the folder of go.work and its modules, each with whether
// it has a Go file.
func workspace(t *testing.T) (root string, modules map[string]bool) {
	t.Helper()
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	work, err := os.ReadFile(filepath.Join(root, "go.work"))
	if err != nil {
		t.Fatal(err)
	}
	modules = map[string]bool{}
	for _, m := range readModules(work) {
		modules[m] = false
		err := filepath.WalkDir(filepath.Join(root, m), func(path string, _ fs.DirEntry, err error) error {
			if err == nil && strings.HasSuffix(path, ".go") {
				modules[m] = true
				return fs.SkipAll
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(modules) == 0 {
		t.Fatal("go.work names no modules")
	}
	return root, modules
}

// list returns the graph of the whole workspace.
func list(t *testing.T, root string) graph {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-deps", "-test", "-json=ImportPath,ForTest,Imports", "work")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "GOWORK="+filepath.Join(root, "go.work"))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v: %s", err, stderr.String())
	}
	g, err := readGraph(bytes.NewReader(out))
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func TestFences(t *testing.T) {
	root, modules := workspace(t)
	g := list(t, root)
	if len(g.matching("./tests/deps")) == 0 {
		t.Fatal("go list does not know this very package: the graph is not the project's")
	}
	for _, f := range fences {
		for _, b := range f.blunders(g, modules) {
			t.Errorf("fence without effect: %s", b)
		}
		for _, v := range f.violations(g) {
			t.Error(v)
		}
	}
}

// TestEveryFenceHolds plants the forbidden import in every package that a
// fence of the table is for, and behind one that it may import.
func TestEveryFenceHolds(t *testing.T) {
	root, _ := workspace(t)
	g := list(t, root)
	for i, f := range fences {
		for _, from := range g.matching(f.from...) {
			if matchAny(f.except, from) {
				continue
			}
			for _, pattern := range f.forbidden {
				bad := strings.Replace(pattern, "./", ours, 1)
				bad = strings.Replace(bad, "/...", "/planted", 1)
				planted := maps.Clone(g)
				n := planted[from]
				n.imports = append(slices.Clone(n.imports), bad)
				planted[from] = n
				if !strings.Contains(strings.Join(f.violations(planted), "\n"), from+" → "+bad) {
					t.Errorf("fence %d (%s) lets %s import %s", i, f.why, from, bad)
				}
			}
		}
	}
}

func TestViolations(t *testing.T) {
	g := graph{
		ours + "gateway":                         {imports: []string{"fmt", ours + "gateway/internal/a"}},
		ours + "gateway/internal/a":              {imports: []string{"example.com/lib"}, testImports: []string{ours + "router"}},
		"example.com/lib":                        {imports: []string{"github.com/redis/rueidis/internal/cmds"}},
		"github.com/redis/rueidis":               {imports: []string{"github.com/redis/rueidis/internal/cmds"}},
		"github.com/redis/rueidis/internal/cmds": {imports: []string{"net"}},
		ours + "gatewayish":                      {imports: []string{ours + "router"}},
		ours + "router":                          {imports: []string{"fmt", ours + "router/store"}},
		ours + "router/store":                    {imports: []string{"github.com/redis/rueidis", ours + "router"}},
	}
	for name, c := range map[string]struct {
		f    fence
		want []string // the chains, without the project's path
	}{
		"through a library": {
			fence{from: []string{"./gateway/..."}, forbidden: []string{rueidis}},
			[]string{
				"gateway → gateway/internal/a → example.com/lib → github.com/redis/rueidis/internal/cmds",
				"gateway/internal/a → example.com/lib → github.com/redis/rueidis/internal/cmds",
			},
		},
		"one package, not what is below": {
			fence{from: []string{"./gateway"}, forbidden: []string{rueidis}},
			[]string{"gateway → gateway/internal/a → example.com/lib → github.com/redis/rueidis/internal/cmds"},
		},
		"direct imports only": {
			fence{from: []string{"./..."}, forbidden: []string{rueidis}, direct: true},
			[]string{"router/store → github.com/redis/rueidis"},
		},
		"except": {
			fence{from: []string{"./..."}, except: []string{"./router/store"}, forbidden: []string{rueidis}, direct: true},
			nil,
		},
		"allowed": {
			fence{from: []string{"./router/..."}, forbidden: []string{"./..."}, allowed: []string{"./router/..."}},
			nil,
		},
		"not in the tests": {
			fence{from: []string{"./gateway/..."}, forbidden: []string{"./router/..."}},
			nil,
		},
		"also in the tests": {
			fence{from: []string{"./gateway/..."}, forbidden: []string{"./router/..."}, testsToo: true},
			[]string{"gateway/internal/a → router"},
		},
		"a longer name is another package": {
			fence{from: []string{"./gateway/..."}, forbidden: []string{"./gatewayish/...", "example.com/li/..."}, testsToo: true},
			nil,
		},
		"round in a circle": {
			fence{from: []string{"./router"}, forbidden: []string{"net"}},
			[]string{"router → router/store → github.com/redis/rueidis → github.com/redis/rueidis/internal/cmds → net"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			c.f.why = "reason"
			got := c.f.violations(g)
			for i := range got {
				chain, ok := strings.CutSuffix(got[i], "\n\twhy not: reason")
				if !ok {
					t.Errorf("does not say why: %q", got[i])
				}
				got[i] = strings.ReplaceAll(chain, ours, "")
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(c.want, "\n"))
			}
		})
	}
}

func TestBlunders(t *testing.T) {
	modules := map[string]bool{"gateway": true, "router": true, "ctl": false, "sdk/go": true}
	g := graph{
		ours + "gateway/internal/a": {},
		ours + "router/store":       {imports: []string{"github.com/redis/rueidis"}},
		ours + "sdk/go":             {},
	}
	for name, c := range map[string]struct {
		f    fence
		want string // part of the only blunder; empty: there is none
	}{
		"sound":                           {fence{from: []string{"./gateway/..."}, forbidden: []string{"./router/..."}}, ""},
		"module in a folder of a folder":  {fence{from: []string{"./sdk/go/..."}, forbidden: []string{"./router"}}, ""},
		"module without code":             {fence{from: []string{"./ctl/..."}, forbidden: []string{"./router/..."}}, ""},
		"typo in the module":              {fence{from: []string{"./gatway/..."}, forbidden: []string{"./router/..."}}, "./gatway/...: no such module"},
		"typo in the package":             {fence{from: []string{"./gateway/internal/b"}, forbidden: []string{"./router/..."}}, "./gateway/internal/b: no such package"},
		"typo in what is forbidden":       {fence{from: []string{"./gateway/..."}, forbidden: []string{"./ruoter/..."}}, "./ruoter/...: no such module"},
		"owner":                           {fence{from: []string{"./..."}, forbidden: []string{rueidis}, owner: "./router/store"}, ""},
		"owner that is not there yet":     {fence{from: []string{"./..."}, forbidden: []string{sarama}, owner: "./router/event"}, ""},
		"owner that imports another name": {fence{from: []string{"./..."}, forbidden: []string{"github.com/rueian/rueidis/..."}, owner: "./router/store"}, "./router/store does not import"},
	} {
		t.Run(name, func(t *testing.T) {
			c.f.why = "reason"
			got := c.f.blunders(g, modules)
			if c.want == "" && len(got) != 0 || c.want != "" && (len(got) != 1 || !strings.Contains(got[0], c.want)) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
	if got := (fence{from: []string{"./..."}}).blunders(graph{}, modules); len(got) != 2 {
		t.Errorf("an empty graph and no reason: %q", got)
	}
}

func TestReadGraph(t *testing.T) {
	const out = `
{"ImportPath": "fmt", "Imports": ["io"]}
{"ImportPath": "a", "Imports": ["fmt"]}
{"ImportPath": "a [a.test]", "ForTest": "a", "Imports": ["fmt", "testing"]}
{"ImportPath": "b [a.test]", "ForTest": "a", "Imports": ["os"]}
{"ImportPath": "a_test [a.test]", "ForTest": "a", "Imports": ["a [a.test]", "net"]}
{"ImportPath": "a.test", "Imports": ["a", "a_test"]}
`
	g, err := readGraph(strings.NewReader(out))
	if err != nil {
		t.Fatal(err)
	}
	want := graph{
		"fmt": {imports: []string{"io"}},
		"a":   {imports: []string{"fmt"}, testImports: []string{"fmt", "testing", "a", "net"}},
	}
	if fmt.Sprint(g) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", g, want)
	}
	if _, err := readGraph(strings.NewReader(`{"ImportPath": "a"`)); err == nil {
		t.Error("half an answer is taken for a whole one")
	}
}

func TestReadModules(t *testing.T) {
	got := readModules([]byte("go 1.26.0\n\nuse (\n\t./a\n\t./sdk/go // why\n)\nuse ./b\n"))
	if want := []string{"a", "sdk/go", "b"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
