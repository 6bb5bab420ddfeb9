package prpc

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"os"
	"reflect"
	"strings"
	"time"

	"dstack.host/ratls"
)

const (
	// MaxBody is the most that a message has unless its method says otherwise.
	MaxBody = 10 << 20
	// maxMethod and maxError bound texts of strangers in answers.
	maxMethod = 64
	maxError  = 1 << 10
)

// Empty is the message without fields: no bytes, and null in JSON.
type Empty struct{}

// Service is the methods of one listener.
type Service struct {
	// Trim is what method names may begin with, any number of times: "Tproxy." on the main listener, "Admin." on the admin's.
	Trim string
	// Methods answer with a message. They read their own with [Call.Read].
	Methods map[string]func(*Call) (any, error)
	// Status maps the error of a method to an HTTP status. Optional: 400, which prpc answers to everything that fails.
	Status func(error) int
}

// Call is one call of a method.
type Call struct {
	// Request is the HTTP request. Its body belongs to Read.
	Request *http.Request
	w       http.ResponseWriter
	json    bool
}

// ServeHTTP answers a call of a method, whose name the caller has found in the request's path.
func (s *Service) ServeHTTP(w http.ResponseWriter, r *http.Request, method string) {
	for s.Trim != "" && strings.HasPrefix(method, s.Trim) {
		method = method[len(s.Trim):]
	}
	c := &Call{Request: r, w: w, json: wantsJSON(r)}
	if r.Method != http.MethodPost && r.Method != http.MethodGet {
		w.Header().Set("Allow", "GET, POST")
		c.fail(http.StatusMethodNotAllowed, errors.New("method not allowed: use POST"))
		return
	}
	do, ok := s.Methods[method]
	if !ok {
		c.fail(http.StatusBadRequest, fmt.Errorf("Service not found: %s", clip(method, maxMethod)))
		return
	}
	answer, err := do(c)
	if err != nil {
		status := http.StatusBadRequest
		if s.Status != nil {
			status = s.Status(err)
		}
		c.fail(status, err)
		return
	}
	c.answer(http.StatusOK, answer, "")
}

// wantsJSON is prpc's rule for which of its two forms a call is in.
func wantsJSON(r *http.Request) bool {
	query := r.URL.Query()
	if r.Method != http.MethodPost {
		return true
	}
	if query.Has("json") {
		switch query.Get("json") {
		case "", "1", "true":
			return true
		}
	}
	media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	return err == nil && media == "application/json"
}

// Read reads the message of the call: at most limit bytes, 0 is MaxBody, that have to come within a time, 0 leaves that to the server. An
// empty body is the empty message. In JSON unknown members are ignored, as dstack does; members that stand twice are refused, since two
// readers could take different ones.
func (c *Call) Read(into any, limit int64, within time.Duration) error {
	if c.Request.Method == http.MethodGet {
		return readQuery(c.Request.URL.Query(), reflect.ValueOf(into).Elem())
	}
	if limit == 0 {
		limit = MaxBody
	}
	body, err := c.body(limit, within)
	switch {
	case err != nil || len(body) == 0:
		return err
	case c.json:
		return ratls.DecodeStrict(body, int(limit), true, into)
	}
	if err := readMessage(body, reflect.ValueOf(into).Elem()); err != nil {
		return fmt.Errorf("protobuf: %w", err)
	}
	return nil
}

// Unmarshal reads a message in protobuf.
func Unmarshal(data []byte, into any) error {
	return readMessage(data, reflect.ValueOf(into).Elem())
}

// Marshal writes a message in protobuf.
func Marshal(message any) []byte { return appendMessage(nil, reflect.ValueOf(message).Elem()) }

// body reads the whole body.
func (c *Call) body(limit int64, within time.Duration) ([]byte, error) {
	tooLarge := fmt.Errorf("payload too large: the limit is %d bytes", limit)
	if c.Request.ContentLength > limit {
		return nil, tooLarge
	}
	deadline := http.NewResponseController(c.w)
	if within > 0 {
		_ = deadline.SetReadDeadline(time.Now().Add(within)) // without one the server's deadlines count
	}
	body, err := io.ReadAll(http.MaxBytesReader(c.w, c.Request.Body, limit))
	switch {
	case err == nil && within > 0:
		// The deadline is the connection's, which is watched while the request is worked on.
		_ = deadline.SetReadDeadline(time.Time{})
	case errors.As(err, new(*http.MaxBytesError)):
		return nil, tooLarge
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, fmt.Errorf("the body did not come within %v", within)
	}
	return body, err
}

// failure is the message of an error. Its JSON form has another name for the same.
type failure struct {
	Message string `json:"error" prpc:"1"`
}

// Fail answers an error outside of any method, in the form that the request is in.
func Fail(w http.ResponseWriter, r *http.Request, status int, err error) {
	c := &Call{Request: r, w: w, json: wantsJSON(r)}
	c.fail(status, err)
}

// fail answers an error: in JSON on lines of its own.
func (c *Call) fail(status int, err error) {
	c.answer(status, &failure{clip(err.Error(), maxError)}, "  ")
}

func (c *Call) answer(status int, message any, indent string) {
	media, text := "application/octet-stream", []byte(nil)
	if c.json {
		media, text = "application/json", marshalJSON(message, indent)
	} else {
		text = Marshal(message)
	}
	c.w.Header().Set("Content-Type", media)
	c.w.WriteHeader(status)
	_, _ = c.w.Write(text)
}

// marshalJSON writes JSON as serde_json does: <, > and & as they are, nothing at the end, no list null.
func marshalJSON(message any, indent string) []byte {
	if _, empty := message.(*Empty); empty {
		return []byte("null")
	}
	fillLists(reflect.ValueOf(message).Elem())
	var text bytes.Buffer
	enc := json.NewEncoder(&text)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", indent)
	if err := enc.Encode(message); err != nil {
		panic("prpc: " + err.Error()) // messages are made of what always has a JSON form
	}
	return bytes.TrimSuffix(text.Bytes(), []byte("\n"))
}

// fillLists makes absent lists empty ones.
func fillLists(v reflect.Value) {
	switch {
	case v.Kind() == reflect.Pointer && !v.IsNil():
		fillLists(v.Elem())
	case v.Kind() == reflect.Struct:
		for i := range v.NumField() {
			if f := v.Field(i); f.CanSet() && number(v.Type().Field(i)) != 0 {
				fillLists(f)
			}
		}
	case v.Kind() == reflect.Slice && v.IsNil():
		v.Set(reflect.MakeSlice(v.Type(), 0, 0))
	case isList(v.Type()):
		for i := range v.Len() {
			fillLists(v.Index(i))
		}
	}
}

// clip bounds what of a stranger's text comes back to him.
func clip(text string, most int) string {
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "…"
	}
	return strings.ToValidUTF8(text, "?")
}
