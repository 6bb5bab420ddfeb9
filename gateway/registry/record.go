package registry

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"dstack.host/gateway/store"
	"dstack.host/ratls"
	"dstack.host/tunnel"
)

// recordVersion is the version of the records that this program reads and writes.
const recordVersion = 1

// record is how an [Instance] is stored: this as one line of JSON, a line feed, and the evidence as it is, which is by
// far the largest part and would cost a node with many instances minutes of decoding at its start.
type record struct {
	Version      int             `json:"version"`
	ID           InstanceID      `json:"instance_id"`
	App          AppID           `json:"app_id"`
	Compose      ComposeHash     `json:"compose_hash"`
	Key          ratls.Base64    `json:"wg_public_key"`
	Addr         netip.Addr      `json:"address"`
	Ports        *portsRecord    `json:"port_policy"`
	Identity     string          `json:"identity"`
	EvidenceAt   time.Time       `json:"evidence_at"`
	RegisteredAt time.Time       `json:"registered_at"`
	Info         json.RawMessage `json:"app_info"`
	Measured     bool            `json:"ports_measured,omitempty"`
	Override     *portsRecord    `json:"port_override,omitempty"`
	Binding      string          `json:"binding,omitempty"`
	IPv6         bool            `json:"ipv6,omitempty"`
	Drain        *drainRecord    `json:"drain,omitempty"`
}

type drainRecord struct {
	At     time.Time `json:"at"`
	Reason string    `json:"reason"`
}

type portsRecord struct {
	Restrict bool         `json:"restrict"`
	Ports    []portRecord `json:"ports"`
}

type portRecord struct {
	Port  uint16 `json:"port"`
	Proxy bool   `json:"proxy"`
}

// ownerRecord says which instance a WireGuard key or an address belongs to.
type ownerRecord struct {
	Version int        `json:"version"`
	ID      InstanceID `json:"instance_id"`
}

// challengeRecord is one value of a TXT record.
type challengeRecord struct {
	Version int    `json:"version"`
	Name    string `json:"name"`
	Value   string `json:"value"`
	// Until is when nobody can need it any more; whoever published it and has not removed it by then is gone.
	Until time.Time `json:"until,omitzero"`
}

// encode returns the record of an instance. Equal instances have equal records.
func encode(inst *Instance) ([]byte, error) {
	info, err := json.Marshal(inst.Info)
	if err != nil {
		return nil, err
	}
	line, err := json.Marshal(record{
		Version:      recordVersion,
		ID:           inst.ID,
		App:          inst.App,
		Compose:      inst.Compose,
		Key:          inst.Key[:],
		Addr:         inst.Addr,
		Ports:        encodePorts(inst.Ports),
		Identity:     inst.Identity,
		EvidenceAt:   inst.EvidenceAt.UTC().Truncate(time.Second),
		RegisteredAt: inst.RegisteredAt.UTC().Truncate(time.Second),
		Info:         info,
		Measured:     inst.Measured,
		Override:     encodePorts(inst.Override),
		Binding:      string(inst.Binding),
		IPv6:         inst.IPv6,
		Drain:        encodeDrain(inst.Drain),
	})
	if err != nil {
		return nil, err
	}
	return append(append(line, '\n'), inst.Evidence...), nil
}

// decode reads the record of an instance. Records come from nodes of this cluster and nobody else, but a newer or a
// broken program may have written one.
func decode(data []byte) (*Instance, error) {
	line, evidence, ok := bytes.Cut(data, []byte{'\n'})
	if !ok {
		return nil, errors.New("no line feed")
	}
	var r record
	if err := strict(line, &r); err != nil {
		return nil, err
	}
	inst := &Instance{
		ID:           r.ID,
		App:          r.App,
		Compose:      r.Compose,
		Addr:         r.Addr,
		Identity:     r.Identity,
		EvidenceAt:   r.EvidenceAt,
		RegisteredAt: r.RegisteredAt,
		Measured:     r.Measured,
		Binding:      ratls.Binding(r.Binding),
		IPv6:         r.IPv6,
	}
	if r.Drain != nil {
		inst.Drain = Drain(*r.Drain)
	}
	if len(evidence) > 0 {
		inst.Evidence = evidence
	}
	// Whether the key is a good one was decided when it was registered; deciding it again costs a multiplication on
	// the curve for every record.
	if len(r.Key) != len(inst.Key) {
		return nil, fmt.Errorf("WireGuard key of %d bytes", len(r.Key))
	}
	inst.Key = tunnel.PublicKey(r.Key)
	var err error
	if inst.Ports, err = decodePorts(r.Ports); err != nil {
		return nil, err
	}
	if inst.Override, err = decodePorts(r.Override); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(r.Info, &inst.Info); err != nil {
		return nil, fmt.Errorf("app info: %w", err)
	}
	if !inst.Addr.IsValid() {
		return nil, errors.New("no address")
	}
	return inst, inst.check()
}

func encodeDrain(d Drain) *drainRecord {
	if d == (Drain{}) {
		return nil
	}
	return &drainRecord{d.At.UTC().Truncate(time.Second), d.Reason}
}

func encodePorts(p *PortPolicy) *portsRecord {
	if p == nil {
		return nil
	}
	r := &portsRecord{Restrict: p.Restrict, Ports: make([]portRecord, 0, len(p.Ports))}
	for _, e := range p.Ports {
		r.Ports = append(r.Ports, portRecord(e))
	}
	return r
}

func decodePorts(r *portsRecord) (*PortPolicy, error) {
	if r == nil {
		return nil, nil
	}
	p := &PortPolicy{Restrict: r.Restrict}
	for _, e := range r.Ports {
		p.Ports = append(p.Ports, Port(e))
	}
	return p, p.check()
}

func decodeOwner(data []byte) (InstanceID, error) {
	var r ownerRecord
	err := strict(data, &r)
	return r.ID, err
}

func decodeChallenge(data []byte) (challengeRecord, error) {
	var r challengeRecord
	err := strict(data, &r)
	if err == nil {
		err = checkChallenge(r.Name, r.Value)
	}
	return r, err
}

// strict decodes a record. Of a newer version everything may differ, so that is looked at first where something is
// wrong.
func strict(data []byte, into versioned) error {
	err := ratls.DecodeStrict(data, store.MaxValue, false, into)
	if err == nil && into.version() == recordVersion {
		return nil
	}
	var head struct {
		Version int `json:"version"`
	}
	if json.Unmarshal(data, &head) == nil && head.Version != recordVersion {
		return fmt.Errorf("record of version %d, this program knows %d", head.Version, recordVersion)
	}
	return err
}

type versioned interface{ version() int }

func (r *record) version() int          { return r.Version }
func (r *ownerRecord) version() int     { return r.Version }
func (r *challengeRecord) version() int { return r.Version }
