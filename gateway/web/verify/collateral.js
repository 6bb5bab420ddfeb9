// The vendor's word on a platform, as it is stapled to the document: TCB info, QE identity and two revocation lists (Intel PCS API
// v4). The twin of ratls/collateral.go, with the signatures that go-tdx-guest verifies there.
import {ecdsaP256, equal, fromUTF8, hex, refuse, unhex, utf8} from "./bytes.js";
import {decoded, list, object, optional, parseJSON, text, time, whole} from "./json.js";
import {attempt} from "./quote.js";
import {certificatesOf, checkCertificate, checkRevocationList, parseRevocationList, stamp} from "./x509.js";
import {assess, statuses} from "./tcb.js";

const pcs = "https://api.trustedservices.intel.com/";
const signingName = "Intel SGX TCB Signing";

const components = optional(list(object({svn: whole(0xff)}, true), 16), []);
const levels = list(object({
  tcb: object({sgxtcbcomponents: components, pcesvn: optional(whole(0xffff), 0), tdxtcbcomponents: components, isvsvn: optional(whole(0xffffffff), 0)}, true),
  tcbDate: text, tcbStatus: decoded((s) => (statuses.includes(s) ? s : refuse("collateral", `TCB status ${s} is unknown`))), advisoryIDs: optional(list(text), []),
}, true));
const moduleIdentity = {mrsigner: decoded(unhex), attributes: decoded(unhex), attributesMask: decoded(unhex)};
const dated = {id: text, version: whole(0xff), issueDate: time, nextUpdate: time, tcbEvaluationDataNumber: whole(0xffffffff), tcbLevels: levels};

// The two signed structures.
export const tcbInfoShape = object({...dated, fmspc: text, pceId: text, tdxModule: object(moduleIdentity, true),
  tdxModuleIdentities: optional(list(object({id: text, ...moduleIdentity, tcbLevels: levels}, true)), [])}, true);
export const qeIdentityShape = object({...dated, miscselect: decoded(unhex), miscselectMask: decoded(unhex), attributes: decoded(unhex),
  attributesMask: decoded(unhex), mrsigner: decoded(unhex), isvprodid: whole(0xffff)}, true);

// appraise judges an authenticated quote by the collateral of a document, and adds the TCB to it.
export async function appraise(quote, stapled, now) {
  const set = await attempt("collateral", () => gather(quote, stapled));
  await attempt("collateral", () => checkRevocation(quote, set));
  await attempt("collateral", () => checkCollateral(quote, set, now));
  checkFamily(quote, set.tcbInfo);
  matchQE(quote.qeReport, set.qeIdentity);
  quote.tcb = assess(set.tcbInfo, set.qeIdentity, {svn: quote.teeTCBSVN, components: quote.platform.components, pceSVN: quote.platform.pceSVN,
    signer: quote.mrSignerSeam, attributes: quote.seamAttributes, qeSVN: quote.qeReport.svn});
  return quote;
}

// gather reads the four answers; of two with one URL the first counts.
function gather(quote, stapled) {
  const find = (url) => stapled.find((c) => c.url === url) ?? refuse("collateral", `${url} is not among the ${stapled.length} stapled answers`);
  const issuers = (answer, header) => certificatesOf(decodeURIComponent((answer.headers[header] ?? "").replace(/\+/g, " ")), 2);
  const tcb = find(`${pcs}tdx/certification/v4/tcb?fmspc=${quote.platform.fmspc}`), qe = find(`${pcs}tdx/certification/v4/qe/identity`);
  const pckList = find(`${pcs}sgx/certification/v4/pckcrl?ca=platform&encoding=der`), rootList = find(quote.root.cert.crl);
  return {
    ...readSigned(tcb, "tcbInfo", tcbInfoShape), ...readSigned(qe, "enclaveIdentity", qeIdentityShape),
    chains: [issuers(tcb, "Tcb-Info-Issuer-Chain"), issuers(qe, "Sgx-Enclave-Identity-Issuer-Chain")],
    pckIssuers: issuers(pckList, "Sgx-Pck-Crl-Issuer-Chain"), pckCRL: parseRevocationList(pckList.body), rootCRL: parseRevocationList(rootList.body),
  };
}

