// Runs the convergence vectors: node converge.mjs <folder of modules> < convergence.json > the rows, as the page's verifier has them.
import {readFileSync} from "node:fs";
import {pathToFileURL} from "node:url";

const load = (name) => import(pathToFileURL(`${process.argv[2]}/${name}.js`));
const [{assess, accepts}, {tcbInfoShape, qeIdentityShape}, {parseJSON}, {unhex}] = await Promise.all(["tcb", "collateral", "json", "bytes"].map(load));

const vectors = JSON.parse(readFileSync(0));
const read = (shape, value) => shape(parseJSON(JSON.stringify(value)).value, "collateral");
const [info, qe] = [read(tcbInfoShape, vectors.tcb_info), read(qeIdentityShape, vectors.qe_identity)];

const holds = (f) => {
  try {
    f();
    return true;
  } catch {
    return false;
  }
};

process.stdout.write(JSON.stringify(vectors.rows.map((row) => {
  const out = {...row, module: "", platform: "", qe: "", worst: "", accepted: []};
  let tcb;
  const platform = {svn: unhex(row.tee_tcb_svn), components: unhex(row.cpu_svn), pceSVN: row.pce_svn, qeSVN: row.qe_svn, signer: new Uint8Array(48), attributes: new Uint8Array(8)};
  if (!holds(() => { tcb = assess(info, qe, platform); })) return out;
  const accepted = ["strict", "hardening", "lenient"].filter((name) => holds(() => accepts(tcb, vectors.policies[name])));
  return {...out, module: tcb.module.status, platform: tcb.platform.status, qe: tcb.qe.status, worst: tcb.worst, accepted};
})));
