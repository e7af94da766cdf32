package tenant

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"unicode"
	"unicode/utf8"
)

// maxName bounds a tenant's name, as in the handshake (CONTRACT section 1).
const maxName = 128

// Names of the settings, for messages.
const (
	settingAuthMap     = "TENANT_AUTH_MAP"
	settingSecrets     = "TENANT_HOOK_SECRETS"
	settingConcurrency = "TENANT_HOOK_MAX_CONCURRENCY"
	settingFile        = "TENANTS_FILE"
)

// object reads a JSON object tenant → value; empty text is an empty object.
// Errors name setting and tenant and never quote a value, which may be a secret.
func object[T any](setting, text, kind string) (map[string]T, error) {
	if text == "" {
		return nil, nil
	}
	var raw map[string]json.RawMessage
	if err := json.Unmarshal([]byte(text), &raw); err != nil || raw == nil {
		if se, ok := errors.AsType[*json.SyntaxError](err); ok {
			return nil, fmt.Errorf("%s: not a JSON object (at byte %d)", setting, se.Offset)
		}
		return nil, fmt.Errorf("%s: must be a JSON object, tenant to %s", setting, kind)
	}
	out := make(map[string]T, len(raw))
	var problems []error
	for _, name := range slices.Sorted(maps.Keys(raw)) {
		var v *T
		if err := json.Unmarshal(raw[name], &v); err != nil || v == nil {
			problems = append(problems, fmt.Errorf("%s: tenant %q: must be a %s", setting, name, kind))
			continue
		}
		out[name] = *v
	}
	return out, errors.Join(problems...)
}

// checkName refuses what no client could send as its tenant (CONTRACT section 1).
func checkName(name string) error {
	if name == "" || len(name) > maxName {
		return fmt.Errorf("tenant %.20q: a name has 1 to %d bytes", name, maxName)
	}
	if !utf8.ValidString(name) {
		return fmt.Errorf("tenant %q: a name is valid UTF-8", name)
	}
	for _, r := range name {
		if !unicode.IsPrint(r) {
			return fmt.Errorf("tenant %q: a name is printable", name)
		}
	}
	return nil
}

// checkURL accepts a base URL to which a hook's name can be appended. It does
// not quote the URL, which may hold a password.
func checkURL(text string) error {
	u, err := url.Parse(text)
	switch {
	case err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Hostname() == "":
		return errors.New("must be a URL with http:// or https:// and a host")
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return errors.New("must be a URL without query and fragment")
	}
	if port := u.Port(); port != "" {
		if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
			return errors.New("must be a URL with a port from 1 to 65535")
		}
	}
	return nil
}

// checkConcurrency is the limit of every setting of that kind.
func checkConcurrency(n int) error {
	if n < 1 || n > MaxHookConcurrency {
		return fmt.Errorf("%d is not from 1 to %d", n, MaxHookConcurrency)
	}
	return nil
}

// environment are the three maps from the environment.
func environment(src Source) (map[string]entry, error) {
	bases, err1 := object[string](settingAuthMap, src.AuthMap, "base URL")
	secrets, err2 := object[string](settingSecrets, src.HookSecrets, "secret")
	calls, err3 := object[int](settingConcurrency, src.MaxConcurrency, "whole number")
	problems := []error{err1, err2, err3}
	bad := func(setting, name string, err error) {
		problems = append(problems, fmt.Errorf("%s: tenant %q: %w", setting, name, err))
	}
	out := map[string]entry{}
	for _, name := range slices.Sorted(maps.Keys(bases)) {
		base := bases[name]
		if err := checkName(name); err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", settingAuthMap, err))
		}
		if err := checkURL(base); err != nil {
			bad(settingAuthMap, name, err)
		}
		out[name] = entry{authURL: base}
	}
	for _, name := range slices.Sorted(maps.Keys(secrets)) {
		secret := secrets[name]
		if secret == "" {
			bad(settingSecrets, name, errors.New("must not be empty"))
		}
		e := out[name]
		e.authSecret = secret
		out[name] = e
	}
	for _, name := range slices.Sorted(maps.Keys(calls)) {
		n := calls[name]
		if err := checkConcurrency(n); err != nil {
			bad(settingConcurrency, name, err)
		}
		e := out[name]
		e.concurrency = n
		out[name] = e
	}
	return out, errors.Join(problems...)
}
