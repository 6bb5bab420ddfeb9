package config

import (
	"encoding"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// decode reads TOML text into the struct that into points to, over what it already holds, and tells every unknown key
// and wrong type. lines says where each key of the text stands.
func decode(text []byte, into any) (lines map[string]int, faults Faults) {
	var tree map[string]any
	if err := toml.Unmarshal(text, &tree); err != nil {
		line := 0
		if bad, ok := errors.AsType[*toml.DecodeError](err); ok {
			line, _ = bad.Position()
		}
		return nil, Faults{{Line: line, Text: "not TOML: " + strings.TrimPrefix(err.Error(), "toml: ")}}
	}
	fill(reflect.ValueOf(into).Elem(), tree, "", &faults)
	return positions(text), faults
}

// fill sets the fields of a struct from a table.
func fill(to reflect.Value, table map[string]any, prefix string, faults *Faults) {
	known := fields(to.Type())
	for _, name := range slices.Sorted(mapKeys(table)) {
		key := prefix + name
		index, ok := known[name]
		if !ok {
			faults.add(key, "no such key%s", suggestion(name, known))
			continue
		}
		assign(to.Field(index), table[name], key, faults)
	}
}

func mapKeys[V any](m map[string]V) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// fields maps the TOML names of a struct to its field indexes.
func fields(t reflect.Type) map[string]int {
	known := make(map[string]int, t.NumField())
	for i := range t.NumField() {
		if name := t.Field(i).Tag.Get("toml"); name != "" {
			known[name] = i
		}
	}
	return known
}

// suggestion names the key that was likely meant, or all there are.
func suggestion(name string, known map[string]int) string {
	names := slices.Sorted(mapKeys(known))
	best, distance := "", 3
	for _, k := range names {
		if d := editDistance(name, k); d < distance {
			best, distance = k, d
		}
	}
	if best != "" {
		return fmt.Sprintf("; did you mean %q?", best)
	}
	return "; here go: " + strings.Join(names, ", ")
}

// editDistance is Levenshtein's.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}

var durationType = reflect.TypeFor[time.Duration]()

// assign sets one field from one TOML value.
func assign(to reflect.Value, value any, key string, faults *Faults) {
	if to.Kind() == reflect.Struct && !isText(to) {
		table, ok := value.(map[string]any)
		if !ok {
			faults.add(key, "wants a table, [%s]; is %s", key, describe(value))
			return
		}
		fill(to, table, key+".", faults)
		return
	}
	if to.Kind() == reflect.Slice {
		assignList(to, value, key, faults)
		return
	}
	if err := assignScalar(to, value); err != nil {
		faults.add(key, "%v", err)
	}
}

func isText(to reflect.Value) bool {
	_, ok := to.Addr().Interface().(encoding.TextUnmarshaler)
	return ok
}

func assignList(to reflect.Value, value any, key string, faults *Faults) {
	list, ok := value.([]any)
	if !ok {
		faults.add(key, "wants a list, as [%s]; is %s", example(to.Type().Elem()), describe(value))
		return
	}
	out := reflect.MakeSlice(to.Type(), len(list), len(list))
	for i, item := range list {
		assign(out.Index(i), item, fmt.Sprintf("%s.%d", key, i+1), faults)
	}
	to.Set(out)
}

func assignScalar(to reflect.Value, value any) error {
	wrong := fmt.Errorf("wants %s, as %s; is %s", typeName(to.Type()), example(to.Type()), describe(value))
	switch {
	case to.Type() == durationType || isText(to):
		text, ok := value.(string)
		if !ok {
			return wrong
		}
		if err := parseText(to, text); err != nil {
			return fmt.Errorf("wants %s, as %s: %w", typeName(to.Type()), example(to.Type()), err)
		}
		return nil
	case to.Kind() == reflect.String:
		text, ok := value.(string)
		if !ok {
			return wrong
		}
		to.SetString(text)
	case to.Kind() == reflect.Bool:
		truth, ok := value.(bool)
		if !ok {
			return wrong
		}
		to.SetBool(truth)
	default:
		number, ok := value.(int64)
		if !ok || number < 0 || number > math.MaxInt32 {
			return wrong
		}
		to.Set(reflect.ValueOf(number).Convert(to.Type()))
	}
	return nil
}

func parseText(to reflect.Value, text string) error {
	switch into := to.Addr().Interface().(type) {
	case *time.Duration:
		d, err := time.ParseDuration(text)
		if err == nil && d < 0 {
			err = errors.New("is negative")
		}
		*into = d
		return err
	case *netip.AddrPort:
		if strings.HasPrefix(text, ":") { // every address, both families
			text = "[::]" + text
		}
		return into.UnmarshalText([]byte(text))
	case encoding.TextUnmarshaler:
		return into.UnmarshalText([]byte(text))
	}
	return fmt.Errorf("%s can't be read from text", to.Type())
}

func typeName(t reflect.Type) string {
	switch t {
	case durationType:
		return "a duration"
	case reflect.TypeFor[netip.AddrPort]():
		return "an address and port"
	case reflect.TypeFor[netip.Addr]():
		return "an IP address"
	case reflect.TypeFor[netip.Prefix]():
		return "a network"
	}
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.String:
		return "a text in quotes"
	}
	return "a whole number"
}

