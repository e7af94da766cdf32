package dedup

// prefix stands for a key in the map, whose slots cost most of the table's
// memory. Of two keys with the same one the older is forgotten: with two million
// entries that happens once in ten million times the table is filled.
type prefix [8]byte

func (k Key) prefix() prefix { return prefix(k[:8]) }

// entry is 24 bytes.
type entry struct {
	key  Key
	user uint64
}

// slot is an entry's place in the arena: its chunk's number and its index there.
type slot uint32

// chunkSize is how many entries one bucket gets at once.
const chunkSize = 256

// chunk holds entries of one bucket.
type chunk struct {
	bucket int64
	n      slot
	all    [chunkSize]entry
}

func (c *chunk) entries() []entry { return c.all[:c.n] }

// add returns the index of what it added; there is room.
func (c *chunk) add(e entry) slot {
	c.all[c.n] = e
	c.n++
	return c.n - 1
}

// arena holds chunks. Those that are released are used again.
type arena struct {
	chunks []*chunk
	free   []slot
}

func (a *arena) chunk(at slot) *chunk { return a.chunks[at/chunkSize] }

func (a *arena) at(at slot) *entry { return &a.chunk(at).all[at%chunkSize] }

// alloc returns the first slot of an empty chunk for the bucket.
func (a *arena) alloc(bucket int64) slot {
	if last := len(a.free) - 1; last >= 0 {
		at := a.free[last]
		a.free = a.free[:last]
		a.chunk(at).bucket, a.chunk(at).n = bucket, 0
		return at
	}
	a.chunks = append(a.chunks, &chunk{bucket: bucket})
	return slot(len(a.chunks)-1) * chunkSize
}

func (a *arena) release(at slot) { a.free = append(a.free, at) }
