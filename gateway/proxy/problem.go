package proxy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"dstack.host/gateway/proxy/h1"
	"dstack.host/gateway/web"
)

// Reason says in one word why a request failed, in problem details, on the page and in the log. It is also a metric label: the
// constants here are all there are.
type Reason string

const (
	BadRequest     Reason = "bad_request"            // 400; also other 4xx and 5xx of the request's own form
	TooLarge       Reason = "request_too_large"      // 413, 414, 431
	RequestTimeout Reason = "request_timeout"        // 408
	UnknownApp     Reason = "unknown_app"            // 404
	Misdirected    Reason = "misdirected"            // 421
	HTTP2Only      Reason = "http2_only"             // 505
	PortDenied     Reason = "port_denied"            // 403
	Draining       Reason = "app_draining"           // 503
	Starting       Reason = "gateway_starting"       // 503
	NotFound       Reason = "not_found"              // 404, on the gateway's own names
	RateLimited    Reason = "rate_limited"           // 429
	NoEvidence     Reason = "no_evidence"            // 503
	Overloaded     Reason = "overloaded"             // 503
	Internal       Reason = "gateway_error"          // 500
	TunnelDown     Reason = "tunnel_down"            // 503
	AppRefused     Reason = "app_refused"            // 502
	AppTimeout     Reason = "app_timeout"            // 504
	AppClosed      Reason = "app_closed"             // 502
	AppMalformed   Reason = "app_response_malformed" // 502
	ClientGone     Reason = "client_gone"            // in the log only
)

// kinds says everything that follows from a reason alone. The hop is one of web.Hops.
var kinds = map[Reason]struct {
	status             int
	hop, title, detail string
}{
	BadRequest:     {400, "gateway", "The request is malformed", "Send a request that follows RFC 9110 and RFC 9112, or RFC 9113, to the letter; the gateway forwards nothing that could be read in two ways."},
	TooLarge:       {431, "gateway", "The request is too large", "Send a shorter request line, fewer or shorter header fields, or a smaller body."},
	RequestTimeout: {408, "gateway", "The request took too long to arrive", "Send the request again, without long pauses."},
	UnknownApp:     {404, "name", "No such app", "Check the name: <id>[-<port>][s|g], where the id is an app id or instance id (40 hex digits) or a compose hash (52 base32 characters). If it is right, the app has not registered with this gateway: start it, or wait until it has."},
	Misdirected:    {421, "name", "This name is not served on this connection", "Connect again with the requested name as TLS server name; if that fails too, its DNS leads to the wrong gateway."},
	HTTP2Only:      {505, "name", "This name speaks only HTTP/2", "Use HTTP/2, or leave the suffix g out of the name."},
	PortDenied:     {403, "app", "The app does not open this port", "Use a port that the port policy in the app's app-compose.json allows, or allow this one there."},
	Draining:       {503, "gateway", "The gateway does not take this app any more", "The app's operator finds the reason in what its VM is told when it registers: its measurements, its platform's TCB or an operator's decision do not satisfy this gateway."},
	Starting:       {503, "gateway", "The gateway is starting", "Try again in a few seconds; the gateway has not read its registry yet."},
	NotFound:       {404, "gateway", "Nothing is here", "The gateway itself serves only / and " + AttestationPath + "; an app is reached by its own name."},
	RateLimited:    {429, "gateway", "Too many requests", "Wait as long as Retry-After says."},
	NoEvidence:     {503, "gateway", "There is no evidence", "Try again in a minute; if it stays so, the gateway's operator finds the cause in its log. Until then nothing proves what runs here."},
	Overloaded:     {503, "gateway", "The gateway is busy", "Try again in a few seconds."},
	Internal:       {500, "gateway", "The gateway made a mistake", "Try again; if it happens again, give the request id to the gateway's operator."},
	TunnelDown:     {503, "tunnel", "The tunnel to the app is down", "Try again in a minute. If it stays so, check that the app's VM runs and that it can send UDP to the gateway's WireGuard port."},
	AppRefused:     {502, "app", "The app refused the connection", "Check that the app listens on this port, on all addresses of its VM; another port is addressed as <id>-<port>."},
	AppTimeout:     {504, "app", "The app did not answer in time", "Try again; if it stays so, check that the app is alive and that its VM's firewall lets the gateway in."},
	AppClosed:      {502, "app", "The app closed the connection without an answer", "Try again; if it stays so, look at the app's log, and check that it speaks plain HTTP on this port."},
	AppMalformed:   {502, "app", "The app's answer is not valid HTTP", "Check that the app speaks plain HTTP on this port; one that speaks TLS itself is addressed with the suffix s, one that speaks HTTP/2 with g."},
}

// failure is why something could not be served. It carries no text of a stranger's.
type failure struct {
	reason Reason
	status int    // 0: that of the reason
	detail string // "": that of the reason
	err    error  // for the log alone
}

