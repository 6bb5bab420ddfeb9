package proxy_test

import (
	"net/netip"
	"strings"
	"testing"

	"dstack.host/gateway/proxy"
)

func TestReservedPathIsFoundInEverySpelling(t *testing.T) {
	for _, path := range []string{
		"/.well-known/attestation",
		"/.well-known/attestation/",
		"/.well-known/attestation//",
		"/.well-known/attestation;x=1",
		"/.well-known;a/attestation;b;c",
		"//.well-known/attestation",
		"/.well-known//attestation",
		"///.well-known///attestation///",
		"/./.well-known/./attestation/.",
		"/a/../.well-known/attestation",
		"/../.well-known/attestation",
		"/.well-known/attestation/..",
		"/.well-known/attestation/../x",
		"/.well-known/x/../attestation",
		"/.WELL-KNOWN/Attestation",
		"/.well-known/atteſtation",
		"/.well-known/atte%C5%BFtation",
		"/%2ewell-known/attestation",
		"/%2Ewell%2Dknown%2Fattestation",
		"/%2e%77%65%6c%6c-known/%61ttestatio%6e",
		"/.well-known%2fattestation",
		"/.well-known%5cattestation",
		`/.well-known\attestation`,
		`\.well-known\attestation`,
		"/%252ewell-known/attestation",
		"/%25252e%2577ell-known%25252fattestation",
		"/.well-known/%2e/attestation",
		"/.well-known/%2e%2e/.well-known/attestation",
		"/.well-known/%252e%252e/../attestation",
		"/.well-known/..;/../attestation",
		`/.well-known/\../../attestation`,
		"/x;%2f../.well-known/attestation",
		"/foo%3f/../.well-known/attestation",
		"/.well-known/attestation%00",
		"/.well-known/attestation%00.html",
		"/.well-known/attestation%20",
		"/.well-known/attestation%09",
		"/.well-known/attestation%3fx",
		"/.well-known/attestation%23x",
		"//dstack.example/.well-known/attestation",
		`/\dstack.example/.well-known/attestation`,
		"/%2fdstack.example/../.well-known/attestation",
	} {
		plain, ok := proxy.ReservedPath(path)
		if !ok || plain != proxy.AttestationPath {
			t.Errorf("%q: %q %v", path, plain, ok)
		}
	}
}

func TestOtherPathsAreLeftToTheApp(t *testing.T) {
	for _, path := range []string{
		"", "/", "*", "/.well-known", "/.well-known/", "/.well-known/attestations", "/.well-known/attestation-x", "/.well-known/acme-challenge/x",
		"/attestation", "/x/.well-known/attestation", "/attestation/.well-known", "/a/../attestation/x", "/.well-known/x/attestation",
		"/%", "/%zz/%2", "/attention/attestation", "/well-known/attestation", "/%2e%2e/%2e%2e/etc/passwd",
		"/.well-known/att", "/" + strings.Repeat("%25", 2000) + "2ewell-known/attestation",
	} {
		if plain, ok := proxy.ReservedPath(path); ok {
			t.Errorf("%q is taken for %q", path, plain)
		}
	}
}

func TestWhatIsBelowTheReservedPathIsReserved(t *testing.T) {
	for path, want := range map[string]string{
		"/.well-known/attestation/app":         "/.well-known/attestation/app",
		"/.well-known/attestation//a/./B%2fc/": "/.well-known/attestation/a/B/c",
	} {
		if plain, ok := proxy.ReservedPath(path); !ok || plain != want {
			t.Errorf("%q: %q %v, want %q", path, plain, ok, want)
		}
	}
}

func FuzzReservedPath(f *testing.F) {
	f.Add("/.well-known/attestation", uint8(0))
	f.Add("/a/%2e%2e/.WELL-known\\attestation;x", uint8(1))
	f.Fuzz(func(t *testing.T, path string, how uint8) {
		plain, ok := proxy.ReservedPath(path)
		if ok && plain != proxy.AttestationPath && !strings.HasPrefix(plain, proxy.AttestationPath+"/") {
			t.Fatalf("%q: plain spelling %q", path, plain)
		}
		if ok && !proxy.MayBeReserved(path) {
			t.Fatalf("%q leaves by the quick exit", path)
		}
		// What does not change a path's meaning for some server must not change the answer.
		var same string
		switch how % 4 {
		case 0:
			same = strings.ReplaceAll(path, ".", "%2e")
		case 1:
			same = strings.ReplaceAll(path, "/", "//")
		case 2:
			same = strings.ToUpper(path)
		case 3:
			same = path + "/"
		}
		if _, still := proxy.ReservedPath(same); ok && !still {
			t.Fatalf("%q is reserved, %q is not", path, same)
		}
	})
}

