package simtdx

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"dstack.host/ratls"
)

// runtimeEvent is the type of dstack's runtime events.
const runtimeEvent = 0x08000001

// VM is what boots on a [Machine].
type VM struct {
	// AppCompose is the exact text of app-compose.json; its SHA-256 is the compose hash.
	AppCompose string
	// AppID has 20 bytes; nil is the beginning of the compose hash.
	AppID []byte
	// InstanceSeed makes the instance id; nil is 20 fresh random bytes. NoInstanceID is a VM that has none.
	InstanceSeed []byte
	NoInstanceID bool
	// KeyProvider is the payload of the event key-provider; "" is that of a VM without one.
	KeyProvider string
	// OSImageHash has 32 bytes; nil is a constant.
	OSImageHash []byte
	// StorageFS is "ext4" or "zfs", also when "".
	StorageFS string
	// MRTD and RTMR (0 to 2) measure firmware, kernel and their like; zero ones get constants.
	MRTD ratls.Measurement
	RTMR [3]ratls.Measurement
	// MRConfigID is what the host declared.
	MRConfigID ratls.Measurement
	// QuoteLatency is how long one quote takes. Quotes of one domain are made one after the other, as on hardware.
	QuoteLatency time.Duration

	// Debug makes a domain that its host can debug; Attributes sets further bits of TD_ATTRIBUTES; SEPTVE leaves
	// SEPT_VE_DISABLE clear.
	Debug      bool
	Attributes uint64
	SEPTVE     bool
	// MRSignerSeam is that of a TDX module that Intel did not sign; MRServiceTD that of a service domain (version 5 only).
	MRSignerSeam, MRServiceTD ratls.Measurement
	// Tamper damages each quote.
	Tamper Tamper
	// Unlogged measures an event that the log does not have, so that RTMR3 does not replay.
	Unlogged bool
	// EditLog changes what EventLog returns; nil leaves it true. It gets a copy.
	EditLog func([]ratls.Event) []ratls.Event
}

// TD is a trust domain: a [ratls.Platform] of software. Its methods may be called concurrently.
type TD struct {
	// set by Boot
	machine  *Machine
	vm       VM
	vmConfig string
	turn     chan struct{} // holds one token: the right to make a quote

	mu     sync.Mutex
	report report        // guarded by mu
	events []ratls.Event // guarded by mu
}

// Boot starts a domain and measures what dstack measures: see dstack 0.6, dstack-util/src/system_setup.rs.
func (m *Machine) Boot(vm VM) (*TD, error) {
	if err := vm.complete(); err != nil {
		return nil, err
	}
	config, err := json.Marshal(struct {
		OSImageHash string `json:"os_image_hash"`
		CPUCount    int    `json:"cpu_count"`
		MemorySize  int64  `json:"memory_size"`
	}{fmt.Sprintf("%x", vm.OSImageHash), 2, 2 << 30})
	if err != nil {
		return nil, err
	}
	td := &TD{machine: m, vm: vm, vmConfig: string(config), turn: make(chan struct{}, 1)}
	td.turn <- struct{}{}
	td.report = vm.report()
	for _, e := range vm.bootEvents() {
		td.Extend(e.Name, e.Payload)
	}
	if vm.Unlogged {
		td.report.rtmr[3] = extend(td.report.rtmr[3], digest("unlogged", nil))
	}
	return td, nil
}

