package session

import (
	"sync"

	"github.com/mics-im/mics/gateway/internal/ws"
)

// item is a frame to be written: a whole one, or a delivery to a V2 client.
type item struct {
	frame []byte
	d     *Delivery
	seq   uint64
}

func (i *item) size() int {
	if i.d != nil {
		return i.d.size(i.seq)
	}
	return len(i.frame)
}

// enqueue appends to the queue; for V1 the caller has advanced tail. The session
// is locked.
func (s *Session) enqueue(i item) {
	s.queue = append(s.queue, i)
	s.queuedBytes += i.size()
}

// enqueueFrame queues a frame that is not a delivery. The session is locked.
func (s *Session) enqueueFrame(frame []byte) {
	if !s.v2() {
		s.tail += int64(len(frame))
	}
	s.enqueue(item{frame: frame})
}

// push queues a frame that answers the client, and closes the session if the
// queue is full: a client that does not read must not make us keep answers. The
// session is locked.
func (s *Session) push(frame []byte) {
	switch {
	case s.phase != live:
	case len(s.queue) >= s.host.cfg.QueueFrames || s.queuedBytes >= s.host.cfg.QueueBytes:
		s.overflow()
	default:
		s.enqueueFrame(frame)
		s.flushSoon()
	}
}

// cut drops what has not been begun to write; the window keeps what was in it,
// to be handed back. The session is locked.
func (s *Session) cut() {
	clear(s.queue)
	s.queue, s.queuedBytes = s.queue[:0], 0
	if !s.v2() {
		s.win.cut(s.sent)
		s.tail = s.sent
	}
}

// flushSoon starts the writing goroutine unless it runs. The session is locked.
func (s *Session) flushSoon() {
	if !s.writing && s.phase != ended && len(s.queue) > 0 {
		s.writing = true
		go s.flush() // ends with the queue or the socket; Gone waits for it
	}
}

const (
	// joinSize is how much is copied together for one write.
	joinSize = 16 << 10
	// pieceSize is how much one write may take writeTimeout for.
	pieceSize = 64 << 10
	// keptQueue is the capacity that an empty queue may keep until the session
	// has been quiet for a while.
	keptQueue = 8
)

// writer is what is being written, taken from the queue.
type writer struct {
	joined []byte
	pieces [][]byte // in this order; if there are none, joined is written
	vector [1][]byte
}

var writers = sync.Pool{New: func() any { return &writer{joined: make([]byte, 0, joinSize)} }}

// flush writes what is queued, and what is queued meanwhile, and ends.
func (s *Session) flush() {
	w := writers.Get().(*writer)
	var err error
	s.mu.Lock()
	for err == nil && s.phase != ended && s.begin(w) {
		s.mu.Unlock()
		err = w.write(s)
		s.mu.Lock()
		if s.acked != nil && err == nil {
			s.tellAcked()
		}
		s.writeSince.Store(0)
		if err == nil {
			s.wrote()
			s.watchWindow() // the next write may take long
		}
	}
	s.writing = false
	if cap(s.queue) > keptQueue && len(s.queue) == 0 {
		s.queue = nil
	}
	over := err != nil
	closed := false
	if !over && s.closeQueued && !s.closeSent && (s.phase == closing || s.phase == suspended) {
		s.closeSent = true
		s.deadline = s.host.now() + int64(closeTimeout)
		closed = s.phase == closing && s.closed()
	}
	s.leave()
	s.mu.Unlock()
	clear(w.pieces[:cap(w.pieces)])
	w.pieces, w.vector[0] = w.pieces[:0], nil
	writers.Put(w)
	switch {
	case over:
		s.drop()
	case closed:
		s.end()
	}
}

// tellAcked says that the first frame has been written. The session is locked, and
// is not meanwhile.
func (s *Session) tellAcked() {
	f := s.acked
	s.acked = nil
	s.mu.Unlock()
	f()
	s.mu.Lock()
}

// watchWindow has the sweeper look for acknowledgements (V1) unless they are there
// already. The session is locked.
func (s *Session) watchWindow() {
	s.check()
	if !s.v2() && len(s.win.entries) > 0 && s.phase != ended {
		s.watch()
	}
}

// begin takes from the queue what is written next: as much as can be joined, or
// one large frame, or one frame alone, which needs no copy. False: there is
// nothing. The session is locked.
func (s *Session) begin(w *writer) bool {
	w.joined, w.pieces = w.joined[:0], w.pieces[:0]
	n := 0
	for n < len(s.queue) {
		i := &s.queue[n]
		size := i.size()
		alone := i.d == nil && (size > joinSize/2 || len(s.queue) == 1) || size > joinSize
		if n > 0 && (alone || len(w.joined)+size > joinSize) {
			break
		}
		n++
		s.queuedBytes -= size
		if i.d != nil {
			s.sent = int64(i.seq)
		} else if !s.v2() {
			s.sent += int64(size)
		}
		if alone {
			w.alone(i)
			break
		}
		w.join(i)
	}
	if n == 0 {
		return false
	}
	rest := copy(s.queue, s.queue[n:])
	clear(s.queue[rest:])
	s.queue = s.queue[:rest]
	s.writeSince.Store(s.host.now())
	return true
}

func (w *writer) join(i *item) {
	if i.d == nil {
		w.joined = append(w.joined, i.frame...)
		return
	}
	w.joined = i.d.appendPrefix(w.joined, i.seq)
	w.joined = append(w.joined, i.d.message...)
	w.joined = i.d.appendSuffix(w.joined, i.seq)
}

func (w *writer) alone(i *item) {
	if i.d == nil {
		w.pieces = append(w.pieces, i.frame)
		return
	}
	w.joined = i.d.appendPrefix(w.joined, i.seq)
	at := len(w.joined)
	w.joined = i.d.appendSuffix(w.joined, i.seq)
	w.pieces = append(w.pieces, w.joined[:at], i.d.message, w.joined[at:])
}

// write writes it all, piece by piece, so that a slow peer has time for each.
func (w *writer) write(s *Session) error {
	if len(w.pieces) == 0 {
		return w.piece(s, w.joined)
	}
	for _, p := range w.pieces {
		if err := w.piece(s, p); err != nil {
			return err
		}
	}
	return nil
}

func (w *writer) piece(s *Session, p []byte) error {
	for len(p) > 0 {
		n := min(len(p), pieceSize)
		w.vector[0] = p[:n]
		if err := s.conn.Write(w.vector[:]); err != nil {
			return err
		}
		p = p[n:]
		s.writeSince.Store(s.host.now())
	}
	return nil
}

// pingFrame is a WebSocket ping without content.
var pingFrame = ws.AppendFrame(nil, ws.Ping, nil)
