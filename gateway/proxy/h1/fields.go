package h1

// class is what a field name means to the relay.
type class uint8

const (
	ordinary  class = iota // passed on
	hostField              // the rest are read by the relay, and written by it where they are written at all
	contentLength
	transferEncoding
	connection
	upgrade
	expect
	te
	trailer
	hop   // belongs to one connection
	trust // says what only the gateway may say
	shadow
)

// A shadow is a name that is none of the known ones but that an app may take for one: CGI, WSGI and their like map every octet of a name
// that is no letter or digit to "_", which makes X_Forwarded_For and X.Forwarded.For into X-Forwarded-For, and Content_Length into
// Content-Length.

// longest is the length of the longest name that classify knows exactly.
const longest = len("x-cluster-client-ip")

// classify says what name, a token, means.
func classify(name []byte) class {
	var norm [longest]byte
	n := min(len(name), longest)
	exact := true
	for i := range n {
		b := lower(name[i])
		if (b < 'a' || b > 'z') && !isDigit(b) && b != '-' {
			b, exact = '-', false
		}
		norm[i] = b
	}
	c := known(norm[:n], len(name))
	if c != ordinary && !exact {
		return shadow
	}
	return c
}

// known classifies a normalised name, of which norm is the beginning.
func known(norm []byte, length int) class {
	if length == 0 {
		return ordinary
	}
	switch norm[0] {
	case 'c', 'e', 'f', 'h', 'k', 'p', 't', 'u', 'x':
	default:
		return ordinary
	}
	if hasPrefix(norm, "x-forwarded") || hasPrefix(norm, "x-original-") {
		return trust
	}
	if hasPrefix(norm, "proxy-") {
		return hop
	}
	if length > longest {
		return ordinary
	}
	switch string(norm) {
	case "host":
		return hostField
	case "content-length":
		return contentLength
	case "transfer-encoding":
		return transferEncoding
	case "connection":
		return connection
	case "upgrade":
		return upgrade
	case "expect":
		return expect
	case "te":
		return te
	case "trailer":
		return trailer
	case "keep-alive", "http2-settings", "proxy": // "Proxy" becomes HTTP_PROXY in CGI programs
		return hop
	case "forwarded", "x-real-ip", "x-request-id", "x-client-ip", "x-cluster-client-ip", "true-client-ip", "x-rewrite-url":
		return trust
	}
	return ordinary
}

func hasPrefix(p []byte, prefix string) bool {
	return len(p) >= len(prefix) && string(p[:len(prefix)]) == prefix
}
