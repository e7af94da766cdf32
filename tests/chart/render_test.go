package chart

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/mics-im/mics/internal/testkit"
	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"helm.sh/helm/v3/pkg/strvals"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
)

func TestMain(m *testing.M) { testkit.Main(m) }

const chartDir = "../../charts/mics"

// object is one rendered object.
type object struct{ unstructured.Unstructured }

// at returns the value at a path of fields; nil if there is none.
func (o object) at(path ...string) any {
	v, _, _ := unstructured.NestedFieldNoCopy(o.Object, path...)
	return v
}

// rendered is a rendering by kind/name.
type rendered map[string]object

func (r rendered) kind(kind string) []object {
	var out []object
	for _, key := range slices.Sorted(maps.Keys(r)) {
		if strings.HasPrefix(key, kind+"/") {
			out = append(out, r[key])
		}
	}
	return out
}

// want returns the named object.
func (r rendered) want(t *testing.T, key string) object {
	t.Helper()
	o, found := r[key]
	if !found {
		t.Fatalf("%s is not rendered; there are %v", key, slices.Sorted(maps.Keys(r)))
	}
	return o
}

func load(t *testing.T) *chart.Chart {
	t.Helper()
	c, err := loader.Load(chartDir)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// values reads values files of the chart and applies `a.b=c` assignments.
func values(t *testing.T, files []string, set ...string) map[string]any {
	t.Helper()
	out := map[string]any{}
	for _, f := range files {
		v, err := chartutil.ReadValuesFile(filepath.Join(chartDir, f))
		if err != nil {
			t.Fatal(err)
		}
		out = chartutil.CoalesceTables(v, out)
	}
	for _, s := range set {
		if err := strvals.ParseInto(s, out); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// render renders as `helm install mics --namespace ns` does.
func render(t *testing.T, vals map[string]any) (rendered, string, error) {
	t.Helper()
	c := load(t)
	opts := chartutil.ReleaseOptions{Name: "mics", Namespace: "ns", Revision: 1, IsInstall: true}
	all, err := chartutil.ToRenderValues(c, vals, opts, chartutil.DefaultCapabilities)
	if err != nil {
		return nil, "", err
	}
	files, err := engine.Render(c, all)
	if err != nil {
		return nil, "", err
	}
	out := rendered{}
	var notes string
	for name, text := range files {
		if strings.HasSuffix(name, "NOTES.txt") {
			notes = text
			continue
		}
		d := yaml.NewYAMLOrJSONDecoder(bytes.NewBufferString(text), 4096)
		for {
			var o object
			if err := d.Decode(&o.Object); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%s: %v\n%s", name, err, text)
			}
			if len(o.Object) == 0 {
				continue
			}
			key := o.GetKind() + "/" + o.GetName()
			if _, twice := out[key]; twice {
				t.Errorf("%s is rendered twice", key)
			}
			out[key] = o
		}
	}
	return out, notes, nil
}

func mustRender(t *testing.T, vals map[string]any) (rendered, string) {
	t.Helper()
	r, notes, err := render(t, vals)
	if err != nil {
		t.Fatal(err)
	}
	return r, notes
}

// variants are what every structural rule is tested on.
func variants(t *testing.T) map[string]map[string]any {
	t.Helper()
	out := map[string]map[string]any{
		"defaults":               values(t, nil),
		"canary without a route": values(t, nil, "canary.enabled=true", "canary.tag=v2", "name=im"),
		"ingress":                values(t, nil, "ingress.enabled=true", "ingress.hosts={im.example.com}", "ingress.tlsSecret=t", "canary.enabled=true", "canary.weight=5"),
		"everything": values(t, []string{"values-ha.yaml"}, "mtls.enabled=true", "kafka.bootstrapServers=k:9093", "kafka.tls=true", "kafka.tlsSecret=k",
			"kafka.sasl.mechanism=PLAIN", "kafka.sasl.username=u", "kafka.sasl.passwordSecret=p", "gateway.autoscaling.connections=20000",
			"gateway.tlsSecret=c", "gateway.clientURL=ws://$(POD_IP):8080/ws", "tracing.endpoint=http://otel:4318", "gateway.resources.limits.cpu=2"),
	}
	files, err := filepath.Glob(filepath.Join(chartDir, "values-*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatal("no values files", err)
	}
	for _, f := range files {
		out[filepath.Base(f)] = values(t, []string{filepath.Base(f)})
	}
	return out
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
