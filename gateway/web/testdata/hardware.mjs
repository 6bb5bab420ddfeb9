// Verifies a quote of real hardware step by step: node hardware.mjs <folder of modules> <quote> <collateral> <time>. Prints what became
// of each step.
import {readFileSync} from "node:fs";
import {pathToFileURL} from "node:url";

const [folder, quoteFile, collateralFile, now] = process.argv.slice(2);
const load = (name) => import(pathToFileURL(`${folder}/${name}.js`));
const [{authenticate, validate}, {appraise}, {certificatesOf}, {intelRoot}, {unbase64}] = await Promise.all(["quote", "collateral", "x509", "intel", "bytes"].map(load));

const roots = [{cert: certificatesOf(intelRoot, 1)[0], kind: "tdx"}];
const stapled = JSON.parse(readFileSync(collateralFile)).map((c) => ({...c, body: unbase64(c.body)}));
const told = {};
let quote;
for (const [step, f] of [
  ["signatures", async () => { quote = await authenticate(new Uint8Array(readFileSync(quoteFile)), roots, Number(now)); }],
  ["attributes", () => validate(quote)],
  ["vendor", () => validate({...quote, vendor: new Uint8Array(16)})],
  ["collateral", () => appraise(quote, stapled, Number(now))],
]) {
  try {
    await f();
    told[step] = "";
  } catch (e) {
    told[step] = e.message;
  }
}
process.stdout.write(JSON.stringify({...told, version: quote?.version ?? 0, kind: quote?.kind ?? "", family: quote?.platform.fmspc ?? ""}));
