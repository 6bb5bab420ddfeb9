package prpc

import (
	"fmt"
	"math"
	"reflect"
	"strconv"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
)

// field returns the protobuf number of a struct's field, 0 for one that is not in the schema.
func number(f reflect.StructField) protowire.Number {
	n, err := strconv.ParseInt(f.Tag.Get("prpc"), 10, 29)
	if err != nil {
		return 0
	}
	return protowire.Number(n)
}

// appendMessage writes a struct as proto3 does: fields at their zero value are left out, except in lists and behind pointers.
func appendMessage(out []byte, v reflect.Value) []byte {
	for i := range v.NumField() {
		if n := number(v.Type().Field(i)); n != 0 {
			out = appendField(out, n, v.Field(i))
		}
	}
	return out
}

func appendField(out []byte, n protowire.Number, v reflect.Value) []byte {
	if isList(v.Type()) {
		for i := range v.Len() {
			out = appendValue(out, n, v.Index(i))
		}
		return out
	}
	if v.IsZero() {
		return out
	}
	if v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	return appendValue(out, n, v)
}

// isList tells a repeated field from bytes.
func isList(t reflect.Type) bool {
	return t.Kind() == reflect.Slice && t.Elem().Kind() != reflect.Uint8
}

func appendValue(out []byte, n protowire.Number, v reflect.Value) []byte {
	switch v.Kind() {
	case reflect.String:
		return protowire.AppendString(protowire.AppendTag(out, n, protowire.BytesType), v.String())
	case reflect.Slice:
		return protowire.AppendBytes(protowire.AppendTag(out, n, protowire.BytesType), v.Bytes())
	case reflect.Struct:
		return protowire.AppendBytes(protowire.AppendTag(out, n, protowire.BytesType), appendMessage(nil, v))
	}
	return protowire.AppendVarint(protowire.AppendTag(out, n, protowire.VarintType), varint(v))
}

func varint(v reflect.Value) uint64 {
	switch {
	case v.Kind() == reflect.Bool:
		return protowire.EncodeBool(v.Bool())
	case v.CanUint():
		return v.Uint()
	}
	return uint64(v.Int())
}

// readMessage reads proto3 into a struct: fields of other numbers are skipped, of a field that is not repeated the last one
// counts, and messages are merged.
func readMessage(data []byte, into reflect.Value) error {
	for len(data) > 0 {
		n, wire, size := protowire.ConsumeTag(data)
		if size < 0 {
			return protowire.ParseError(size)
		}
		rest := data[size:]
		field := find(into, n)
		if field.IsValid() {
			size = readField(rest, wire, field)
		} else {
			size = protowire.ConsumeFieldValue(n, wire, rest)
		}
		if size < 0 {
			return fmt.Errorf("field %d: %w", n, protowire.ParseError(size))
		}
		if size > len(rest) {
			return fmt.Errorf("field %d: not of the type that the schema says", n)
		}
		data = rest[size:]
	}
	return nil
}

func find(v reflect.Value, n protowire.Number) reflect.Value {
	for i := range v.NumField() {
		if number(v.Type().Field(i)) == n {
			return v.Field(i)
		}
	}
	return reflect.Value{}
}

// misfit is a size that no field has: the value is not what the schema says.
const misfit = math.MaxInt

// readField reads one value, and returns its size: negative is protowire's error.
func readField(data []byte, wire protowire.Type, to reflect.Value) int {
	if isList(to.Type()) {
		element := reflect.New(to.Type().Elem()).Elem()
		size := readField(data, wire, element)
		if size >= 0 && size != misfit {
			to.Set(reflect.Append(to, element))
		}
		return size
	}
	if isVarint(to.Kind()) {
		if wire != protowire.VarintType {
			return misfit
		}
		v, size := protowire.ConsumeVarint(data)
		setVarint(to, v)
		return size
	}
	if wire != protowire.BytesType {
		return misfit
	}
	content, size := protowire.ConsumeBytes(data)
	if size >= 0 && !setBytes(to, content) {
		return misfit
	}
	return size
}

func isVarint(k reflect.Kind) bool {
	return k == reflect.Bool || reflect.Int <= k && k <= reflect.Uint64
}

// setVarint cuts what is too large for the type, as proto3 has it.
func setVarint(to reflect.Value, v uint64) {
	switch {
	case to.Kind() == reflect.Bool:
		to.SetBool(v != 0)
	case to.CanUint():
		to.SetUint(v & (math.MaxUint64 >> (64 - to.Type().Bits())))
	default:
		to.SetInt(int64(v))
	}
}

// setBytes reports whether the content is one of the field's type.
func setBytes(to reflect.Value, content []byte) bool {
	switch to.Kind() {
	case reflect.String:
		to.SetString(string(content))
		return utf8.Valid(content)
	case reflect.Slice:
		to.SetBytes(append([]byte{}, content...))
		return true
	case reflect.Pointer:
		if to.IsNil() {
			to.Set(reflect.New(to.Type().Elem()))
		}
		return setBytes(to.Elem(), content)
	}
	return readMessage(content, to) == nil
}
