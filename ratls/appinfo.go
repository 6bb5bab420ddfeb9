package ratls

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	"github.com/vmihailenco/msgpack/v5"
	"github.com/vmihailenco/msgpack/v5/msgpcode"
)

// Sizes in bytes of the values that identify an application.
const (
	appIDSize       = 20
	instanceIDSize  = 20
	composeHashSize = sha256.Size
)

const (
	// maxInitScripts is how many init scripts dstack measures.
	maxInitScripts = 5
	// maxAppInfo bounds the application info of a certificate; maxVMConfig the description of a virtual machine.
	maxAppInfo  = 64 << 10
	maxVMConfig = 1 << 20
)

// AppInfo is what dstack knows of an application, derived from verified evidence by [DecodeAppInfo] or stated by the certificate
// of a KMS. Its JSON is what dstack's authorisation webhook receives (dstack 0.6 gateway/src/main_service/auth_client.rs).
type AppInfo struct {
	// AppID names the application, 20 bytes; ComposeHash is the SHA-256 of app-compose.json.
	AppID       Hex `json:"app_id"`
	ComposeHash Hex `json:"compose_hash"`
	// InstanceID names this instance, 20 bytes, or none for an application that asks for no instance id.
	InstanceID Hex `json:"instance_id"`
	// DeviceID is the SHA-256 of the processor's PPID. In a certificate of dstack's KMS it is always SHA-256 of nothing.
	DeviceID Hex `json:"device_id"`
	// MRSystem is SHA-256(MRTD, RTMR0 to RTMR2, SHA-256 of the key provider): the virtual machine, its image and its key provider.
	MRSystem Hex `json:"mr_system"`
	// MRAggregated is SHA-256(MRTD, RTMR0 to RTMR3 [, MRCONFIGID, MROWNER, MROWNERCONFIG unless all are zero]): everything.
	MRAggregated Hex `json:"mr_aggregated"`
	// OSImageHash is what the VM configuration says of the image; no quote covers it. Empty when unknown. Whoever wants to be sure
	// of the image compares MRSystem, which is measured.
	OSImageHash Hex `json:"os_image_hash"`
	// KeyProviderInfo is the JSON of the key provider's name and id.
	KeyProviderInfo Hex `json:"key_provider_info"`
	// InitScriptHashes are the SHA-256 of the init scripts, at most five; nil when not known.
	InitScriptHashes []Hex `json:"init_script_hashes"`
}

// Equal reports whether two say the same. Hashes of init scripts that are not known differ from none.
func (a AppInfo) Equal(b AppInfo) bool {
	same := (a.InitScriptHashes == nil) == (b.InitScriptHashes == nil) &&
		slices.EqualFunc(a.InitScriptHashes, b.InitScriptHashes, func(x, y Hex) bool { return bytes.Equal(x, y) })
	return same && bytes.Equal(a.AppID, b.AppID) && bytes.Equal(a.ComposeHash, b.ComposeHash) && bytes.Equal(a.InstanceID, b.InstanceID) &&
		bytes.Equal(a.DeviceID, b.DeviceID) && bytes.Equal(a.MRSystem, b.MRSystem) && bytes.Equal(a.MRAggregated, b.MRAggregated) &&
		bytes.Equal(a.OSImageHash, b.OSImageHash) && bytes.Equal(a.KeyProviderInfo, b.KeyProviderInfo)
}

// DecodeAppInfo derives the application from a verified quote, its event log and the text of its VM configuration (which may be
// empty). The runtime events have to replay to RTMR[3]; whatever is then read comes from them. The first event of a name counts,
// and none after system-ready, for those an application can add itself (dstack 0.6 dstack-attest/src/attestation.rs).
//
// Evidence that does not replay, or has no application id or compose hash of the right size, is a [Refusal].
func DecodeAppInfo(q *Quote, events []Event, vmConfig string) (AppInfo, error) {
	if err := replays(q, events); err != nil {
		return AppInfo{}, err
	}
	info, err := identify(RuntimeEvents(events))
	if err != nil {
		return AppInfo{}, &Refusal{Check: CheckAppInfo, Err: err}
	}
	if info.OSImageHash, err = osImageHash(vmConfig); err != nil {
		return AppInfo{}, &Refusal{Check: CheckAppInfo, Err: fmt.Errorf("vm config: %w", err)}
	}
	if len(q.PPID) > 0 {
		info.DeviceID = sum(q.PPID)
	}
	info.measure(q)
	return info, nil
}

