import { decodeServer, encodeMessage, encodePing } from "./frames.mjs";

const maxLines = 500; // of one client's log; the oldest go
const maxWait = 15_000; // milliseconds between attempts to reconnect
const giveUp = 50_000; // milliseconds that a message is tried for: the cluster knows a repeat for 60 s
const final = [4001, 4002, 4201, 4409]; // close codes after which a person has to decide

const { gateways, tenant } = await (await fetch("config.json")).json();
const names = ["ann", "bob", "carl", "dora", "emil", "fay"];
const known = new Set(["#demo"]); // what the target fields offer
let made = 0;

function offer(target) {
  if (!known.has(target) && known.size < 100) {
    known.add(target);
    document.getElementById("targets").append(new Option(target, target));
  }
}

// hue gives a name a colour that stays the same.
function hue(name) {
  let h = 7;
  for (const c of name) h = (h * 31 + c.codePointAt(0)) % 360;
  return h;
}

// A Client is one box on the page: one user's connection and conversation.
class Client {
  constructor(index) {
    const box = document.getElementById("client").content.cloneNode(true).querySelector("section");
    this.find = (selector) => box.querySelector(selector);
    this.device = "web-" + crypto.randomUUID().slice(0, 8);
    this.pending = new Map(); // message id → {mark, bytes, timer}
    const url = this.find("[name=url]");
    gateways.forEach((g, i) => url.add(new Option("gw-" + (i + 1), g))); // as mics-dev names them
    url.title = gateways.join("\n");
    url.selectedIndex = index % gateways.length;
    this.find("[name=user]").value = names[index] ?? "user" + (index + 1);
    this.find("[name=target]").value = index === 0 ? "bob" : index === 1 ? "ann" : "#demo";

    this.find(".who").addEventListener("submit", (e) => {
      e.preventDefault();
      if (this.socket) this.leave("disconnected");
      else this.connect();
    });
    url.addEventListener("change", () => this.socket && this.connect());
    this.find("[name=user]").addEventListener("change", (e) => this.socket && e.target.reportValidity() && this.connect());
    this.find("[name=remove]").addEventListener("click", () => {
      this.leave("removed");
      box.remove();
    });
    this.find(".say").addEventListener("submit", (e) => {
      e.preventDefault();
      this.send();
    });
    document.getElementById("clients").append(box);
    this.connect();
  }

  // connect begins anew, as whom and where the fields say.
  connect() {
    const user = this.find("[name=user]").value;
    if (this.user !== user) for (const id of this.pending.keys()) this.settle(id, "you became " + user);
    this.user = user;
    this.attempt = 0;
    this.find(".face").textContent = [...user][0];
    this.find(".face").style.setProperty("--hue", hue(user));
    offer(user);
    this.open();
  }

  // open drops the socket that there may be and opens another one.
  open() {
    this.drop();
    const url = new URL(this.find("[name=url]").value);
    url.search = new URLSearchParams({ tenantId: tenant, token: "valid:" + this.user, deviceId: this.device });
    this.state(false, "connecting …");
    const socket = new WebSocket(url);
    this.socket = socket;
    this.find("[name=toggle]").textContent = "disconnect";
    socket.binaryType = "arraybuffer";
    socket.onmessage = (e) => socket === this.socket && this.frame(new Uint8Array(e.data));
    socket.onclose = (e) => socket === this.socket && this.closed(e);
  }

  drop() {
    clearInterval(this.beat);
    clearTimeout(this.retry);
    const socket = this.socket;
    this.socket = undefined; // so that its close is not taken for a loss
    socket?.close(1000);
  }

  leave(words) {
    this.drop();
    this.find("[name=toggle]").textContent = "connect";
    this.state(false, words);
  }

