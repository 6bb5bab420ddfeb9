package h1

// chunks decodes the chunked transfer coding (RFC 9112 section 7.1) as it arrives, in place. It is stricter than the grammar in two points
// that only matter to parsers which disagree: no whitespace before an extension's ";", and no control characters anywhere.
type chunks struct {
	state   chunkState
	left    int64  // of the chunk: its size while that is read, then the bytes still to come
	digits  int    // of the chunk's size
	extra   int    // bytes of extensions in the whole body
	trailer []byte // trailerStart and the lines of the trailer section as they came; empty when there are none
}

type chunkState uint8

const (
	chunkSize chunkState = iota
	chunkExtension
	chunkSizeLF
	chunkData
	chunkDataCR
	chunkDataLF
	trailerLine
	trailerText
	trailerLF
	chunksDone
)

const (
	maxSizeDigits   = 15      // leaves the size far from overflow
	maxExtensions   = 4 << 10 // extensions are dropped: they need not be long
	maxTrailerBytes = 8 << 10
)

// trailerStart stands where a message has its start line, so that a trailer section is scanned as a head.
const trailerStart = "trailer\r\n"

const (
	errChunkSize      = fault("a chunk size is not a hexadecimal number")
	errChunkExtension = fault("a chunk extension has a control character or is too long")
	errChunkEnd       = fault("a chunk is not followed by CRLF")
	errTrailerLong    = fault("the trailer section is longer than the limit")
)

func (c *chunks) reset() { *c = chunks{trailer: c.trailer[:0]} }

func (c *chunks) done() bool { return c.state == chunksDone }

// decode consumes p up to the end of the body, or whole. The payload in it is gathered at p[start:end], which overwrites the framing
// between chunks; n is how much of p was consumed.
func (c *chunks) decode(p []byte) (start, end, n int, err error) {
	for n < len(p) && c.state != chunksDone {
		if c.state != chunkData {
			if err := c.step(p[n]); err != nil {
				return 0, 0, n, err
			}
			n++
			continue
		}
		if start == end {
			start, end = n, n
		}
		k := int(min(c.left, int64(len(p)-n)))
		if end != n {
			copy(p[end:], p[n:n+k])
		}
		end, n = end+k, n+k
		if c.left -= int64(k); c.left == 0 {
			c.state = chunkDataCR
		}
	}
	return start, end, n, nil
}

// step reads one octet that is not payload.
func (c *chunks) step(b byte) error {
	switch c.state {
	case chunkSize:
		return c.size(b)
	case chunkExtension:
		c.extra++
		switch {
		case b == '\r':
			c.state = chunkSizeLF
		case octets[b]&isValue == 0 || c.extra > maxExtensions:
			return errChunkExtension
		}
	case chunkSizeLF:
		if b != '\n' {
			return errChunkSize
		}
		c.state = chunkData
		if c.left == 0 {
			c.state = trailerLine
		}
	case chunkDataCR:
		if b != '\r' {
			return errChunkEnd
		}
		c.state = chunkDataLF
	case chunkDataLF:
		if b != '\n' {
			return errChunkEnd
		}
		c.state, c.digits = chunkSize, 0
	default:
		return c.trail(b)
	}
	return nil
}

func (c *chunks) size(b byte) error {
	v := hexValue(b)
	switch {
	case v >= 0 && c.digits < maxSizeDigits:
		c.left = c.left<<4 | int64(v)
		c.digits++
	case c.digits == 0 || v >= 0:
		return errChunkSize
	case b == ';':
		c.state = chunkExtension
	case b == '\r':
		c.state = chunkSizeLF
	default:
		return errChunkSize
	}
	return nil
}

// trail reads one octet behind the last chunk.
func (c *chunks) trail(b byte) error {
	switch c.state {
	case trailerLine:
		if b == '\r' {
			c.state = trailerLF
			return nil
		}
		if len(c.trailer) == 0 {
			c.trailer = append(c.trailer, trailerStart...)
		}
		c.state = trailerText
		fallthrough
	case trailerText:
		if len(c.trailer) >= maxTrailerBytes {
			return errTrailerLong
		}
		c.trailer = append(c.trailer, b)
		if b == '\n' {
			c.state = trailerLine
		}
	case trailerLF:
		if b != '\n' {
			return errBareLF
		}
		c.state = chunksDone
	}
	return nil
}

// trailers appends to out those field lines of the trailer section that may be passed on, and reports an error if any line of it is not
// well-formed. It spoils the section.
func (c *chunks) trailers(out []byte, fields int) ([]byte, error) {
	if len(c.trailer) == 0 {
		return out, nil
	}
	var h head
	c.trailer = append(c.trailer, "\r\n"...)
	if done, err := h.scan(c.trailer, maxTrailerBytes+16, fields); err != nil || !done {
		return out, err
	}
	for i := range h.fields {
		f := &h.fields[i]
		if name := h.bytes(f.name); trailerAllowed(name, f.class) {
			out = appendField(out, name, h.bytes(f.value))
		}
	}
	return out, nil
}

// announces reports whether a Trailer field names nothing but fields that are then passed on.
func announces(list []byte) bool {
	for list != nil {
		var name []byte
		name, list = nextElement(list)
		if len(name) == 0 || !all(name, isToken) || !trailerAllowed(name, classify(name)) {
			return false
		}
	}
	return true
}

// trailerAllowed reports whether a field may be passed on in a trailer section: one that the relay passes on in a head, unless it
// describes the content, authenticates, caches or routes (RFC 9110 section 6.5.1).
func trailerAllowed(name []byte, c class) bool {
	if c != ordinary {
		return false
	}
	for _, prefix := range [...]string{"content-", "if-", "access-control-", "sec-"} {
		if len(name) >= len(prefix) && equalFold(name[:len(prefix)], prefix) {
			return false
		}
	}
	for _, s := range [...]string{"authorization", "cookie", "set-cookie", "www-authenticate", "cache-control", "expires", "pragma", "age",
		"date", "vary", "location", "retry-after", "range", "max-forwards", "origin", "referer", "strict-transport-security"} {
		if equalFold(name, s) {
			return false
		}
	}
	return true
}

// appendChunk appends payload as one chunk, or nothing if it is empty.
func appendChunk(out, payload []byte) []byte {
	if len(payload) == 0 {
		return out
	}
	out = appendHex(out, len(payload))
	out = append(out, '\r', '\n')
	out = append(out, payload...)
	return append(out, '\r', '\n')
}

func appendHex(out []byte, n int) []byte {
	shift := 0
	for n>>shift > 15 {
		shift += 4
	}
	for ; shift >= 0; shift -= 4 {
		out = append(out, "0123456789abcdef"[n>>shift&15])
	}
	return out
}
