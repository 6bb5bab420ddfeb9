// Certificates and revocation lists of Intel's provisioning certification service (RFC 5280; Intel SGX PCK Certificate and CRL
// Profile Specification): ECDSA with SHA-256 on P-256, nothing else.
import {ecdsaP256, equal, hex, unbase64} from "./bytes.js";
import {BIT_STRING, BOOLEAN, INTEGER, OCTET_STRING, SEQUENCE, SET, bits, content, elements, encoding, expect, instant, magnitude, objectID, octets, parseDER, rawSignature, small} from "./der.js";

const ecdsaWithSHA256 = "1.2.840.10045.4.3.2";
const extensionSGX = "1.2.840.113741.1.13.1";
const extension = {subjectKey: "2.5.29.14", keyUsage: "2.5.29.15", basicConstraints: "2.5.29.19", crlNumber: "2.5.29.20", crlPoints: "2.5.29.31", authorityKey: "2.5.29.35"};

// Bits of key usage (RFC 5280 section 4.2.1.3), counted from the most significant one of the first byte.
const certSign = 0x04, crlSign = 0x02;

// certificatesOf reads the PEM blocks of a text that holds nothing else; so many are wanted.
export function certificatesOf(pem, count) {
  const block = /\s*-----BEGIN CERTIFICATE-----\s+([A-Za-z0-9+/=\s]+?)\s*-----END CERTIFICATE-----\s*/y;
  const found = [];
  while (block.lastIndex < pem.length) {
    const match = found.length < count && block.exec(pem);
    if (!match) throw new Error(`not ${count} certificates in PEM`);
    found.push(parseCertificate(unbase64(match[1].replace(/\s/g, ""))));
  }
  if (found.length !== count) throw new Error(`${found.length} certificates in PEM, want ${count}`);
  return found;
}

// signed splits what certificates and lists have in common: the signed part, the algorithm and the signature.
function signed(der) {
  const [body, algorithm, signature, ...more] = elements(parseDER(der, SEQUENCE));
  expect(body, SEQUENCE);
  ecdsaOnly(algorithm);
  if (more.length > 0) throw new Error("more data follows a signature");
  return {body, signed: encoding(body), signature: rawSignature(bits(signature))};
}

function ecdsaOnly(algorithm) {
  const parts = elements(expect(algorithm, SEQUENCE));
  if (parts.length !== 1 || objectID(parts[0]) !== ecdsaWithSHA256) throw new Error("the signature algorithm is not ECDSA with SHA-256");
}

export function parseCertificate(der) {
  const outer = signed(der);
  const [version, serial, algorithm, issuer, validity, subject, spki, extensions, ...more] = elements(outer.body);
  if (expect(version, 0xa0) && small(elements(version)[0], 2) !== 2) throw new Error("a certificate is not of version 3");
  ecdsaOnly(algorithm);
  if (more.length > 0) throw new Error("a certificate has more fields than are known");
  const [from, to] = elements(expect(validity, SEQUENCE));
  const cert = {
    signed: outer.signed, signature: outer.signature, serial: hex(magnitude(serial)),
    issuer: encoding(expect(issuer, SEQUENCE)), subject: encoding(expect(subject, SEQUENCE)), name: commonName(subject),
    notBefore: instant(from), notAfter: instant(expect(to, to.tag)), spki: encoding(expect(spki, SEQUENCE)), point: publicPoint(spki),
    ca: false, pathLen: Infinity, usage: null, crl: null,
  };
  const known = readExtensions(elements(expect(extensions, 0xa3))[0], Object.values(extension).concat(extensionSGX));
  describe(cert, known);
  return Object.assign(cert, {extensions: known});
}

// publicPoint reads a SubjectPublicKeyInfo of P-256, uncompressed: x‖y.
function publicPoint(spki) {
  const [algorithm, key] = elements(spki);
  const names = elements(expect(algorithm, SEQUENCE)).map(objectID);
  const point = bits(key);
  if (names.join() !== "1.2.840.10045.2.1,1.2.840.10045.3.1.7" || point.length !== 65 || point[0] !== 4) throw new Error("a public key is not of P-256");
  return point.subarray(1);
}

// commonName is the one common name of a distinguished name, "" without one.
function commonName(name) {
  const found = [];
  for (const set of elements(name)) {
    for (const pair of elements(expect(set, SET))) {
      const [type, value] = elements(expect(pair, SEQUENCE));
      if (objectID(type) === "2.5.4.3") found.push(String.fromCharCode(...content(value)));
    }
  }
  if (found.length > 1) throw new Error("a name has several common names");
  return found[0] ?? "";
}

// readExtensions reads extensions by their ids. None may occur twice, and a critical one has to be known.
function readExtensions(list, known) {
  const found = new Map();
  for (const one of elements(expect(list, SEQUENCE))) {
    const parts = elements(expect(one, SEQUENCE));
    const id = objectID(parts[0]);
    const critical = parts.length === 3 && content(expect(parts[1], BOOLEAN))[0] !== 0;
    if (found.has(id) || parts.length > 3 || (critical && !known.includes(id))) throw new Error(`extension ${id} occurs twice, or is critical and unknown`);
    found.set(id, octets(expect(parts.at(-1), OCTET_STRING)));
  }
  return found;
}

