package tlsfile

import (
	"context"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	// settle is how long after a notice the files are looked at: an editor or a
	// mounted volume changes them in several steps.
	settle = 100 * time.Millisecond
	// lookEvery is how often they are looked at without a notice, which some file
	// systems never give.
	lookEvery = 30 * time.Second
)

// watch has a function called when one of some files may have changed. It knows
// nothing of what is in them.
type watch struct {
	w      *fsnotify.Watcher
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// newWatch watches from now on: read the files after it and no change falls
// between. It watches their folders, because a file that is replaced by another
// one (an editor, a mounted Secret) takes its watch with it. Close it, also
// without start.
func newWatch(files ...string) (*watch, error) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, err
	}
	var folders []string
	for _, f := range files {
		folders = append(folders, filepath.Dir(f))
	}
	slices.Sort(folders)
	for _, f := range slices.Compact(folders) {
		if err := w.Add(f); err != nil {
			_ = w.Close()
			return nil, err
		}
	}
	return &watch{w: w, cancel: func() {}}, nil
}

// start calls look, from one goroutine, until close. failed is told when notices
// may have been missed, which the regular looks make good.
func (w *watch) start(look func(), failed func(error)) {
	ctx, cancel := context.WithCancel(context.Background())
	w.cancel = cancel
	w.wg.Go(func() { watchLoop(ctx, w.w.Events, w.w.Errors, look, failed) })
}

// close ends the watching and waits for it.
func (w *watch) close() error {
	w.cancel()
	w.wg.Wait()
	return w.w.Close()
}

func watchLoop(ctx context.Context, notices <-chan fsnotify.Event, errs <-chan error, look func(), failed func(error)) {
	timer := time.NewTimer(lookEvery)
	defer timer.Stop()
	noticed := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
			noticed = false
			timer.Reset(lookEvery)
			look()
			continue
		case <-notices:
		case err := <-errs:
			failed(err)
		}
		// Once per batch of notices: a busy folder must not put the look off for
		// ever.
		if !noticed {
			noticed = true
			timer.Reset(settle)
		}
	}
}
