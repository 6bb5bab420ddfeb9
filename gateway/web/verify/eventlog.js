// dstack's event log: its replay to RTMR3, and the identity of an application that is read from it. The twin of ratls/eventlog.go and
// ratls/appinfo.go.
import {concat, equal, hex, refuse, sha, shorten, unhex, utf8, zero} from "./bytes.js";
import {decoded, object, optional, orNull, parseJSON, text, whole} from "./json.js";

const runtimeEvent = 0x08000001; // extends RTMR3
const maxPayload = 1 << 20;

export const maxEvents = 4096;

export const eventShape = (() => {
  const form = object({imr: whole(3), event_type: whole(0xffffffff), digest: decoded(unhex), event: text, event_payload: decoded(unhex),
    version: optional(whole(2), 1), preimage: optional(decoded(unhex), new Uint8Array())});
  return (v, at) => {
    const e = form(v, at);
    if (e.digest.length > 64 || utf8(e.event).length > 1 << 10 || e.event_payload.length > maxPayload) throw new Error(`JSON member ${at} is larger than an event can be`);
    return e;
  };
})();

export const runtimeEvents = (events) => events.filter((e) => e.event_type === runtimeEvent && e.imr === 3);

// preimage is what the digest of a runtime event is taken over: in version 1 type, name and payload with colons between, in version 2
// canonical JSON (RFC 8785).
function preimage({version, event, event_payload}) {
  if (version === 2) return utf8(`{"name":${JSON.stringify(event)},"payload":"${hex(event_payload)}","type":${runtimeEvent}}`);
  return concat([0x01, 0x00, 0x00, 0x08], utf8(`:${event}:`), event_payload);
}

// replay computes RTMR3 from the runtime events. A digest or preimage that the log states must be that of the contents.
async function replayed(events) {
  let rtmr = new Uint8Array(48);
  for (const e of runtimeEvents(events)) {
    const image = preimage(e);
    const digest = await sha(384, image);
    if (e.digest.length > 0 && !equal(e.digest, digest)) refuse("rtmr3-replay", `event ${shorten(e.event)}: the log states digest ${hex(e.digest)}, its contents have ${hex(digest)}`);
    if (e.preimage.length > 0 && !equal(e.preimage, image)) refuse("rtmr3-replay", `event ${shorten(e.event)}: the preimage that the log states is not that of its contents`);
    rtmr = await sha(384, rtmr, digest);
  }
  return rtmr;
}

// replays holds a log to RTMR3 of a quote.
export async function replays(quote, events) {
  const rtmr = await replayed(events);
  if (!equal(rtmr, quote.rtmr[3])) refuse("rtmr3-replay", `the event log replays to RTMR3 ${hex(rtmr)}, the quote has ${hex(quote.rtmr[3])}`);
}

// appInfo reads the application from a verified quote and a log that replays. The first event of a name counts, and none after
// system-ready, for those an application can add itself.
export async function appInfo(quote, events, vmConfig) {
  await replays(quote, events);
  const runtime = runtimeEvents(events);
  const ready = runtime.findIndex((e) => e.event === "system-ready");
  const boot = ready < 0 ? runtime : runtime.slice(0, ready);
  const first = (name) => boot.find((e) => e.event === name)?.event_payload ?? new Uint8Array();
  const sizes = (what, value, ...want) => {
    if (!want.includes(value.length)) refuse("app-info", `${what} has ${value.length} bytes, want ${want.join(" or ")}`);
  };
  const info = {appID: first("app-id"), composeHash: first("compose-hash"), instanceID: first("instance-id"), keyProvider: first("key-provider")};
  sizes("app id", info.appID, 20);
  sizes("compose hash", info.composeHash, 32);
  sizes("instance id", info.instanceID, 0, 20);
  const scripts = boot.filter((e) => e.event === "init-script-hash");
  if (scripts.length > 5) refuse("app-info", `${scripts.length} init scripts, at most 5 are possible`);
  for (const s of scripts) sizes("init script hash", s.event_payload, 32);
  info.osImageHash = osImageHash(vmConfig);
  return measure(info, quote);
}

// measure adds what is derived from the registers.
async function measure(info, {mrtd, rtmr, mrConfigID, mrOwner, mrOwnerConfig}) {
  const keyProvider = info.keyProvider.length > 0 ? await sha(256, info.keyProvider) : new Uint8Array(32);
  const declared = [mrConfigID, mrOwner, mrOwnerConfig];
  info.mrSystem = await sha(256, mrtd, rtmr[0], rtmr[1], rtmr[2], keyProvider);
  info.mrAggregated = await sha(256, mrtd, ...rtmr, ...(declared.every(zero) ? [] : declared));
  return info;
}

// osImageHash reads what the VM configuration says of the image; no quote covers it. The nested form is tried first.
function osImageHash(vmConfig) {
  if (vmConfig === "") return new Uint8Array();
  try {
    const read = (t, members) => object(members, true)(parseJSON(t).value, "vm_config");
    const hash = {os_image_hash: optional(orNull(decoded(unhex)), null)};
    const outer = read(vmConfig, {vm_config: optional(orNull(text), null), ...hash});
    return (outer.vm_config ? read(outer.vm_config, hash) : outer).os_image_hash ?? new Uint8Array();
  } catch (e) {
    return refuse("app-info", `vm config: ${e.message}`);
  }
}
