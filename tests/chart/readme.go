package chart

import (
	"encoding/json"
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"
)

// readme returns the chart's README made from the comments of its values: what
// begins with `# --` describes the value below it. A map is a row of its own
// only if it is described or empty.
func readme(values []byte) (string, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(values, &doc); err != nil {
		return "", err
	}
	if len(doc.Content) != 1 {
		return "", fmt.Errorf("want one document, got %d", len(doc.Content))
	}
	var b strings.Builder
	b.WriteString(readmeHead)
	rows(&b, "", doc.Content[0])
	return b.String(), nil
}

const readmeHead = "# MICS chart\n\n" +
	"Made from the comments in `values.yaml`: `make chart-readme`.\n\n" +
	"    helm install mics charts/mics --namespace mics --create-namespace --values yours.yaml\n\n" +
	"`yours.yaml` names at least a tenant; for production begin with `values-ha.yaml`. One release\n" +
	"per namespace, unless `name` differs. How to operate it: [docs/runbook.md](../../docs/runbook.md).\n\n" +
	"`drainTimeout` is the one source of every deadline:\n\n" +
	"| deadline | is |\n|---|---|\n" +
	"| `DRAIN_TIMEOUT_SECONDS` of gateways | drainTimeout |\n" +
	"| preStop | `gateway.preStopSeconds`, before it |\n" +
	"| `terminationGracePeriodSeconds` of gateways | preStopSeconds + drainTimeout + 10 |\n" +
	"| `progressDeadlineSeconds` of a rollout | grace period + 300 |\n" +
	"| the HPA ends one gateway per | grace period, at least 60 |\n\n" +
	"Values that contradict each other are refused with a sentence.\n\n" +
	"| value | default | |\n|---|---|---|\n"

func rows(b *strings.Builder, prefix string, m *yaml.Node) {
	for i := 0; i+1 < len(m.Content); i += 2 {
		key, value := m.Content[i], m.Content[i+1]
		path := prefix + key.Value
		text := described(key.HeadComment)
		if value.Kind == yaml.MappingNode && len(value.Content) > 0 && text == "" {
			rows(b, path+".", value)
			continue
		}
		fmt.Fprintf(b, "| `%s` | %s | %s |\n", path, literal(value), text)
	}
}

// described is the part of a comment after `# --`, on one line.
func described(comment string) string {
	_, text, found := strings.Cut(comment, "# -- ")
	if !found {
		return ""
	}
	var words []string
	for line := range strings.Lines(text) {
		words = append(words, strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(line), "#")))
	}
	return strings.ReplaceAll(strings.Join(words, " "), "|", `\|`)
}

func literal(n *yaml.Node) string {
	if n.Kind == yaml.ScalarNode && n.Value == "" {
		return ""
	}
	var v any
	if err := n.Decode(&v); err != nil {
		return ""
	}
	text, err := json.Marshal(v)
	if err != nil {
		return ""
	}
	return "`" + strings.Trim(string(text), `"`) + "`"
}
