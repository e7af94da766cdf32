package tenant

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strconv"

	"go.yaml.in/yaml/v3"
)

// maxFile bounds TENANTS_FILE.
const maxFile = 16 << 20

// parseFile reads TENANTS_FILE:
//
//	tenants:
//	  acme:                                  # the tenant's name
//	    auth_url: https://im.acme.example/mics   # as in TENANT_AUTH_MAP
//	    secret: s3cret                       # as in TENANT_HOOK_SECRETS
//	    # Overrides, all optional. They win over what the tenant's /auth says;
//	    # names and units are those of TenantRuntimeConfig (CONTRACT section 2).
//	    hook_base_url: https://im.acme.example/hooks
//	    hook_max_concurrency: 64             # 1 to 1024
//	    hook_queue_timeout_ms: 10            # 0 to 150
//	    hook_breaker_failure_threshold: 5    # 1 to 1000
//	    hook_breaker_open_ms: 5000           # 100 to 300000
//	    hook_sign_required: true
//	    heartbeat_timeout_seconds: 30        # 1 to 3600
//	    offline_buffer_ttl_seconds: 1800     # 0 (nothing is kept) to 604800
//	    offline_use_hook_pull: false
//	    tenant_max_connections: 0            # this and the next three: 0 is no limit
//	    user_max_connections: 0
//	    tenant_max_message_qps: 0
//	    user_max_message_qps: 0
//	    check_message_enabled: true
//	    events_required: false
//
// A tenant may be here, in the environment's maps, or in both; then what the
// file says wins, value by value. Unknown keys are errors. All problems are reported
// at once; each names the key and the line and none quotes a value.
func parseFile(text []byte) (map[string]entry, error) {
	var doc yaml.Node
	out := map[string]entry{}
	documents := yaml.NewDecoder(bytes.NewReader(text))
	if err := documents.Decode(&doc); err != nil && !errors.Is(err, io.EOF) {
		return nil, notYAML(err)
	}
	if err := documents.Decode(new(yaml.Node)); err == nil {
		return nil, fmt.Errorf("%s: more than one document", settingFile)
	} else if !errors.Is(err, io.EOF) {
		return nil, notYAML(err)
	}
	// A file that is being written may be seen empty: that must not take all
	// tenants away.
	if len(doc.Content) == 0 || isNull(doc.Content[0]) {
		return nil, fmt.Errorf("%s: empty; no tenants are written `tenants: {}`", settingFile)
	}
	p := parser{}
	p.mapping("", doc.Content[0], func(key string, kn, v *yaml.Node) {
		switch {
		case key != "tenants":
			p.bad(kn, key, errors.New("unknown key, only tenants is allowed"))
			return
		case isNull(v):
			p.bad(kn, key, errors.New("empty; no tenants are written {}"))
			return
		}
		p.mapping("tenants", v, func(name string, kn, v *yaml.Node) {
			if err := checkName(name); err != nil {
				p.bad(kn, "tenants", err)
				return
			}
			out[name] = p.tenant("tenants."+name, v)
		})
	})
	return out, errors.Join(p.problems...)
}

var lineNumber = regexp.MustCompile(`line \d+`)

// notYAML tells of a syntax error where it is, not what is there: a secret with
// a leading * is an alias to YAML, and its error would quote it.
func notYAML(err error) error {
	where := lineNumber.FindString(err.Error())
	if where != "" {
		where += ": "
	}
	return fmt.Errorf("%s: %snot YAML; texts with special characters need quotes", settingFile, where)
}

// parser collects problems while it walks the document.
type parser struct {
	problems []error
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

func (p *parser) bad(at *yaml.Node, path string, err error) {
	p.problems = append(p.problems, fmt.Errorf("%s: line %d: %s: %w", settingFile, at.Line, path, err))
}

// mapping calls each for every key; null is an empty mapping.
func (p *parser) mapping(path string, n *yaml.Node, each func(key string, kn, v *yaml.Node)) {
	if isNull(n) {
		return
	}
	if n.Kind != yaml.MappingNode {
		p.bad(n, first(path, "the document"), errors.New("must be a mapping"))
		return
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		kn, v := n.Content[i], n.Content[i+1]
		if kn.Kind != yaml.ScalarNode || v.Kind == yaml.AliasNode || seen[kn.Value] {
			p.bad(kn, first(path, "the document"), errors.New("keys are texts, once each, and values are no aliases"))
			continue
		}
		seen[kn.Value] = true
		each(kn.Value, kn, v)
	}
}

// tenant reads one tenant's mapping.
func (p *parser) tenant(path string, n *yaml.Node) entry {
	var e entry
	p.mapping(path, n, func(key string, kn, v *yaml.Node) {
		if err := e.set(key, v); err != nil {
			p.bad(kn, path+"."+key, err)
		}
	})
	return e
}

// set reads one value.
func (e *entry) set(key string, v *yaml.Node) error {
	switch {
	case v.Kind != yaml.ScalarNode:
		return errors.New("must be a single value")
	case v.Anchor != "" || v.Style&yaml.TaggedStyle != 0:
		return errors.New("a text that starts with & or ! needs quotes")
	case isNull(v):
		return errors.New("must not be empty")
	}
	switch key {
	case "auth_url":
		e.authURL = v.Value
		return checkURL(v.Value)
	case "hook_base_url":
		e.override.hookBaseURL = v.Value
		return checkURL(v.Value)
	case "secret":
		e.authSecret = v.Value
		if v.Value == "" {
			return errors.New("must not be empty")
		}
		return nil
	}
	for k, rule := range intRules {
		if rule.name != key {
			continue
		}
		n, err := strconv.Atoi(v.Value)
		if err != nil || n < rule.min || n > rule.max {
			return fmt.Errorf("must be a whole number from %d to %d", rule.min, rule.max)
		}
		e.override.ints[k] = say(n)
		return nil
	}
	for k, name := range boolNames {
		if name != key {
			continue
		}
		b, err := strconv.ParseBool(v.Value)
		if err != nil {
			return errors.New("must be true or false")
		}
		e.override.bools[k] = say(b)
		return nil
	}
	return errors.New("unknown key")
}

// merge puts what the file says over what the environment says.
func merge(env, file map[string]entry) (map[string]entry, error) {
	out := make(map[string]entry, len(env)+len(file))
	for name, e := range env {
		out[name] = e
	}
	for name, f := range file {
		e := out[name]
		e.authURL = first(f.authURL, e.authURL)
		e.authSecret = first(f.authSecret, e.authSecret)
		e.override = f.override
		out[name] = e
	}
	var problems []error
	for _, name := range slices.Sorted(maps.Keys(out)) {
		if out[name].authURL == "" {
			problems = append(problems, fmt.Errorf("tenant %q has a secret or an override and no base URL: add it to %s or give it an auth_url in %s",
				name, settingAuthMap, settingFile))
		}
	}
	return out, errors.Join(problems...)
}
