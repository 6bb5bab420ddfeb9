package h1

// maxOptions bounds the connection options of a head, each of which is compared with every field name.
const maxOptions = 16

// options are what the Connection fields of a head say (RFC 9110 section 7.6.1).
type options struct {
	close, upgrade bool
	named          []span // other names, whose fields end here
}

// read reads one Connection field of h. Naming a field that frames or routes the message is a way to have it removed underway, so it is
// refused.
func (o *options) read(h *head, s span) error {
	for at := s.from; at < s.to; {
		element, rest := nextElement(h.buf[at:s.to])
		if len(element) > 0 {
			from := at + int32(cap(h.buf[at:])-cap(element)) // element is a piece of h.buf
			if err := o.add(element, span{from, from + int32(len(element))}); err != nil {
				return err
			}
		}
		at = s.to - int32(len(rest))
	}
	return nil
}

func (o *options) add(name []byte, s span) error {
	if !all(name, isToken) {
		return fault("Connection is not a list of tokens")
	}
	switch classify(name) {
	case hostField, contentLength, transferEncoding, connection, expect:
		return fault("Connection names a field that is not for it to name")
	}
	switch {
	case equalFold(name, "close"):
		o.close = true
	case equalFold(name, "upgrade"):
		o.upgrade = true
	case equalFold(name, "keep-alive"), equalFold(name, "te"):
	case len(o.named) == maxOptions:
		return fault("Connection has too many options")
	default:
		o.named = append(o.named, s)
	}
	return nil
}

// names reports whether the Connection fields of h named this field name.
func (o *options) names(h *head, name []byte) bool {
	for _, s := range o.named {
		if equalFold(h.bytes(s), name) {
			return true
		}
	}
	return false
}
