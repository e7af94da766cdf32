package proto_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	hookv1 "github.com/mics-im/mics/proto/mics/hook/v1"
	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// contract is every message of the outside contract (CONTRACT sections 1.1, 2
// and 3) with its fields by number: type and name, in the words of a .proto.
// It is written from the contract, not from the .proto files: a name, number
// or type here never changes, because clients and tenants in the field have it.
var contract = map[string]map[int]string{
	"mics.message.v1.ClientFrame": {
		1: "payload: mics.message.v1.MessageRequest message",
		2: "payload: mics.message.v1.HeartbeatPing heartbeat_ping",
		3: "payload: mics.message.v1.DeliveryAck delivery_ack",
	},
	"mics.message.v1.ServerFrame": {
		1: "payload: mics.message.v1.ConnectAck connect_ack",
		2: "payload: mics.message.v1.MessageDelivery delivery",
		3: "payload: mics.message.v1.MessageAck ack",
		4: "payload: mics.message.v1.ServerError error",
		5: "payload: mics.message.v1.HeartbeatPong heartbeat_pong",
		6: "payload: mics.message.v1.Migrate migrate",
	},
	"mics.message.v1.MessageRequest": {
		1: "string tenant_id", 2: "string user_id", 3: "string device_id", 4: "string msg_id",
		5: "mics.message.v1.MessageType msg_type", 6: "string to_user_id", 7: "string group_id",
		8: "bytes msg_body", 9: "int64 timestamp_ms",
	},
	"mics.message.v1.MessageAck": {
		1: "string msg_id", 2: "mics.message.v1.AckStatus status", 3: "int64 timestamp_ms", 4: "string reason",
		5: "bool partial_delivery", 6: "uint32 offline_notified_users", 7: "uint32 offline_buffered_users",
		8: "uint32 offline_skipped_users",
	},
	"mics.message.v1.ConnectAck": {
		1: "int32 code", 2: "string tenant_id", 3: "string user_id", 4: "string device_id", 5: "string node_id",
		6: "string trace_id", 7: "string resume_token", 8: "bool resumed", 9: "int32 heartbeat_timeout_seconds",
		10: "int32 version",
	},
	"mics.message.v1.MessageDelivery": {1: "mics.message.v1.MessageRequest message", 2: "uint64 seq", 3: "bool unmoderated"},
	"mics.message.v1.ServerError":     {1: "int32 code", 2: "string message"},
	"mics.message.v1.HeartbeatPing":   {1: "int64 timestamp_ms"},
	"mics.message.v1.HeartbeatPong":   {1: "int64 timestamp_ms"},
	"mics.message.v1.DeliveryAck":     {1: "uint64 seq"},
	"mics.message.v1.Migrate": {
		1: "string reason", 2: "int64 deadline_ms", 3: "int64 delay_ms", 4: "string url", 5: "string resume_token",
	},

	"mics.hook.v1.HookMeta": {
		1: "string tenant_id", 2: "string request_id", 3: "int64 timestamp_ms", 4: "string sign", 5: "string trace_id",
	},
	"mics.hook.v1.AuthRequest": {1: "mics.hook.v1.HookMeta meta", 2: "string token", 3: "string device_id"},
	"mics.hook.v1.AuthResponse": {
		1: "mics.hook.v1.HookMeta meta", 2: "bool ok", 3: "string user_id", 4: "string device_id",
		5: "mics.hook.v1.TenantRuntimeConfig config", 6: "string reason",
	},
	"mics.hook.v1.TenantRuntimeConfig": {
		1: "string hook_base_url", 2: "int32 heartbeat_timeout_seconds", 3: "int32 offline_buffer_ttl_seconds",
		4: "int32 tenant_max_connections", 5: "int32 user_max_connections", 6: "int32 tenant_max_message_qps",
		7: "string tenant_secret", 8: "optional int32 hook_max_concurrency", 9: "optional int32 hook_queue_timeout_ms",
		10: "optional int32 hook_breaker_failure_threshold", 11: "optional int32 hook_breaker_open_ms",
		12: "optional bool hook_sign_required", 13: "optional bool offline_use_hook_pull",
		14: "optional bool check_message_enabled", 15: "optional bool events_required",
		16: "optional int32 user_max_message_qps",
	},
	"mics.hook.v1.CheckMessageRequest":     {1: "mics.hook.v1.HookMeta meta", 2: "mics.message.v1.MessageRequest message"},
	"mics.hook.v1.CheckMessageResponse":    {1: "mics.hook.v1.HookMeta meta", 2: "bool allow", 3: "string reason"},
	"mics.hook.v1.GetGroupMembersRequest":  {1: "mics.hook.v1.HookMeta meta", 2: "string group_id"},
	"mics.hook.v1.GetGroupMembersResponse": {1: "mics.hook.v1.HookMeta meta", 2: "repeated string user_ids"},
	"mics.hook.v1.GetOfflineMessagesRequest": {
		1: "mics.hook.v1.HookMeta meta", 2: "string user_id", 3: "string device_id", 4: "int32 max_messages",
		5: "string cursor",
	},
	"mics.hook.v1.GetOfflineMessagesResponse": {
		1: "mics.hook.v1.HookMeta meta", 2: "bool ok", 3: "repeated mics.message.v1.MessageRequest messages",
		4: "string reason", 5: "string next_cursor", 6: "bool has_more",
	},
	"mics.hook.v1.MqEvent": {
		1: "string tenant_id", 2: "mics.hook.v1.EventType event_type", 3: "string msg_id", 4: "string user_id",
		5: "string device_id", 6: "string to_user_id", 7: "string group_id", 8: "bytes event_data",
		9: "int64 timestamp", 10: "string node_id", 11: "string sign", 12: "string trace_id",
		13: "bool unmoderated", 14: "uint64 tenant_seq",
	},
}

