package route

import (
	"errors"
	"math"
	"testing"
	"time"
)

func TestRecordText(t *testing.T) {
	until := time.UnixMilli(1_700_000_000_123)
	for text, want := range map[string]Record{
		"1:1:0:0:1:0:": {Device: "d", State: Live, Epoch: 1, Version: 1},
		"9:1:18446744073709551615:18446744073709551614:2:0:gw-1": {
			Device: "d", State: Live, Epoch: 9, Session: math.MaxUint64, Version: 2,
			Node: NodeRef{"gw-1", math.MaxUint64 - 1},
		},
		"2:2:5:7:1:0:g%3A1+%25%7B%7D%00%E6%97%A5": {
			Device: "d", State: Closing, Epoch: 2, Session: 5, Version: 1, Node: NodeRef{"g:1 %{}\x00日", 7},
		},
		"3:3:5:7:1:1700000000123:g": {
			Device: "d", State: Ghost, Epoch: 3, Session: 5, Version: 1, Node: NodeRef{"g", 7}, Until: until,
		},
	} {
		if got := want.Text(); got != text {
			t.Errorf("Text() = %q, want %q", got, text)
		}
		for _, in := range []string{text, text + ":what:comes:later"} {
			if got, err := ParseRecord("d", in); err != nil || got != want {
				t.Errorf("ParseRecord(%q) = %+v, %v, want %+v", in, got, err, want)
			}
		}
	}
	for _, text := range []string{
		"", "1", "1:1:0:0:1:0", "a:1:0:0:1:0:g", "1:0:0:0:1:0:g", "1:4:0:0:1:0:g", "-1:1:0:0:1:0:g",
		"1:1:0:0:256:0:g", "1:1:18446744073709551616:0:1:0:g", "1:3:0:0:1:9223372036854775808:g", "1:1:0:0:1:0:%zz",
	} {
		if got, err := ParseRecord("d", text); err == nil {
			t.Errorf("ParseRecord(%q) = %+v, want an error", text, got)
		}
	}
}

func FuzzParseRecord(f *testing.F) {
	f.Add("1:1:2:3:1:0:gw-1")
	f.Add("3:3:5:7:2:1700000000123:a%3Ab:more")
	f.Fuzz(func(t *testing.T, text string) {
		r, err := ParseRecord("d", text)
		if err != nil {
			return
		}
		again, err := ParseRecord("d", r.Text())
		if err != nil || again != r {
			t.Fatalf("%q → %+v → %q → %+v, %v", text, r, r.Text(), again, err)
		}
	})
}

func TestChangeMatches(t *testing.T) {
	r := Record{Device: "d", State: Live, Epoch: 3, Session: 5, Node: NodeRef{"g", 7}}
	c := Change{Node: r.Node, Epoch: 3}
	for name, tc := range map[string]struct {
		edit func(*Record, *Change)
		want bool
	}{
		"live":                {func(*Record, *Change) {}, true},
		"closing":             {func(r *Record, _ *Change) { r.State = Closing }, true},
		"ghost":               {func(r *Record, _ *Change) { r.State = Ghost }, false},
		"epoch":               {func(_ *Record, c *Change) { c.Epoch = 2 }, false},
		"node":                {func(_ *Record, c *Change) { c.Node.ID = "h" }, false},
		"incarnation":         {func(_ *Record, c *Change) { c.Node.Incarnation++ }, false},
		"the very session":    {func(_ *Record, c *Change) { c.Session = 5 }, true},
		"an earlier session":  {func(_ *Record, c *Change) { c.Session = 4 }, false},
		"session not told":    {func(r *Record, _ *Change) { r.Session = 9 }, true},
		"session zero itself": {func(r *Record, _ *Change) { r.Session = 0 }, true},
	} {
		r, c := r, c
		tc.edit(&r, &c)
		if got := c.Matches(r); got != tc.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestCheck(t *testing.T) {
	full := DeviceKey{UserKey{"t", "u"}, "d"}
	for name, c := range map[string]Change{
		"no tenant":   {Key: DeviceKey{UserKey{"", "u"}, "d"}, To: Ghost},
		"no user":     {Key: DeviceKey{UserKey{"t", ""}, "d"}, To: Ghost},
		"no device":   {Key: DeviceKey{UserKey{"t", "u"}, ""}, To: Ghost},
		"to live":     {Key: full, To: Live},
		"to nothing":  {Key: full},
		"to whatever": {Key: full, To: 4},
	} {
		if err := c.Check(); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, to := range []State{Closing, Ghost} {
		if err := (Change{Key: full, To: to}).Check(); err != nil {
			t.Error(err)
		}
	}
}

func TestRestoredCheck(t *testing.T) {
	full := DeviceKey{UserKey{"t", "u"}, "d"}
	for name, r := range map[string]Restored{
		"no user":  {Key: DeviceKey{UserKey{"t", ""}, "d"}, Record: Record{State: Live}},
		"no state": {Key: full},
		"state 4":  {Key: full, Record: Record{State: Ghost + 1}},
	} {
		if err := r.Check(); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, state := range []State{Live, Closing, Ghost} {
		if err := (Restored{full, Record{State: state}}).Check(); err != nil {
			t.Error(err)
		}
	}
}

func TestYieldsTo(t *testing.T) {
	old := Record{State: Live, Epoch: 3, Session: 5, Node: NodeRef{"g", 7}}
	for name, tc := range map[string]struct {
		edit func(old, new *Record)
		want bool
	}{
		"a higher epoch":             {func(_, new *Record) { new.Epoch, new.Session = 4, 6 }, true},
		"a lower epoch":              {func(_, new *Record) { new.Epoch = 2 }, false},
		"itself":                     {func(_, _ *Record) {}, true},
		"itself, ending":             {func(_, new *Record) { new.State = Closing }, true},
		"ended, and itself, ending":  {func(old, new *Record) { old.State, new.State = Ghost, Closing }, false},
		"itself, ended":              {func(_, new *Record) { new.State = Ghost }, true},
		"live elsewhere":             {func(_, new *Record) { new.Session = 6 }, false},
		"live in another start":      {func(_, new *Record) { new.Node.Incarnation = 8 }, false},
		"ended, and live elsewhere":  {func(old, new *Record) { old.State, new.Session = Ghost, 6 }, true},
		"ended, but of higher epoch": {func(old, _ *Record) { old.State, old.Epoch = Ghost, 4 }, false},
	} {
		old, new := old, old
		tc.edit(&old, &new)
		if got := old.YieldsTo(new); got != tc.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestForgotten(t *testing.T) {
	now := time.Unix(1000, 0)
	for _, tc := range []struct {
		r    Record
		want bool
	}{
		{Record{State: Ghost, Until: now.Add(1)}, false},
		{Record{State: Ghost, Until: now}, true},
		{Record{State: Live}, false},
		{Record{State: Closing}, false},
	} {
		if got := tc.r.Forgotten(now); got != tc.want {
			t.Errorf("%+v: %v", tc.r, got)
		}
	}
}

func TestMillis(t *testing.T) {
	for d, want := range map[time.Duration]int64{
		0: 0, 1: 1, time.Millisecond: 1, time.Millisecond + 1: 2, -1: 0, -time.Second: -1000,
	} {
		if got := Millis(d); got != want {
			t.Errorf("Millis(%d) = %d, want %d", d, got, want)
		}
	}
}
