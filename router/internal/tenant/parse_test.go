package tenant

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mics-im/mics/internal/config"
	"github.com/mics-im/mics/internal/testkit"
	hookv1 "github.com/mics-im/mics/proto/mics/hook/v1"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// refused fails the test unless err says all of want and nothing of a secret.
func refused(t *testing.T, what string, err error, want ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("%s: accepted", what)
		return
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%s: %v, want it to say %q", what, err, w)
		}
	}
	if strings.Contains(err.Error(), "hush") {
		t.Errorf("%s: a secret is in: %v", what, err)
	}
}

func TestProblemsOfTheEnvironmentNameSettingAndKey(t *testing.T) {
	long := strings.Repeat("x", maxName+1)
	for _, tc := range []struct {
		src  Source
		want []string
	}{
		{Source{AuthMap: `{"a":"ftp://x","b":""}`}, []string{settingAuthMap, `"a"`, `"b"`, "http://"}},
		{Source{AuthMap: `{"a":"http://"}`}, []string{settingAuthMap, `"a"`, "host"}},
		{Source{AuthMap: `{"a":"http://u:hush@x?y"}`}, []string{settingAuthMap, `"a"`, "without query"}},
		{Source{AuthMap: `{"a":"http://u:hush@x#y"}`}, []string{settingAuthMap, `"a"`, "fragment"}},
		{Source{AuthMap: `{"a":"http://x:99999"}`}, []string{settingAuthMap, `"a"`, "1 to 65535"}},
		{Source{AuthMap: `{"a":"http://u:hush%zz@x"}`}, []string{settingAuthMap, `"a"`, "http://"}},
		{Source{AuthMap: `[`}, []string{settingAuthMap, "JSON"}},
		{Source{AuthMap: `["hush"]`}, []string{settingAuthMap, "must be a JSON object, tenant to base URL"}},
		{Source{AuthMap: `null`}, []string{settingAuthMap, "must be a JSON object"}},
		{Source{AuthMap: `{"a":null}`}, []string{settingAuthMap, `"a"`, "must be a base URL"}},
		{Source{AuthMap: `{"":"http://x"}`}, []string{settingAuthMap, "1 to 128"}},
		{Source{AuthMap: `{"` + long + `":"http://x"}`}, []string{settingAuthMap, "1 to 128"}},
		{Source{AuthMap: `{"a\u0007":"http://x"}`}, []string{settingAuthMap, "printable"}},
		{Source{HookSecrets: `{"a":"hush"}`}, []string{`"a"`, settingAuthMap, settingFile}},
		{Source{HookSecrets: `{"a":["hush"]}`}, []string{settingSecrets, `"a"`, "must be a secret"}},
		{Source{HookSecrets: `{"a":"hush`}, []string{settingSecrets, "at byte"}},
		{Source{AuthMap: `{"a":"http://x"}`, HookSecrets: `{"a":""}`}, []string{settingSecrets, `"a"`, "must not be empty"}},
		{Source{AuthMap: `{"a":"http://x"}`, MaxConcurrency: `{"a":0}`}, []string{settingConcurrency, `"a"`, "1 to 1024"}},
		{Source{AuthMap: `{"a":"http://x"}`, MaxConcurrency: `{"a":1025}`}, []string{settingConcurrency, `"a"`, "1 to 1024"}},
		{Source{AuthMap: `{"a":"http://x"}`, MaxConcurrency: `{"a":1.5}`}, []string{settingConcurrency, `"a"`, "whole number"}},
		// All at once.
		{Source{AuthMap: `{"a":"x"}`, HookSecrets: `{"a":1}`, MaxConcurrency: `{"a":-1}`}, []string{settingAuthMap, settingSecrets, settingConcurrency}},
	} {
		_, err := New(tc.src)
		refused(t, fmt.Sprintf("%+v", tc.src), err, tc.want...)
		if !errors.Is(err, config.ErrInvalid) {
			t.Errorf("%+v: %v is no config.ErrInvalid", tc.src, err)
		}
	}
}