func example(t reflect.Type) string {
	switch t {
	case durationType:
		return `"30s"`
	case reflect.TypeFor[netip.AddrPort]():
		return `"203.0.113.5:443" or ":443"`
	case reflect.TypeFor[netip.Addr]():
		return `"203.0.113.5"`
	case reflect.TypeFor[netip.Prefix]():
		return `"10.0.0.0/16"`
	}
	switch t.Kind() {
	case reflect.Bool:
		return "true"
	case reflect.String:
		return `"text"`
	}
	return "1"
}

func describe(value any) string {
	switch v := value.(type) {
	case string:
		return fmt.Sprintf("the text %q", v)
	case map[string]any:
		return "a table"
	case []any:
		return "a list"
	case bool, int64, float64:
		return fmt.Sprint(v)
	}
	return "a date or a time"
}

// positions says at which line each dotted key of a document first stands.
func positions(text []byte) map[string]int {
	lines := map[string]int{}
	var p unstable.Parser
	p.Reset(text)
	table := ""
	tables := map[string]int{}
	for p.NextExpression() {
		e := p.Expression()
		switch e.Kind {
		case unstable.Table:
			table = note(&p, e.Key(), "", lines)
		case unstable.ArrayTable: // its items are numbered from 1, as faults name them
			list := note(&p, e.Key(), "", lines)
			tables[list]++
			table = fmt.Sprintf("%s.%d", list, tables[list])
			lines[table] = p.Shape(lastKey(e.Key()).Raw).Start.Line
		case unstable.KeyValue:
			key := note(&p, e.Key(), table, lines)
			if value := e.Value(); value.Kind == unstable.InlineTable {
				inline(&p, value, key, lines)
			}
		}
	}
	return lines
}

func inline(p *unstable.Parser, n *unstable.Node, table string, lines map[string]int) {
	for it := n.Children(); it.Next(); {
		child := it.Node()
		key := note(p, child.Key(), table, lines)
		if value := child.Value(); value.Kind == unstable.InlineTable {
			inline(p, value, key, lines)
		}
	}
}

func lastKey(it unstable.Iterator) (last *unstable.Node) {
	for it.Next() {
		last = it.Node()
	}
	return last
}

// note records every prefix of a dotted key and returns the whole.
func note(p *unstable.Parser, it unstable.Iterator, prefix string, lines map[string]int) string {
	key := prefix
	for it.Next() {
		if key != "" {
			key += "."
		}
		key += string(it.Node().Data)
		if _, ok := lines[key]; !ok {
			lines[key] = p.Shape(it.Node().Raw).Start.Line
		}
	}
	return key
}
