#!/usr/bin/env python3
"""Writes the golden vectors of the outside contract: frames.json, invalid.json,
hooks.json and events.json, in the folder of this script (see README.md).

    python3 vectors.py           write the files
    python3 vectors.py --check   exit 1 if a file is not what would be written

Only Python's standard library is used, and no protobuf: the encoder in
contract.py is written by hand from the protobuf wire format, its tables from
the contract's pages. So the vectors say what the contract says, not what our
code does. A vector that is in use never changes: clients and tenants in the
field have its bytes. Add new ones at the end of a list.
"""

import json
import pathlib
import struct
import sys

sys.dont_write_bytecode = True  # leave no cache beside the vectors

from contract import UNKNOWN, as_json, encode, full_name, sign, sized, tag, varint

# --- What the vectors are made of.

NOW = 1_764_000_000_123
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
FUTURE = sized(100, b"from a later version") + tag(101, 0) + varint(300) + tag(102, 5) + b"\x01\x02\x03\x04" + tag(103, 1) + bytes(8)
FUTURE_GROUP = tag(104, 3) + sized(1, b"in a group") + tag(104, 4)

REQUEST = {
    "tenant_id": "acme", "user_id": "ann", "device_id": "phone-1", "msg_id": "0198f2a4-5b6c-7d8e-9f00-112233445566",
    "msg_type": "GROUP_CHAT", "to_user_id": "bob", "group_id": "team", "msg_body": b"\x00\x01\xfe\xffhi", "timestamp_ms": NOW,
}
V1_REQUEST = {"msg_id": "1", "to_user_id": "bob", "msg_body": "Grüße 👋".encode(), "timestamp_ms": NOW}


