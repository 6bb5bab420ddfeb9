package ratls

import (
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Pins are the measurements that a relying party expects, each list empty when it has no expectation. A value has to be on
// its list, and every list that is not empty counts.
type Pins struct {
	// AppIDs have 20 bytes, the others 32.
	AppIDs, ComposeHashes, MRAggregated, MRSystem []Hex
	// OSImageHashes are compared with what the VM configuration says, which no quote covers; so they are refused unless MRSystem,
	// MRAggregated, or MRTD, RTMR1 and RTMR2 are pinned too.
	OSImageHashes []Hex
	// MRTD and RTMR0 to RTMR2 are the registers themselves, 48 bytes each.
	MRTD, RTMR0, RTMR1, RTMR2 []Hex
	// KeyProviders and KeyProviderIDs are the members "name" and "id" of the measured event key-provider: who gave the
	// application its disk key.
	KeyProviders, KeyProviderIDs []string
	// FMSPCs are families of platforms, 6 bytes; PPIDs are single processors, 16 bytes. The vendor certified both.
	FMSPCs, PPIDs []Hex
}

// pin is one expectation and what was found; both as text. A value that only a quote could have is "" without one.
type pin struct {
	name, value string
	want        []string
	told        bool // also when nothing is expected, so that people can compare
}

// Judge holds verified evidence to the pins and returns all that is not as expected. q is nil for an application that only a
// KMS vouches for: then every pin of a register or a platform fails.
func (p Pins) Judge(q *Quote, info AppInfo) error {
	var errs []error
	for _, pin := range p.pins(q, info) {
		if !pin.holds() {
			errs = append(errs, fmt.Errorf("%s is not one of the %d that are pinned", pin, len(pin.want)))
		}
	}
	if len(p.OSImageHashes) > 0 && !p.pinsImage() {
		errs = append(errs, errors.New("the OS image hash is what the VM configuration says, which no quote covers: it pins nothing without mr_system, mr_aggregated, or mrtd with rtmr1 and rtmr2"))
	}
	return errors.Join(errs...)
}

// pinsImage reports whether measured registers leave only known images.
func (p Pins) pinsImage() bool {
	return len(p.MRSystem) > 0 || len(p.MRAggregated) > 0 || len(p.MRTD) > 0 && len(p.RTMR1) > 0 && len(p.RTMR2) > 0
}

// Empty reports whether nothing is expected.
func (p Pins) Empty() bool {
	return !slices.ContainsFunc(p.pins(nil, AppInfo{}), func(pin pin) bool { return len(pin.want) > 0 })
}

func (p Pins) pins(q *Quote, info AppInfo) []pin {
	provider := keyProvider(info)
	if q == nil {
		q = new(Quote)
	}
	return []pin{
		{"app id", hex.EncodeToString(info.AppID), texts(p.AppIDs), true},
		{"compose hash", hex.EncodeToString(info.ComposeHash), texts(p.ComposeHashes), true},
		{"mr_aggregated", hex.EncodeToString(info.MRAggregated), texts(p.MRAggregated), true},
		{"mr_system", hex.EncodeToString(info.MRSystem), texts(p.MRSystem), true},
		{"os image hash (stated, not measured)", hex.EncodeToString(info.OSImageHash), texts(p.OSImageHashes), true},
		{"mrtd", register(q, q.MRTD), texts(p.MRTD), false},
		{"rtmr0", register(q, q.RTMR[0]), texts(p.RTMR0), false},
		{"rtmr1", register(q, q.RTMR[1]), texts(p.RTMR1), false},
		{"rtmr2", register(q, q.RTMR[2]), texts(p.RTMR2), false},
		{"key provider", provider.Name, p.KeyProviders, false},
		{"key provider id", provider.ID, p.KeyProviderIDs, false},
		{"fmspc", q.FMSPC, texts(p.FMSPCs), false},
		{"ppid", hex.EncodeToString(q.PPID), texts(p.PPIDs), false},
	}
}

// register is the text of a register, "" when there is no quote that has it.
func register(q *Quote, m Measurement) string {
	if q.Version == 0 {
		return ""
	}
	return hex.EncodeToString(m[:])
}

func texts(list []Hex) []string {
	out := make([]string, len(list))
	for i, h := range list {
		out[i] = hex.EncodeToString(h)
	}
	return out
}

// holds never takes a missing value for one that is expected.
func (p pin) holds() bool {
	return len(p.want) == 0 || p.value != "" && slices.Contains(p.want, p.value)
}

func (p pin) String() string {
	const longest = 2 * len(Measurement{}) // anything longer is text that the application chose
	switch {
	case p.value == "":
		return p.name + " (none)"
	case len(p.value) > longest:
		return p.name + " " + strings.ToValidUTF8(p.value[:longest], "") + "…"
	}
	return p.name + " " + p.value
}

// provider is the payload of the event key-provider (dstack 0.6 dstack-types/src/lib.rs, KeyProviderInfo).
type provider struct {
	Name string `json:"name"`
	ID   string `json:"id"`
}

// keyProvider reads it; the zero value stands for none, and for text that is something else.
func keyProvider(info AppInfo) (p provider) {
	if DecodeStrict(info.KeyProviderInfo, maxAppInfo, true, &p) != nil {
		return provider{}
	}
	return p
}

// judge makes a link of it.
func (p Pins) judge(q *Quote, info AppInfo) outcome {
	if err := p.Judge(q, info); err != nil {
		return fail("%s", strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	var pinned, free []string
	for _, pin := range p.pins(q, info) {
		switch {
		case len(pin.want) > 0:
			pinned = append(pinned, pin.String())
		case pin.told:
			free = append(free, pin.String())
		}
	}
	if len(pinned) == 0 {
		return skip("not pinned, compare for yourself: %s", strings.Join(free, ", "))
	}
	return pass("pinned: %s", strings.Join(pinned, ", "))
}