func TestAuthorityIsParsedStrictly(t *testing.T) {
	for in, want := range map[string]string{
		"a.example": "a.example", "A.EXAMPLE:443": "a.example", "a.example:1": "a.example", "a.example:65535": "a.example", "xn--a": "xn--a",
		strings.Repeat("a", 63) + ".b": strings.Repeat("a", 63) + ".b",
	} {
		if got, err := proxy.ParseAuthority(in); got != want || err != nil {
			t.Errorf("%q: %q %v", in, got, err)
		}
	}
	for in, want := range map[string]error{
		"": proxy.ErrAuthority, "a:": proxy.ErrAuthority, "a:0": proxy.ErrAuthority, "a:65536": proxy.ErrAuthority, "a:0443": proxy.ErrAuthority,
		"a:+1": proxy.ErrAuthority, "a:1a": proxy.ErrAuthority, "a:999999999999999999999": proxy.ErrAuthority, "u@a.example": proxy.ErrAuthority,
		"a b": proxy.ErrAuthority, "a\x00b": proxy.ErrAuthority, "a/b": proxy.ErrAuthority, "ä.example": proxy.ErrAuthority, "a,b": proxy.ErrAuthority,
		"a.example.": proxy.ErrForeign, "a.example.:443": proxy.ErrForeign, ".": proxy.ErrForeign, "a..b": proxy.ErrForeign, ":443": proxy.ErrForeign,
		"[::1]": proxy.ErrForeign, "[::1]:443": proxy.ErrForeign, "a:b:1": proxy.ErrForeign, "-a": proxy.ErrForeign, "a_b.example": proxy.ErrForeign,
		strings.Repeat("a", 64) + ".b": proxy.ErrForeign, strings.Repeat("a.", 127) + "a": proxy.ErrForeign,
	} {
		if got, err := proxy.ParseAuthority(in); err != want {
			t.Errorf("%q: %q %v, want %v", in, got, err, want)
		}
	}
}

func FuzzAuthority(f *testing.F) {
	for _, s := range []string{"a.example", "A.example:443", "[::1]:80", "a@b", "a.", "a:65536", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		host, err := proxy.ParseAuthority(s)
		if err != nil {
			if err != proxy.ErrAuthority && err != proxy.ErrForeign {
				t.Fatalf("%q: %v", s, err)
			}
			return
		}
		if again, err := proxy.ParseAuthority(host); err != nil || again != host || !strings.EqualFold(host, s[:len(host)]) {
			t.Fatalf("%q: %q, then %q %v", s, host, again, err)
		}
	})
}

