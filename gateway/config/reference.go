package config

import (
	"encoding"
	"fmt"
	"reflect"
	"strings"
	"time"
)

// Key describes one key of the configuration.
type Key struct {
	Name    string // dotted
	Default string // as TOML
	Help    string
}

// Reference lists every key in the order of the structs.
func Reference() []Key {
	c := Default()
	return reference(reflect.ValueOf(&c).Elem(), "")
}

// PolicyReference lists every key of a policy file in the order of the structs.
func PolicyReference() []Key {
	p := DefaultPolicy()
	return reference(reflect.ValueOf(&p).Elem(), "")
}

func reference(v reflect.Value, prefix string) []Key {
	var keys []Key
	for i := range v.NumField() {
		field, value := v.Type().Field(i), v.Field(i)
		name := prefix + field.Tag.Get("toml")
		if value.Kind() == reflect.Struct && !isText(value) {
			keys = append(keys, reference(value, name+".")...)
			continue
		}
		keys = append(keys, Key{Name: name, Default: literal(value), Help: field.Tag.Get("help")})
	}
	return keys
}

// literal writes a value as TOML.
func literal(v reflect.Value) string {
	if v.Kind() == reflect.Slice {
		items := make([]string, v.Len())
		for i := range items {
			items[i] = literal(v.Index(i))
		}
		return "[" + strings.Join(items, ", ") + "]"
	}
	switch value := v.Interface().(type) {
	case time.Duration:
		return fmt.Sprintf("%q", shortDuration(value))
	case encoding.TextMarshaler:
		text, _ := value.MarshalText() // the address types of netip can't fail
		return fmt.Sprintf("%q", strings.TrimPrefix(string(text), "[::]"))
	case string:
		return fmt.Sprintf("%q", value)
	}
	return fmt.Sprint(v.Interface())
}

// shortDuration drops the zero units that time.Duration.String ends with.
func shortDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