// measure fills in what is derived from the registers of a quote.
func (a *AppInfo) measure(q *Quote) {
	keyProvider := make([]byte, sha256.Size)
	if len(a.KeyProviderInfo) > 0 {
		keyProvider = sum(a.KeyProviderInfo)
	}
	a.MRSystem = sum(q.MRTD[:], q.RTMR[0][:], q.RTMR[1][:], q.RTMR[2][:], keyProvider)
	all := [][]byte{q.MRTD[:], q.RTMR[0][:], q.RTMR[1][:], q.RTMR[2][:], q.RTMR[3][:]}
	if q.MRConfigID != (Measurement{}) || q.MROwner != (Measurement{}) || q.MROwnerConfig != (Measurement{}) {
		all = append(all, q.MRConfigID[:], q.MROwner[:], q.MROwnerConfig[:])
	}
	a.MRAggregated = sum(all...)
}

// sum is the SHA-256 of the concatenation of parts.
func sum(parts ...[]byte) []byte {
	h := sha256.New()
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum(nil)
}

// identify reads the identity of an application from its runtime events, which must have been replayed.
func identify(events []Event) (AppInfo, error) {
	boot := untilReady(events)
	info := AppInfo{
		AppID:           first(boot, "app-id"),
		ComposeHash:     first(boot, "compose-hash"),
		InstanceID:      first(boot, "instance-id"),
		KeyProviderInfo: first(boot, "key-provider"),
	}
	for _, e := range boot {
		if e.Name == "init-script-hash" {
			info.InitScriptHashes = append(info.InitScriptHashes, e.Payload)
		}
	}
	return info, info.check()
}

// check holds the sizes of an identity.
func (a AppInfo) check() error {
	var errs []error
	if len(a.AppID) != appIDSize {
		errs = append(errs, fmt.Errorf("app id has %d bytes, want %d", len(a.AppID), appIDSize))
	}
	if len(a.ComposeHash) != composeHashSize {
		errs = append(errs, fmt.Errorf("compose hash has %d bytes, want %d", len(a.ComposeHash), composeHashSize))
	}
	if n := len(a.InstanceID); n != 0 && n != instanceIDSize {
		errs = append(errs, fmt.Errorf("instance id has %d bytes, want %d or none", n, instanceIDSize))
	}
	if n := len(a.InitScriptHashes); n > maxInitScripts {
		errs = append(errs, fmt.Errorf("%d init scripts, at most %d are possible", n, maxInitScripts))
	}
	for _, h := range a.InitScriptHashes {
		if len(h) != sha256.Size {
			errs = append(errs, fmt.Errorf("init script hash has %d bytes, want %d", len(h), sha256.Size))
		}
	}
	return errors.Join(errs...)
}

// untilReady returns the events before the application could add its own.
func untilReady(events []Event) []Event {
	for i, e := range events {
		if e.Name == "system-ready" {
			return events[:i]
		}
	}
	return events
}

// first returns the payload of the first event of a name, empty when there is none.
func first(events []Event, name string) Hex {
	for _, e := range events {
		if e.Name == name {
			return e.Payload
		}
	}
	return Hex{}
}

// osImageHash reads the hash of the image from a VM configuration: the VmConfig itself or, older, the whole SysConfig with the
// VmConfig as a JSON string in it. The nested form is tried first.
func osImageHash(vmConfig string) (Hex, error) {
	if vmConfig == "" {
		return Hex{}, nil
	}
	var outer struct {
		VMConfig    *string `json:"vm_config"`
		OSImageHash *Hex    `json:"os_image_hash"`
	}
	if err := DecodeStrict([]byte(vmConfig), maxVMConfig, true, &outer); err != nil {
		return nil, err
	}
	if outer.VMConfig != nil && *outer.VMConfig != "" {
		var inner struct {
			OSImageHash *Hex `json:"os_image_hash"`
		}
		if err := DecodeStrict([]byte(*outer.VMConfig), maxVMConfig, true, &inner); err != nil {
			return nil, err
		}
		outer.OSImageHash = inner.OSImageHash
	}
	if outer.OSImageHash == nil {
		return Hex{}, nil
	}
	return *outer.OSImageHash, nil
}

// The application info of a certificate is a MessagePack array of its fields in this order. dstack up to 0.5.11 writes eight
// elements, later nine, the last being the list of init scripts or nil.
const (
	shortAppInfo = 8
	longAppInfo  = 9
)

func (a *AppInfo) fields() []*Hex {
	return []*Hex{&a.AppID, &a.ComposeHash, &a.InstanceID, &a.DeviceID, &a.MRSystem, &a.MRAggregated, &a.OSImageHash, &a.KeyProviderInfo}
}