def frame_vectors():
    c, s = "ClientFrame", "ServerFrame"
    cases = [
        ("message, all fields", c, {"message": REQUEST}),
        ("message, as a V1 client sends it", c, {"message": V1_REQUEST}),
        ("message, empty", c, {"message": {}}),
        ("message, unknown fields", c, {"message": {**REQUEST, UNKNOWN: FUTURE + FUTURE_GROUP}}),
        ("message, unknown fields in the frame too", c, {"message": {**V1_REQUEST, UNKNOWN: FUTURE}, UNKNOWN: FUTURE}),
        ("message, body of 300 bytes", c, {"message": {"to_user_id": "bob", "msg_body": bytes(range(256)) + b"x" * 44}}),
        ("message, NUL bytes in strings", c, {"message": {"msg_id": "a\0b", "to_user_id": "\0", "msg_body": b"\0"}}),
        ("message, negative timestamp", c, {"message": {"to_user_id": "bob", "timestamp_ms": -1}}),
        ("message, type of a later version", c, {"message": {"to_user_id": "bob", "msg_type": 7}}),
        ("heartbeat_ping", c, {"heartbeat_ping": {"timestamp_ms": NOW}}),
        ("heartbeat_ping, empty", c, {"heartbeat_ping": {}}),
        ("heartbeat_ping, unknown fields", c, {"heartbeat_ping": {"timestamp_ms": NOW, UNKNOWN: FUTURE}}),
        ("V2 delivery_ack", c, {"delivery_ack": {"seq": 300}}),
        ("V2 delivery_ack, largest", c, {"delivery_ack": {"seq": 2**64 - 1}}),
        ("V2 delivery_ack, empty", c, {"delivery_ack": {}}),
        ("client frame without a payload", c, {}),
        ("client frame with a payload of a later version", c, {UNKNOWN: sized(15, b"new")}),
        ("connect_ack, V1", s, {"connect_ack": {
            "code": 1000, "tenant_id": "acme", "user_id": "ann", "device_id": "phone-1", "node_id": "gw-1", "trace_id": TRACE}}),
        ("connect_ack, all fields, V2", s, {"connect_ack": {
            "code": 1000, "tenant_id": "acme", "user_id": "ann", "device_id": "phone-1", "node_id": "gw-1", "trace_id": TRACE,
            "resume_token": "opaque.token", "resumed": True, "heartbeat_timeout_seconds": 30, "version": 2}}),
        ("connect_ack, empty", s, {"connect_ack": {}}),
        ("delivery, V1", s, {"delivery": {"message": REQUEST}}),
        ("delivery, all fields, V2", s, {"delivery": {"message": REQUEST, "seq": 2**40, "unmoderated": True}}),
        ("delivery, empty", s, {"delivery": {}}),
        ("delivery, message with unknown fields", s, {"delivery": {"message": {**REQUEST, UNKNOWN: FUTURE}, "seq": 1}}),
        ("ack, SENT", s, {"ack": {"msg_id": "1", "timestamp_ms": NOW}}),
        ("ack, all fields", s, {"ack": {
            "msg_id": "1", "status": "FAILED", "timestamp_ms": NOW, "reason": "delivery failed", "partial_delivery": True,
            "offline_notified_users": 1, "offline_buffered_users": 128, "offline_skipped_users": 2**32 - 1}}),
        ("ack, empty", s, {"ack": {}}),
        ("error", s, {"error": {"code": 4400, "message": "invalid protobuf"}}),
        ("error, negative code", s, {"error": {"code": -1}}),
        ("error, empty", s, {"error": {}}),
        ("heartbeat_pong", s, {"heartbeat_pong": {"timestamp_ms": NOW}}),
        ("heartbeat_pong, empty", s, {"heartbeat_pong": {}}),
        ("V2 migrate, all fields", s, {"migrate": {
            "reason": "draining", "deadline_ms": NOW + 8000, "delay_ms": 250, "url": "wss://chat.example/ws", "resume_token": "opaque.token"}}),
        ("V2 migrate, empty", s, {"migrate": {}}),
        ("server frame without a payload", s, {}),
        ("server frame, unknown fields", s, {"heartbeat_pong": {"timestamp_ms": 1, UNKNOWN: FUTURE}, UNKNOWN: FUTURE}),
    ]
    out = [{"name": n, "message": full_name(m), "hex": encode(m, v).hex(), "fields": as_json(m, v)} for n, m, v in cases]

    # Legal bytes that no encoder writes: they mean the fields, and are written
    # as the canonical bytes.
    body, to = sized(8, b"hi"), sized(6, b"bob")
    hi = {"message": {"to_user_id": "bob", "msg_body": b"hi"}}
    odd = [
        ("fields out of order", sized(1, body + to), hi),
        ("unknown field between known ones", sized(1, FUTURE + to + FUTURE_GROUP + body),
         {"message": {**hi["message"], UNKNOWN: FUTURE + FUTURE_GROUP}}),
        ("repeated field, the last one counts", sized(1, sized(6, b"eve") + body + to), hi),
        ("zero values written out", sized(1, sized(1, b"") + tag(5, 0) + b"\0" + to + body + tag(9, 0) + b"\0"), hi),
        ("overlong length and tag", b"\x8a\x00" + b"\x89\x80\x00" + to + body, hi),
        ("wrong wire type is an unknown field", sized(1, to + tag(9, 1) + bytes(8) + body),
         {"message": {**hi["message"], UNKNOWN: tag(9, 1) + bytes(8)}}),
        ("payload given twice is merged", sized(1, sized(6, b"eve") + body) + sized(1, to), hi),
        ("of two payloads the last counts", sized(2, tag(1, 0) + varint(5)) + sized(1, to + body), hi),
        ("enum is cut to 32 bits", sized(1, tag(5, 0) + varint(2**32 + 1) + to + body), {"message": {**hi["message"], "msg_type": "GROUP_CHAT"}}),
    ]
    return out + [{"name": n, "message": full_name(c), "hex": b.hex(), "fields": as_json(c, v), "canonical_hex": encode(c, v).hex()}
                  for n, b, v in odd]


def invalid_vectors():
    cases = [
        ("tag cut off", b"\x80"),
        ("length cut off", b"\x0a"),
        ("payload cut off", b"\x0a\x05\x22\x01"),
        ("payload ends inside a field", sized(1, b"\x22\x05ab")),
        ("field number 0", b"\x02\x00"),
        ("field number too large", tag(2**29, 0) + b"\0"),
        ("reserved wire type 6", b"\x0e"),
        ("reserved wire type 7 in the payload", sized(1, b"\x0f")),
        ("end of a group without its start", tag(9, 4)),
        ("group without its end", tag(9, 3) + sized(1, b"x")),
        ("group with the end of another", tag(9, 3) + tag(10, 4)),
        ("varint of more than 64 bits", tag(15, 0) + b"\xff" * 9 + b"\x02"),
        ("varint of eleven bytes", sized(2, tag(1, 0) + b"\x80" * 10 + b"\x01")),
        ("length beyond the frame", b"\x0a\xff\xff\xff\xff\x0f"),
        ("length beyond 64 bits", b"\x0a" + b"\xff" * 9 + b"\x7f"),
        ("msg_id is not UTF-8", sized(1, sized(4, b"\xff"))),
        ("to_user_id is half a character", sized(1, sized(6, "ü".encode()[:1]))),
        ("group_id is a surrogate", sized(1, sized(7, b"\xed\xa0\x80"))),
        ("tenant_id is not UTF-8, though it is overwritten", sized(1, sized(1, b"\x80"))),
        ("msg_id is not UTF-8, though another follows", sized(1, sized(4, b"\xfe") + sized(4, b"1"))),
        ("text instead of a frame", b"hello"),
        ("JSON instead of a frame", b'{"message":{}}'),
    ]
    return [{"name": n, "message": full_name("ClientFrame"), "hex": b.hex()} for n, b in cases]


