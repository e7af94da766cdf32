"""The tables of the outside contract and a protobuf encoder written by hand.

A module of vectors.py; see there.
"""

import base64
import hashlib
import hmac

# --- The contract's tables: message -> [(number, field, type)]. "optional" and
# "repeated" come before the type; a capital letter starts a message or an enum.

ENUMS = {
    "MessageType": ["SINGLE_CHAT", "GROUP_CHAT"],
    "AckStatus": ["SENT", "FAILED"],
    "EventType": ["CONNECT_ONLINE", "CONNECT_OFFLINE", "SINGLE_CHAT_MSG", "GROUP_CHAT_MSG", "OFFLINE_MESSAGE"],
}

MESSAGE_V1 = {
    "ClientFrame": [
        (1, "message", "oneof MessageRequest"),
        (2, "heartbeat_ping", "oneof HeartbeatPing"),
        (3, "delivery_ack", "oneof DeliveryAck"),
    ],
    "ServerFrame": [
        (1, "connect_ack", "oneof ConnectAck"),
        (2, "delivery", "oneof MessageDelivery"),
        (3, "ack", "oneof MessageAck"),
        (4, "error", "oneof ServerError"),
        (5, "heartbeat_pong", "oneof HeartbeatPong"),
        (6, "migrate", "oneof Migrate"),
    ],
    "MessageRequest": [
        (1, "tenant_id", "string"),
        (2, "user_id", "string"),
        (3, "device_id", "string"),
        (4, "msg_id", "string"),
        (5, "msg_type", "MessageType"),
        (6, "to_user_id", "string"),
        (7, "group_id", "string"),
        (8, "msg_body", "bytes"),
        (9, "timestamp_ms", "int64"),
    ],
    "MessageAck": [
        (1, "msg_id", "string"),
        (2, "status", "AckStatus"),
        (3, "timestamp_ms", "int64"),
        (4, "reason", "string"),
        (5, "partial_delivery", "bool"),
        (6, "offline_notified_users", "uint32"),
        (7, "offline_buffered_users", "uint32"),
        (8, "offline_skipped_users", "uint32"),
    ],
    "ConnectAck": [
        (1, "code", "int32"),
        (2, "tenant_id", "string"),
        (3, "user_id", "string"),
        (4, "device_id", "string"),
        (5, "node_id", "string"),
        (6, "trace_id", "string"),
        (7, "resume_token", "string"),
        (8, "resumed", "bool"),
        (9, "heartbeat_timeout_seconds", "int32"),
        (10, "version", "int32"),
    ],
    "MessageDelivery": [
        (1, "message", "MessageRequest"),
        (2, "seq", "uint64"),
        (3, "unmoderated", "bool"),
    ],
    "ServerError": [(1, "code", "int32"), (2, "message", "string")],
    "HeartbeatPing": [(1, "timestamp_ms", "int64")],
    "HeartbeatPong": [(1, "timestamp_ms", "int64")],
    "DeliveryAck": [(1, "seq", "uint64")],
    "Migrate": [
        (1, "reason", "string"),
        (2, "deadline_ms", "int64"),
        (3, "delay_ms", "int64"),
        (4, "url", "string"),
        (5, "resume_token", "string"),
    ],
}

