package dnsserver

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// maxZoneFile and maxFileRecords bound a zone file that is included.
const (
	maxZoneFile    = 1 << 20
	maxFileRecords = 10_000
)

// ParseZoneFile reads records in zone-file form (RFC 1035 section 5) for
// [ZoneConfig].Records. Names that don't end with a dot are relative to origin
// or to the last $ORIGIN. Of the directives $ORIGIN and $TTL are known; nothing
// is included, nothing generated. Comments, parentheses, quotes, "@" and an
// omitted owner work as everywhere. SOA and NS are refused, for the zone makes
// its own. Source of a record is file:line; all faults are told at once, each
// a [Fault].
func ParseZoneFile(file string, text []byte, origin string) ([]Record, error) {
	p := &fileParser{file: file, origin: dns.Fqdn(strings.ToLower(origin))}
	if len(text) > maxZoneFile {
		p.fault(0, fmt.Errorf("larger than %d octets", maxZoneFile))
		return nil, errors.Join(p.faults...)
	}
	rest := string(text)
	for line := 1; rest != ""; {
		entry, lines, after, err := cutEntry(rest)
		if err != nil {
			p.fault(line, err)
			break
		}
		p.entry(line, entry)
		rest, line = after, line+lines
		if len(p.records) > maxFileRecords {
			p.fault(line, fmt.Errorf("more than %d records", maxFileRecords))
			break
		}
	}
	if len(p.faults) > 0 {
		return nil, errors.Join(p.faults...)
	}
	return p.records, nil
}

// cutEntry cuts the first entry off a zone file: a line, or several held
// together by parentheses. The entry is one line without comments and
// parentheses.
func cutEntry(text string) (entry string, lines int, rest string, err error) {
	var b strings.Builder
	depth, quoted := 0, false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == '\\':
			b.WriteByte(c)
			if i++; i < len(text) && text[i] != '\n' {
				b.WriteByte(text[i])
			} else {
				return "", 0, "", errors.New("a backslash with nothing behind it")
			}
		case c == '\n' && quoted:
			return "", 0, "", errors.New("a quote that is not closed")
		case c == '\n' && depth > 0:
			lines++
			b.WriteByte(' ')
		case c == '\n':
			return b.String(), lines + 1, text[i+1:], nil
		case c == '"':
			quoted = !quoted
			b.WriteByte(c)
		case quoted:
			b.WriteByte(c)
		case c == ';':
			for i+1 < len(text) && text[i+1] != '\n' {
				i++
			}
		case c == '(':
			depth++
			b.WriteByte(' ')
		case c == ')' && depth == 0:
			return "", 0, "", errors.New("a parenthesis that was not opened")
		case c == ')':
			depth--
			b.WriteByte(' ')
		case c == '\r' || c == '\t':
			b.WriteByte(' ')
		case c < ' ' || c == 0x7f:
			return "", 0, "", fmt.Errorf("a control character, %#x", c)
		default:
			b.WriteByte(c)
		}
	}
	if depth > 0 || quoted {
		return "", 0, "", errors.New("a parenthesis or a quote that is not closed")
	}
	return b.String(), lines + 1, "", nil
}

// fileParser reads entries.
type fileParser struct {
	file    string
	origin  string
	owner   string // of the record before, absolute
	ttl     uint32 // of $TTL; 0: none
	records []Record
	faults  []error
}

func (p *fileParser) fault(line int, err error) {
	p.faults = append(p.faults, &Fault{Zone: strings.TrimSuffix(p.origin, "."), Field: "zone file", Source: p.source(line), Err: err})
}

func (p *fileParser) source(line int) string {
	if line == 0 {
		return p.file
	}
	return fmt.Sprintf("%s:%d", p.file, line)
}

func (p *fileParser) entry(line int, entry string) {
	fields := strings.Fields(entry)
	if len(fields) == 0 {
		return
	}
	var err error
	if strings.HasPrefix(fields[0], "$") {
		err = p.directive(fields)
	} else {
		err = p.record(line, entry)
	}
	if err != nil {
		p.fault(line, err)
	}
}

func (p *fileParser) directive(fields []string) error {
	name := strings.ToUpper(fields[0])
	switch {
	case name == "$ORIGIN" && len(fields) == 2 && strings.HasSuffix(fields[1], "."):
		origin := strings.ToLower(fields[1])
		if err := checkName(origin); err != nil {
			return fmt.Errorf("$ORIGIN: %w", err)
		}
		p.origin = origin
		return nil
	case name == "$ORIGIN":
		return errors.New("$ORIGIN takes one full domain name with its trailing dot")
	case name == "$TTL" && len(fields) == 2:
		rr, err := dns.NewRR(". " + fields[1] + " IN NULL")
		if err != nil || rr == nil || rr.Header().Ttl == 0 {
			return fmt.Errorf("$TTL %.20q is not a number of seconds", fields[1])
		}
		p.ttl = rr.Header().Ttl
		return nil
	}
	return fmt.Errorf("directive %.20s: only $ORIGIN and $TTL are known", fields[0])
}

func (p *fileParser) record(line int, entry string) error {
	if entry[0] == ' ' {
		if p.owner == "" {
			return errors.New("the first record names no owner")
		}
		entry = p.owner + entry
	}
	zp := dns.NewZoneParser(strings.NewReader(entry+"\n"), p.origin, "")
	zp.SetDefaultTTL(p.ttl)
	rr, ok := zp.Next()
	if err := zp.Err(); err != nil {
		return errors.New(strings.TrimPrefix(err.Error(), "dns: "))
	}
	if !ok {
		return errors.New("no record")
	}
	h := rr.Header()
	if h.Name == "" || !hasData(strings.Fields(entry), dns.TypeToString[h.Rrtype]) {
		return errors.New("a record is an owner, a type and data")
	}
	p.owner = h.Name
	if h.Class != dns.ClassINET {
		return errors.New("only class IN is served")
	}
	p.records = append(p.records, Record{
		Name: h.Name, Type: dns.TypeToString[h.Rrtype], Data: strings.TrimPrefix(rr.String(), h.String()),
		TTL: time.Duration(h.Ttl) * time.Second, Source: p.source(line),
	})
	return nil
}

// hasData tells whether anything stands behind the type of a record. The
// library takes one without, which means something only in updates.
func hasData(fields []string, rrtype string) bool {
	for i, field := range fields[1:] {
		if strings.EqualFold(field, rrtype) {
			return i+2 < len(fields)
		}
	}
	return false
}
