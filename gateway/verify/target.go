package verify

import (
	"encoding/hex"
	"fmt"
	"net/url"
	"strings"

	"dstack.host/gateway/registry"
)

// target is a URL, taken apart.
type target struct {
	host, port string
	canonical  string // the host in the one spelling that statements use
	id         string // what the name's label names, as hex; "" for a name of the gateway's own
	base       string // the domain that the gateway serves
}

// gatewayLabel is the gateway's own name below its base domain.
const gatewayLabel = "gateway"

func parseTarget(raw string) (target, error) {
	if !strings.Contains(raw, "://") {
		raw = "https://" + raw
	}
	u, err := url.Parse(raw)
	if err != nil {
		return target{}, err
	}
	if u.Scheme != "https" || u.Hostname() == "" {
		return target{}, fmt.Errorf("%q is not an https URL, as https://<id>.dstack.example.com", raw)
	}
	t := target{host: strings.ToLower(strings.TrimSuffix(u.Hostname(), ".")), port: u.Port()}
	if t.port == "" {
		t.port = "443"
	}
	t.canonical, t.base = t.host, t.host
	label, base, _ := strings.Cut(t.host, ".")
	name, err := registry.ParseLabel(label)
	if err != nil { // not an app's name; if it is none of the gateway's either, no statement will name it
		if label == gatewayLabel && base != "" {
			t.base = base
		}
		return t, nil
	}
	if name.Passthrough {
		return target{}, fmt.Errorf("%s is a passthrough name: the gateway does not see its TLS session and can't attest it; verify the app's own certificate", t.host)
	}
	t.canonical, t.id, t.base = name.ID+"."+base, name.ID, base
	if name.Kind == registry.KindCompose {
		hash, err := registry.ParseComposeHash(name.ID)
		if err != nil {
			return target{}, err
		}
		t.id = hex.EncodeToString(hash[:])
	}
	return t, nil
}

// localhost reports whether a URL's host is this machine by definition, without DNS (RFC 6761 section 6.3).
func localhost(raw string) bool {
	t, err := parseTarget(raw)
	return err == nil && isLocalhost(t.host)
}

func isLocalhost(host string) bool {
	return host == "localhost" || strings.HasSuffix(host, ".localhost")
}