func TestDecision(t *testing.T) {
	const id = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	compose := strings.Repeat("a", 52)
	bases := []string{"dstack.example", "Other.Example", "sub.dstack.example"}
	for _, row := range []struct {
		authority, path string
		http2           bool
		want            string
	}{
		{id + ".dstack.example", "/", false, "app"},
		{id + ".DSTACK.example:8443", "/", false, "app"},
		{strings.ToUpper(id) + "-8080.Other.Example", "/", true, "app"},
		{"0x" + id + ".sub.dstack.example", "/", true, "app"},
		{compose + "-65535.dstack.example", "/", true, "app"},
		{id + "-8080g.dstack.example", "/", true, "app"},
		{id + "-8080g.dstack.example", "/", false, "http2_only"},
		{id + "-8080g.dstack.example", "/.well-known/attestation", false, "own /.well-known/attestation"},
		{id + ".dstack.example", "/.well-known/attestation", true, "own /.well-known/attestation"},
		{id + ".dstack.example", "/%2Ewell-known/attestation/x", true, "own /.well-known/attestation/x"},
		{"nonsense.dstack.example", "/.well-known/attestation", true, "own /.well-known/attestation"},
		{"dstack.example", "/", true, "own"},
		{"sub.dstack.example", "/", true, "own"},
		{"gateway.dstack.example", "/x", true, "own"},
		{"GATEWAY.dstack.example:443", "/x", false, "own"},
		{"gateway.dstack.example", "//.well-known/attestation", false, "own /.well-known/attestation"},
		{id + "-8443s.dstack.example", "/", true, "misdirected"},
		{id + "-8443s.dstack.example", "/.well-known/attestation", true, "misdirected"},
		{"foreign.example", "/", true, "misdirected"},
		{"foreign.example", "/.well-known/attestation", true, "misdirected"},
		{"a." + id + ".dstack.example", "/", true, "misdirected"},
		{id + ".dstack.example.", "/", true, "misdirected"},
		{"dstack.example.evil.example", "/", true, "misdirected"},
		{"xdstack.example", "/", true, "misdirected"},
		{"10.0.0.1", "/", true, "misdirected"},
		{"[::1]:443", "/", true, "misdirected"},
		{strings.Repeat("ab", 32) + ".dstack.example", "/", true, "misdirected"},
		{"www.dstack.example", "/", true, "unknown_app"},
		{id + "a.dstack.example", "/", true, "unknown_app"},
		{strings.Repeat("1", 52) + ".dstack.example", "/", true, "unknown_app"},
		{strings.Repeat("a", 51) + "b.dstack.example", "/", true, "unknown_app"},
		{id + "-65536.dstack.example", "/", true, "unknown_app"},
		{id + "-0.dstack.example", "/", true, "unknown_app"},
		{id + "-8080sg.dstack.example", "/", true, "unknown_app"},
		{id + ".dstack.example:65536", "/", true, "bad_request"},
		{"", "/", true, "bad_request"},
		{"u@dstack.example", "/", true, "bad_request"},
	} {
		if got, _ := proxy.Decide(bases, row.authority, row.path, row.http2); got != row.want {
			t.Errorf("%q %q http2=%v: %s, want %s", row.authority, row.path, row.http2, got, row.want)
		}
	}
}

func TestProxyHeader(t *testing.T) {
	const sig = "\r\n\r\n\x00\r\nQUIT\n"
	v4 := func(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }
	for _, row := range []struct {
		client, local netip.AddrPort
		want          string
	}{
		{v4("192.0.2.1:256"), v4("198.51.100.2:443"), sig + "\x21\x11\x00\x0c\xc0\x00\x02\x01\xc6\x33\x64\x02\x01\x00\x01\xbb"},
		{v4("[::ffff:192.0.2.1]:256"), v4("198.51.100.2:443"), sig + "\x21\x11\x00\x0c\xc0\x00\x02\x01\xc6\x33\x64\x02\x01\x00\x01\xbb"},
		{v4("[2001:db8::1]:1"), v4("192.0.2.1:2"), sig + "\x21\x21\x00\x24\x20\x01\x0d\xb8" + strings.Repeat("\x00", 11) + "\x01" +
			strings.Repeat("\x00", 10) + "\xff\xff\xc0\x00\x02\x01" + "\x00\x01\x00\x02"},
		{netip.AddrPort{}, v4("192.0.2.1:2"), sig + "\x20\x00\x00\x00"},
	} {
		if got := string(proxy.ProxyHeader(row.client, row.local)); got != row.want {
			t.Errorf("%v %v: %q, want %q", row.client, row.local, got, row.want)
		}
	}
}

func TestAcceptTellsPeopleFromPrograms(t *testing.T) {
	for accept, want := range map[string]bool{
		"": false, "*/*": false, "application/json": false, "text/plain": false,
		"text/html": true, "TEXT/HTML": true, "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8": true,
		"text/html;q=0": false, "text/html;q=0.5, application/json": false, "application/json;q=0.1, text/html": true,
		"text/html;q=x": false, "text/html;q=2": false, "text/html;q=NaN": false, "text/html;q=-1": false, ";;;,,,q=": false,
		strings.Repeat(",", 5000) + "text/html": false,
	} {
		if got := proxy.PrefersHTML(accept); got != want {
			t.Errorf("%.40q: %v", accept, got)
		}
	}
}
