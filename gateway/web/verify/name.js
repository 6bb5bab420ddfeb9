// Names below the gateway's domain: <id>[-<port>][s|g]. The twin of gateway/registry's ParseLabel.
import {hex} from "./bytes.js";

const base32 = "abcdefghijklmnopqrstuvwxyz234567";

// subjectOf says what a host stands for: its one spelling in statements, and the id that it names, in hex; "" for a host of the gateway's
// own. passthrough tells a name whose TLS session the gateway does not see.
export function subjectOf(hostname) {
  const host = hostname.toLowerCase().replace(/\.$/, "");
  const dot = host.indexOf(".");
  const name = dot > 0 ? parseLabel(host.slice(0, dot)) : null;
  return name ? {host: name.label + host.slice(dot), id: name.id, passthrough: name.passthrough} : {host, id: "", passthrough: false};
}

// parseLabel reads a label in lower case; null when it names no app.
export function parseLabel(label) {
  const form = /^(?:(?:0x)?([0-9a-f]{40})|([a-z2-7]{52}))(?:-(?=.)([1-9]\d{0,4})?)?([sg])?$/;
  const [, digits, hash, port, suffix] = form.exec(label) ?? [];
  const id = digits ?? (hash && composeHash(hash));
  return id && Number(port ?? 80) <= 65535 ? {label: digits ?? hash, id, passthrough: suffix === "s"} : null;
}

// composeHash reads 52 digits of base32 whose four surplus bits are zero; null when they are not.
function composeHash(text) {
  const bytes = [];
  let bits = 0, held = 0;
  for (const c of text) {
    bits = bits << 5 | base32.indexOf(c);
    held += 5;
    if (held >= 8) {
      held -= 8;
      bytes.push(bits >> held);
      bits &= (1 << held) - 1;
    }
  }
  return bits === 0 ? hex(bytes) : null;
}
