// Bytes, their text forms and their hashes. Everything that is read here comes from strangers: what is not in its one form is
// refused by throwing.

// Refusal is evidence that failed a check. The checks of a quote are named as in ratls/policy.go.
export class Refusal extends Error {
  constructor(check, why) {
    super(`${check}: ${why}`);
    this.check = check;
  }
}

export function refuse(check, why) {
  throw new Refusal(check, why);
}

export const hex = (bytes) => Array.from(bytes, (b) => b.toString(16).padStart(2, "0")).join("");

// unhex reads hex of either case.
export function unhex(text) {
  if (text.length % 2 !== 0 || !/^[0-9a-fA-F]*$/.test(text)) throw new Error(`${shorten(text)} is not hex`);
  return Uint8Array.from({length: text.length / 2}, (_, i) => parseInt(text.slice(2 * i, 2 * i + 2), 16));
}

// lowerHex reports whether text is exactly size bytes of lower-case hex.
export const lowerHex = (text, size) => text.length === 2 * size && /^[0-9a-f]*$/.test(text);

// unbase64 reads standard base64 in its one canonical form: padded, without line breaks, without bits left over.
export function unbase64(text) {
  const last = text.slice(-4);
  if (text.length % 4 !== 0 || !/^[A-Za-z0-9+/]*={0,2}$/.test(text) || btoa(atob(last)) !== last) {
    throw new Error(`${shorten(text)} is not base64`);
  }
  return Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
}

export const utf8 = (text) => new TextEncoder().encode(text);

// fromUTF8 refuses invalid UTF-8, and keeps a byte order mark for the parser to refuse.
export const fromUTF8 = (bytes) => new TextDecoder("utf-8", {fatal: true, ignoreBOM: true}).decode(bytes);

export function concat(...parts) {
  const all = new Uint8Array(parts.reduce((n, p) => n + p.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

export const equal = (a, b) => a.length === b.length && a.every((x, i) => x === b[i]);

export const zero = (bytes) => bytes.every((b) => b === 0);

// sha is the SHA-2 of so many bits over the concatenation of parts.
export const sha = async (bits, ...parts) => new Uint8Array(await crypto.subtle.digest(`SHA-${bits}`, concat(...parts)));

// shorten keeps a stranger's text from filling a page.
export const shorten = (text, most = 64) => JSON.stringify(text.length <= most ? text : text.slice(0, most) + "…");

// ecdsaP256 verifies a signature (r‖s, 64 bytes) of a message, with SHA-256, by a key (x‖y, 64 bytes). A point that is not on the
// curve verifies nothing.
export async function ecdsaP256(point, signature, message) {
  try {
    const key = await crypto.subtle.importKey("raw", concat([4], point), {name: "ECDSA", namedCurve: "P-256"}, false, ["verify"]);
    return await crypto.subtle.verify({name: "ECDSA", hash: "SHA-256"}, key, signature, message);
  } catch {
    return false;
  }
}

// Reader takes little-endian fields off the front of bytes, and never reads beyond them.
export class Reader {
  constructor(bytes) {
    this.bytes = bytes;
    this.at = 0;
  }
  take(n) {
    if (n > this.bytes.length - this.at) throw new Error(`ends at byte ${this.bytes.length}, ${n} more are needed at ${this.at}`);
    this.at += n;
    return this.bytes.subarray(this.at - n, this.at);
  }
  u16() {
    const b = this.take(2);
    return b[0] | b[1] << 8;
  }
  u32() {
    const low = this.u16();
    return low + this.u16() * 0x10000;
  }
  rest() {
    return this.take(this.bytes.length - this.at);
  }
}
