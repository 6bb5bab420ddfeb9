// The form of the attestation document and of the statements in it: strict, closed, bounded. The twin of ratls/document.go,
// statement.go and appevidence.go.
import {fromUTF8, lowerHex, sha, shorten, hex, unbase64, unhex, utf8} from "./bytes.js";
import {eventShape, maxEvents} from "./eventlog.js";
import {decoded, dictionary, list, object, optional, orNull, parseJSON, text, time} from "./json.js";

// Format names the document's form.
export const Format = "https://dstack.host/ra-https/v1";

export const maxDocument = 16 << 20;
const maxStatement = 1 << 20, maxAppStatement = 4 << 10, maxCompose = 1 << 20, maxQuoteBytes = 32 << 10;
const maxInstances = 256, maxKeys = 64, maxCollateral = 64, maxPath = 32;

const check = (ok, why) => {
  if (!ok) throw new Error(why);
};

// one admits exactly these texts; sized exactly so many bytes of lower-case hex.
const one = (...texts) => decoded((s) => (check(texts.includes(s), `${shorten(s)} is not one of ${texts.join(", ")}`), s));
const sized = (size) => decoded((s) => (check(lowerHex(s, size), `${shorten(s)} is not ${2 * size} digits of lower-case hex`), s));
const orEmpty = (shape) => (v, at) => (v === "" ? "" : shape(v, at));

const digest = (v, at) => unhex(sized(32)(v, at));
const pathStep = decoded((s) => (check(/^[01]:/.test(s) && lowerHex(s.slice(2), 32), `${shorten(s)} is no step of a path`), {right: s[0] === "1", hash: unhex(s.slice(2))}));
const wireGuardKey = decoded((s) => (check(unbase64(s).length === 32, `${shorten(s)} is no WireGuard key`), s));
const events = list(eventShape, maxEvents);
const base64 = decoded(unbase64);

const documentShape = object({
  format: one(Format), statement: text,
  challenge: object({nonce: orNull(digest), tls_exporter: orNull(digest), path: list(pathStep, maxPath), root: digest}),
  gateway: object({kind: text, quote: base64, event_log: events, vm_config: text}),
  apps: list(object({instance_id: sized(20), kind: text, binding: one("dstack-wg-v1", "ratls-cert", "kms-app-info"), quote: base64, statement: text,
    spki: optional(base64, new Uint8Array()), event_log: events, app_compose: text, vm_config: text}), maxInstances),
  collateral: list(object({url: text, headers: optional(dictionary(text), {}), body: base64}), maxCollateral),
  reference_values: optional(orNull(object({url: text, sha256: digest})), null),
});

const statementShape = object({
  purpose: one("ra-https-v1"), host: text, node: text,
  tls: list(object({spki_sha256: digest, not_after: time, use: one("current", "next")}), maxKeys), acme_account: text, caa: list(text),
  app: orNull(object({id: sized(20), instances: list(object({id: sized(20), wg_public_key: wireGuardKey, evidence_sha256: orEmpty(sized(32)),
    identity: optional(one("ratls-v0", "ratls-v1", "ratls-legacy", "kms-app-info"), "")}), maxInstances)})),
  issued_at: time, expires_at: time,
});

const appStatementShape = object({purpose: one("dstack-wg-v1"), app_id: sized(20), instance_id: sized(20), wg_public_key: wireGuardKey, challenge: sized(32), issued_at: time});

// parseDocument reads the bytes of a document. Nothing is verified.
export function parseDocument(bytes) {
  check(bytes.length <= maxDocument, `document of ${bytes.length} bytes is longer than ${maxDocument}`);
  const doc = documentShape(parseJSON(fromUTF8(bytes)).value, "document");
  check(doc.gateway.quote.length > 0 && doc.gateway.quote.length <= maxQuoteBytes, `gateway quote has ${doc.gateway.quote.length} bytes`);
  doc.apps.forEach(checkEvidence);
  return doc;
}

// checkEvidence holds the evidence of an instance to the form that its binding has.
function checkEvidence(e) {
  for (const [what, present, wanted] of [["quote", e.quote.length > 0, e.binding !== "kms-app-info"], ["statement", e.statement !== "", e.binding === "dstack-wg-v1"],
    ["spki", e.spki.length > 0, e.binding === "ratls-cert"], ["kind", e.kind !== "", e.binding !== "kms-app-info"]]) {
    check(present === wanted, `binding ${e.binding}: ${what} present is ${present}, want ${wanted}`);
  }
  check(e.quote.length <= maxQuoteBytes && utf8(e.app_compose).length <= maxCompose, "quote or app-compose of an instance is too long");
}

// parseStatement reads the exact text of a gateway's statement.
export function parseStatement(s) {
  check(utf8(s).length <= maxStatement, "statement is too long");
  const st = statementShape(parseJSON(s).value, "statement");
  check(st.host !== "" && st.host === st.host.toLowerCase() && !st.host.endsWith("."), `host ${shorten(st.host)} is empty, or not in lower case without a trailing dot`);
  check(st.tls.length > 0, "statement names no TLS key");
  check(st.expires_at > st.issued_at, "statement expires before it is issued");
  if (st.app) {
    check(st.app.instances.length > 0, "statement names an app without instances");
    check(new Set(st.app.instances.map((i) => i.id)).size === st.app.instances.length, "statement lists an instance twice");
  }
  return st;
}

// parseAppStatement reads the exact text of an instance's statement.
export function parseAppStatement(s) {
  check(utf8(s).length <= maxAppStatement, "app statement is too long");
  return appStatementShape(parseJSON(s).value, "app statement");
}

// checkCovers throws when the evidence is not that of exactly the instances that the statement names.
export async function checkCovers(statement, apps) {
  const instances = statement.app?.instances ?? [];
  check(instances.length === apps.length, `evidence of ${apps.length} instances for a statement that names ${instances.length}`);
  for (const i of instances) {
    const e = apps.find((a) => a.instance_id === i.id);
    check(e, `instance ${i.id} has no evidence`);
    const got = e.quote.length > 0 ? hex(await sha(256, e.quote)) : "";
    check(got === i.evidence_sha256, `evidence of instance ${i.id} has SHA-256 ${got}, the statement names ${i.evidence_sha256}`);
  }
}
