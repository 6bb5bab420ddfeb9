package ratls

// Event is one entry of dstack's event log.
type Event struct {
	// IMR is the index of the RTMR that was extended, Type the kind of event.
	IMR, Type uint32
	// Digest is what the log claims was measured.
	Digest []byte
	// Name and Payload are what happened.
	Name    string
	Payload []byte
	// Version selects how the digest is made, 1 or 2; Preimage is the measured text of version 2.
	Version  int
	Preimage []byte
}
