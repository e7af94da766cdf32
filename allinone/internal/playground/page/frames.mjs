// The few frames of mics.message.v1 that a chat needs, by hand: no build step,
// no library. Fields that are not listed here are skipped.

const text = new TextEncoder();
const untext = new TextDecoder();

// varint appends an unsigned number below 2^53.
function varint(out, n) {
  while (n >= 0x80) {
    out.push((n % 0x80) | 0x80);
    n = Math.floor(n / 0x80);
  }
  out.push(n);
}

function bytesField(out, number, bytes) {
  if (bytes.length === 0) return;
  varint(out, number * 8 + 2);
  varint(out, bytes.length);
  for (const b of bytes) out.push(b);
}

const stringField = (out, number, s) => bytesField(out, number, text.encode(s));

function numberField(out, number, n) {
  if (n === 0) return;
  varint(out, number * 8);
  varint(out, n);
}

function frame(number, payload) {
  const out = [];
  varint(out, number * 8 + 2);
  varint(out, payload.length);
  out.push(...payload);
  return new Uint8Array(out);
}

// encodeMessage returns a ClientFrame with a MessageRequest; exactly one of to
// and group is given.
export function encodeMessage({ id, to = "", group = "", body, timestamp }) {
  const m = [];
  stringField(m, 4, id);
  numberField(m, 5, group ? 1 : 0);
  stringField(m, 6, to);
  stringField(m, 7, group);
  stringField(m, 8, body);
  numberField(m, 9, timestamp);
  return frame(1, m);
}

// encodePing returns a ClientFrame with a HeartbeatPing.
export function encodePing(timestamp) {
  const p = [];
  numberField(p, 1, timestamp);
  return frame(2, p);
}

// fields parses one message into a map of field number to last value: a number
// for varints, bytes for length-delimited ones.
function fields(bytes) {
  const found = new Map();
  let at = 0;
  const need = (n) => {
    if (n > bytes.length - at) throw new Error("truncated frame");
  };
  const number = () => {
    let value = 0;
    for (let scale = 1, i = 0; i < 10; i++, scale *= 0x80) {
      need(1);
      const b = bytes[at++];
      value += (b & 0x7f) * scale;
      if (b < 0x80) return value;
    }
    throw new Error("number too long");
  };
  while (at < bytes.length) {
    const tag = number();
    const field = Math.floor(tag / 8);
    switch (tag % 8) {
      case 0:
        found.set(field, number());
        break;
      case 2: {
        const length = number();
        need(length);
        found.set(field, bytes.subarray(at, at + length));
        at += length;
        break;
      }
      case 1:
        need(8);
        at += 8;
        break;
      case 5:
        need(4);
        at += 4;
        break;
      default:
        throw new Error("unknown wire type");
    }
  }
  return found;
}

const str = (f, n) => (f.has(n) ? untext.decode(f.get(n)) : "");
const num = (f, n) => f.get(n) ?? 0;

// decodeServer returns {kind, ...} of a ServerFrame; kind "other" for what a
// chat does not need. It throws on bytes that are no frame.
export function decodeServer(bytes) {
  for (const [number, payload] of fields(bytes)) {
    if (!(payload instanceof Uint8Array)) continue;
    const f = fields(payload);
    switch (number) {
      case 1:
        return { kind: "connected", code: num(f, 1), user: str(f, 3), node: str(f, 5), heartbeatSeconds: num(f, 9) };
      case 2: {
        const m = fields(f.get(1) ?? new Uint8Array());
        return {
          kind: "delivery", id: str(m, 4), from: str(m, 2), device: str(m, 3),
          to: str(m, 6), group: str(m, 7), body: str(m, 8), timestamp: num(m, 9),
        };
      }
      case 3:
        return {
          kind: "ack", id: str(f, 1), sent: num(f, 2) === 0, reason: str(f, 4), buffered: num(f, 7),
        };
      case 4:
        return { kind: "error", code: num(f, 1), message: str(f, 2) };
    }
  }
  return { kind: "other" };
}
