package watchfile

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fsnotify/fsnotify"
)

// runLoop runs a watch's loop in fake time: script sends notices; what comes back
// is when there were looks and how many failures.
func runLoop(t *testing.T, script func(notices chan<- fsnotify.Event, errs chan<- error)) (looks []time.Duration, failures int) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		ctx, cancel := context.WithCancel(t.Context())
		notices, errs := make(chan fsnotify.Event), make(chan error)
		var wg sync.WaitGroup
		wg.Go(func() {
			watchLoop(ctx, notices, errs, func() { looks = append(looks, time.Since(start)) }, func(error) { failures++ })
		})
		script(notices, errs)
		cancel()
		wg.Wait()
	})
	return looks, failures
}

func TestWhenFilesAreLookedAt(t *testing.T) {
	const ms = time.Millisecond
	type ch = chan<- fsnotify.Event
	for name, tc := range map[string]struct {
		script func(ch, chan<- error)
		want   []time.Duration
	}{
		"quiet":    {func(ch, chan<- error) { time.Sleep(65 * time.Second) }, []time.Duration{lookEvery, 2 * lookEvery}},
		"a notice": {func(n ch, _ chan<- error) { n <- fsnotify.Event{}; time.Sleep(time.Second) }, []time.Duration{settle}},
		"a batch": {func(n ch, _ chan<- error) {
			for range 9 {
				n <- fsnotify.Event{}
				time.Sleep(10 * ms)
			}
			time.Sleep(time.Second)
		}, []time.Duration{settle}},
		"never quiet": {func(n ch, _ chan<- error) {
			for range 10 { // never when a look is due
				time.Sleep(30 * ms)
				n <- fsnotify.Event{}
			}
		}, []time.Duration{30*ms + settle, 150*ms + settle}},
		"the look after a notice": {func(n ch, _ chan<- error) {
			time.Sleep(time.Second)
			n <- fsnotify.Event{}
			time.Sleep(40 * time.Second)
		}, []time.Duration{time.Second + settle, time.Second + settle + lookEvery}},
		"missed notices": {func(_ ch, e chan<- error) { e <- errors.New("overflow"); time.Sleep(time.Second) }, []time.Duration{settle}},
	} {
		t.Run(name, func(t *testing.T) {
			got, failures := runLoop(t, func(n chan<- fsnotify.Event, e chan<- error) { tc.script(n, e) })
			if !slices.Equal(got, tc.want) {
				t.Fatalf("looked at %v, want %v", got, tc.want)
			}
			if (failures == 1) != (name == "missed notices") {
				t.Fatalf("%d failures", failures)
			}
		})
	}
}
