package prpc

import (
	"errors"
	"fmt"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// maxItems bounds the lists of a query.
const maxItems = 1024

// readQuery reads a message from a query, as serde_qs writes it: a=1, and a[b]=1 for a field of a message, a[0][b]=1 for one of a
// list. Names that the schema does not have are ignored.
func readQuery(query url.Values, into reflect.Value) error {
	names := make([]string, 0, len(query))
	for name := range query {
		names = append(names, name)
	}
	slices.SortFunc(names, byIndex)
	for _, name := range names {
		path := strings.FieldsFunc(name, func(r rune) bool { return r == '[' || r == ']' })
		values := query[name]
		if err := setQuery(into, path, values[len(values)-1]); err != nil {
			return fmt.Errorf("%.64q: %w", name, err)
		}
	}
	return nil
}

// byIndex orders a[2] before a[10], so that lists are read in their order.
func byIndex(a, b string) int {
	if d := len(a) - len(b); d != 0 {
		return d
	}
	return strings.Compare(a, b)
}

func setQuery(to reflect.Value, path []string, text string) error {
	switch {
	case to.Kind() == reflect.Pointer:
		if to.IsNil() {
			to.Set(reflect.New(to.Type().Elem()))
		}
		return setQuery(to.Elem(), path, text)
	case to.Kind() == reflect.Struct:
		if len(path) == 0 {
			return errors.New("names a message, not a field of it")
		}
		if field := named(to, path[0]); field.IsValid() {
			return setQuery(field, path[1:], text)
		}
		return nil
	case isList(to.Type()):
		return setItem(to, path, text)
	case len(path) > 0:
		return errors.New("is no message")
	}
	return setText(to, text)
}

// named finds a field by its JSON name.
func named(v reflect.Value, name string) reflect.Value {
	for i := range v.NumField() {
		f := v.Type().Field(i)
		if tag, _, _ := strings.Cut(f.Tag.Get("json"), ","); tag == name && number(f) != 0 {
			return v.Field(i)
		}
	}
	return reflect.Value{}
}

// setItem sets a part of an item that the list has, or of the next one.
func setItem(list reflect.Value, path []string, text string) error {
	if len(path) == 0 {
		return errors.New("is a list: give an index, as [0]")
	}
	i, err := strconv.Atoi(path[0])
	if err != nil || i < 0 || i > list.Len() || i >= maxItems {
		return fmt.Errorf("index %.16q: want 0, 1 and so on, less than %d", path[0], maxItems)
	}
	if i == list.Len() {
		list.Set(reflect.Append(list, reflect.Zero(list.Type().Elem())))
	}
	return setQuery(list.Index(i), path[1:], text)
}

func setText(to reflect.Value, text string) error {
	switch {
	case to.Kind() == reflect.String:
		to.SetString(text)
	case to.Kind() == reflect.Slice:
		to.SetBytes([]byte(text))
	case to.Kind() == reflect.Bool:
		if text != "true" && text != "false" {
			return errors.New("want true or false")
		}
		to.SetBool(text == "true")
	default:
		n, err := strconv.ParseUint(text, 10, 32)
		if err != nil {
			return errors.New("want a number")
		}
		setVarint(to, n)
	}
	return nil
}
