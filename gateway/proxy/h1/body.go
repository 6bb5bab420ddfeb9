package h1

// framing says how the end of a body is found.
type framing uint8

const (
	noBody  framing = iota
	sized           // Content-Length
	chunked         // Transfer-Encoding: chunked
	toEOF           // the end of the connection, responses only
)

// body follows one message body through the buffers that it arrives in.
type body struct {
	framing framing
	left    int64 // of a sized body
	chunks  chunks
	ended   bool
}

func (b *body) reset(f framing, length int64) {
	b.framing, b.left = f, length
	b.chunks.reset()
	b.ended = f == noBody || f == sized && length == 0
}

// next takes what it can of p, which is not empty: the payload is p[start:end], n bytes are consumed.
func (b *body) next(p []byte) (start, end, n int, err error) {
	switch b.framing {
	case sized:
		n = int(min(b.left, int64(len(p))))
		b.left -= int64(n)
		b.ended = b.left == 0
		return 0, n, n, nil
	case chunked:
		start, end, n, err = b.chunks.decode(p)
		b.ended = b.chunks.done()
		return start, end, n, err
	case toEOF:
		return 0, len(p), len(p), nil
	}
	return 0, 0, 0, nil
}

const (
	bufferSize = 16<<10 - 512 // with a head or a chunk's framing still one TLS record
	headRoom   = 8            // before what is read: a chunk's size line
	tailRoom   = 8            // behind it: CRLF and the last chunk
	outSize    = bufferSize + 2<<10
)

// buffer holds bytes that were read and not consumed yet, data[r:w].
type buffer struct {
	data []byte
	r, w int
}

func newBuffer(size int) buffer {
	return buffer{data: make([]byte, headRoom+size+tailRoom), r: headRoom, w: headRoom}
}

func (b *buffer) empty() bool { return b.r == b.w }

func (b *buffer) unread() []byte { return b.data[b.r:b.w] }

func (b *buffer) clear() { b.r, b.w = headRoom, headRoom }

// free is where the next read goes.
func (b *buffer) free() []byte { return b.data[b.w : len(b.data)-tailRoom] }

// compact moves the unread bytes to the beginning.
func (b *buffer) compact() {
	if b.r > headRoom {
		b.w = headRoom + copy(b.data[headRoom:], b.data[b.r:b.w])
		b.r = headRoom
	}
}

// widen makes room for a head of limit bytes.
func (b *buffer) widen(limit int) {
	b.compact()
	if len(b.free()) > 0 {
		return
	}
	wide := newBuffer(limit)
	wide.w += copy(wide.data[wide.w:], b.unread())
	*b = wide
}

// fill replaces all by p, which fits.
func (b *buffer) fill(p []byte) {
	b.clear()
	b.w += copy(b.data[b.w:], p)
}

const lastChunk = "0\r\n\r\n"

// chunk makes the payload data[from:to], which has been consumed with everything before it, a chunk in place, followed by the last chunk
// if it is the last, and returns what to write.
func (b *buffer) chunk(from, to int, last bool) []byte {
	var size [headRoom]byte
	line := append(appendHex(size[:0], to-from), '\r', '\n')
	copy(b.data[from-len(line):], line)
	end := "\r\n"
	if last {
		end = "\r\n" + lastChunk
	}
	p := b.data[from-len(line) : to]
	if b.empty() || to+len(end) <= b.r {
		n := copy(b.data[to:], end)
		return b.data[from-len(line) : to+n]
	}
	return append(p[:len(p):len(p)], end...)
}