// readSigned reads an answer of exactly one structure and its signature, which is over the structure's exact text.
function readSigned(answer, name, shape) {
  const {value, raw} = parseJSON(fromUTF8(answer.body));
  const parts = object({[name]: shape, signature: decoded(unhex)})(value, name);
  const key = name === "tcbInfo" ? "tcbInfo" : "qeIdentity";
  return {[key]: parts[name], [key + "Signed"]: {text: utf8(raw[name]), signature: parts.signature}};
}

async function checkRevocation({pck, platformCA, root}, set) {
  await checkRevocationList(set.rootCRL, root.cert);
  await checkRevocationList(set.pckCRL, platformCA);
  if (set.rootCRL.revoked.has(platformCA.serial)) refuse("pck-revocation", "the issuer of the PCK is revoked");
  if (set.pckCRL.revoked.has(pck.serial)) refuse("pck-revocation", "the PCK is revoked");
}

// checkCollateral verifies the signatures and dates of the answers.
async function checkCollateral({root}, set, now) {
  for (const [what, from, to] of [["TCB info", set.tcbInfo.issueDate, set.tcbInfo.nextUpdate], ["QE identity", set.qeIdentity.issueDate, set.qeIdentity.nextUpdate],
    ["root revocation list", set.rootCRL.thisUpdate, set.rootCRL.nextUpdate], ["PCK revocation list", set.pckCRL.thisUpdate, set.pckCRL.nextUpdate]]) {
    if (now > to) throw new Error(`${what} expired at ${stamp(to)}`);
    if (now < from) throw new Error(`${what} was issued in the future, ${stamp(from)}`);
  }
  if (set.pckIssuers.some((c) => now > c.notAfter)) throw new Error("an issuer of the PCK revocation list has expired");
  if (set.tcbInfo.id !== "TDX" || set.tcbInfo.version !== 3 || set.tcbInfo.tcbLevels.length === 0) throw new Error("TCB info is not of TDX, version 3, with levels");
  if (set.qeIdentity.id !== "TD_QE" || set.qeIdentity.version !== 2 || set.qeIdentity.tcbLevels.length === 0) throw new Error("QE identity is not of TD_QE, version 2, with levels");
  for (const [i, {text, signature}] of [set.tcbInfoSigned, set.qeIdentitySigned].entries()) {
    const [signing, last] = set.chains[i];
    if (!equal(last.spki, root.cert.spki)) throw new Error("collateral descends from another root than the quote");
    await checkCertificate(last, root.cert, root.cert.name, 1, now);
    await checkCertificate(signing, root.cert, signingName, 0, now);
    if (signature.length !== 64 || !await ecdsaP256(signing.point, signature, text)) throw new Error(`${["TCB info", "QE identity"][i]} is not what was signed`);
    if (set.rootCRL.revoked.has(signing.serial)) throw new Error("the signer of the collateral is revoked");
  }
}

// checkFamily holds the TCB info to the platform that it is about.
function checkFamily({platform, mrSignerSeam, seamAttributes}, info) {
  if (info.fmspc.toLowerCase() !== platform.fmspc) refuse("tcb", `TCB info is of family ${info.fmspc}, the platform is of ${platform.fmspc}`);
  if (info.pceId !== platform.pceID) refuse("tcb", `TCB info is of PCE ${info.pceId}, the platform has ${platform.pceID}`);
  if (!equal(info.tdxModule.mrsigner, mrSignerSeam) || !masked(seamAttributes, info.tdxModule.attributesMask, info.tdxModule.attributes)) {
    refuse("tcb", "signer or attributes of the TDX module are not those of the TCB info");
  }
}

// matchQE compares the quoting enclave's report with its identity.
function matchQE(report, id) {
  if (!masked(report.miscSelect, id.miscselectMask, id.miscselect)) refuse("qe-identity", "MISCSELECT of the quoting enclave is not the vendor's");
  if (!masked(report.attributes, id.attributesMask, id.attributes)) refuse("qe-identity", "attributes of the quoting enclave are not the vendor's");
  if (id.mrsigner.length === 0 || !equal(report.mrSigner, id.mrsigner)) refuse("qe-identity", `signer of the quoting enclave is ${hex(report.mrSigner)}, not the vendor`);
  if (report.prodID !== id.isvprodid) refuse("qe-identity", `the enclave's product id is ${report.prodID}, want ${id.isvprodid}`);
}

// masked reports whether have equals want in the bits of mask.
function masked(have, mask, want) {
  return have.length === mask.length && have.length === want.length && have.every((b, i) => (b & mask[i]) === want[i]);
}
