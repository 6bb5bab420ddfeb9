package proxy

import (
	"errors"
	"slices"
	"strconv"
	"strings"

	"dstack.host/gateway/registry"
)

// gatewayLabel is the label under each base at which the gateway itself is reached.
const gatewayLabel = "gateway"

// names knows which host names this listener serves: each base, and one label below it, which is what a wildcard certificate covers
// (RFC 6125 section 6.4.3). It is immutable.
type names struct {
	bases []string // lower case
}

// newNames checks and folds the bases.
func newNames(bases []string) (names, error) {
	var n names
	var faults []error
	if len(bases) == 0 {
		faults = append(faults, errors.New("no base domain"))
	}
	for _, base := range bases {
		host, ok := canonicalHost(base)
		switch {
		case !ok:
			faults = append(faults, errors.New("base "+strconv.Quote(base)+" is no host name; write it without a trailing dot"))
		case slices.Contains(n.bases, host):
			faults = append(faults, errors.New("base "+strconv.Quote(base)+" is given twice"))
		default:
			n.bases = append(n.bases, host)
		}
	}
	return n, errors.Join(faults...)
}

// place is where a host name belongs.
type place uint8

const (
	foreign    place = iota // not served here
	ownPlace                // a base or the gateway's own name
	appPlace                // a name of an app, registered or not
	noAppPlace              // below a base, but nothing that an app could be called
)

// find says where a canonical host name belongs, and which app's it is.
func (n names) find(host string) (place, registry.Name) {
	if slices.Contains(n.bases, host) {
		return ownPlace, registry.Name{}
	}
	label, base, _ := strings.Cut(host, ".")
	if !slices.Contains(n.bases, base) {
		return foreign, registry.Name{}
	}
	if label == gatewayLabel {
		return ownPlace, registry.Name{}
	}
	name, err := registry.ParseLabel(label)
	if err != nil {
		return noAppPlace, registry.Name{}
	}
	return appPlace, name
}

// destination is where one request goes: to the gateway itself or to an app.
type destination struct {
	own  bool
	path string // for the gateway: AttestationPath, or below it, in plain spelling; "" leaves the path as it is
	name registry.Name
}

// decide is the routing decision: a pure function of the request's authority and raw path. Reserved paths come before all questions
// about the app, but never under a name that is not served.
func (n names) decide(authority, path string, http2 bool) (destination, *failure) {
	host, err := parseAuthority(authority)
	switch {
	case errors.Is(err, errForeign):
		return destination{}, fail(Misdirected, nil)
	case err != nil:
		return destination{}, fail(BadRequest, err)
	}
	where, name := n.find(host)
	if where == foreign || name.Passthrough {
		// A name that the app terminates itself came here because its neighbour's connection was reused.
		return destination{}, fail(Misdirected, nil)
	}
	plain, reserved := reservedPath(path)
	switch {
	case where == ownPlace || reserved:
		return destination{own: true, path: plain}, nil
	case where == noAppPlace:
		return destination{}, fail(UnknownApp, nil)
	case name.HTTP2 && !http2:
		return destination{}, fail(HTTP2Only, nil)
	}
	return destination{name: name}, nil
}
