// What the vendor says of the security versions of a platform (Intel PCS API v4, "TCB info" and "enclave identity"). Module, platform
// and quoting enclave are told apart. The twin of ratls/tcb.go; both are held to ratls/testdata/convergence.json.
import {equal, refuse} from "./bytes.js";

// Statuses from best to worst.
export const statuses = ["UpToDate", "SWHardeningNeeded", "ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded", "OutOfDate", "OutOfDateConfigurationNeeded", "Revoked"];

// assess finds the level of each part: the platform by SGX components, PCESVN and TDX components; the module by its own identity
// when it is versioned; the quoting enclave by its ISVSVN.
export function assess(info, qe, p) {
  const versioned = p.svn[1] > 0;
  const platform = info.tcbLevels.find(({tcb}) => reaches(p.components, tcb.sgxtcbcomponents, 0) && p.pceSVN >= tcb.pcesvn &&
    reaches(p.svn, tcb.tdxtcbcomponents, versioned ? 2 : 0)) ?? refuse("tcb", "the platform is below every level of the TCB info");
  const module = versioned ? matchModule(info, p) : platform;
  const enclave = qe.tcbLevels.find((l) => p.qeSVN >= l.tcb.isvsvn) ?? refuse("tcb", `the quoting enclave, version ${p.qeSVN}, is below every level of its identity`);
  const told = ({tcbStatus, tcbDate, advisoryIDs}) => ({status: tcbStatus, date: tcbDate, advisories: advisoryIDs});
  const tcb = {module: told(module), platform: told(platform), qe: told(enclave), evaluation: Math.min(info.tcbEvaluationDataNumber, qe.tcbEvaluationDataNumber)};
  tcb.worst = statuses[Math.max(...[module, platform, enclave].map((l) => statuses.indexOf(l.tcbStatus)))];
  return tcb;
}

// reaches compares security versions from index first on. Of a versioned module the first two TDX components belong to the module's
// own identity.
const reaches = (have, want, first) => have.length === 16 && want.length === 16 && want.every(({svn}, i) => i < first || have[i] >= svn);

function matchModule(info, p) {
  const id = "TDX_" + p.svn[1].toString(16).toUpperCase().padStart(2, "0");
  const module = info.tdxModuleIdentities.find((m) => m.id.toUpperCase() === id) ?? refuse("tcb", `the TCB info knows no TDX module ${id}`);
  const attributes = p.attributes.map((b, i) => b & module.attributesMask[i]);
  if (!equal(module.mrsigner, p.signer) || module.attributesMask.length !== attributes.length || !equal(module.attributes, attributes)) {
    refuse("tcb", `signer or attributes of the TDX module are not those of ${id}`);
  }
  return module.tcbLevels.find((l) => p.svn[0] >= l.tcb.isvsvn) ?? refuse("tcb", `the TDX module, version ${p.svn[0]}, is below every level of ${id}`);
}

// accepts refuses everything but UpToDate and what accepted lists; Revoked is never acceptable.
export function accepts(tcb, accepted = []) {
  for (const [name, part] of [["platform", tcb.platform], ["TDX module", tcb.module], ["quoting enclave", tcb.qe]]) {
    if (part.status === "UpToDate" || (part.status !== "Revoked" && accepted.includes(part.status))) continue;
    const advisories = part.advisories.length ? ` (${part.advisories.join(", ")})` : "";
    refuse("tcb", `${name} is ${part.status} at the level of ${part.date.slice(0, 10)}${advisories}`);
  }
}