// contractEnums is every enum with its values by number.
var contractEnums = map[string]map[int]string{
	"mics.message.v1.MessageType": {0: "SINGLE_CHAT", 1: "GROUP_CHAT"},
	"mics.message.v1.AckStatus":   {0: "SENT", 1: "FAILED"},
	"mics.hook.v1.EventType": {
		0: "CONNECT_ONLINE", 1: "CONNECT_OFFLINE", 2: "SINGLE_CHAT_MSG", 3: "GROUP_CHAT_MSG", 4: "OFFLINE_MESSAGE",
	},
}

// declaration is a field in the words of the contract table.
func declaration(fd protoreflect.FieldDescriptor) string {
	var b strings.Builder
	if o := fd.ContainingOneof(); o != nil && !o.IsSynthetic() {
		fmt.Fprintf(&b, "%s: ", o.Name())
	}
	switch {
	case fd.HasOptionalKeyword():
		b.WriteString("optional ")
	case fd.IsList():
		b.WriteString("repeated ")
	}
	switch {
	case fd.Message() != nil:
		fmt.Fprintf(&b, "%s ", fd.Message().FullName())
	case fd.Enum() != nil:
		fmt.Fprintf(&b, "%s ", fd.Enum().FullName())
	default:
		fmt.Fprintf(&b, "%s ", fd.Kind())
	}
	b.WriteString(string(fd.Name()))
	return b.String()
}

func TestDescriptorsAreTheContract(t *testing.T) {
	messages, enums := map[string]map[int]string{}, map[string]map[int]string{}
	for _, file := range []protoreflect.FileDescriptor{messagev1.File_mics_message_v1_message_proto, hookv1.File_mics_hook_v1_hook_proto} {
		if file.Syntax() != protoreflect.Proto3 {
			t.Errorf("%s is not proto3", file.Path())
		}
		if n := file.Services().Len() + file.Extensions().Len(); n != 0 {
			t.Errorf("%s declares %d services and extensions", file.Path(), n)
		}
		for i := range file.Messages().Len() {
			m := file.Messages().Get(i)
			if m.Messages().Len()+m.Enums().Len() != 0 {
				t.Errorf("%s has declarations inside, which the table cannot say", m.FullName())
			}
			fields := map[int]string{}
			for j := range m.Fields().Len() {
				fd := m.Fields().Get(j)
				fields[int(fd.Number())] = declaration(fd)
			}
			messages[string(m.FullName())] = fields
		}
		for i := range file.Enums().Len() {
			e := file.Enums().Get(i)
			values := map[int]string{}
			for j := range e.Values().Len() {
				values[int(e.Values().Get(j).Number())] = string(e.Values().Get(j).Name())
			}
			enums[string(e.FullName())] = values
		}
	}
	compare(t, messages, contract)
	compare(t, enums, contractEnums)
}

// compare reports every difference by name and number.
func compare(t *testing.T, got, want map[string]map[int]string) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(merged(got, want))) {
		if (got[name] == nil) != (want[name] == nil) {
			t.Errorf("%s: declared %t, in the contract %t", name, got[name] != nil, want[name] != nil)
			continue
		}
		for _, number := range slices.Sorted(maps.Keys(merged(got[name], want[name]))) {
			if g, w := got[name][number], want[name][number]; g != w {
				t.Errorf("%s: %d is %q, the contract says %q", name, number, g, w)
			}
		}
	}
}

func merged[K comparable, V any](a, b map[K]V) map[K]V {
	m := maps.Clone(a)
	if m == nil {
		m = map[K]V{}
	}
	maps.Copy(m, b)
	return m
}
