package chart

import (
	"flag"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/mics-im/mics/controlplane"
	"github.com/mics-im/mics/gateway"
	"github.com/mics-im/mics/router"
	"go.yaml.in/yaml/v3"
)

var update = flag.Bool("update", false, "write the chart's README")

func TestReadmeIsCurrent(t *testing.T) {
	want, err := readme([]byte(readFile(t, filepath.Join(chartDir, "values.yaml"))))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(chartDir, "README.md")
	if *update {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if got := readFile(t, path); got != want {
		t.Error("charts/mics/README.md is not what values.yaml says: make chart-readme")
	}
}

func TestReadmeOfComments(t *testing.T) {
	got, err := readme([]byte("# about all\n\n# -- First.\n# line\na: 1\nb:\n  # -- In | b.\n  c: \"\"\n  d: [x]\n# -- As one.\ne: {f: 1}\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := "| `a` | `1` | First. line |\n| `b.c` |  | In \\| b. |\n| `b.d` | `[\"x\"]` |  |\n| `e` | `{\"f\":1}` | As one. |\n"
	if !strings.HasSuffix(got, want) {
		t.Errorf("got\n%s", got)
	}
}

// derivation is an entry of validate.yaml: a setting and where it comes from.
var derivation = regexp.MustCompile(`"([A-Z0-9_]+)" "[^"]+"`)

var setting = regexp.MustCompile(`\[([A-Z0-9_]+)\]`)

// settings are the services' settings by component, from their own usage.
func settings(t *testing.T) map[string][]string {
	t.Helper()
	none := func(string) (string, bool) { return "", false }
	usage := map[string]error{}
	_, usage["gateway"] = gateway.LoadConfig([]string{"--help"}, none)
	_, usage["router"] = router.LoadConfig([]string{"--help"}, none)
	_, usage["controlplane"] = controlplane.LoadConfig([]string{"--help"}, none)
	out := map[string][]string{}
	for component, err := range usage {
		for _, m := range setting.FindAllStringSubmatch(err.Error(), -1) {
			out[component] = append(out[component], m[1])
		}
		if len(out[component]) < 5 {
			t.Fatalf("%s: no usage: %v", component, err)
		}
	}
	return out
}

// TestSettingsAreTheServices: what the chart lets an operator set, or sets itself,
// are settings that the services have.
func TestSettingsAreTheServices(t *testing.T) {
	known := settings(t)
	var schema struct {
		Properties map[string]struct {
			Properties map[string]struct {
				Properties map[string]any `yaml:"properties"`
			} `yaml:"properties"`
		} `yaml:"properties"`
	}
	if err := yaml.Unmarshal([]byte(readFile(t, filepath.Join(chartDir, "values.schema.json"))), &schema); err != nil {
		t.Fatal(err)
	}
	derived := map[string]bool{}
	for _, m := range derivation.FindAllStringSubmatch(readFile(t, filepath.Join(chartDir, "templates/validate.yaml")), -1) {
		derived[m[1]] = true
	}
	if len(derived) < 20 {
		t.Fatalf("derived: %v", derived)
	}
	for component, names := range known {
		allowed := schema.Properties[component].Properties["settings"].Properties
		if len(allowed) == 0 {
			t.Fatalf("%s: the schema has no settings", component)
		}
		for _, name := range names {
			if _, found := allowed[name]; !found {
				t.Errorf("%s has the setting %s, which charts/mics/values.schema.json does not allow in %s.settings: add it there, or with a reason to the derived ones", component, name, component)
			}
		}
		for name := range allowed {
			// The derived ones are let through to a sentence, wherever they are.
			if !slices.Contains(names, name) && !derived[name] {
				t.Errorf("%s.settings.%s is allowed, but %s has no such setting", component, name, component)
			}
		}
	}
	kubernetes := []string{"POD_IP", "GOMEMLIMIT", "GOMAXPROCS"}
	for variant, vals := range variants(t) {
		r, _ := mustRender(t, vals)
		for name, pod := range podsOf(t, r) {
			names, service := known[pod.Labels["app.kubernetes.io/component"]]
			if !service {
				continue
			}
			for _, e := range pod.Spec.Containers[0].Env {
				if !slices.Contains(names, e.Name) && !slices.Contains(kubernetes, e.Name) {
					t.Errorf("%s: %s sets %s, which is no setting of it", variant, name, e.Name)
				}
			}
		}
	}
}

var metricName = regexp.MustCompile(`\bmics_[a-z0-9_]+\b`)

// metricsOfCode are the metrics that services register.
func metricsOfCode(t *testing.T) []string {
	t.Helper()
	quoted := regexp.MustCompile(`"(mics_[a-z0-9_]+)"`)
	found := map[string]bool{}
	for _, service := range []string{"gateway", "router", "controlplane", "internal"} {
		err := filepath.WalkDir(filepath.Join("../..", service), func(path string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			for _, m := range quoted.FindAllStringSubmatch(readFile(t, path), -1) {
				found[m[1]] = true
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return slices.Sorted(maps.Keys(found))
}

func metricsExist(t *testing.T, where, text string, known []string) {
	t.Helper()
	for _, name := range metricName.FindAllString(text, -1) {
		if strings.HasPrefix(name, "mics_io_") { // a label, mics.io/…
			continue
		}
		if !slices.Contains(known, name) && !slices.Contains(known, strings.TrimSuffix(name, "_bucket")) {
			t.Errorf("%s: no service has the metric %s", where, name)
		}
	}
}

// TestAlerts: every alert speaks of metrics that exist and links a section of the
// runbook that exists.
func TestAlerts(t *testing.T) {
	known := metricsOfCode(t)
	anchors := map[string]bool{}
	for line := range strings.Lines(readFile(t, "../../docs/runbook.md")) {
		if title, found := strings.CutPrefix(strings.TrimSpace(line), "## "); found {
			anchors[anchor(title)] = true
		}
	}
	r, _ := mustRender(t, values(t, []string{"values-ha.yaml"}))
	groups := r.want(t, "PrometheusRule/mics").at("spec", "groups").([]any)
	rules := groups[0].(map[string]any)["rules"].([]any)
	if len(rules) < 10 {
		t.Fatalf("%d alerts", len(rules))
	}
	seen := map[string]bool{}
	for _, rule := range rules {
		rule := rule.(map[string]any)
		name, expr := rule["alert"].(string), rule["expr"].(string)
		if seen[name] {
			t.Errorf("%s twice", name)
		}
		seen[name] = true
		if !metricName.MatchString(expr) {
			t.Errorf("%s is about no metric", name)
		}
		metricsExist(t, name, expr, known)
		url := rule["annotations"].(map[string]any)["runbook_url"].(string)
		if _, a, _ := strings.Cut(url, "#"); !anchors[a] {
			t.Errorf("%s: docs/runbook.md has no section %q", name, a)
		}
	}
}

// anchor is what a title's link is on the forges: lower case, blanks as dashes,
// punctuation gone.
func anchor(title string) string {
	title = strings.ReplaceAll(strings.ToLower(title), " ", "-")
	return regexp.MustCompile(`[^a-z0-9_-]`).ReplaceAllString(title, "")
}

func TestDashboards(t *testing.T) {
	known := metricsOfCode(t)
	r, _ := mustRender(t, values(t, []string{"values-ha.yaml"}))
	n := 0
	for _, o := range r.kind("ConfigMap") {
		for file, text := range o.at("data").(map[string]any) {
			n++
			var d struct {
				Panels []struct {
					Targets []struct{ Expr string }
				}
			}
			if err := yaml.Unmarshal([]byte(text.(string)), &d); err != nil {
				t.Errorf("%s: %v", file, err)
			}
			exprs := 0
			for _, p := range d.Panels {
				for _, q := range p.Targets {
					exprs++
					metricsExist(t, file, q.Expr, known)
				}
			}
			if exprs < 8 {
				t.Errorf("%s: %d queries", file, exprs)
			}
		}
	}
	if n < 2 {
		t.Errorf("%d dashboards", n)
	}
}