// MarshalBinary writes the MessagePack form of a certificate, of nine elements.
func (a AppInfo) MarshalBinary() ([]byte, error) {
	if err := a.check(); err != nil {
		return nil, err
	}
	var b bytes.Buffer
	enc := msgpack.NewEncoder(&b)
	err := enc.EncodeArrayLen(longAppInfo)
	for _, f := range a.fields() {
		err = errors.Join(err, enc.EncodeBytes(append([]byte{}, *f...)))
	}
	if a.InitScriptHashes == nil {
		err = errors.Join(err, enc.EncodeNil())
	} else {
		err = errors.Join(err, enc.EncodeArrayLen(len(a.InitScriptHashes)))
		for _, h := range a.InitScriptHashes {
			err = errors.Join(err, enc.EncodeBytes(h))
		}
	}
	return b.Bytes(), err
}

// UnmarshalBinary reads the MessagePack form of a certificate: eight or nine elements, byte strings as bin or as arrays of
// integers, nothing after them, at most 64 KiB. The sizes of the identity are checked; what it claims is not.
func (a *AppInfo) UnmarshalBinary(data []byte) error {
	if len(data) > maxAppInfo {
		return fmt.Errorf("app info of %d bytes is longer than the limit of %d", len(data), maxAppInfo)
	}
	r := bytes.NewReader(data)
	info, err := decodeAppInfo(msgpack.NewDecoder(r))
	if err != nil {
		return fmt.Errorf("app info: %w", noEOF(err))
	}
	if r.Len() > 0 {
		return fmt.Errorf("app info is followed by %d more bytes", r.Len())
	}
	if err := info.check(); err != nil {
		return fmt.Errorf("app info: %w", err)
	}
	*a = info
	return nil
}

func decodeAppInfo(dec *msgpack.Decoder) (AppInfo, error) {
	n, err := dec.DecodeArrayLen()
	if err != nil {
		return AppInfo{}, err
	}
	if n != shortAppInfo && n != longAppInfo {
		return AppInfo{}, fmt.Errorf("%d elements, want %d or %d", n, shortAppInfo, longAppInfo)
	}
	var info AppInfo
	for _, f := range info.fields() {
		if *f, err = decodeBytes(dec, maxAppInfo); err != nil {
			return AppInfo{}, err
		}
	}
	if n == longAppInfo {
		info.InitScriptHashes, err = decodeHashes(dec)
	}
	return info, err
}

// decodeHashes reads nil or a list of byte strings.
func decodeHashes(dec *msgpack.Decoder) ([]Hex, error) {
	n, err := dec.DecodeArrayLen()
	if err != nil || n < 0 {
		return nil, err
	}
	if n > maxInitScripts {
		return nil, fmt.Errorf("%d init scripts, at most %d are possible", n, maxInitScripts)
	}
	hashes := make([]Hex, n)
	for i := range hashes {
		if hashes[i], err = decodeBytes(dec, maxAppInfo); err != nil {
			return nil, err
		}
	}
	return hashes, nil
}

// decodeBytes reads a byte string of at most limit bytes, which serde writes as bin or, for a plain vector, as an array of integers.
func decodeBytes(dec *msgpack.Decoder, limit int) (Hex, error) {
	code, err := dec.PeekCode()
	if err != nil {
		return nil, err
	}
	switch {
	case msgpcode.IsBin(code):
		return decodeRaw(dec, limit)
	case !msgpcode.IsFixedArray(code) && code != msgpcode.Array16 && code != msgpcode.Array32:
		return nil, fmt.Errorf("code %#x where bytes are needed", code)
	}
	n, err := dec.DecodeArrayLen()
	if err != nil {
		return nil, err
	}
	if n > limit {
		return nil, fmt.Errorf("%d bytes, at most %d are read", n, limit)
	}
	b := make(Hex, 0, min(n, 1<<10)) // a length is only a claim
	for range n {
		v, err := dec.DecodeInt64()
		if err != nil {
			return nil, err
		}
		if v < 0 || v > 0xff {
			return nil, fmt.Errorf("%d where a byte is needed", v)
		}
		b = append(b, byte(v))
	}
	return b, nil
}

// decodeRaw reads the bytes of a bin or a string. The decoder's own methods allocate whatever length a stranger claims.
func decodeRaw(dec *msgpack.Decoder, limit int) ([]byte, error) {
	n, err := dec.DecodeBytesLen()
	if err != nil {
		return nil, err
	}
	if n < 0 || n > limit {
		return nil, fmt.Errorf("%d bytes, at most %d are read", n, limit)
	}
	b := make([]byte, 0, min(n, 1<<10))
	for len(b) < n { // a length is only a claim: memory follows what is there
		more := min(n-len(b), 64<<10)
		b = append(b, make([]byte, more)...)
		if err := dec.ReadFull(b[len(b)-more:]); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// decodeText reads a string.
func decodeText(dec *msgpack.Decoder, limit int) (string, error) {
	code, err := dec.PeekCode()
	if err != nil {
		return "", err
	}
	if !msgpcode.IsString(code) {
		return "", fmt.Errorf("code %#x where text is needed", code)
	}
	text, err := decodeRaw(dec, limit)
	return string(text), err
}
