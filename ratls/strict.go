package ratls

import (
	"bytes"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"unicode/utf8"
)

const (
	// maxDepth bounds the nesting of JSON that strangers send, maxValues how many values it may consist of.
	maxDepth  = 32
	maxValues = 1 << 18
)

// DecodeStrict decodes one JSON value of at most limit bytes into v, a pointer, and refuses what encoding/json forgives:
// invalid UTF-8, trailing data, nesting deeper than 32, more than 2^18 values, a member that occurs twice, a member whose name matches a field only
// when case is ignored, and null for anything that is not a pointer, an interface or a [json.RawMessage].
//
// With allowUnknown, members without a field are ignored and fields without a member keep their value, as serde's default does
// for dstack's requests. Without it the set of members is closed: an unknown one is refused, and so is the absence of one whose
// tag lacks omitempty or omitzero.
func DecodeStrict(data []byte, limit int, allowUnknown bool, v any) error {
	if len(data) > limit {
		return fmt.Errorf("JSON of %d bytes is longer than the limit of %d", len(data), limit)
	}
	if !utf8.Valid(data) {
		return errors.New("JSON is not valid UTF-8")
	}
	t := reflect.TypeOf(v)
	if t == nil || t.Kind() != reflect.Pointer {
		return fmt.Errorf("decoding into %v, which is not a pointer", t)
	}
	w := walker{dec: json.NewDecoder(bytes.NewReader(data)), allowUnknown: allowUnknown}
	w.dec.UseNumber()
	if err := w.value(t.Elem(), "", 0); err != nil {
		return err
	}
	if _, err := w.dec.Token(); err != io.EOF {
		return errors.New("JSON value is followed by more data")
	}
	return json.Unmarshal(data, v)
}

// walker holds a token stream against the type that it is going to be decoded into.
type walker struct {
	dec          *json.Decoder
	allowUnknown bool
	values       int // seen so far
}

// anything is the type of values whose shape is not known here; only duplicates and depth are looked at.
var anything = reflect.TypeFor[any]()

// value consumes one value that is meant for t; path is where it stands, for the error.
func (w *walker) value(t reflect.Type, path string, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("JSON%s is nested deeper than %d", at(path), maxDepth)
	}
	if w.values++; w.values > maxValues {
		return fmt.Errorf("JSON has more than %d values", maxValues)
	}
	token, err := w.dec.Token()
	if err != nil {
		return fmt.Errorf("JSON%s: %w", at(path), noEOF(err))
	}
	if token == nil && !nullable(t) {
		return fmt.Errorf("JSON%s is null where a value is needed", at(path))
	}
	switch token {
	case json.Delim('{'):
		return w.object(shape(t), path, depth)
	case json.Delim('['):
		return w.array(shape(t), path, depth)
	}
	return nil
}

func (w *walker) array(t reflect.Type, path string, depth int) error {
	element := anything
	if t.Kind() == reflect.Slice || t.Kind() == reflect.Array {
		element = t.Elem()
	}
	for i := 0; w.dec.More(); i++ {
		if err := w.value(element, fmt.Sprintf("%s[%d]", path, i), depth+1); err != nil {
			return err
		}
	}
	_, err := w.dec.Token()
	return noEOF(err)
}

func (w *walker) object(t reflect.Type, path string, depth int) error {
	fields := fieldsOf(t)
	seen := make(map[string]struct{})
	for w.dec.More() {
		token, err := w.dec.Token()
		if err != nil {
			return fmt.Errorf("JSON%s: %w", at(path), noEOF(err))
		}
		name := token.(string) // the decoder yields nothing else in this place
		where := path + "." + shorten(name)
		if _, twice := seen[name]; twice {
			return fmt.Errorf("JSON%s occurs twice", at(where))
		}
		seen[name] = struct{}{}
		element, err := w.member(t, fields, name, where)
		if err != nil {
			return err
		}
		if err := w.value(element, where, depth+1); err != nil {
			return err
		}
	}
	if _, err := w.dec.Token(); err != nil {
		return fmt.Errorf("JSON%s: %w", at(path), noEOF(err))
	}
	return w.complete(fields, seen, path)
}

// member returns the type that the named member of an object is meant for.
func (w *walker) member(t reflect.Type, fields map[string]field, name, where string) (reflect.Type, error) {
	if t.Kind() == reflect.Map {
		return t.Elem(), nil
	}
	if fields == nil {
		return anything, nil
	}
	if f, ok := fields[name]; ok {
		return f.typ, nil
	}
	for known := range fields {
		if strings.EqualFold(known, name) {
			return nil, fmt.Errorf("JSON%s has to be written %q", at(where), known)
		}
	}
	if !w.allowUnknown {
		return nil, fmt.Errorf("JSON%s is not a known member", at(where))
	}
	return anything, nil
}

// complete refuses the absence of a required member.
func (w *walker) complete(fields map[string]field, seen map[string]struct{}, path string) error {
	if w.allowUnknown {
		return nil
	}
	for name, f := range fields {
		if _, ok := seen[name]; !ok && f.required {
			return fmt.Errorf("JSON%s is missing", at(path+"."+name))
		}
	}
	return nil
}

// field is one member that a struct can take.
type field struct {
	typ      reflect.Type
	required bool
}

// fieldsOf returns the members of a struct by name, nil for any other type.
func fieldsOf(t reflect.Type) map[string]field {
	if t.Kind() != reflect.Struct {
		return nil
	}
	fields := make(map[string]field, t.NumField())
	for _, f := range reflect.VisibleFields(t) {
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if !f.IsExported() || f.Anonymous || name == "-" {
			continue
		}
		if name == "" {
			name = f.Name
		}
		optional := strings.Contains(options, "omitempty") || strings.Contains(options, "omitzero")
		fields[name] = field{typ: f.Type, required: !optional}
	}
	return fields
}

var (
	jsonUnmarshaler = reflect.TypeFor[json.Unmarshaler]()
	textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()
	rawMessage      = reflect.TypeFor[json.RawMessage]()
)

// shape follows pointers, and answers anything for types that decode themselves.
func shape(t reflect.Type) reflect.Type {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if p := reflect.PointerTo(t); p.Implements(jsonUnmarshaler) || p.Implements(textUnmarshaler) {
		return anything
	}
	return t
}

// nullable reports whether null has a meaning for t.
func nullable(t reflect.Type) bool {
	return t == rawMessage || t.Kind() == reflect.Pointer || t.Kind() == reflect.Interface
}

// at says where in a document something is, for errors.
func at(path string) string {
	if path == "" {
		return ""
	}
	return " member " + strings.TrimPrefix(path, ".")
}

// shorten keeps a member name of a stranger from filling a log.
func shorten(name string) string {
	const most = 64
	if len(name) <= most {
		return name
	}
	return strings.ToValidUTF8(name[:most], "") + "…"
}

// noEOF turns the end of input inside a value into the error that it is there.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
