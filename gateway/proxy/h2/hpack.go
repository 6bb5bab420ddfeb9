package h2

import "strconv"

// staticNames are the names of RFC 7541 appendix A, by their first index there.
var staticNames = map[string]byte{
	"accept-charset": 15, "accept-encoding": 16, "accept-language": 17, "accept-ranges": 18, "accept": 19, "access-control-allow-origin": 20,
	"age": 21, "allow": 22, "authorization": 23, "cache-control": 24, "content-disposition": 25, "content-encoding": 26, "content-language": 27,
	"content-length": 28, "content-location": 29, "content-range": 30, "content-type": 31, "cookie": 32, "date": 33, "etag": 34, "expect": 35,
	"expires": 36, "from": 37, "host": 38, "if-match": 39, "if-modified-since": 40, "if-none-match": 41, "if-range": 42,
	"if-unmodified-since": 43, "last-modified": 44, "link": 45, "location": 46, "max-forwards": 47, "proxy-authenticate": 48,
	"proxy-authorization": 49, "range": 50, "referer": 51, "refresh": 52, "retry-after": 53, "server": 54, "set-cookie": 55,
	"strict-transport-security": 56, "transfer-encoding": 57, "user-agent": 58, "vary": 59, "via": 60, "www-authenticate": 61,
}

// emptyTable says that the dynamic table has no room, whatever the client allows (RFC 7541 section 6.3). It stands before the first block.
const emptyTable = 0x20

// appendStatus appends ":status" (indices 8 to 14).
func appendStatus(out []byte, status int) []byte {
	switch status {
	case 200:
		return append(out, 0x88)
	case 204:
		return append(out, 0x89)
	case 206:
		return append(out, 0x8a)
	case 304:
		return append(out, 0x8b)
	case 400:
		return append(out, 0x8c)
	case 404:
		return append(out, 0x8d)
	case 500:
		return append(out, 0x8e)
	}
	return strconv.AppendInt(append(out, 0x08, 3), int64(status), 10)
}

// appendField appends a literal field without indexing (RFC 7541 section 6.2.2). Cookies are marked never to be indexed by anybody. The name is in any case.
func appendField(out, name, value []byte) []byte {
	var buf [32]byte
	lower := appendLower(buf[:0], name)
	index := staticNames[string(lower)]
	form := byte(0)
	if index == 55 { // set-cookie
		form = 0x10
	}
	if index == 0 {
		out = appendInt(append(out, form), 0, 0x7f, len(lower))
		out = append(out, lower...)
	} else {
		out = appendInt(out, form, 0x0f, int(index))
	}
	out = appendInt(out, 0, 0x7f, len(value))
	return append(out, value...)
}

// appendInt appends n with a prefix whose greatest value is most, behind the bits of form (RFC 7541 section 5.1).
func appendInt(out []byte, form, most byte, n int) []byte {
	if n < int(most) {
		return append(out, form|byte(n))
	}
	out = append(out, form|most)
	for n -= int(most); n >= 0x80; n >>= 7 {
		out = append(out, byte(n)|0x80)
	}
	return append(out, byte(n))
}

func appendLower(out, name []byte) []byte {
	for _, b := range name {
		if b >= 'A' && b <= 'Z' {
			b += 'a' - 'A'
		}
		out = append(out, b)
	}
	return out
}

func appendLength(out []byte, n int64) []byte {
	var buf [20]byte
	return appendField(out, []byte("content-length"), strconv.AppendInt(buf[:0], n, 10))
}
