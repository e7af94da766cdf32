// Package watchfile follows what is in files that change while a process runs:
// certificates, tokens, lists. It knows nothing of what is in them.
package watchfile

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
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

// Options say what is followed.
type Options struct {
	// Name, a setting's, is what errors about reading begin with; empty: nothing.
	Name  string
	Files []string
	// MaxBytes bounds each file.
	MaxBytes int
	// Take gets the files' contents, in the order of Files, and takes the whole of
	// it or, with an error, nothing. Its calls do not overlap.
	Take func(contents [][]byte) error
	// Taken and Refused are told, once for each, of versions later than the first.
	// A file that cannot be read is a version too.
	Taken   func()
	Refused func(error)
	// Log gets a warning, watch_notices_missed, when the operating system's notices
	// fail, which the regular looks make good. Nil: none.
	Log *slog.Logger
}

func (o Options) named(err error) error {
	if err == nil || o.Name == "" {
		return err
	}
	return fmt.Errorf("%s: %w", o.Name, err)
}

// Follower follows files. Safe for concurrent use.
type Follower struct {
	o      Options
	w      *fsnotify.Watcher
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	version [sha256.Size]byte // of the files as last read; guarded by mu
}

// New reads the files and has Take take them; its error names the file or is
// Take's. Changes from now on are noticed, and acted on after Start. Close it,
// also without Start.
//
// The files' folders are watched, because a file that is replaced by another one
// (an editor, a mounted volume) takes its watch with it.
func New(o Options) (*Follower, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watch files: %w", err)
	}
	f := &Follower{o: o, w: w, cancel: func() {}}
	folders := make([]string, len(o.Files))
	for i, name := range o.Files {
		folders[i] = filepath.Dir(name)
	}
	slices.Sort(folders)
	for _, name := range slices.Compact(folders) {
		if err := w.Add(name); err != nil {
			return nil, errors.Join(o.named(fmt.Errorf("watch %s: %w", name, err)), w.Close())
		}
	}
	if _, err := f.read(); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return f, nil
}

// Start has the files read again when they may have changed, until Close. Call
// it once.
func (f *Follower) Start() {
	ctx, cancel := context.WithCancel(context.Background())
	f.cancel = cancel
	f.wg.Go(func() {
		watchLoop(ctx, f.w.Events, f.w.Errors, f.Look, func(err error) { f.o.Log.Warn("watch_notices_missed", "files", f.o.Files, "err", err) })
	})
}

// Close ends the watching and waits for it.
func (f *Follower) Close() error {
	f.cancel()
	f.wg.Wait()
	return f.w.Close()
}

// Look reads the files now.
func (f *Follower) Look() {
	switch changed, err := f.read(); {
	case err != nil:
		f.o.Refused(err)
	case changed:
		f.o.Taken()
	}
}

// read has a new version of the files taken, if there is one.
func (f *Follower) read() (changed bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	contents := make([][]byte, len(f.o.Files))
	errs := make([]error, len(f.o.Files))
	for i, name := range f.o.Files {
		contents[i], errs[i] = readFile(name, f.o.MaxBytes)
	}
	err = f.o.named(errors.Join(errs...))
	version := sha256.Sum256(fmt.Appendf(nil, "%q %v", contents, err))
	if version == f.version {
		return false, nil
	}
	f.version = version
	if err != nil {
		return true, err
	}
	return true, f.o.Take(contents)
}

func readFile(name string, limit int) ([]byte, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	b, err := io.ReadAll(io.LimitReader(file, int64(limit)+1))
	if err == nil && len(b) > limit {
		err = fmt.Errorf("%s: larger than %d bytes", name, limit)
	}
	return b, err
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
