package proxy

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"dstack.host/gateway/proxy/h1"
	"dstack.host/gateway/registry"
)

// call is one HTTP/2 request. It is the ResponseWriter that everything below writes to.
type call struct {
	p     *Proxy
	c     *conn
	id    string
	start time.Time
	w     http.ResponseWriter
	idle  *idler // nil until the request is forwarded

	reason         Reason
	status         int
	received, sent atomic.Int64 // bytes of the bodies
}

type callKey struct{}

// lastWords is how long a request that was given up may take to say so.
const lastWords = time.Second

// route decides where the request goes. What net/http's parser leaves open is closed here: a Host field beside :authority must agree with it
// (RFC 9113 section 8.3.1), :path is a path, and there is no CONNECT.
func (k *call) route(r *http.Request) (destination, *failure) {
	for _, host := range r.Header["Host"] {
		if host != r.Host {
			return destination{}, fail(BadRequest, nil)
		}
	}
	if r.Method == http.MethodConnect {
		return destination{}, &failure{reason: BadRequest, status: http.StatusNotImplemented, detail: "CONNECT is not supported; open WebSockets over HTTP/1.1."}
	}
	path, _, _ := strings.Cut(r.RequestURI, "?")
	if !strings.HasPrefix(path, "/") && !(path == "*" && r.Method == http.MethodOptions) {
		return destination{}, fail(BadRequest, nil)
	}
	return k.p.names.decide(r.Host, path, true)
}

// refuse answers with a problem, unless an answer has begun.
func (k *call) refuse(r *http.Request, f *failure) {
	k.reason = f.reason
	if k.status != 0 || f.reason == ClientGone {
		panic(http.ErrAbortHandler)
	}
	k.p.log.Debug("request failed", "request_id", k.id, "reason", f.reason, "err", f.err)
	k.Header().Set("X-Request-Id", k.id)
	k.p.answer(f, k.id, r.Header.Get("Accept")).write(k)
}

// own lets the gateway answer.
func (k *call) own(r *http.Request, path string) {
	if r.ContentLength > MaxOwnBody {
		k.refuse(r, &failure{reason: TooLarge, status: http.StatusRequestEntityTooLarge})
		return
	}
	defer func() {
		switch v := recover(); {
		case v == nil:
		case v == http.ErrAbortHandler, k.status != 0:
			panic(http.ErrAbortHandler)
		default:
			k.p.log.Error("own handler", "panic", v, "stack", string(debug.Stack()))
			k.refuse(r, fail(Internal, nil))
		}
	}()
	out := r.Clone(r.Context())
	h1.Rewrite(out.Header, k.c.client, "https", r.Host, k.id)
	out.Body = http.MaxBytesReader(k, r.Body, MaxOwnBody)
	k.Header().Set("X-Request-Id", k.id)
	k.p.own(path).ServeHTTP(k, out)
}

// forward carries the request to the app and its response back.
func (k *call) forward(r *http.Request, name registry.Name, via *httputil.ReverseProxy) {
	b, f := k.c.backend(k.p.cfg.Registry(), name)
	if f != nil {
		k.refuse(r, f)
		return
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	ctx = context.WithValue(context.WithValue(ctx, callKey{}, k), backendKey{}, b)
	k.idle = startIdler(k.p.cfg.IdleTimeout, func() {
		cancel(errIdle)
		// A response that the client does not read blocks in Write, which no context ends. The time left is for the error.
		http.NewResponseController(k.w).SetWriteDeadline(time.Now().Add(lastWords)) //nolint:errcheck // HTTP/2 supports it
	})
	defer k.idle.stop()
	r = r.WithContext(ctx)
	if r.Body != nil && r.Body != http.NoBody {
		r.Body = countedBody{r.Body, k}
	}
	via.ServeHTTP(k, r)
}

// countedBody is a request body on its way to an app.
type countedBody struct {
	io.ReadCloser
	k *call
}

func (b countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.k.received.Add(int64(n))
	b.k.idle.touch()
	return n, err
}

// Header implements http.ResponseWriter.
func (k *call) Header() http.Header { return k.w.Header() }

// WriteHeader implements http.ResponseWriter.
func (k *call) WriteHeader(status int) {
	if status >= 200 && k.status == 0 {
		k.status = status
	}
	k.idle.touch()
	k.w.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (k *call) Write(b []byte) (int, error) {
	if k.status == 0 {
		k.status = http.StatusOK
	}
	n, err := k.w.Write(b)
	k.sent.Add(int64(n))
	k.idle.touch()
	return n, err
}

// Unwrap lets http.ResponseController flush and set deadlines.
func (k *call) Unwrap() http.ResponseWriter { return k.w }

func (k *call) log(r *http.Request) {
	if !k.p.log.Enabled(context.Background(), slog.LevelDebug) {
		return
	}
	k.p.access(accessLine{
		c: k.c, proto: "HTTP/2", method: r.Method, authority: r.Host, id: k.id, status: k.status, reason: k.reason,
		received: k.received.Load(), sent: k.sent.Load(), duration: time.Since(k.start),
	})
}

// idler calls something once nothing has touched it for a while. A nil idler does nothing.
type idler struct {
	after time.Duration
	timer *time.Timer
	done  atomic.Bool
	mu    sync.Mutex // held while fire runs, so that stop waits for it
}

func startIdler(after time.Duration, fire func()) *idler {
	i := &idler{after: after}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.timer = time.AfterFunc(after, func() {
		i.mu.Lock()
		defer i.mu.Unlock()
		if !i.done.Swap(true) {
			fire()
		}
	})
	return i
}

func (i *idler) touch() {
	if i != nil && !i.done.Load() {
		i.timer.Reset(i.after)
	}
}

// stop returns when fire will not run any more.
func (i *idler) stop() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.done.Store(true)
	i.timer.Stop()
}