// describe adds what the extensions say of a certificate.
function describe(cert, extensions) {
  const constraints = extensions.get(extension.basicConstraints);
  if (constraints) {
    const parts = elements(parseDER(constraints, SEQUENCE));
    cert.ca = parts[0]?.tag === BOOLEAN && content(parts[0])[0] === 0xff;
    if (parts[1]) cert.pathLen = small(expect(parts[1], INTEGER), 16);
  }
  const usage = extensions.get(extension.keyUsage);
  if (usage) cert.usage = content(parseDER(usage, BIT_STRING))[1] ?? 0;
  const points = extensions.get(extension.crlPoints);
  if (points) cert.crl = firstPoint(parseDER(points, SEQUENCE));
}

// firstPoint is the URL of the first distribution point (RFC 5280 section 4.2.1.13), null when it is none.
function firstPoint(points) {
  let at = elements(points)[0];
  for (const tag of [0xa0, 0xa0, 0x86]) {
    at = at && elements(at)[0];
    if (at?.tag !== tag) return null;
  }
  return String.fromCharCode(...content(at));
}

export function parseRevocationList(der) {
  const outer = signed(der);
  const [version, algorithm, issuer, thisUpdate, nextUpdate, ...rest] = elements(outer.body);
  if (small(version, 1) !== 1) throw new Error("a revocation list is not of version 2");
  ecdsaOnly(algorithm);
  const entries = rest[0]?.tag === SEQUENCE ? elements(rest.shift()) : [];
  const [extensions, ...more] = rest;
  if (more.length > 0) throw new Error("a revocation list has more fields than are known");
  if (extensions) readExtensions(elements(expect(extensions, 0xa0))[0], [extension.authorityKey, extension.crlNumber]);
  const revoked = new Set();
  for (const entry of entries) {
    const [serial, , details] = elements(expect(entry, SEQUENCE));
    if (details) readExtensions(details, ["2.5.29.21"]); // the reason
    revoked.add(hex(magnitude(serial)));
  }
  return {signed: outer.signed, signature: outer.signature, issuer: encoding(expect(issuer, SEQUENCE)), thisUpdate: instant(thisUpdate), nextUpdate: instant(nextUpdate), revoked};
}

// checkCertificate holds a certificate to its name, its issuer and the time. depth is how many authorities stand below the issuer.
export async function checkCertificate(cert, issuer, name, depth, now) {
  if (cert.name !== name) throw new Error(`a certificate is of ${JSON.stringify(cert.name)}, want ${JSON.stringify(name)}`);
  if (!equal(cert.issuer, issuer.subject)) throw new Error(`the certificate of ${name} names another issuer than ${issuer.name}`);
  if (!issuer.ca || issuer.pathLen < depth || (issuer.usage !== null && !(issuer.usage & certSign))) throw new Error(`${issuer.name} may not issue the certificate of ${name}`);
  if (now < cert.notBefore || now > cert.notAfter) throw new Error(`the certificate of ${name} is valid from ${stamp(cert.notBefore)} until ${stamp(cert.notAfter)}, it is ${stamp(now)}`);
  if (!await ecdsaP256(issuer.point, cert.signature, cert.signed)) throw new Error(`the certificate of ${name} is not signed by ${issuer.name}`);
}

// checkRevocationList holds a list to its issuer. Its dates are judged elsewhere.
export async function checkRevocationList(crl, issuer) {
  if (!equal(crl.issuer, issuer.subject)) throw new Error(`a revocation list names another issuer than ${issuer.name}`);
  if (!issuer.ca || (issuer.usage !== null && !(issuer.usage & crlSign))) throw new Error(`${issuer.name} may not issue revocation lists`);
  if (!await ecdsaP256(issuer.point, crl.signature, crl.signed)) throw new Error(`a revocation list is not signed by ${issuer.name}`);
}

// platformOf reads what a PCK certificate says of the platform: the SGX extension (PCK Certificate profile, section 1.3.5).
export function platformOf(cert) {
  const value = cert.extensions.get(extensionSGX);
  if (!value || cert.extensions.size !== 6) throw new Error(`the PCK certificate has ${cert.extensions.size} extensions, want six with the SGX extension`);
  const parts = attributes(parseDER(value, SEQUENCE));
  const tcb = attributes(parts.get(2));
  if (tcb.size !== 18) throw new Error(`the PCK certificate has ${tcb.size} TCB components, want 18`);
  const sized = (element, size) => {
    const bytes = octets(element);
    if (bytes.length !== size) throw new Error(`a value of the PCK certificate has ${bytes.length} bytes, want ${size}`);
    return bytes;
  };
  return {
    ppid: sized(parts.get(1), 16), pceID: hex(sized(parts.get(3), 2)), fmspc: hex(sized(parts.get(4), 6)),
    components: Array.from({length: 16}, (_, i) => small(tcb.get(i + 1), 0xff)), pceSVN: small(tcb.get(17), 0xffff),
  };
}

// attributes reads a sequence of ids and values by the last arc of the id.
function attributes(sequence) {
  const found = new Map();
  for (const one of elements(expect(sequence, SEQUENCE))) {
    const [id, value] = elements(expect(one, SEQUENCE));
    found.set(Number(objectID(id).split(".").at(-1)), value);
  }
  return found;
}

export const stamp = (at) => new Date(at).toISOString().replace(".000Z", "Z");
