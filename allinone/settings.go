package allinone

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/mics-im/mics/internal/config"
)

// settings are the values that the services of one process read: flags over
// environment over mics-dev's defaults, and above all of them what mics-dev
// decides for each service by itself (addresses, names). Every service takes
// from it what it declares; a flag that none took is a mistake. Not safe for
// concurrent use.
type settings struct {
	flags    map[string]flagValue // by canonical name
	lookup   func(string) (string, bool)
	defaults map[string]string
	taken    map[string]bool // canonical names of flags that a service asked for
}

type flagValue struct{ name, value string }

// decided names what mics-dev sets for every service; giving one of them as a
// flag is refused, and in the environment, where it may be meant for something
// else, it is not looked at.
var decided = []string{
	"NODE_ID", "LISTEN", "INTERNAL_LISTEN", "PUBLIC_ENDPOINT", "CLIENT_URL", "ROUTER_ENDPOINTS", "CONTROLPLANE_ENDPOINTS",
}

// canonical makes the forms of a setting's name equal:
// REDIS__CONNECTION, redis-connection.
func canonical(name string) string {
	return strings.Join(strings.FieldsFunc(strings.ToLower(name), func(r rune) bool { return r == '-' || r == '_' }), "-")
}

// splitArgs parts the arguments into those named own, for mics-dev itself, and
// the settings of the services: --NAME=VALUE, --NAME VALUE, or --NAME alone for
// "true".
func splitArgs(args []string, own ...string) (mine []string, services map[string]flagValue, err error) {
	services = map[string]flagValue{}
	var problems []error
	for i := 0; i < len(args); i++ {
		arg, isFlag := strings.CutPrefix(args[i], "--")
		if !isFlag || arg == "" {
			mine = append(mine, args[i]) // mics-dev's parser complains, or knows -h
			continue
		}
		name, value, hasValue := strings.Cut(arg, "=")
		if !hasValue && i+1 < len(args) && !strings.HasPrefix(args[i+1], "--") {
			i++
			value, hasValue = args[i], true
		}
		key := canonical(name)
		switch {
		case key == "help" || slices.Contains(own, key):
			mine = append(mine, "--"+name)
			if hasValue {
				mine[len(mine)-1] += "=" + value
			}
		case slices.ContainsFunc(decided, func(d string) bool { return canonical(d) == key }):
			problems = append(problems, fmt.Errorf("--%s: mics-dev decides this by itself (see --host, --base-port)", name))
		default:
			if !hasValue {
				value = "true"
			}
			services[key] = flagValue{name, value}
		}
	}
	if len(problems) > 0 {
		return nil, nil, fmt.Errorf("%w: %w", config.ErrInvalid, errors.Join(problems...))
	}
	return mine, services, nil
}

// with returns the lookup of one service, for which mics-dev decided these.
func (s *settings) with(decisions map[string]string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		if v, ok := decisions[name]; ok {
			return v, true
		}
		if slices.Contains(decided, name) {
			return "", false
		}
		return s.get(name)
	}
}

// get looks a setting up and notes that it was wanted.
func (s *settings) get(name string) (string, bool) {
	key := canonical(name)
	if f, ok := s.flags[key]; ok {
		s.taken[key] = true
		return f.value, true
	}
	v, ok := s.lookup(name)
	if def, has := s.defaults[name]; has && strings.TrimSpace(v) == "" {
		return def, true // also where the variable is set and empty
	}
	return v, ok
}

// unknown is the complaint about flags that no service took.
func (s *settings) unknown() error {
	var errs []error
	for _, key := range slices.Sorted(maps.Keys(s.flags)) {
		if !s.taken[key] {
			errs = append(errs, fmt.Errorf("--%s: no service has such a setting", s.flags[key].name))
		}
	}
	if len(errs) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %w", config.ErrInvalid, errors.Join(errs...))
}
