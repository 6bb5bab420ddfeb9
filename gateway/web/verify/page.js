// The page: fetches the document of its own host with a nonce of its own, has it verified, and shows what came of it in place of the
// server's verdict. Whatever goes wrong is shown as a failure.
import {hex} from "./bytes.js";
import {walkChain} from "./chain.js";
import {maxDocument} from "./document.js";
import {byID, copyButton, definitions, element, readable, setState} from "./dom.js";
import {intelRoot} from "./intel.js";
import {subjectOf} from "./name.js";
import {certificatesOf, stamp} from "./x509.js";

const path = "/.well-known/attestation";
const patience = 60_000; // a gateway makes about one quote a second, for all who ask

// load fetches the document. What it throws is for people to read.
async function load(nonce) {
  let answer;
  try {
    answer = await fetch(`${path}?nonce=${hex(nonce)}`,
      {headers: {Accept: "application/json"}, cache: "no-store", credentials: "omit", redirect: "error", signal: AbortSignal.timeout(patience)});
  } catch (e) {
    throw new Error(`the browser could not fetch the evidence (${e.message}); the gateway may be away, or ask for a pause between nonces`);
  }
  if (answer.status === 429) throw new Error(`the gateway asks to wait ${Number(answer.headers.get("Retry-After")) || "a few"} seconds before another nonce; then load the page again`);
  if (!answer.ok) throw new Error(`the gateway answers ${answer.status} and shows no evidence`);
  const parts = [];
  let size = 0;
  for (let reader = answer.body.getReader(), part; !(part = await reader.read()).done;) {
    size += part.value.length;
    if (size > maxDocument) throw new Error(`the evidence is longer than ${maxDocument} bytes`);
    parts.push(part.value);
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

// rootsOf are Intel's root and, when the page was given one, that of a simulation.
function rootsOf(simulated) {
  const roots = [{cert: certificatesOf(intelRoot, 1)[0], kind: "tdx"}];
  if (simulated !== "") roots.push({cert: certificatesOf(simulated, 1)[0], kind: "simulated-tdx"});
  return roots;
}

// main verifies and shows.
async function main(page) {
  page.dataset.by = "browser";
  page.dataset.verdict = "wait";
  headline("wait", "Your browser is checking", "The evidence is being made and verified", "The gateway quotes a nonce that this page has just drawn.");
  for (const e of page.querySelectorAll("[data-station], [data-link]")) setState(e, "wait");
  for (const command of page.querySelectorAll(".command")) {
    const shown = command.querySelector("pre");
    if (/^[\w.-]+(:\d+)?$/.test(location.host)) shown.textContent = shown.textContent.replace(/https:\/\/[^\s/]+/g, `https://${location.host}`);
    command.append(copyButton("command", shown.textContent, shown));
  }
  try {
    const nonce = crypto.getRandomValues(new Uint8Array(32));
    const subject = {...subjectOf(location.hostname), nonce, exporter: null, freshApp: false};
    const report = await walkChain(await load(nonce), subject, rootsOf(page.dataset.root), Date.now());
    show(page, report);
  } catch (e) {
    for (const s of page.querySelectorAll("[data-station], [data-link]")) setState(s, "skip");
    for (const d of page.querySelectorAll(".details")) d.replaceChildren();
    page.dataset.verdict = "fail";
    headline("fail", "Checked by your browser", "Nothing was verified", e.message);
  }
}

function headline(state, who, title, text) {
  byID("verdict").querySelector("use").setAttribute("href", `#mark-${state}`);
  byID("verdict-who").textContent = who;
  byID("verdict-title").textContent = title;
  byID("verdict-text").textContent = text;
}

// show puts a report in place of the server's.
function show(page, report) {
  for (const li of page.querySelectorAll("[data-link]")) showLink(li, report.checks.filter((c) => c.name === li.dataset.link));
  for (const section of page.querySelectorAll("section[data-station]")) {
    const links = [...section.querySelectorAll("[data-link]")];
    const state = links.some((l) => l.classList.contains("fail")) ? "fail" :
      links.some((l) => l.classList.contains("skip") && !("optional" in l.dataset)) ? "skip" : "pass";
    for (const e of page.querySelectorAll(`[data-station="${section.dataset.station}"]`)) setState(e, state);
    section.querySelector(".facts").replaceChildren();
    section.querySelector(".apps").replaceChildren();
  }
  showFacts(report);
  const failed = report.checks.find((c) => c.status === "fail");
  if (report.simulated) page.dataset.mark = "simulated";
  else delete page.dataset.mark;
  byID("simulated").hidden = !report.simulated;
  page.dataset.verdict = failed ? "fail" : "pass";
  page.dataset.failed = failed?.name ?? "";
  const seen = "Two links are beyond a page: the key of its own connection, and whether these are the programs you expect. The commands below check both.";
  if (failed) headline("fail", "Checked by your browser", `Fails at ${failed.name}`, `${failed.detail.replace(`${failed.name}: `, "")}. Do not trust what this name shows you.`);
  else if (report.simulated) headline("pass", "Checked by your browser", "The chain holds, in a simulation", "Every signature is right, below a root that this gateway made itself. It proves nothing about hardware.");
  else headline("pass", "Checked by your browser", "The chain holds, as far as a page can see", seen);
}

// showLink shows what became of a link: of each instance, where there are several.
function showLink(li, checks) {
  const states = checks.map((c) => c.status);
  setState(li, states.includes("fail") ? "fail" : states.includes("skip") || states.length === 0 ? "skip" : "pass");
  const details = [...new Set(checks.map((c) => (checks.length > 1 && c.status !== "skip" ? `${c.hop}: ${c.detail}` : c.detail)))];
  const shown = details.map((d) => element("p", {}, d));
  li.querySelector(".details").replaceChildren(...(shown.length > 3 ? [element("details", {}, element("summary", {}, `${shown.length} instances`), ...shown)] : shown));
}

const advised = ({status, date, advisories}) => [status, `(${date.slice(0, 10)}${advisories.length ? "; " + advisories.join(", ") : ""})`].join(" ");

// machineFacts and programFacts are what a verified quote says of the two halves.
const machineFacts = ({tcb, platform, mrSeam, teeTCBSVN, version, tdAttributes}) => [
  ["platform", advised(tcb.platform)], ["TDX module", advised(tcb.module)], ["quoting enclave", advised(tcb.qe)], ["TCB evaluation", String(tcb.evaluation)],
  ["FMSPC", platform.fmspc], ["PPID", hex(platform.ppid)], ["TEE_TCB_SVN", hex(teeTCBSVN)], ["MRSEAM", hex(mrSeam)], ["TD attributes", hex(tdAttributes)], ["quote version", String(version)],
];

const programFacts = ({rtmr, mrtd, mrConfigID, reportData}, info) => [
  ...(info ? [["app id", hex(info.appID)], ["instance id", hex(info.instanceID)], ["compose hash", hex(info.composeHash)], ["mr_aggregated", hex(info.mrAggregated)], ["mr_system", hex(info.mrSystem)],
    ["OS image hash (stated, not measured)", hex(info.osImageHash)], ["key provider", new TextDecoder().decode(info.keyProvider)]] : []),
  ["MRTD", hex(mrtd)], ...rtmr.map((r, i) => [`RTMR${i}`, hex(r)]), ["MRCONFIGID", hex(mrConfigID)], ["report data", hex(reportData)],
];

// showFacts shows the values behind the links. Those of a quote only when it was verified, those of a statement only when it was quoted.
function showFacts({gateway, apps, statement}) {
  const into = (station, title, facts, open = false) => byID(station).querySelector(".facts").append(
    element("details", open ? {open: ""} : {}, element("summary", {}, title), definitions(facts)));
  if (gateway) {
    into("machine", "Measured values", machineFacts(gateway.quote));
    into("gateway", "Measured values", programFacts(gateway.quote, gateway.info));
  }
  if (statement) {
    into("key", "Keys of the statement", [...statement.tls.map((k) => [`SHA-256 of the ${k.use} key, until ${stamp(k.not_after)}`, hex(k.spki_sha256)]), ["ACME account", statement.acme_account], ...statement.caa.map((c) => ["CAA", c])], true);
    into("name", "Stated", [["host", statement.host], ["node", statement.node], ...(statement.app ? [["app id", statement.app.id]] : [])]);
    for (const i of statement.app?.instances ?? []) into("tunnel", `Tunnel to instance ${i.id}`, [["WireGuard key", i.wg_public_key], ["SHA-256 of the quote", i.evidence_sha256], ["identity at registration", i.identity]]);
  }
  for (const {quote, info, evidence, stated} of apps) {
    into("app", `Measured values of instance ${stated.id}`, [["binding", evidence.binding], ...programFacts(quote, info), ...machineFacts(quote)]);
    if (evidence.app_compose !== "") showCompose(stated.id, evidence.app_compose);
  }
}

function showCompose(instance, text) {
  byID("app").querySelector(".apps").append(element("details", {}, element("summary", {}, "app-compose.json of instance ", element("code", {}, instance)),
    readable(text).map(([name, part]) => {
      const shown = element("pre", {tabindex: "0"}, part);
      return [element("h3", {}, name), element("div", {class: "command"}, shown, copyButton(name, part, shown))];
    })));
}

const page = globalThis.document?.getElementById("page");
if (page) await main(page);
