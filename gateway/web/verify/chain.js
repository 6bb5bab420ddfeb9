// The walk along the chain of trust, from the roots to the instances: the same links under the same names in the same order as
// ratls.Chain. It fails closed: what is missing fails, and after the first failure nothing is reached.
import {concat, equal, hex, sha, shorten, utf8, zero} from "./bytes.js";
import {checkCovers, parseAppStatement, parseDocument, parseStatement} from "./document.js";
import {appInfo, replays, runtimeEvents} from "./eventlog.js";
import {authenticate, validate} from "./quote.js";
import {appraise} from "./collateral.js";
import {accepts} from "./tcb.js";
import {stamp} from "./x509.js";

const maxSkew = 2 * 60_000; // how far in the future a statement may have been issued: clocks differ
const maxAge = 60 * 60_000; // the longest life of a statement
const noApp = "the host is the gateway's own: there is no application behind it";

const pass = (detail) => ({status: "pass", detail});
const skip = (detail) => ({status: "skip", detail});
const fail = (detail) => ({status: "fail", detail});

// Links of the chain; each reads what earlier ones established. What is thrown fails the link.
const gatewayLinks = [
  ["document", (w) => {
    w.doc = parseDocument(w.bytes);
    w.statement = parseStatement(w.doc.statement);
    return pass(`${w.doc.format}, ${w.bytes.length} bytes, node ${shorten(w.statement.node)}`);
  }],
  ["gateway-quote", (w) => quoted(w, w, w.doc.gateway)],
  ["gateway-tcb", (w) => judged(w)],
  ["gateway-event-log", async (w) => {
    const {event_log, vm_config} = w.doc.gateway;
    w.info = await appInfo(w.quote, event_log, vm_config);
    return replayDetail(w.quote, event_log);
  }],
  ["gateway-measurements", (w) => unpinned(w.info)],
];

const statementLinks = [
  ["challenge", answered],
  ["statement", async (w) => {
    const text = await sha(256, utf8(w.doc.statement));
    const want = await reportData("ra-https-v1", concat(w.doc.challenge.root, text));
    if (!equal(w.quote.reportData, want)) return fail(`the quote is over ${hex(w.quote.reportData)}, root and statement give ${hex(want)}`);
    w.believed = true;
    return pass(`the quote is over the root and SHA-256 ${hex(text)} of the statement`);
  }],
  ["host", ({statement, subject}) => (subject.host !== "" && statement.host === subject.host ? pass(statement.host) :
    fail(`the statement is about host ${shorten(statement.host)}, ${shorten(subject.host)} was asked for`))],
  ["freshness", ({statement: {issued_at, expires_at}, now}) => {
    if (issued_at > now + maxSkew) return fail(`issued at ${stamp(issued_at)}, which is yet to come: it is ${stamp(now)}`);
    if (expires_at <= now) return fail(`expired at ${stamp(expires_at)}: it is ${stamp(now)}`);
    if (expires_at - issued_at > maxAge) return fail(`valid for ${(expires_at - issued_at) / 1000} s, at most ${maxAge / 1000} s is accepted`);
    return pass(`issued ${stamp(issued_at)}, expires ${stamp(expires_at)}`);
  }],
  ["certificate-key", certificateKey],
  ["app-evidence", async (w) => {
    if (w.subject.id === "") return w.statement.app || w.doc.apps.length > 0 ? fail("the host is the gateway's own, and the statement names an application behind it") : skip(noApp);
    if (!w.statement.app) return fail("the statement names no application behind the host");
    await checkCovers(w.statement, w.doc.apps);
    w.apps = w.doc.apps.map((evidence) => ({walk: w, evidence, stated: w.statement.app.instances.find((i) => i.id === evidence.instance_id)}));
    return pass(`${w.apps.length} instance${w.apps.length === 1 ? "" : "s"} named by the statement, with the SHA-256 of each quote`);
  }],
];

