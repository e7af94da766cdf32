package deps

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// ours is the path under which all modules of the project live. In a pattern
// "./" stands for it.
const ours = "github.com/mics-im/mics/"

// node is one package: what it imports, and what only its tests import.
type node struct {
	imports, testImports []string
}

// graph is every package of the project and all that they need, by import path.
type graph map[string]node

// readGraph reads what `go list -deps -test -json=ImportPath,ForTest,Imports`
// prints.
func readGraph(r io.Reader) (graph, error) {
	g := graph{}
	for d := json.NewDecoder(r); ; {
		var p struct {
			ImportPath, ForTest string
			Imports             []string
		}
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return g, nil
		} else if err != nil {
			return nil, fmt.Errorf("read go list: %w", err)
		}
		// "p [p.test]" is p with its tests, "p_test [p.test]" its tests from
		// outside, "q [p.test]" q built anew for them, "p.test" the program.
		path, variant, _ := strings.Cut(p.ImportPath, " ")
		for i, imp := range p.Imports {
			p.Imports[i], _, _ = strings.Cut(imp, " ")
		}
		switch {
		case variant == "" && strings.HasSuffix(path, ".test"):
		case variant == "":
			n := g[path]
			n.imports = p.Imports
			g[path] = n
		case path == p.ForTest || path == p.ForTest+"_test":
			n := g[p.ForTest]
			n.testImports = append(n.testImports, p.Imports...)
			g[p.ForTest] = n
		}
	}
}

// match tells whether path is what pattern says: "a/b" is that package,
// "a/b/..." also everything below it.
func match(pattern, path string) bool {
	if rest, ok := strings.CutPrefix(pattern, "./"); ok {
		pattern = ours + rest
	}
	tree, ok := strings.CutSuffix(pattern, "/...")
	return path == tree || ok && strings.HasPrefix(path, tree+"/")
}

func matchAny(patterns []string, path string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return match(p, path) })
}

// matching returns the packages of the graph that a pattern names, sorted.
func (g graph) matching(patterns ...string) []string {
	var paths []string
	for path := range g {
		if matchAny(patterns, path) {
			paths = append(paths, path)
		}
	}
	slices.Sort(paths)
	return paths
}

// fence says what packages may not import.
type fence struct {
	// from and forbidden are patterns; what except names is not meant by from,
	// and what allowed names is not meant by forbidden.
	from, except       []string
	forbidden, allowed []string
	// direct: only the import itself is forbidden, not what it brings along.
	direct bool
	// testsToo: tests of the packages keep to it as well.
	testsToo bool
	// owner, if set, is the one package that does import what is forbidden.
	// Once it exists and does not, the fence guards nothing.
	owner string
	why   string
}

// violations returns every chain of imports that breaks the fence, one for
// each package and forbidden package, shortest first.
func (f fence) violations(g graph) []string {
	var out []string
	for _, from := range g.matching(f.from...) {
		if matchAny(f.except, from) {
			continue
		}
		for _, chain := range f.chains(g, from) {
			out = append(out, fmt.Sprintf("%s\n\twhy not: %s", strings.Join(chain, " → "), f.why))
		}
	}
	return out
}

// chains searches the imports of one package, breadth first.
func (f fence) chains(g graph, from string) (found [][]string) {
	first := slices.Clone(g[from].imports)
	if f.testsToo {
		first = append(first, g[from].testImports...)
	}
	seen := map[string]bool{from: true}
	var queue [][]string
	visit := func(chain, imports []string) {
		for _, imp := range imports {
			if seen[imp] {
				continue
			}
			seen[imp] = true
			longer := append(slices.Clone(chain), imp)
			if matchAny(f.forbidden, imp) && !matchAny(f.allowed, imp) {
				found = append(found, longer) // what lies behind it is its own affair
			} else if !f.direct {
				queue = append(queue, longer)
			}
		}
	}
	visit([]string{from}, first)
	for len(queue) > 0 {
		chain := queue[0]
		queue = queue[1:]
		visit(chain, g[chain[len(chain)-1]].imports)
	}
	return found
}

// blunders returns why the fence would guard nothing. modules maps the modules
// of the project ("gateway", "sdk/go") to whether they have code yet.
func (f fence) blunders(g graph, modules map[string]bool) []string {
	var out []string
	for _, p := range slices.Concat(f.from, f.except, f.forbidden, f.allowed) {
		rest, ok := strings.CutPrefix(p, "./")
		if ok && rest != "..." && moduleOf(rest, modules) == "" {
			out = append(out, fmt.Sprintf("%s: no such module", p))
		}
	}
	for _, p := range f.from {
		module := moduleOf(strings.TrimPrefix(p, "./"), modules)
		if (p == "./..." || modules[module]) && len(g.matching(p)) == 0 {
			out = append(out, fmt.Sprintf("%s: no such package, although its module has code", p))
		}
	}
	if f.owner != "" && len(g.matching(f.owner)) > 0 {
		f.from, f.except = []string{f.owner}, nil
		if len(f.violations(g)) == 0 {
			out = append(out, fmt.Sprintf("%s does not import %s: is that its name?", f.owner, strings.Join(f.forbidden, ", ")))
		}
	}
	if f.why == "" {
		out = append(out, fmt.Sprintf("%v: no reason given", f.from))
	}
	return out
}

// moduleOf returns the module that a pattern without its "./" lies in.
func moduleOf(pattern string, modules map[string]bool) string {
	pattern = strings.TrimSuffix(pattern, "/...")
	for m := range modules {
		if pattern == m || strings.HasPrefix(pattern, m+"/") {
			return m
		}
	}
	return ""
}

// readModules reads the modules of a go.work file: lines of ./folder.
func readModules(work []byte) (modules []string) {
	for line := range bytes.Lines(work) {
		for field := range bytes.FieldsSeq(line) {
			if dir, ok := bytes.CutPrefix(field, []byte("./")); ok {
				modules = append(modules, string(dir))
			}
		}
	}
	return modules
}