// complete checks the lengths and fills in what was left out.
func (vm *VM) complete() error {
	var errs []error
	for _, field := range []struct {
		name  string
		value []byte
		size  int
	}{{"app id", vm.AppID, 20}, {"OS image hash", vm.OSImageHash, 32}} {
		if field.value != nil && len(field.value) != field.size {
			errs = append(errs, fmt.Errorf("%s has %d bytes, want %d", field.name, len(field.value), field.size))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if vm.AppID == nil {
		hash := sha256.Sum256([]byte(vm.AppCompose))
		vm.AppID = hash[:20]
	}
	if vm.InstanceSeed == nil {
		vm.InstanceSeed = make([]byte, 20)
		rand.Read(vm.InstanceSeed)
	}
	if vm.OSImageHash == nil {
		hash := sha256.Sum256([]byte("simulated OS image"))
		vm.OSImageHash = hash[:]
	}
	if vm.KeyProvider == "" {
		vm.KeyProvider = `{"name":"none","id":""}`
	}
	if vm.StorageFS == "" {
		vm.StorageFS = "zfs"
	}
	return nil
}

// report is the domain before any runtime event.
func (vm *VM) report() report {
	const septVEDisable = 1 << 28
	r := report{mrSignerSeam: vm.MRSignerSeam, mrtd: vm.MRTD, mrConfigID: vm.MRConfigID, serviceTD: vm.MRServiceTD,
		attributes: vm.Attributes}
	if !vm.SEPTVE {
		r.attributes |= septVEDisable
	}
	if vm.Debug {
		r.attributes |= 1
	}
	if r.mrtd == (ratls.Measurement{}) {
		r.mrtd = named("mrtd")
	}
	for i, rtmr := range vm.RTMR {
		if rtmr == (ratls.Measurement{}) {
			rtmr = named(fmt.Sprintf("rtmr%d", i))
		}
		r.rtmr[i] = rtmr
	}
	return r
}

// bootEvents is the order of dstack 0.5.5 and later, for a VM without init scripts and GPUs.
func (vm *VM) bootEvents() []ratls.Event {
	compose := sha256.Sum256([]byte(vm.AppCompose))
	var instance []byte
	if !vm.NoInstanceID {
		hash := sha256.Sum256(append(slices.Clone(vm.InstanceSeed), vm.AppID...))
		instance = hash[:20]
	}
	return []ratls.Event{
		{Name: "system-preparing"},
		{Name: "app-id", Payload: vm.AppID},
		{Name: "compose-hash", Payload: compose[:]},
		{Name: "instance-id", Payload: instance},
		{Name: "boot-mr-done"},
		{Name: "os-image-hash", Payload: vm.OSImageHash},
		{Name: "key-provider", Payload: []byte(vm.KeyProvider)},
		{Name: "storage-fs", Payload: []byte(vm.StorageFS)},
		{Name: "system-ready"},
	}
}

// Extend measures a runtime event into RTMR3 and logs it, as `dstack-util extend` does.
func (t *TD) Extend(name string, payload []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	d := digest(name, payload)
	t.report.rtmr[3] = extend(t.report.rtmr[3], d)
	t.events = append(t.events, ratls.Event{IMR: 3, Type: runtimeEvent, Digest: d[:], Name: name, Payload: slices.Clone(payload), Version: 1})
}

// Kind implements ratls.Platform.
func (t *TD) Kind() ratls.Kind { return ratls.KindSimulatedTDX }

// Quote implements ratls.Platform.
func (t *TD) Quote(ctx context.Context, data ratls.ReportData) ([]byte, error) {
	select {
	case <-t.turn:
		defer func() { t.turn <- struct{}{} }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if t.vm.QuoteLatency > 0 {
		timer := time.NewTimer(t.vm.QuoteLatency)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	raw, err := t.machine.quote(t.state(data))
	if err != nil {
		return nil, err
	}
	return t.vm.Tamper.apply(raw, t.machine.version), nil
}

// state is the report as it is now, over data.
func (t *TD) state(data ratls.ReportData) report {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.report
	r.data = data
	return r
}

// EventLog implements ratls.Platform.
func (t *TD) EventLog(context.Context) ([]ratls.Event, error) {
	events := t.log()
	if t.vm.EditLog != nil {
		events = t.vm.EditLog(events)
	}
	return events, nil
}

// log returns a copy of the true log.
func (t *TD) log() []ratls.Event {
	t.mu.Lock()
	defer t.mu.Unlock()
	events := slices.Clone(t.events)
	for i := range events {
		events[i].Digest, events[i].Payload = slices.Clone(events[i].Digest), slices.Clone(events[i].Payload)
	}
	return events
}

// VMConfig implements ratls.Platform.
func (t *TD) VMConfig() string { return t.vmConfig }

// AppCompose implements ratls.Platform.
func (t *TD) AppCompose() string { return t.vm.AppCompose }

// digest is dstack's version 1 of an event's digest. It is made here a second time, so that this package and ratls check each
// other.
func digest(name string, payload []byte) ratls.Measurement {
	h := sha512.New384()
	var kind [4]byte
	binary.LittleEndian.PutUint32(kind[:], runtimeEvent)
	h.Write(kind[:])
	fmt.Fprintf(h, ":%s:%s", name, payload)
	return ratls.Measurement(h.Sum(nil))
}

// extend is what the TDX module does to an RTMR.
func extend(rtmr, d ratls.Measurement) ratls.Measurement {
	return sha512.Sum384(append(rtmr[:], d[:]...))
}

// named is a constant measurement.
func named(what string) ratls.Measurement { return sha512.Sum384([]byte("simulated " + what)) }
