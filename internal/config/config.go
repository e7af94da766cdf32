// Package config reads a process's settings. Every setting has one name, the
// environment variable's; the flag of the same name wins over the environment
// (CONTRACT section 4). It glues pflag, which parses and prints, to the
// environment.
package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
)

// ErrInvalid is in the chain of every error about a setting's value.
var ErrInvalid = errors.New("invalid configuration")

// ErrHelp says that the usage was asked for.
var ErrHelp = pflag.ErrHelp

// Set is a process's settings. Declare all of them, then Parse once.
type Set struct {
	flags  *pflag.FlagSet
	names  map[string]string // flag name → setting name
	checks []func() error
}

// New returns an empty set for the named process.
func New(process string) *Set {
	f := pflag.NewFlagSet(process, pflag.ContinueOnError)
	f.SortFlags = false
	f.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		return pflag.NormalizedName(flagName(name))
	})
	return &Set{flags: f, names: map[string]string{}}
}

var separators = regexp.MustCompile(`[-_]+`)

// flagName: REDIS__CONNECTION → redis-connection.
func flagName(setting string) string {
	return separators.ReplaceAllString(strings.ToLower(setting), "-")
}

// Usage returns the settings with their defaults.
func (s *Set) Usage() string { return s.flags.FlagUsages() }

func (s *Set) add(v pflag.Value, name, usage string) {
	s.names[flagName(name)] = name
	s.flags.Var(v, name, usage+" ["+name+"]")
}

// String declares a text setting.
func (s *Set) String(p *string, name, def, usage string) {
	*p = def
	s.add(&value[string]{p, "text", func(t string) (string, error) { return t, nil }, func(v string) string { return v }}, name, usage)
}

// Enum declares a text setting with fixed values.
func (s *Set) Enum(p *string, name, usage string, allowed ...string) {
	*p = allowed[0]
	s.add(&value[string]{p, "text", func(t string) (string, error) {
		if !slices.Contains(allowed, t) {
			return "", fmt.Errorf("must be one of %s", strings.Join(allowed, ", "))
		}
		return t, nil
	}, func(v string) string { return v }}, name, usage)
}

// Bound is the range of a whole number, ends included.
type Bound struct{ Min, Max int }

func (b Bound) parse(t string) (int, error) {
	n, err := strconv.Atoi(t)
	if err != nil || n < b.Min || n > b.Max {
		return 0, fmt.Errorf("must be a whole number from %d to %d", b.Min, b.Max)
	}
	return n, nil
}

// Int declares a whole number; its default is what p holds.
func (s *Set) Int(p *int, name string, b Bound, usage string) {
	s.add(&value[int]{p, "number", b.parse, strconv.Itoa}, name, usage)
}

// Duration declares a time given as a whole number of units (a second, a
// millisecond); its default is what p holds.
func (s *Set) Duration(p *time.Duration, name string, unit time.Duration, b Bound, usage string) {
	s.add(&value[time.Duration]{p, "number", func(t string) (time.Duration, error) {
		n, err := b.parse(t)
		return time.Duration(n) * unit, err
	}, func(d time.Duration) string { return strconv.Itoa(int(d / unit)) }}, name, usage)
}

// Float declares a number between min and max; its default is what p holds.
func (s *Set) Float(p *float64, name string, lo, hi float64, usage string) {
	s.add(&value[float64]{p, "number", func(t string) (float64, error) {
		f, err := strconv.ParseFloat(t, 64)
		if err != nil || !(f >= lo && f <= hi) { // NaN is out of range too
			return 0, fmt.Errorf("must be a number from %g to %g", lo, hi)
		}
		return f, nil
	}, func(f float64) string { return strconv.FormatFloat(f, 'g', -1, 64) }}, name, usage)
}

// Bool declares a switch.
func (s *Set) Bool(p *bool, name, usage string) {
	v := &value[bool]{p, "bool", func(t string) (bool, error) {
		b, err := strconv.ParseBool(t)
		if err != nil {
			return false, errors.New("must be true or false")
		}
		return b, nil
	}, strconv.FormatBool}
	s.add(v, name, usage)
	s.flags.Lookup(name).NoOptDefVal = "true"
}

// List declares a comma-separated list; blanks are trimmed, empty is nil.
func (s *Set) List(p *[]string, name, usage string) {
	s.add(&value[[]string]{p, "list", func(t string) ([]string, error) {
		var out []string
		for part := range strings.SplitSeq(t, ",") {
			if part = strings.TrimSpace(part); part != "" {
				out = append(out, part)
			}
		}
		return out, nil
	}, func(l []string) string { return strings.Join(l, ",") }}, name, usage)
}

// Check adds a check over several settings, run after all are parsed; its
// error should name the setting and what is allowed.
func (s *Set) Check(f func() error) { s.checks = append(s.checks, f) }

// Parse reads flags and environment. All problems are reported at once; the
// error wraps ErrInvalid. ErrHelp passes through.
func (s *Set) Parse(args []string, lookup func(string) (string, bool)) error {
	s.flags.Usage = func() {}
	if err := s.flags.Parse(args); err != nil {
		if errors.Is(err, ErrHelp) {
			return err
		}
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	var problems []error
	if s.flags.NArg() > 0 {
		problems = append(problems, fmt.Errorf("unexpected argument %q", s.flags.Arg(0)))
	}
	s.flags.VisitAll(func(f *pflag.Flag) {
		name := s.names[f.Name]
		text, ok := lookup(name)
		if f.Changed || !ok {
			return
		}
		if err := f.Value.Set(strings.TrimSpace(text)); err != nil {
			problems = append(problems, fmt.Errorf("%s=%q: %w", name, text, err))
		}
	})
	if len(problems) == 0 {
		for _, check := range s.checks {
			if err := check(); err != nil {
				problems = append(problems, err)
			}
		}
	}
	if len(problems) > 0 {
		return fmt.Errorf("%w: %w", ErrInvalid, errors.Join(problems...))
	}
	return nil
}

// Loopback reports whether a listener at addr is reached from this machine only.
func Loopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback() || host == "localhost"
}

// HostName is the default NODE_ID: the machine's (a pod's) name.
func HostName() string {
	if h, err := os.Hostname(); err == nil && h != "" {
		return h
	}
	return "node"
}

// value adapts a parse function to pflag.Value.
type value[T any] struct {
	p     *T
	kind  string
	parse func(string) (T, error)
	print func(T) string
}

func (v *value[T]) Set(t string) error {
	x, err := v.parse(t)
	if err == nil {
		*v.p = x
	}
	return err
}

func (v *value[T]) String() string {
	if v.p == nil {
		return ""
	}
	return v.print(*v.p)
}

func (v *value[T]) Type() string { return v.kind }