func TestProblemsOfTheFileNameLineKeyAndLimit(t *testing.T) {
	tenant := func(lines ...string) string {
		return "tenants:\n  acme:\n    auth_url: http://x\n    " + strings.Join(lines, "\n    ") + "\n"
	}
	cases := map[string][]string{
		"":                                     {"empty", "tenants: {}"},
		"# nothing\n":                          {"empty"},
		"---\n":                                {"empty"},
		"tenants:\n":                           {"line 1", "tenants", "empty"},
		"[a]":                                  {"line 1", "the document", "mapping"},
		"tenants: {}\n---\ntenants: {}\n":      {"more than one document"},
		"tenants: {}\n---\n- *hush\n":          {"not YAML"},
		"tenats: {}\n":                         {"line 1", "tenats", "unknown key"},
		"tenants: {}\ntenants: {}\n":           {"line 2", "once"},
		"tenants: [acme]\n":                    {"line 1", "tenants", "mapping"},
		"tenants: {acme: http}\n":              {"line 1", "tenants.acme", "mapping"},
		"tenants: {'': {auth_url: http://x}}":  {"line 1", "1 to 128"},
		"tenants: {\"a\\n\": {}}":              {"line 1", "printable"},
		"tenants: {? [a] : {}}":                {"line 1", "tenants", "keys are texts"},
		"x: &a {}\ntenants: *a\n":              {"line 2", "aliases"},
		"tenants:\n  acme:\n\tauth_url: hush":  {"line 3", "not YAML"},
		"tenants: {acme: {secret: s}}":         {`"acme"`, settingAuthMap, settingFile},
		tenant("auth_url: http://y"):           {"line 4", "tenants.acme", "once"},
		tenant("secert: hush"):                 {"line 4", "tenants.acme.secert", "unknown key"},
		tenant("secret: [hush]"):               {"line 4", "tenants.acme.secret", "single value"},
		tenant("secret: ''"):                   {"line 4", "tenants.acme.secret", "must not be empty"},
		tenant("secret:"):                      {"line 4", "tenants.acme.secret", "must not be empty"},
		tenant("secret: ~"):                    {"line 4", "tenants.acme.secret", "must not be empty"},
		tenant("secret: *hush"):                {"not YAML", "quotes"},
		tenant("secret: !hush xyz"):            {"line 4", "tenants.acme.secret", "quotes"},
		tenant("secret: &hush xyz"):            {"line 4", "tenants.acme.secret", "quotes"},
		tenant("secret: 'hush"):                {"line", "not YAML"},
		tenant("secret: @hush"):                {"line 4", "not YAML"},
		tenant("hook_base_url: ftp://hush"):    {"line 4", "tenants.acme.hook_base_url", "http://"},
		tenant("hook_base_url: http://x?hush"): {"line 4", "tenants.acme.hook_base_url", "query"},
		"tenants: {acme: {auth_url: hush}}":    {"line 1", "tenants.acme.auth_url", "http://"},
		// All at once, each with its line.
		tenant("a: 1", "b: 2"): {"line 4: tenants.acme.a:", "line 5: tenants.acme.b:"},
	}
	for _, rule := range intRules {
		for _, v := range []string{fmt.Sprint(rule.min - 1), fmt.Sprint(rule.max + 1), "1.5", "hush", "''", "~", "99999999999999999999"} {
			want := []string{"line 4", "tenants.acme." + rule.name}
			if v != "~" {
				want = append(want, fmt.Sprintf("from %d to %d", rule.min, rule.max))
			}
			cases[tenant(rule.name+": "+v)] = want
		}
	}
	for _, name := range boolNames {
		cases[tenant(name+": hush")] = []string{"line 4", "tenants.acme." + name, "true or false"}
	}
	for text, want := range cases {
		file, err := parseFile([]byte(text))
		if err == nil {
			_, err = merge(nil, file)
		}
		refused(t, text, err, want...)
	}
}

func TestTheFileSaysWhatItSays(t *testing.T) {
	text := "tenants:\n  'acme & co':\n    auth_url: http://x\n    secret: '*s3cret'\n  plain:\n    secret: 0123\n  bare:\n"
	got, err := parseFile([]byte(text))
	want := map[string]entry{
		"acme & co": {authURL: "http://x", authSecret: "*s3cret"},
		"plain":     {authSecret: "0123"},
		"bare":      {},
	}
	if err != nil || !maps.Equal(got, want) {
		t.Fatalf("%+v, %v", got, err)
	}
	for k, rule := range intRules {
		for _, n := range []int{rule.min, rule.max} {
			got, err := parseFile(fmt.Appendf(nil, "tenants: {a: {%s: %d}}", rule.name, n))
			if err != nil || got["a"].override.ints[k] != say(n) {
				t.Errorf("%s %d: %+v, %v", rule.name, n, got["a"], err)
			}
		}
	}
	for k, name := range boolNames {
		for _, b := range []bool{true, false} {
			got, err := parseFile(fmt.Appendf(nil, "tenants: {a: {%s: %v}}", name, b))
			if err != nil || got["a"].override.bools[k] != say(b) {
				t.Errorf("%s %v: %+v, %v", name, b, got["a"], err)
			}
		}
	}
	if got, err := parseFile([]byte("tenants: {} # none\n")); err != nil || len(got) != 0 {
		t.Errorf("no tenants: %+v, %v", got, err)
	}
}