  frame(bytes) {
    const f = decodeServer(bytes);
    switch (f.kind) {
      case "connected": {
        this.attempt = 0;
        this.state(true, `connected to ${f.node} as ${f.user}`);
        clearInterval(this.beat);
        this.beat = setInterval(() => this.write(encodePing(Date.now())), ((f.heartbeatSeconds || 30) * 1000) / 3);
        for (const p of this.pending.values()) this.write(p.bytes); // same id: the cluster knows a repeat
        break;
      }
      case "delivery":
        if (f.group && f.from === this.user && f.device === this.device) return; // own echo
        offer(f.from);
        this.line({ from: f.from, place: f.group ? "#" + f.group : "", body: f.body, own: f.from === this.user, at: f.timestamp });
        break;
      case "ack":
        this.settle(f.id, f.sent ? "" : f.reason, f.buffered ? "kept until they are online" : "");
        break;
      case "error":
        this.note(`error ${f.code}: ${f.message}`);
    }
  }

  closed(e) {
    const why = `${e.code} ${e.reason || "connection lost"}`;
    this.note(why);
    if (final.includes(e.code) && e.reason !== "auth unavailable") {
      this.leave(`closed: ${why}`);
      return;
    }
    clearInterval(this.beat);
    // A gateway that drains or is gone: the next one.
    if (e.code === 4200 || e.code === 1006) {
      const url = this.find("[name=url]");
      url.selectedIndex = (url.selectedIndex + 1) % url.length;
    }
    const atOnce = e.code === 4200 && this.attempt === 0;
    const wait = atOnce ? 0 : Math.random() * Math.min(maxWait, 500 * 2 ** this.attempt);
    this.attempt++;
    this.state(false, `reconnecting: ${why}`);
    this.retry = setTimeout(() => this.open(), wait);
  }

  write(bytes) {
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(bytes);
  }

  send() {
    const target = this.find("[name=target]").value.trim();
    const input = this.find("[name=body]");
    const group = target.startsWith("#") ? target.slice(1) : "";
    if (!target || target === "#") return;
    const message = { id: crypto.randomUUID(), to: group ? "" : target, group, body: input.value, timestamp: Date.now() };
    const bytes = encodeMessage(message);
    const mark = this.line({ from: "to " + target, body: input.value, own: true, at: message.timestamp });
    mark.textContent = "…";
    mark.classList.add("waiting");
    input.value = "";
    const timer = setTimeout(() => this.settle(message.id, "no answer"), giveUp);
    this.pending.set(message.id, { mark, bytes, timer });
    offer(target);
    this.write(bytes); // or when connected
  }

  // settle marks a sent message: failure is empty if it was sent.
  settle(id, failure, hint = "") {
    const p = this.pending.get(id);
    if (!p) return;
    this.pending.delete(id);
    clearTimeout(p.timer);
    p.mark.textContent = failure ? "✗ " + failure : hint ? "✓ " + hint : "✓";
    p.mark.className = failure ? "mark failed" : "mark";
  }

  state(up, words) {
    const s = this.find(".state");
    s.textContent = words;
    s.className = "state " + (up ? "up" : "down");
  }

  note(words) {
    const li = document.createElement("li");
    li.className = "note";
    li.textContent = words;
    this.append(li);
  }

  // line appends a message to the log and returns the element for its mark.
  // Everything goes in as text: it was written by somebody else.
  line({ from, place = "", body, own, at }) {
    const [li, head, who, mark] = ["li", "small", "span", "small"].map((n) => document.createElement(n));
    li.classList.toggle("own", own);
    who.className = "from";
    who.textContent = from;
    who.style.setProperty("--hue", hue(from));
    const time = new Date(at).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
    head.append(who, ` ${place} ${time}`.replace("  ", " "));
    mark.className = "mark";
    li.append(head, body, mark);
    this.append(li);
    return mark;
  }

  append(li) {
    const log = this.find(".log");
    const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
    log.append(li);
    while (log.childElementCount > maxLines) log.firstElementChild.remove();
    if (atEnd || li.classList.contains("own")) log.scrollTop = log.scrollHeight;
  }
}

document.getElementById("add").addEventListener("click", () => new Client(made++));
new Client(made++);
new Client(made++);
