package ratls

// Preimage returns what the digest of a runtime event is taken over.
func Preimage(e Event) []byte {
	b, err := e.preimage()
	if err != nil {
		panic(err)
	}
	return b
}