// appLinks is the part of the chain that every instance has.
const appLinks = [
  ["app-quote", (a) => {
    if (a.evidence.quote.length === 0) return fail(`there is no quote: a KMS vouches for the instance (binding ${a.evidence.binding}), and that cannot be verified from here`);
    return quoted(a.walk, a, a.evidence);
  }],
  ["app-tcb", judged],
  ["rtmr3-replay", async ({quote, evidence}) => {
    await replays(quote, evidence.event_log);
    return replayDetail(quote, evidence.event_log);
  }],
  ["app-identity", identity],
  ["app-compose", async ({evidence, info}) => {
    const measured = hex(info.composeHash);
    if (evidence.app_compose === "") return evidence.binding === "ratls-cert" ? skip(`a guest of this kind sends no app-compose; its measured hash is ${measured}`) : fail("the app-compose is missing");
    const got = hex(await sha(256, utf8(evidence.app_compose)));
    return got === measured ? pass(`the app-compose has the measured SHA-256 ${measured}`) : fail(`the app-compose has SHA-256 ${got}, the compose hash is ${measured}`);
  }],
  ["app-measurements", ({info}) => unpinned(info)],
  ["app-binding", bound],
  ["app-freshness", ({walk: {subject, doc}, evidence, said}) => {
    if (!subject.freshApp) return skip(`not asked for: the quote is ${said ? `of ${stamp(said.issued_at)}` : "from the instance's registration"}`);
    if (subject.nonce === null) return fail("without a nonce there is no challenge that the instance could answer");
    if (!said) return fail(`the quote (binding ${evidence.binding}) is over no challenge`);
    const root = hex(doc.challenge.root);
    if (said.challenge !== root) return fail(`the app statement answers challenge ${said.challenge}, the document's root is ${root}`);
    return pass(`the instance's own quote, of ${stamp(said.issued_at)}, answers the root of the challenge`);
  }],
  ["wireguard-key", ({evidence, stated, said}) => {
    if (!said) return skip(`the quote (binding ${evidence.binding}) does not name the WireGuard key: that ${stated.wg_public_key} is the instance's is the gateway's word`);
    if (said.wg_public_key !== stated.wg_public_key) return fail(`the instance's quote names WireGuard key ${said.wg_public_key}, the gateway's tunnel has ${stated.wg_public_key}`);
    return pass(`the instance's quote and the gateway's tunnel have key ${stated.wg_public_key}`);
  }],
  ["instance", ({evidence, stated, info, said}) => {
    const measured = hex(info.instanceID);
    const named = [["evidence is filed under", evidence.instance_id], ["app statement names", said?.instance_id ?? measured], ["statement names", stated.id]];
    for (const [how, id] of named) if (id !== measured) return fail(`the ${how} instance ${id}, the evidence is of instance ${measured}`);
    if (said && said.app_id !== hex(info.appID)) return fail(`the app statement names app ${said.app_id}, the evidence is of app ${hex(info.appID)}`);
    return pass(`instance ${measured}`);
  }],
];

// linkNames are the names of the links in order.
export const linkNames = [...gatewayLinks, ...statementLinks, ...appLinks].map(([name]) => name);

// walkChain verifies the bytes of a document. subject is {host, id, nonce, exporter, spki, freshApp}: nonce null when none was sent,
// exporter null when it is not bound, spki undefined where the key of the connection cannot be seen. roots are {cert, kind}. The result
// has all links, those of each instance together, and what the verified evidence says as far as the walk came. Instances are judged
// independently of each other, and all have to hold.
export async function walkChain(bytes, subject, roots, now) {
  const w = {bytes, subject, roots, now, apps: []};
  const checks = [];
  let failed = await follow(checks, "gateway", gatewayLinks, w, "");
  failed = await follow(checks, "statement", statementLinks, w, failed);
  for (const a of w.apps) await follow(checks, `app ${a.stated.id}`, appLinks, a, "");
  if (w.apps.length === 0) {
    for (const [name] of appLinks) checks.push({hop: "app", name, ...skip(failed ? `not reached, because ${failed} failed` : noApp)});
  }
  const apps = w.apps.filter((a) => a.quote);
  return {checks, gateway: w.quote ? w : null, apps, statement: w.believed ? w.statement : null, simulated: (w.quote ? [w, ...apps] : []).some((p) => p.quote.kind !== "tdx")};
}

// follow checks links until one fails, tells all of them, and returns the name of the one that failed.
async function follow(checks, hop, links, state, failed) {
  for (const [name, link] of links) {
    const outcome = failed ? skip(`not reached, because ${failed} failed`) : await guarded(() => link(state));
    if (outcome.status === "fail") failed = name;
    checks.push({hop, name, ...outcome});
  }
  return failed;
}

async function guarded(f) {
  try {
    return await f();
  } catch (e) {
    return fail(e.message);
  }
}

// quoted verifies a party's quote up to the signatures. What the vendor says of the platform is looked at in the same go, and told by
// the next link; a quote counts as verified only with it.
async function quoted(w, party, {kind, quote}) {
  const q = await authenticate(quote, w.roots, w.now);
  validate(q);
  try {
    await appraise(q, w.doc.collateral, w.now);
    accepts(q.tcb);
  } catch (e) {
    party.refusal = e;
    return pass("the signatures hold up to an accepted root");
  }
  party.quote = q;
  if (q.kind !== kind) return fail(`the document says kind ${shorten(kind)}, the quote is of ${q.kind}`);
  return pass(`${q.kind}, version ${q.version}` + (q.kind === "tdx" ? ", signed below Intel's root" : ". SIMULATED: the root is not Intel's, and no hardware stands behind this"));
}

