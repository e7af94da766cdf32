package config

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

type settings struct {
	redis   string
	track   string
	max     int
	drain   time.Duration
	routers []string
	sign    bool
	ratio   float64
}

func parse(args []string, env map[string]string) (settings, error) {
	c := settings{max: 128, drain: 10 * time.Second, ratio: 0.5}
	s := New("test")
	s.String(&c.redis, "REDIS__CONNECTION", "", "where Redis is")
	s.Enum(&c.track, "TRACK", "label", "stable", "canary")
	s.Int(&c.max, "MAX", Bound{1, 1000}, "bound")
	s.Duration(&c.drain, "DRAIN_TIMEOUT_SECONDS", time.Second, Bound{1, 3600}, "bound")
	s.List(&c.routers, "ROUTER_ENDPOINTS", "routers")
	s.Bool(&c.sign, "HOOK_SIGN_REQUIRED", "sign")
	s.Float(&c.ratio, "RATIO", 0, 1, "ratio")
	s.Check(func() error {
		if c.max == 13 {
			return errors.New("MAX=13: unlucky")
		}
		return nil
	})
	err := s.Parse(args, func(n string) (string, bool) { v, ok := env[n]; return v, ok })
	return c, err
}

func TestFlagWinsOverEnvironmentOverDefault(t *testing.T) {
	c, err := parse([]string{"--max=7", "--REDIS__CONNECTION", "a:1", "--hook-sign-required"},
		map[string]string{"MAX": "8", "DRAIN_TIMEOUT_SECONDS": "30", "ROUTER_ENDPOINTS": " http://a , ,http://b"})
	if err != nil {
		t.Fatal(err)
	}
	if c.max != 7 || c.redis != "a:1" || c.drain != 30*time.Second || !c.sign || c.track != "stable" || c.ratio != 0.5 {
		t.Errorf("got %+v", c)
	}
	if !slices.Equal(c.routers, []string{"http://a", "http://b"}) {
		t.Errorf("list %q", c.routers)
	}
}

func TestProblemsNameTheSettingAndTheLimit(t *testing.T) {
	for _, tc := range []struct {
		args []string
		env  map[string]string
		want []string
	}{
		{nil, map[string]string{"MAX": "many", "TRACK": "gold"}, []string{`MAX="many"`, "from 1 to 1000", `TRACK="gold"`, "stable, canary"}},
		{nil, map[string]string{"DRAIN_TIMEOUT_SECONDS": "0"}, []string{"DRAIN_TIMEOUT_SECONDS", "from 1 to 3600"}},
		{nil, map[string]string{"RATIO": "NaN"}, []string{"RATIO", "from 0 to 1"}},
		{nil, map[string]string{"MAX": "13"}, []string{"unlucky"}},
		{nil, map[string]string{"HOOK_SIGN_REQUIRED": "perhaps"}, []string{"true or false"}},
		{[]string{"--no-such"}, nil, []string{"no-such"}},
		{[]string{"stray"}, nil, []string{"stray"}},
	} {
		_, err := parse(tc.args, tc.env)
		if !errors.Is(err, ErrInvalid) {
			t.Errorf("%v %v: error %v is not ErrInvalid", tc.args, tc.env, err)
			continue
		}
		for _, w := range tc.want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%v %v: %q does not say %q", tc.args, tc.env, err, w)
			}
		}
	}
}

func TestHelpPassesThrough(t *testing.T) {
	if _, err := parse([]string{"--help"}, nil); !errors.Is(err, ErrHelp) {
		t.Fatalf("got %v", err)
	}
}
