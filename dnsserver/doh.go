package dnsserver

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"github.com/miekg/dns"
)

// DoHPath is where clients expect DNS over HTTPS.
const DoHPath = "/dns-query"

// messageType is the media type of DNS messages, RFC 8484 section 6.
const messageType = "application/dns-message"

// ServeHTTP answers DNS over HTTPS (RFC 8484), GET and POST, at whatever path
// it is mounted. The time that a request may take is the HTTP server's.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	query, status, err := readDoH(w, r)
	if err != nil {
		http.Error(w, err.Error(), status)
		return
	}
	client, _ := netip.ParseAddrPort(r.RemoteAddr) // an unknown one gets cookies of its own
	responder, begin := responder{shared: &s.shared, counters: s.streams[HTTPS]}, time.Now()
	answer := responder.respond(nil, query, plain(client), s.view.Load(), begin)
	if answer == nil {
		http.Error(w, "not a DNS query", http.StatusBadRequest)
		return
	}
	responder.took(time.Since(begin), 1)
	h := w.Header()
	h.Set("Content-Type", messageType)
	h.Set("Content-Length", strconv.Itoa(len(answer)))
	h.Set("Cache-Control", "max-age="+strconv.FormatUint(uint64(leastTTL(answer)), 10))
	_, _ = w.Write(answer) // the client may be gone
}

// readDoH reads the query of a request, or returns the status that refuses it.
func readDoH(w http.ResponseWriter, r *http.Request) (query []byte, status int, err error) {
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		values := r.URL.Query()["dns"]
		if len(values) != 1 {
			return nil, http.StatusBadRequest, errors.New("one parameter dns is needed")
		}
		query, err = base64.RawURLEncoding.DecodeString(values[0])
		if err != nil {
			return nil, http.StatusBadRequest, errors.New("dns is not base64url without padding")
		}
		return query, 0, nil
	case http.MethodPost:
		if r.Header.Get("Content-Type") != messageType {
			w.Header().Set("Accept", messageType)
			return nil, http.StatusUnsupportedMediaType, fmt.Errorf("the body must be %s", messageType)
		}
		query, err = io.ReadAll(http.MaxBytesReader(w, r.Body, maxMessage))
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			return nil, http.StatusRequestEntityTooLarge, errors.New("a DNS message has at most 65535 octets")
		}
		if err != nil {
			return nil, http.StatusBadRequest, errors.New("the body did not arrive whole")
		}
		return query, 0, nil
	}
	w.Header().Set("Allow", "GET, HEAD, POST")
	return nil, http.StatusMethodNotAllowed, errors.New("GET or POST")
}

// leastTTL is how long an answer may be kept (RFC 8484 section 5.1): what its
// records allow, 0 if it has none. A negative answer's SOA has the negative TTL.
func leastTTL(answer []byte) uint32 {
	var m dns.Msg
	if m.Unpack(answer) != nil {
		return 0
	}
	records := append(m.Answer, m.Ns...)
	if len(records) == 0 {
		return 0
	}
	least := records[0].Header().Ttl
	for _, rr := range records {
		least = min(least, rr.Header().Ttl)
	}
	return least
}