def hook_vectors():
    def meta(**more):
        return {"tenant_id": "acme", "request_id": "req-0001", "timestamp_ms": NOW, "trace_id": TRACE, **more}

    requests = [
        ("auth", "auth", "s3cret", "AuthRequest", {"meta": meta(), "token": "valid:ann", "device_id": "phone-1"}),
        ("auth, minimal", "auth", "s3cret", "AuthRequest", {"meta": {"tenant_id": "acme", "request_id": "r", "timestamp_ms": 1}}),
        ("auth, secret and texts beyond ASCII", "auth", "sécret-ключ-🔑", "AuthRequest",
         {"meta": meta(request_id="заявка-1"), "token": "ключ", "device_id": "téléphone"}),
        ("auth, secret longer than a hash block", "auth", "k" * 100, "AuthRequest", {"meta": meta(), "token": "t", "device_id": "d"}),
        ("auth, negative timestamp", "auth", "s3cret", "AuthRequest", {"meta": meta(timestamp_ms=-2), "token": "t", "device_id": "d"}),
        ("auth, empty meta", "auth", "s3cret", "AuthRequest", {"meta": {}, "token": "t"}),
        ("check-message", "check-message", "s3cret", "CheckMessageRequest", {"meta": meta(), "message": REQUEST}),
        ("check-message, unknown fields in the message", "check-message", "s3cret", "CheckMessageRequest",
         {"meta": meta(), "message": {**REQUEST, UNKNOWN: FUTURE + FUTURE_GROUP}}),
        ("get-group-members", "get-group-members", "s3cret", "GetGroupMembersRequest", {"meta": meta(), "group_id": "team"}),
        ("get-offline-messages", "get-offline-messages", "s3cret", "GetOfflineMessagesRequest",
         {"meta": meta(), "user_id": "ann", "device_id": "phone-1", "max_messages": 100, "cursor": "next-page"}),
    ]
    responses = [
        ("auth, accepted with all of the configuration", "auth", "AuthResponse", {
            "meta": meta(), "ok": True, "user_id": "ann", "device_id": "phone-1", "config": {
                "hook_base_url": "https://hooks.acme.example/v1", "heartbeat_timeout_seconds": 45, "offline_buffer_ttl_seconds": 300,
                "tenant_max_connections": 10000, "user_max_connections": 5, "tenant_max_message_qps": 500, "tenant_secret": "s3cret",
                "hook_max_concurrency": 16, "hook_queue_timeout_ms": 20, "hook_breaker_failure_threshold": 3,
                "hook_breaker_open_ms": 2000, "hook_sign_required": True, "offline_use_hook_pull": True,
                "check_message_enabled": True, "events_required": True, "user_max_message_qps": 50}}),
        ("auth, optional fields set to zero", "auth", "AuthResponse", {
            "ok": True, "user_id": "ann", "config": {
                "hook_max_concurrency": 0, "hook_queue_timeout_ms": 0, "hook_breaker_failure_threshold": 0,
                "hook_breaker_open_ms": 0, "hook_sign_required": False, "offline_use_hook_pull": False,
                "check_message_enabled": False, "events_required": False, "user_max_message_qps": 0}}),
        ("auth, accepted, minimal", "auth", "AuthResponse", {"ok": True, "user_id": "ann"}),
        ("auth, empty configuration", "auth", "AuthResponse", {"ok": True, "user_id": "ann", "config": {}}),
        ("auth, refused", "auth", "AuthResponse", {"meta": meta(), "reason": "token expired"}),
        ("auth, as an older server answers", "auth", "AuthResponse", {
            "ok": True, "user_id": "ann", "config": {"heartbeat_timeout_seconds": 30, "tenant_secret": "s3cret"}, UNKNOWN: FUTURE}),
        ("check-message, allowed", "check-message", "CheckMessageResponse", {"meta": meta(), "allow": True}),
        ("check-message, denied", "check-message", "CheckMessageResponse", {"reason": "blocked by policy"}),
        ("check-message, empty", "check-message", "CheckMessageResponse", {}),
        ("get-group-members", "get-group-members", "GetGroupMembersResponse", {"meta": meta(), "user_ids": ["ann", "bob", "", "ann", "zoë"]}),
        ("get-group-members, empty", "get-group-members", "GetGroupMembersResponse", {}),
        ("get-offline-messages", "get-offline-messages", "GetOfflineMessagesResponse", {
            "meta": meta(), "ok": True, "messages": [REQUEST, {}, {**V1_REQUEST, UNKNOWN: FUTURE}], "next_cursor": "c2", "has_more": True}),
        ("get-offline-messages, refused", "get-offline-messages", "GetOfflineMessagesResponse", {"reason": "no such user"}),
    ]
    out = []
    for name, op, secret, message, value in requests:
        unsigned = encode(message, value)
        m = value["meta"]
        signed_bytes = unsigned + m.get("request_id", "").encode() + struct.pack("<q", m.get("timestamp_ms", 0))
        signature = sign(secret, signed_bytes)
        signed = {**value, "meta": {**m, "sign": signature}}
        out.append({
            "name": name, "hook": op, "direction": "request", "message": full_name(message), "secret": secret,
            "unsigned_hex": unsigned.hex(), "signed_bytes_hex": signed_bytes.hex(), "sign": signature,
            "hex": encode(message, signed).hex(), "fields": as_json(message, signed)})
    for name, op, message, value in responses:
        out.append({"name": name, "hook": op, "direction": "response", "message": full_name(message),
                    "hex": encode(message, value).hex(), "fields": as_json(message, value)})
    return out