func FuzzParseFile(f *testing.F) {
	f.Add("tenants:\n  acme:\n    auth_url: http://x\n    secret: s\n    hook_max_concurrency: 3\n")
	f.Add("tenants: {a: {check_message_enabled: true}}\n")
	f.Add("a: &a\nb: *a\n")
	f.Fuzz(func(t *testing.T, text string) {
		file, err := parseFile([]byte(text))
		if err != nil {
			return
		}
		for name, e := range file {
			if checkName(name) != nil || e.authURL != "" && checkURL(e.authURL) != nil {
				t.Fatalf("%q: %+v", name, e)
			}
			for k, o := range e.override.ints {
				if o.said && (o.v < intRules[k].min || o.v > intRules[k].max) {
					t.Fatalf("%q: %s is %d", name, intRules[k].name, o.v)
				}
			}
		}
	})
}

func TestTheFileWinsValueByValue(t *testing.T) {
	env, err := environment(Source{
		AuthMap:        `{"both":"http://env","env":"http://env"}`,
		HookSecrets:    `{"both":"env","later":"env"}`,
		MaxConcurrency: `{"both":7}`,
	})
	if err != nil {
		t.Fatal(err)
	}
	file, err := parseFile([]byte("tenants: {both: {secret: file, events_required: true}, later: {auth_url: http://file}, file: {auth_url: http://file, secret: file}}"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := merge(env, file)
	var required values
	required.bools[eventsRequired] = say(true)
	want := map[string]entry{
		"both":  {authURL: "http://env", authSecret: "file", concurrency: 7, override: required},
		"env":   {authURL: "http://env"},
		"later": {authURL: "http://file", authSecret: "env"},
		"file":  {authURL: "http://file", authSecret: "file"},
	}
	if err != nil || !maps.Equal(got, want) {
		t.Fatalf("%+v, %v", got, err)
	}
	if _, err := merge(env, nil); err == nil || !strings.Contains(err.Error(), `"later"`) || strings.Contains(err.Error(), `"both"`) {
		t.Fatalf("a tenant without a base URL: %v", err)
	}
}

func TestSettingsFromFlagsAndEnvironment(t *testing.T) {
	parse := func(env map[string]string) (Source, error) {
		var src Source
		set := config.New("test")
		src.Register(set)
		return src, set.Parse(nil, func(name string) (string, bool) { v, ok := env[name]; return v, ok })
	}
	src, err := parse(nil)
	if err != nil || src.Settings != DefaultSettings {
		t.Fatalf("defaults %+v, %v", src, err)
	}
	src, err = parse(map[string]string{
		"TENANT_AUTH_MAP": `{"a":"http://x"}`, "TENANT_HOOK_SECRETS": `{"a":"s"}`, "TENANT_HOOK_MAX_CONCURRENCY": `{"a":3}`,
		"TENANTS_FILE": "f", "HOOK_SIGN_REQUIRED": "true", "HOOK_MAX_CONCURRENCY": "9", "HOOK_QUEUE_TIMEOUT_MS": "25",
	})
	want := Source{
		AuthMap: `{"a":"http://x"}`, HookSecrets: `{"a":"s"}`, MaxConcurrency: `{"a":3}`, File: "f",
		Settings: Settings{HookMaxConcurrency: 9, HookQueueTimeout: 25 * time.Millisecond, SignRequired: true},
	}
	if err != nil || src != want {
		t.Fatalf("%+v, %v", src, err)
	}
	for name, text := range map[string]string{
		"TENANT_AUTH_MAP": `{"a":1}`, "TENANT_HOOK_SECRETS": `{"a":"hush"`, "TENANT_HOOK_MAX_CONCURRENCY": `{"a":-1}`,
		"HOOK_MAX_CONCURRENCY": "0", "HOOK_QUEUE_TIMEOUT_MS": "151",
	} {
		_, err := parse(map[string]string{name: text})
		refused(t, name, err, name)
		if !errors.Is(err, config.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestNamesOfRulesAreThoseOfTheContract(t *testing.T) {
	var names []string
	for _, r := range intRules {
		if r.min > r.max || r.max > math.MaxInt32 {
			t.Errorf("%s: %d to %d", r.name, r.min, r.max)
		}
		names = append(names, r.name)
	}
	names = append(names, boolNames[:]...)
	fields := (*hookv1.TenantRuntimeConfig)(nil).ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		name := string(fields.Get(i).Name())
		if name != "hook_base_url" && name != "tenant_secret" && !slices.Contains(names, name) {
			t.Errorf("%s of TenantRuntimeConfig cannot be overridden", name)
		}
	}
	if fields.Len() != len(names)+2 {
		t.Errorf("%d names for %d fields", len(names), fields.Len())
	}
}