HOOK_V1 = {
    "HookMeta": [
        (1, "tenant_id", "string"),
        (2, "request_id", "string"),
        (3, "timestamp_ms", "int64"),
        (4, "sign", "string"),
        (5, "trace_id", "string"),
    ],
    "AuthRequest": [(1, "meta", "HookMeta"), (2, "token", "string"), (3, "device_id", "string")],
    "AuthResponse": [
        (1, "meta", "HookMeta"),
        (2, "ok", "bool"),
        (3, "user_id", "string"),
        (4, "device_id", "string"),
        (5, "config", "TenantRuntimeConfig"),
        (6, "reason", "string"),
    ],
    "TenantRuntimeConfig": [
        (1, "hook_base_url", "string"),
        (2, "heartbeat_timeout_seconds", "int32"),
        (3, "offline_buffer_ttl_seconds", "int32"),
        (4, "tenant_max_connections", "int32"),
        (5, "user_max_connections", "int32"),
        (6, "tenant_max_message_qps", "int32"),
        (7, "tenant_secret", "string"),
        (8, "hook_max_concurrency", "optional int32"),
        (9, "hook_queue_timeout_ms", "optional int32"),
        (10, "hook_breaker_failure_threshold", "optional int32"),
        (11, "hook_breaker_open_ms", "optional int32"),
        (12, "hook_sign_required", "optional bool"),
        (13, "offline_use_hook_pull", "optional bool"),
        (14, "check_message_enabled", "optional bool"),
        (15, "events_required", "optional bool"),
        (16, "user_max_message_qps", "optional int32"),
    ],
    "CheckMessageRequest": [(1, "meta", "HookMeta"), (2, "message", "MessageRequest")],
    "CheckMessageResponse": [(1, "meta", "HookMeta"), (2, "allow", "bool"), (3, "reason", "string")],
    "GetGroupMembersRequest": [(1, "meta", "HookMeta"), (2, "group_id", "string")],
    "GetGroupMembersResponse": [(1, "meta", "HookMeta"), (2, "user_ids", "repeated string")],
    "GetOfflineMessagesRequest": [
        (1, "meta", "HookMeta"),
        (2, "user_id", "string"),
        (3, "device_id", "string"),
        (4, "max_messages", "int32"),
        (5, "cursor", "string"),
    ],
    "GetOfflineMessagesResponse": [
        (1, "meta", "HookMeta"),
        (2, "ok", "bool"),
        (3, "messages", "repeated MessageRequest"),
        (4, "reason", "string"),
        (5, "next_cursor", "string"),
        (6, "has_more", "bool"),
    ],
    "MqEvent": [
        (1, "tenant_id", "string"),
        (2, "event_type", "EventType"),
        (3, "msg_id", "string"),
        (4, "user_id", "string"),
        (5, "device_id", "string"),
        (6, "to_user_id", "string"),
        (7, "group_id", "string"),
        (8, "event_data", "bytes"),
        (9, "timestamp", "int64"),
        (10, "node_id", "string"),
        (11, "sign", "string"),
        (12, "trace_id", "string"),
        (13, "unmoderated", "bool"),
        (14, "tenant_seq", "uint64"),
    ],
}

SCHEMA = {**MESSAGE_V1, **HOOK_V1}


def full_name(name):
    return ("mics.message.v1." if name in MESSAGE_V1 else "mics.hook.v1.") + name


# --- The wire format.

UNKNOWN = "?"  # key of a value: bytes of unknown fields, after the known ones


def varint(n):
    n &= (1 << 64) - 1
    out = bytearray()
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


def tag(number, wire_type):
    return varint(number << 3 | wire_type)


def sized(number, content):
    return tag(number, 2) + varint(len(content)) + content


def encode_field(number, kind, value, always):
    if kind in SCHEMA:
        return sized(number, encode(kind, value))
    if kind == "string":
        value = value.encode()
    if kind in ("string", "bytes"):
        return sized(number, value) if value or always else b""
    if kind in ENUMS:
        value = ENUMS[kind].index(value) if isinstance(value, str) else value
    return tag(number, 0) + varint(int(value)) if value or always else b""


def encode(name, value):
    """The message with its fields in number order; zero values are left out."""
    assert set(value) <= {f for _, f, _ in SCHEMA[name]} | {UNKNOWN}, (name, value)
    out = b""
    for number, field, declared in SCHEMA[name]:
        if field not in value:
            continue
        label, _, kind = declared.rpartition(" ")
        for v in value[field] if label == "repeated" else [value[field]]:
            out += encode_field(number, kind, v, always=label != "")
    return out + value.get(UNKNOWN, b"")


def as_json(name, value):
    """The message in protobuf's JSON mapping, with the field names as they are."""
    out = {}
    for _, field, declared in SCHEMA[name]:
        if field not in value:
            continue
        label, _, kind = declared.rpartition(" ")

        def one(v, kind=kind):
            if kind in SCHEMA:
                return as_json(kind, v)
            if kind == "bytes":
                return base64.b64encode(v).decode()
            if kind in ("int64", "uint64"):
                return str(v)
            return v

        out[field] = [one(v) for v in value[field]] if label == "repeated" else one(value[field])
    return out


def sign(secret, data):
    return base64.b64encode(hmac.new(secret.encode(), data, hashlib.sha256).digest()).decode()
