// JSON as strictly as ratls.DecodeStrict reads it: the platform's JSON.parse forgives members that occur twice, and forgets the
// exact text that a signature is over.
import {shorten} from "./bytes.js";

const maxDepth = 32; // of nesting
const maxValues = 1 << 18; // in one text

// parseJSON reads one JSON value. Objects have no prototype; numbers that are not whole become NaN, for nothing here has any use for
// them. raw holds the exact text of each member when the value is an object.
export function parseJSON(text) {
  const parser = new JSONParser(text);
  const value = parser.value(0);
  parser.space();
  if (parser.at !== text.length) throw new Error("JSON value is followed by more data");
  return {value, raw: parser.raw};
}

class JSONParser {
  constructor(text) {
    this.text = text;
    this.at = 0;
    this.values = 0;
    this.raw = Object.create(null);
  }

  broken() {
    throw new Error(`JSON is malformed at character ${this.at}`);
  }

  space() {
    while (" \t\n\r".includes(this.text[this.at] ?? "x")) this.at++;
  }

  // eat consumes a token, if it comes next.
  eat(token) {
    this.space();
    if (!this.text.startsWith(token, this.at)) return false;
    this.at += token.length;
    return true;
  }

  value(depth) {
    if (depth > maxDepth) throw new Error(`JSON is nested deeper than ${maxDepth}`);
    if (++this.values > maxValues) throw new Error(`JSON has more than ${maxValues} values`);
    if (this.eat("{")) return this.object(depth);
    if (this.eat("[")) return this.array(depth);
    if (this.text[this.at] === '"') return this.string();
    for (const [word, value] of [["null", null], ["true", true], ["false", false]]) if (this.eat(word)) return value;
    return this.number();
  }

  object(depth) {
    const object = Object.create(null);
    if (this.eat("}")) return object;
    do {
      this.space();
      if (this.text[this.at] !== '"') this.broken();
      const name = this.string();
      if (name in object) throw new Error(`JSON member ${shorten(name)} occurs twice`);
      if (!this.eat(":")) this.broken();
      this.space();
      const from = this.at;
      object[name] = this.value(depth + 1);
      if (depth === 0) this.raw[name] = this.text.slice(from, this.at);
    } while (this.eat(","));
    if (!this.eat("}")) this.broken();
    return object;
  }

  array(depth) {
    const list = [];
    if (this.eat("]")) return list;
    do list.push(this.value(depth + 1)); while (this.eat(","));
    if (!this.eat("]")) this.broken();
    return list;
  }

  // string finds the closing quote, and leaves the escapes to the platform.
  string() {
    const from = this.at++;
    for (let c; (c = this.text.charCodeAt(this.at)) !== 0x22;) {
      if (!(c >= 0x20)) this.broken(); // a control character, or the end
      this.at += c === 0x5c ? 2 : 1;
    }
    return JSON.parse(this.text.slice(from, ++this.at));
  }

  number() {
    const form = /-?(?:0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?/y;
    form.lastIndex = this.at;
    const found = form.exec(this.text);
    if (!found) this.broken();
    this.at = form.lastIndex;
    return found[1] || found[2] ? NaN : Number(found[0]);
  }
}

// A shape turns a parsed value into what it means, or throws; at says where the value stands.

const wrong = (at, want) => {
  throw new Error(`JSON member ${at} is not ${want}`);
};

export const text = (v, at) => (typeof v === "string" ? v : wrong(at, "a string"));

export const bool = (v, at) => (typeof v === "boolean" ? v : wrong(at, "true or false"));

export const whole = (most) => (v, at) => (Number.isInteger(v) && v >= 0 && v <= most ? v : wrong(at, `a whole number up to ${most}`));

// time reads a date and time of RFC 3339, as milliseconds.
export function time(v, at) {
  const form = /^(\d{4})-(\d\d)-(\d\d)T([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d+)?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)$/;
  const [, year, month, day] = form.exec(text(v, at)) ?? wrong(at, "a time");
  if (month < 1 || month > 12 || day < 1 || day > new Date(Date.UTC(year, month, 0)).getUTCDate()) wrong(at, "a time");
  return Date.parse(v);
}

export const list = (shape, most = Infinity) => (v, at) => {
  if (!Array.isArray(v) || v.length > most) wrong(at, `a list of at most ${most}`);
  return v.map((x, i) => shape(x, `${at}[${i}]`));
};

export const orNull = (shape) => (v, at) => (v === null ? null : shape(v, at));

// optional is a member that may be absent, and then means otherwise.
export const optional = (shape, otherwise) => Object.assign((v, at) => shape(v, at), {optional: true, otherwise});

// decoded applies f, which may throw, to a string.
export const decoded = (f) => (v, at) => {
  try {
    return f(text(v, at));
  } catch (e) {
    throw new Error(`JSON member ${at}: ${e.message}`);
  }
};

// dictionary is an object of any members.
export const dictionary = (shape) => (v, at) => {
  if (v === null || typeof v !== "object" || Array.isArray(v)) wrong(at, "an object");
  return Object.fromEntries(Object.entries(v).map(([name, x]) => [name, shape(x, `${at}.${name}`)]));
};

const fold = (name) => name.toUpperCase().toLowerCase();

// object is an object of exactly these members; open admits others, but none that differs from one of these in case alone.
export const object = (members, open = false) => (v, at) => {
  if (v === null || typeof v !== "object" || Array.isArray(v)) wrong(at, "an object");
  const known = new Set(Object.keys(members).map(fold));
  for (const name of Object.keys(v)) {
    if (!Object.hasOwn(members, name) && (!open || known.has(fold(name)))) {
      throw new Error(`JSON member ${at}.${name.slice(0, 64)} is not a known member`);
    }
  }
  const out = {};
  for (const [name, shape] of Object.entries(members)) {
    if (name in v) out[name] = shape(v[name], `${at}.${name}`);
    else if (open || shape.optional) out[name] = shape.otherwise;
    else throw new Error(`JSON member ${at}.${name} is missing`);
  }
  return out;
};