func fail(reason Reason, err error) *failure { return &failure{reason: reason, err: err} }

func (f *failure) Error() string {
	if f.err == nil {
		return string(f.reason)
	}
	return fmt.Sprintf("%s: %v", f.reason, f.err)
}

func (f *failure) Unwrap() error { return f.err }

// asFailure finds the failure in err; any other error is the gateway's own fault.
func asFailure(err error) *failure {
	if f, ok := errors.AsType[*failure](err); ok {
		return f
	}
	return fail(Internal, err)
}

// Problem is an error as a program reads it: problem details (RFC 9457) with four members of our own.
type Problem struct {
	Type      string `json:"type"`
	Title     string `json:"title"`
	Status    int    `json:"status"`
	Detail    string `json:"detail"` // what to do next
	Reason    Reason `json:"reason"`
	Hop       string `json:"hop"` // where it failed: name, gateway, tunnel or app
	RequestID string `json:"request_id"`
	Node      string `json:"node,omitempty"`
}

func (p *Proxy) problem(f *failure, id string) Problem {
	kind, ok := kinds[f.reason]
	if !ok {
		f, kind = fail(Internal, f), kinds[Internal]
	}
	out := Problem{
		Type: "https://dstack.host/problems/" + string(f.reason), Title: kind.title, Status: kind.status, Detail: kind.detail,
		Reason: f.reason, Hop: kind.hop, RequestID: id, Node: p.cfg.Node,
	}
	if f.status != 0 {
		out.Status = f.status
	}
	if f.detail != "" {
		out.Detail = f.detail
	}
	return out
}

// answer is a problem in the form that the client reads.
type answer struct {
	status int
	fields []h1.Field
	body   []byte
}

func (p *Proxy) answer(f *failure, id, accept string) answer {
	problem := p.problem(f, id)
	fields := []h1.Field{
		{Name: "Cache-Control", Value: "no-store"}, {Name: "Vary", Value: "Accept"}, {Name: "X-Content-Type-Options", Value: "nosniff"},
	}
	if problem.Status == http.StatusServiceUnavailable {
		fields = append(fields, h1.Field{Name: "Retry-After", Value: "5"})
	}
	if prefersHTML(accept) {
		fields = append(fields, h1.Field{Name: "Content-Type", Value: "text/html; charset=utf-8"},
			h1.Field{Name: "Content-Security-Policy", Value: web.Policy()}, h1.Field{Name: "Referrer-Policy", Value: "no-referrer"})
		return answer{problem.Status, fields, p.page(problem)}
	}
	var body bytes.Buffer
	encoder := json.NewEncoder(&body)
	encoder.SetEscapeHTML(false) // the type says that this is no HTML
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(problem); err != nil { // strings and an int: cannot happen
		body.WriteString("{}\n")
	}
	fields = append(fields, h1.Field{Name: "Content-Type", Value: "application/problem+json"})
	return answer{problem.Status, fields, body.Bytes()}
}

func (p *Proxy) page(problem Problem) []byte {
	var b bytes.Buffer
	err := web.Error{
		Status: problem.Status, Title: problem.Title, Detail: problem.Detail, Reason: string(problem.Reason), Hop: problem.Hop,
		RequestID: problem.RequestID, Node: problem.Node, TEE: p.cfg.TEE, Evidence: AttestationPath,
	}.Render(&b)
	if err != nil {
		p.log.Error("error page", "err", err)
		return []byte(problem.Title)
	}
	return b.Bytes()
}

func (a answer) write(w http.ResponseWriter) {
	for _, f := range a.fields {
		w.Header().Set(f.Name, f.Value)
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(a.body)))
	w.WriteHeader(a.status)
	w.Write(a.body) //nolint:errcheck // the client has gone: nobody is left to tell
}

// prefersHTML reads an Accept field (RFC 9110 section 12.5.1) as far as needed to tell a browser from a program: HTML must be named,
// and no JSON form may be named with a higher weight.
func prefersHTML(accept string) bool {
	if len(accept) > 1024 {
		accept = accept[:1024]
	}
	html, program := 0.0, 0.0
	for entry := range strings.SplitSeq(accept, ",") {
		kind, parameters, _ := strings.Cut(entry, ";")
		switch strings.ToLower(strings.TrimSpace(kind)) {
		case "text/html", "application/xhtml+xml":
			html = max(html, weight(parameters))
		case "application/problem+json", "application/json":
			program = max(program, weight(parameters))
		}
	}
	return html > 0 && html >= program
}

func weight(parameters string) float64 {
	for parameter := range strings.SplitSeq(parameters, ";") {
		name, value, _ := strings.Cut(strings.TrimSpace(parameter), "=")
		if strings.EqualFold(name, "q") {
			q, err := strconv.ParseFloat(value, 64)
			if err != nil || !(q >= 0 && q <= 1) {
				return 0
			}
			return q
		}
	}
	return 1
}
