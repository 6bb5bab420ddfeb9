// DER (X.690), as far as certificates and revocation lists need it: definite lengths in their shortest form, tags of one byte.
import {hex} from "./bytes.js";

// Tags.
export const INTEGER = 0x02, BIT_STRING = 0x03, OCTET_STRING = 0x04, OBJECT_ID = 0x06, BOOLEAN = 0x01;
export const SEQUENCE = 0x30, SET = 0x31, UTC_TIME = 0x17, GENERALIZED_TIME = 0x18;

const malformed = (why) => {
  throw new Error(`DER: ${why}`);
};

// readDER reads the element at a position; its content lies between from and to.
function readDER(bytes, at, end) {
  if (end - at < 2) malformed("an element is cut off");
  const tag = bytes[at];
  if ((tag & 0x1f) === 0x1f) malformed("a tag has more than one byte");
  let length = bytes[at + 1], from = at + 2;
  if (length >= 0x80) {
    const n = length & 0x7f;
    if (n === 0 || n > 3 || n > end - from) malformed("a length is indefinite or too long");
    length = 0;
    for (let i = 0; i < n; i++) length = length << 8 | bytes[from + i];
    if (length < (n === 1 ? 0x80 : 1 << 8 * (n - 1))) malformed("a length is not in its shortest form");
    from += n;
  }
  if (length > end - from) malformed("an element is longer than what holds it");
  return {tag, bytes, at, from, to: from + length};
}

// parseDER reads bytes that are one element of a tag.
export function parseDER(bytes, tag) {
  const element = readDER(bytes, 0, bytes.length);
  if (element.to !== bytes.length) malformed("more data follows");
  return expect(element, tag);
}

// expect holds an element, or its absence, to a tag.
export function expect(element, tag) {
  if (!element || element.tag !== tag) malformed(`tag 0x${element ? element.tag.toString(16) : ""} where 0x${tag.toString(16)} is needed`);
  return element;
}

// elements are what an element consists of.
export function elements(outer) {
  const inner = [];
  for (let at = outer.from; at < outer.to; at = inner.at(-1).to) inner.push(readDER(outer.bytes, at, outer.to));
  return inner;
}

export const content = (element) => element.bytes.subarray(element.from, element.to);

// encoding is the whole element, as signatures are over it.
export const encoding = (element) => element.bytes.subarray(element.at, element.to);

export function objectID(element) {
  const bytes = content(expect(element, OBJECT_ID));
  const arcs = [];
  let arc = 0;
  for (const [i, b] of bytes.entries()) {
    if (arc > 0xffffff || (arc === 0 && b === 0x80)) malformed("an object identifier has a malformed arc");
    arc = arc * 128 + (b & 0x7f);
    if (b & 0x80) {
      if (i === bytes.length - 1) malformed("an object identifier is cut off");
      continue;
    }
    if (arcs.length === 0) arcs.push(Math.min(Math.floor(arc / 40), 2), arc - 40 * Math.min(Math.floor(arc / 40), 2));
    else arcs.push(arc);
    arc = 0;
  }
  return arcs.join(".");
}

// magnitude is the value of a non-negative INTEGER without its leading zero.
export function magnitude(element) {
  const bytes = content(expect(element, INTEGER));
  if (bytes.length === 0 || bytes[0] & 0x80 || (bytes.length > 1 && bytes[0] === 0 && !(bytes[1] & 0x80))) malformed("an integer is negative or not in its shortest form");
  return bytes[0] === 0 && bytes.length > 1 ? bytes.subarray(1) : bytes;
}

// small is a non-negative INTEGER up to most.
export function small(element, most) {
  const bytes = magnitude(element);
  const value = bytes.length > 4 ? Infinity : parseInt(hex(bytes), 16);
  if (value > most) malformed(`an integer is larger than ${most}`);
  return value;
}

// bits is a BIT STRING of whole bytes.
export function bits(element) {
  const bytes = content(expect(element, BIT_STRING));
  if (bytes[0] !== 0) malformed("a bit string is not one of whole bytes");
  return bytes.subarray(1);
}

export const octets = (element) => content(expect(element, OCTET_STRING));

// instant reads a time in the forms that RFC 5280 section 4.1.2.5 allows, as milliseconds.
export function instant(element) {
  const digits = String.fromCharCode(...content(element).subarray(0, 16));
  const [, year, month, day, hour, minute, second] = (element.tag === UTC_TIME ? /^(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)Z$/ :
    element.tag === GENERALIZED_TIME ? /^(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)Z$/ : /^\b$/).exec(digits) ?? malformed("a time is malformed");
  const full = element.tag === UTC_TIME ? (year < 50 ? `20${year}` : `19${year}`) : year;
  const at = Date.parse(`${full}-${month}-${day}T${hour}:${minute}:${second}Z`);
  return Number.isNaN(at) ? malformed("a time does not exist") : at;
}

// rawSignature turns Ecdsa-Sig-Value (RFC 3279 section 2.2.3) into r‖s, 64 bytes, as WebCrypto wants it.
export function rawSignature(der) {
  const parts = elements(parseDER(der, SEQUENCE)).map(magnitude);
  if (parts.length !== 2 || parts.some((p) => p.length > 32)) malformed("a signature is not of P-256");
  const raw = new Uint8Array(64);
  parts.forEach((p, i) => raw.set(p, 32 * (i + 1) - p.length));
  return raw;
}