def event_vectors():
    connected = encode("ConnectAck", {"code": 1000, "tenant_id": "acme", "user_id": "ann", "device_id": "phone-1", "node_id": "gw-1", "trace_id": TRACE})
    single = {**REQUEST, "msg_type": "SINGLE_CHAT", "group_id": ""}
    base = {"tenant_id": "acme", "user_id": "ann", "device_id": "phone-1", "timestamp": NOW, "node_id": "router-1", "trace_id": TRACE}
    cases = [
        ("CONNECT_ONLINE", "s3cret", {**base, "event_type": "CONNECT_ONLINE", "event_data": connected, "tenant_seq": 1}),
        ("CONNECT_OFFLINE", "s3cret", {**base, "event_type": "CONNECT_OFFLINE", "event_data": connected, "tenant_seq": 2}),
        ("SINGLE_CHAT_MSG", "s3cret", {
            **base, "event_type": "SINGLE_CHAT_MSG", "msg_id": REQUEST["msg_id"], "to_user_id": "bob",
            "event_data": encode("MessageRequest", single), "tenant_seq": 3}),
        ("GROUP_CHAT_MSG, all fields", "s3cret", {
            **base, "event_type": "GROUP_CHAT_MSG", "msg_id": REQUEST["msg_id"], "to_user_id": "bob", "group_id": "team",
            "event_data": encode("MessageRequest", REQUEST), "unmoderated": True, "tenant_seq": 2**64 - 1}),
        ("OFFLINE_MESSAGE, message with unknown fields", "s3cret", {
            **base, "event_type": "OFFLINE_MESSAGE", "msg_id": REQUEST["msg_id"], "to_user_id": "bob",
            "event_data": encode("MessageRequest", {**single, UNKNOWN: FUTURE}), "tenant_seq": 5}),
        ("secret beyond ASCII", "sécret-ключ-🔑", {**base, "event_type": "CONNECT_ONLINE", "user_id": "zoë"}),
        ("unknown fields", "s3cret", {**base, "event_type": "CONNECT_ONLINE", UNKNOWN: FUTURE}),
        ("empty", "s3cret", {}),
        ("no secret known, not signed", "", {**base, "event_type": "CONNECT_ONLINE", "event_data": connected, "tenant_seq": 6}),
    ]
    out = []
    for name, secret, value in cases:
        unsigned = encode("MqEvent", value)
        signature = sign(secret, unsigned) if secret else ""
        signed = {**value, "sign": signature} if signature else value
        out.append({
            "name": name, "message": full_name("MqEvent"), "secret": secret, "unsigned_hex": unsigned.hex(),
            "sign": signature, "hex": encode("MqEvent", signed).hex(), "fields": as_json("MqEvent", signed)})
    return out


def main():
    check = sys.argv[1:] == ["--check"]
    if sys.argv[1:] and not check:
        sys.exit(__doc__)
    here = pathlib.Path(__file__).resolve().parent
    different = []
    for name, vectors in (("frames", frame_vectors()), ("invalid", invalid_vectors()), ("hooks", hook_vectors()), ("events", event_vectors())):
        path = here / f"{name}.json"
        text = json.dumps(vectors, indent=1, ensure_ascii=False) + "\n"
        if not check:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            different.append(path.name)
    if different:
        sys.exit("not what vectors.py writes: " + ", ".join(different))


if __name__ == "__main__":
    main()
