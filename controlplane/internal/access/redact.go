package access

import (
	"encoding/json"
	"fmt"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

const (
	// maxText bounds one text of an entry, in bytes, maxList the elements of a list,
	// maxArguments all arguments.
	maxText      = 256
	maxList      = 20
	maxArguments = 4 << 10
	maxDepth     = 8
)

// secretWords make a field's value a secret, whatever it is.
var secretWords = []string{"token", "secret", "password", "credential", "private"}

// redact renders a request for the audit log: texts are cut, bytes are counted,
// secrets are left out.
func redact(m proto.Message) json.RawMessage {
	if m == nil {
		return nil
	}
	b, err := json.Marshal(message(m.ProtoReflect(), 0))
	if err != nil || len(b) > maxArguments {
		b = fmt.Appendf(nil, `{"omitted_bytes":%d}`, len(b))
	}
	return b
}

func message(m protoreflect.Message, depth int) any {
	if depth > maxDepth {
		return "…"
	}
	out := map[string]any{}
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		name := string(fd.Name())
		switch {
		case secret(name):
			out[name] = "[redacted]"
		case fd.IsMap():
			out[name] = fmt.Sprintf("[%d entries]", v.Map().Len())
		case fd.IsList():
			out[name] = list(fd, v.List(), depth)
		default:
			out[name] = value(fd, v, depth)
		}
		return true
	})
	return out
}

func list(fd protoreflect.FieldDescriptor, l protoreflect.List, depth int) any {
	out := make([]any, 0, min(l.Len(), maxList)+1)
	for i := range min(l.Len(), maxList) {
		out = append(out, value(fd, l.Get(i), depth))
	}
	if more := l.Len() - maxList; more > 0 {
		out = append(out, fmt.Sprintf("and %d more", more))
	}
	return out
}

func value(fd protoreflect.FieldDescriptor, v protoreflect.Value, depth int) any {
	switch fd.Kind() {
	case protoreflect.MessageKind, protoreflect.GroupKind:
		return message(v.Message(), depth+1)
	case protoreflect.BytesKind:
		return fmt.Sprintf("[%d bytes]", len(v.Bytes()))
	case protoreflect.StringKind:
		return cut(v.String(), maxText)
	case protoreflect.EnumKind:
		if e := fd.Enum().Values().ByNumber(v.Enum()); e != nil {
			return string(e.Name())
		}
		return int32(v.Enum())
	case protoreflect.FloatKind, protoreflect.DoubleKind:
		return fmt.Sprint(v.Float()) // NaN is no JSON
	}
	return v.Interface()
}

func secret(name string) bool {
	name = strings.ToLower(name)
	for _, w := range secretWords {
		if strings.Contains(name, w) {
			return true
		}
	}
	return false
}

// cut returns at most n bytes of s, in whole characters.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}
