// TDX quotes of version 4, and of version 5 with a TDX 1.0 or 1.5 body (Intel TDX DCAP Quoting Library API, appendix A): their form,
// their signatures up to a root, and what is judged without collateral. The twin of ratls/quote.go, verify.go and validate.go.
import {Reader, Refusal, concat, ecdsaP256, equal, hex, refuse, sha, zero} from "./bytes.js";
import {certificatesOf, checkCertificate, platformOf} from "./x509.js";

const maxQuote = 32 << 10; // bytes
const rootName = "Intel SGX Root CA";
const platformCAName = "Intel SGX PCK Platform CA";
const pckName = "Intel SGX PCK Certificate";
const intelQEVendor = "939a7233f79c4ca9940a0db3957f0607";

// Bits of TD_ATTRIBUTES. Whatever is not named here is reserved or weakens the domain.
const attrDebug = 1n, attrSEPTVEDisable = 1n << 28n;
const attrAllowed = attrSEPTVEDisable | 1n << 30n | 1n << 31n | 1n << 63n; // PKS, key locker, performance monitoring

// attempt runs f and makes any error that it throws a refusal of a check.
export async function attempt(check, f) {
  try {
    return await f();
  } catch (e) {
    throw e instanceof Refusal ? e : new Refusal(check, e.message);
  }
}

// parseQuote reads a raw quote. Only zeros may follow it.
export function parseQuote(raw) {
  if (raw.length > maxQuote) throw new Error(`quote has ${raw.length} bytes, at most ${maxQuote} are read`);
  const all = new Reader(raw);
  const header = new Reader(all.take(48));
  const version = header.u16(), keyType = header.u16(), tee = header.u32();
  if ((version !== 4 && version !== 5) || keyType !== 2 || tee !== 0x81) throw new Error(`version ${version}, key type ${keyType}, TEE ${tee} is not a TDX quote that is known`);
  header.take(4);
  const vendor = header.take(16);
  const type = version === 4 ? 2 : all.u16();
  const size = {2: 584, 3: 648}[type];
  if (!size || (version === 5 && all.u32() !== size)) throw new Error(`body of type ${type} is unknown, or not of its size`);
  const quote = Object.assign(parseBody(all.take(size), type), {version, vendor, signed: raw.subarray(0, all.at)});
  Object.assign(quote, parseSignature(new Reader(all.take(all.u32()))));
  if (!zero(all.rest())) throw new Error("what follows the quote is not padding");
  return quote;
}

// parseBody reads a TD report; type 3 is that of TDX 1.5.
function parseBody(body, type) {
  const r = new Reader(body);
  const b = {teeTCBSVN: r.take(16), mrSeam: r.take(48), mrSignerSeam: r.take(48), seamAttributes: r.take(8), tdAttributes: r.take(8), xfam: r.take(8)};
  for (const name of ["mrtd", "mrConfigID", "mrOwner", "mrOwnerConfig"]) b[name] = r.take(48);
  b.rtmr = [r.take(48), r.take(48), r.take(48), r.take(48)];
  b.reportData = r.take(64);
  b.mrServiceTD = null;
  if (type === 3) {
    r.take(16); // TEE_TCB_SVN_2
    b.mrServiceTD = r.take(48);
  }
  return b;
}

// parseSignature reads the signature and what certifies its key: certification data of type 6 around type 5.
function parseSignature(r) {
  const s = {signature: r.take(64), key: r.take(64)};
  const outer = nested(r, 6);
  const report = outer.take(384);
  s.qeReport = {raw: report, miscSelect: report.subarray(16, 20), attributes: report.subarray(48, 64), mrSigner: report.subarray(128, 160),
    prodID: report[256] | report[257] << 8, svn: report[258] | report[259] << 8, data: report.subarray(320)};
  s.qeSignature = outer.take(64);
  s.authData = outer.take(outer.u16());
  s.chain = nested(outer, 5).rest();
  return s;
}

// nested is the certification data of a type, which fills what is left.
function nested(r, want) {
  const type = r.u16(), size = r.u32(), data = r.rest();
  if (type !== want || size !== data.length) throw new Error(`certification data of type ${type} and ${size} bytes, want type ${want} and ${data.length} bytes`);
  return new Reader(data);
}

// authenticate verifies the signatures of a quote below one of the roots, {cert, kind}, and returns the quote with what its certificates
// say of the platform.
export async function authenticate(raw, roots, now) {
  const quote = await attempt("quote-parse", () => parseQuote(raw));
  const trust = await attempt("quote-root", () => descent(quote, roots));
  await attempt("quote-signature", () => checkSignatures(quote, trust, now));
  return Object.assign(quote, trust, {kind: trust.root.kind});
}

// descent checks whose certificates the quote carries; their signatures are not verified yet.
function descent(quote, roots) {
  const text = String.fromCharCode(...quote.chain).replace(/\0$/, "");
  const [pck, platformCA, last] = certificatesOf(text, 3);
  const root = roots.find((r) => equal(r.cert.spki, last.spki));
  if (!root) throw new Error(`the quote descends from another root than the ${roots.length} that are accepted`);
  if (!equal(pck.issuer, platformCA.subject) || platformCA.name !== platformCAName) throw new Error(`the PCK was issued by ${JSON.stringify(platformCA.name)}, want ${JSON.stringify(platformCAName)}`);
  return {pck, platformCA, last, root, platform: platformOf(pck)};
}

async function checkSignatures(quote, {pck, platformCA, last, root}, now) {
  await checkCertificate(last, root.cert, rootName, 1, now);
  await checkCertificate(root.cert, root.cert, rootName, 1, now);
  await checkCertificate(platformCA, root.cert, platformCAName, 1, now);
  await checkCertificate(pck, platformCA, pckName, 0, now);
  if (!await ecdsaP256(quote.key, quote.signature, quote.signed)) throw new Error("the attestation key has not signed the report");
  if (!await ecdsaP256(pck.point, quote.qeSignature, quote.qeReport.raw)) throw new Error("the PCK has not signed the quoting enclave's report");
  const bound = await sha(256, quote.key, quote.authData);
  if (!equal(quote.qeReport.data, concat(bound, new Uint8Array(32)))) throw new Error("the quoting enclave's report is not about the attestation key");
}

// validate judges what a signed quote says of its domain, without collateral.
export function validate(quote) {
  if (hex(quote.vendor) !== intelQEVendor) refuse("qe-identity", `vendor of the quoting enclave is ${hex(quote.vendor)}, want Intel's`);
  const attributes = new DataView(quote.tdAttributes.slice().buffer).getBigUint64(0, true);
  const shown = "0x" + attributes.toString(16);
  if (attributes & attrDebug) refuse("td-attributes", "the domain can be debugged by its host");
  if (attributes & ~attrAllowed) refuse("td-attributes", `attributes ${shown} have bits that must be clear`);
  if (!(attributes & attrSEPTVEDisable)) refuse("td-attributes", `SEPT_VE_DISABLE is not set in attributes ${shown}`);
  if (!zero(quote.mrSignerSeam) || !zero(quote.seamAttributes)) refuse("td-attributes", "the TDX module is not a production module of Intel");
  if (quote.mrServiceTD && !zero(quote.mrServiceTD)) refuse("td-attributes", "a service domain is bound to the domain");
}
