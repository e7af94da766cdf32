package hook

import (
	"context"
	"strings"
)

type traceParentKey struct{}

// TraceParent returns the W3C traceparent header of the request that ctx belongs
// to, for the calls that answering it takes; empty if it had none or a malformed
// one. (A handler that is wrapped in a tracing library's middleware needs no
// such thing.)
func TraceParent(ctx context.Context) string {
	s, _ := ctx.Value(traceParentKey{}).(string)
	return s
}

func withTraceParent(ctx context.Context, header string) context.Context {
	if !validTraceParent(header) {
		return ctx
	}
	return context.WithValue(ctx, traceParentKey{}, header)
}

// validTraceParent checks the form version-traceid-parentid-flags of lower-case
// hex digits, ids not all zero; a version after 00 may append to it.
func validTraceParent(s string) bool {
	const length = 55
	if len(s) < length || len(s) > 256 || s[2] != '-' || s[35] != '-' || s[52] != '-' {
		return false
	}
	version, id, parent, flags := s[:2], s[3:35], s[36:52], s[53:length]
	for _, part := range []string{version, id, parent, flags} {
		if strings.Trim(part, "0123456789abcdef") != "" {
			return false
		}
	}
	switch {
	case version == "ff", strings.Trim(id, "0") == "", strings.Trim(parent, "0") == "":
		return false
	case version == "00":
		return len(s) == length
	}
	return len(s) == length || s[length] == '-'
}
