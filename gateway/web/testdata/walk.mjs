// Runs the page's verifier outside of a browser: node walk.mjs <folder of modules> < cases > outcomes. A case is what a relying party
// knows: the document, its own view of the connection, and the roots that it accepts.
import {readFileSync} from "node:fs";
import {pathToFileURL} from "node:url";

const load = (name) => import(pathToFileURL(`${process.argv[2]}/${name}.js`));
const [{walkChain}, {certificatesOf}, {unhex, unbase64}] = await Promise.all(["chain", "x509", "bytes"].map(load));

const outcomes = [];
for (const c of JSON.parse(readFileSync(0))) {
  const roots = c.roots.map((pem) => ({cert: certificatesOf(pem, 1)[0], kind: "simulated-tdx"}));
  const subject = {host: c.host, id: c.id, nonce: c.nonce ? unhex(c.nonce) : null, exporter: c.exporter ? unhex(c.exporter) : null, freshApp: c.fresh, spki: c.spki ? unbase64(c.spki) : undefined};
  const {checks, simulated} = await walkChain(unbase64(c.document ?? ""), subject, roots, c.now);
  outcomes.push({checks, simulated});
}
process.stdout.write(JSON.stringify(outcomes));
