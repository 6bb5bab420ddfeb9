package explorer

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"dstack.host/ratls"
)

// maxRows bounds what one section shows; the rest is counted.
const maxRows = 600

// tdAttributes are the bits of TD_ATTRIBUTES that have names (Intel TDX module, base architecture specification).
var tdAttributes = map[int]string{0: "DEBUG", 28: "SEPT_VE_DISABLE", 29: "MIGRATABLE", 30: "PKS", 31: "KL", 63: "PERFMON"}

func quoteSection(title string, q *ratls.Quote) Section {
	s := Section{Title: title}
	s.add("version", q.Version)
	s.add("TEE TCB SVN", hex.EncodeToString(q.TEETCBSVN[:]), "[0] and [1]: the TDX module")
	s.add("MRSEAM", q.MRSeam, "the TDX module")
	s.add("MRSIGNERSEAM", q.MRSignerSeam, "its signer; zero is Intel")
	s.add("SEAM attributes", hex.EncodeToString(q.SeamAttributes[:]))
	s.add("TD attributes", hex.EncodeToString(q.TDAttributes[:]), attributes(q.TDAttributes))
	s.add("XFAM", hex.EncodeToString(q.XFAM[:]))
	s.add("MRTD", q.MRTD, "the initial contents of the domain")
	s.add("MRCONFIGID", q.MRConfigID)
	s.add("MROWNER", q.MROwner)
	s.add("MROWNERCONFIG", q.MROwnerConfig)
	for i, note := range []string{"firmware and its configuration", "kernel", "command line and initial RAM disk", "dstack's event log"} {
		s.add(fmt.Sprintf("RTMR%d", i), q.RTMR[i], note)
	}
	s.add("report data", q.ReportData, "what the domain chose to have signed")
	if q.MRServiceTD != nil {
		s.add("MRSERVICETD", *q.MRServiceTD, "the service domains bound to this one")
	}
	return s
}

func attributes(bits [8]byte) string {
	value := binary.LittleEndian.Uint64(bits[:])
	var names []string
	for bit := range 64 {
		if value&(1<<bit) == 0 {
			continue
		}
		name, known := tdAttributes[bit]
		if !known {
			name = fmt.Sprintf("bit %d", bit)
		}
		names = append(names, name)
	}
	return strings.Join(names, ", ")
}

func appSection(title string, info ratls.AppInfo) Section {
	s := Section{Title: title}
	for _, row := range []struct {
		name  string
		value ratls.Hex
		note  string
	}{
		{"app id", info.AppID, ""}, {"instance id", info.InstanceID, ""}, {"compose hash", info.ComposeHash, "SHA-256 of app-compose.json"},
		{"device id", info.DeviceID, "SHA-256 of the processor's PPID"}, {"mr_system", info.MRSystem, "machine, image and key provider"},
		{"mr_aggregated", info.MRAggregated, "everything"}, {"OS image hash", info.OSImageHash, "stated by the guest, not measured"},
	} {
		s.add(row.name, hex.EncodeToString(row.value), row.note)
	}
	s.add("key provider", string(info.KeyProviderInfo))
	return s
}

// eventSection lists events with the digests that are recomputed from them, and the register as it grows.
func eventSection(title string, events []ratls.Event) Section {
	s := Section{Title: title}
	for i, e := range events {
		if i == maxRows {
			s.add("…", fmt.Sprintf("and %d more", len(events)-i))
			break
		}
		note := fmt.Sprintf("register %d, type %#x", e.IMR, e.Type)
		if digest, err := e.RuntimeDigest(); err == nil {
			note += ", digest " + digest.String()
			if len(e.Digest) > 0 && hex.EncodeToString(e.Digest) != digest.String() {
				note += ", which is NOT what the log claims"
			}
		}
		s.add(e.Name, payload(e.Payload), note)
	}
	if rtmr, err := ratls.ReplayRTMR3(events); err == nil {
		s.add("RTMR3 after all", rtmr, "replayed from the recomputed digests of the runtime events")
	}
	return s
}

// payload shows text as text.
func payload(b []byte) string {
	for _, c := range b {
		if c < 0x20 || c > 0x7e {
			return clip(hex.EncodeToString(b))
		}
	}
	return clip(string(b))
}

const maxValue = 4 << 10

func clip(s string) string {
	if len(s) > maxValue {
		return s[:maxValue] + "…"
	}
	return s
}

func textSection(title, text string) Section {
	const most = 64 << 10
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "…"
	}
	return Section{Title: title, Text: text}
}

func documentSections(d *ratls.Document, st *ratls.Statement) []Section {
	s := Section{Title: "Statement of the gateway"}
	s.add("host", st.Host)
	s.add("node", st.Node)
	s.add("issued", stamp(st.IssuedAt))
	s.add("expires", stamp(st.ExpiresAt))
	for _, key := range st.TLS {
		s.add("TLS key, SHA-256", key.SPKI, key.Use, "until "+stamp(key.NotAfter))
	}
	s.add("ACME account", st.ACMEAccount)
	s.add("CAA", strings.Join(st.CAA, "; "))
	s.add("statement, SHA-256", sum([]byte(d.Statement)))
	s.add("challenge root", d.Challenge.Root, fmt.Sprintf("%d steps from the nonce", len(d.Challenge.Path)))
	all := []Section{s}
	if q, err := ratls.ParseQuote(d.Gateway.Quote); err == nil {
		all = append(all, quoteSections("Quote of the gateway", q, d.Gateway.Quote)...)
	}
	all = append(all, eventSection("Events of the gateway", d.Gateway.EventLog))
	for i, e := range d.Apps {
		if i == 16 {
			all = append(all, Section{Title: fmt.Sprintf("and %d more instances", len(d.Apps)-i)})
			break
		}
		if q, err := ratls.ParseQuote(e.Quote); err == nil {
			all = append(all, quoteSections("Quote of instance "+e.InstanceID, q, e.Quote)...)
		}
		all = append(all, textSection("Statement of instance "+e.InstanceID+", binding "+string(e.Binding), e.Statement),
			eventSection("Events of instance "+e.InstanceID, e.EventLog), textSection("app-compose.json of instance "+e.InstanceID, e.AppCompose))
	}
	return append(all, collateralSections(d.Collateral)...)
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

func sum(b []byte) string {
	digest := sha256.Sum256(b)
	return hex.EncodeToString(digest[:])
}
