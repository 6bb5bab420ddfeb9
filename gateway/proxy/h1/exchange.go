package h1

// exchange is what one request and its response need and an idle connection does not.
type exchange struct {
	in        buffer // read from the client: the request's head, and what of its body came with it
	spill     buffer // read from the client behind in, which stays as it is until the request is done with; made when first needed
	up        buffer // read from the app
	out       []byte // for what is written; empty between uses
	req       Request
	reqBody   body
	continued bool // 100 (Continue) has been passed on
	resp      response
	respBody  body
	respLast  bool // the response announced that the connection ends with it
	respBegun bool // some of it may have reached the client
	outcome   Outcome
}

func newExchange() any {
	return &exchange{in: newBuffer(bufferSize), up: newBuffer(bufferSize), out: make([]byte, 0, outSize)}
}

// pending reports whether bytes of the next request have arrived, and puts them in place.
func (x *exchange) pending() bool {
	if !x.spill.empty() {
		x.in, x.spill = x.spill, x.in
		x.spill.clear()
	}
	return !x.in.empty()
}

// room returns the buffer that the client's bytes behind in go to, empty.
func (x *exchange) room() *buffer {
	if x.spill.data == nil {
		x.spill = newBuffer(bufferSize)
	}
	x.spill.clear()
	return &x.spill
}

// clear forgets everything and reports whether x is of the usual size, so that it may be used again.
func (x *exchange) clear() bool {
	x.in.clear()
	x.spill.clear()
	x.up.clear()
	x.req.Current, x.outcome.Backend = nil, nil
	const usual = headRoom + bufferSize + tailRoom
	return len(x.in.data) == usual && len(x.up.data) == usual && len(x.spill.data) <= usual && cap(x.out) == outSize
}

// assemble puts the payload buf.data[from:to] of b, with what came before in out, into the framing kind and returns what to write. An
// empty out costs no copy.
func assemble(out []byte, buf *buffer, b *body, from, to int, kind framing, fields int) ([]byte, error) {
	payload := buf.data[from:to]
	switch {
	case kind != chunked && len(out) == 0:
		return payload, nil
	case kind != chunked:
		return append(out, payload...), nil
	case len(out) == 0 && len(payload) > 0 && len(b.chunks.trailer) == 0:
		return buf.chunk(from, to, b.ended), nil
	}
	out = appendChunk(out, payload)
	if !b.ended {
		return out, nil
	}
	out = append(out, "0\r\n"...)
	out, err := b.chunks.trailers(out, fields)
	return append(out, '\r', '\n'), err
}
