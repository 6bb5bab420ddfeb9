package h2

const (
	inSize  = frameHead + maxFrame
	outSize = 64 << 10 // what waits for the client before whoever makes it has to wait too
)

// buffer holds bytes that were read and not consumed yet, data[r:w].
type buffer struct {
	data [inSize]byte
	r, w int
}

func (b *buffer) empty() bool { return b.r == b.w }

func (b *buffer) unread() []byte { return b.data[b.r:b.w] }

// free is where the next read goes; it moves what is unread to the beginning if that helps.
func (b *buffer) free() []byte {
	if b.r > 0 && (b.empty() || b.w == len(b.data)) {
		b.w = copy(b.data[:], b.unread())
		b.r = 0
	}
	return b.data[b.w:]
}