function judged({refusal, quote}) {
  if (refusal) throw refusal;
  const {platform, module, qe, evaluation} = quote.tcb;
  return pass(`platform ${platform.status}, TDX module ${module.status}, quoting enclave ${qe.status}, evaluation ${evaluation}`);
}

const replayDetail = (quote, events) => pass(`${runtimeEvents(events).length} events replay to RTMR3 ${hex(quote.rtmr[3])}`);

const unpinned = (info) => skip("not pinned, compare for yourself: " + [["app id", info.appID], ["compose hash", info.composeHash],
  ["mr_aggregated", info.mrAggregated], ["mr_system", info.mrSystem], ["os image hash (stated, not measured)", info.osImageHash]].map(([n, v]) => `${n} ${hex(v)}`).join(", "));

// reportData is SHA-512(tag ":" content).
const reportData = (tag, data) => sha(512, utf8(tag + ":"), data);

// merkleRoot walks from the leaf of a challenge along its siblings.
async function merkleRoot(nonce, exporter, path) {
  let node = await sha(256, [0], nonce, exporter ?? []);
  for (const {right, hash} of path) node = await sha(256, [1], ...(right ? [node, hash] : [hash, node]));
  return node;
}

// answered finds the relying party's challenge below the root.
async function answered({doc, subject}) {
  const {nonce, tls_exporter, path, root} = doc.challenge;
  if (nonce === null) {
    if (tls_exporter !== null || path.length > 0 || !zero(root)) return fail("without a nonce there can be no exporter, no path, and no root but zero");
  } else if (!equal(await merkleRoot(nonce, tls_exporter, path), root)) return fail("the challenge of the document is not below its root");
  if (subject.nonce === null) return skip("no nonce was sent; the statement's expiry bounds its age");
  if (nonce === null || !equal(nonce, subject.nonce)) return fail("the document answers another nonce than the one that was sent, or none");
  if (!equal(await merkleRoot(subject.nonce, subject.exporter, path), root)) return fail("the nonce that was sent is not below the root");
  return pass(`the nonce is below the root, ${path.length} steps away`);
}

async function certificateKey({statement, subject, now}) {
  if (subject.spki === undefined) return skip("a page cannot see the key of its own connection; the commands below can");
  const digest = await sha(256, subject.spki);
  const key = statement.tls.find((k) => equal(k.spki_sha256, digest));
  if (!key) return fail(`this connection's key, SHA-256 ${hex(digest)}, is not among the ${statement.tls.length} keys of the statement`);
  if (key.not_after <= now) return fail(`the key of this connection was to be used until ${stamp(key.not_after)}`);
  return pass(`this connection's key, SHA-256 ${hex(digest)}, is named as ${key.use} until ${stamp(key.not_after)}`);
}

// identity holds what was measured to what the statement says and to what the host's name names.
async function identity(a) {
  const w = a.walk;
  const info = await appInfo(a.quote, a.evidence.event_log, a.evidence.vm_config);
  const [app, instance, compose] = [info.appID, info.instanceID, info.composeHash].map(hex);
  if (app !== w.statement.app.id) return fail(`the statement is about app ${w.statement.app.id}, the evidence is of app ${app}`);
  a.info = info;
  if (w.subject.id === app) return pass(`the host names app ${app}, which is what was measured`);
  if (w.subject.id === instance) return pass(`the host names instance ${instance} of app ${app}, which is what was measured`);
  if (w.subject.id === compose) return pass(`the host names compose hash ${compose}, which is what was measured`);
  return fail(`the host names ${shorten(w.subject.id)}; measured were app ${app}, instance ${instance}, compose hash ${compose}`);
}

// bound holds the quote of an instance to what its binding says it is over.
async function bound(a) {
  const {binding, spki, statement} = a.evidence;
  const want = await reportData(binding, binding === "ratls-cert" ? spki : utf8(statement));
  if (!equal(a.quote.reportData, want)) return fail(`report-data: the quote is over ${hex(a.quote.reportData)}, ${binding === "ratls-cert" ? "the TLS key" : "the statement"} gives ${hex(want)}`);
  if (binding === "ratls-cert") return pass("ratls-cert: the quote is over the TLS key that the instance registered with");
  a.said = parseAppStatement(statement);
  if (a.said.issued_at > a.walk.now + maxSkew) return fail(`the app statement was issued at ${stamp(a.said.issued_at)}, which is yet to come`);
  return pass(`${binding}: the quote is over the app statement of ${stamp(a.said.issued_at)}`);
}
