// Checks certificates and revocation lists: node certificates.mjs <folder of modules> < cases > what each is refused for, "" for good ones.
import {readFileSync} from "node:fs";
import {pathToFileURL} from "node:url";

const load = (name) => import(pathToFileURL(`${process.argv[2]}/${name}.js`));
const [{parseCertificate, parseRevocationList, checkCertificate, checkRevocationList}, {unbase64}] = await Promise.all(["x509", "bytes"].map(load));

const told = [];
for (const c of JSON.parse(readFileSync(0))) {
  try {
    const issuer = parseCertificate(unbase64(c.issuer));
    if (c.crl) await checkRevocationList(parseRevocationList(unbase64(c.crl)), issuer);
    else await checkCertificate(parseCertificate(unbase64(c.certificate)), issuer, "leaf", c.depth, c.now);
    told.push("");
  } catch (e) {
    told.push(e.message || "refused without a word");
  }
}
process.stdout.write(JSON.stringify(told));
