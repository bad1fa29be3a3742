// Verifies an entry's receipt here, in the browser, from docs/ledger-format.md alone: the entry's hash, its place in the
// log, and the signature of the checkpoint that covers it.

const SEEN = "darktree log keys";
const TRIES = 20;
const PAUSE_MILLISECONDS = 1500;

const V1_FIELDS = [
  ["customer_id", text], ["seq", integer], ["entry_id", id], ["kind", text], ["debit_account", text],
  ["credit_account", text], ["amount_nanos", integer], ["balance_after_nanos", integer], ["usage_day", day],
  ["hold_id", id], ["key_id", text], ["model", text], ["lane", text], ["prompt_tokens", integer],
  ["completion_tokens", integer], ["prompt_price_nanos", integer], ["completion_price_nanos", integer],
  ["outcome", text], ["reason", text], ["actor", text], ["reference", text], ["recorded_at", instant],
];
const FIELDS = { 1: V1_FIELDS, 2: [...V1_FIELDS, ["bonus_nanos", integer]] };

class Wrong extends Error {}
const must = (truth, what) => { if (!truth) throw new Wrong(what); };

// Integers go to 2^63 - 1, which a float cannot hold: long ones are read as text.
export function readJson(content) {
  return JSON.parse(content.replace(/"(?:[^"\\]|\\.)*"|-?\d{16,}/g, (part) => (part[0] === '"' ? part : `"${part}"`)));
}

function joined(parts) {
  const whole = new Uint8Array(parts.reduce((length, part) => length + part.length, 0));
  let place = 0;
  for (const part of parts) { whole.set(part, place); place += part.length; }
  return whole;
}

const sha256 = async (...parts) => new Uint8Array(await crypto.subtle.digest("SHA-256", joined(parts)));
const node = (left, right) => sha256(Uint8Array.of(1), left, right);
const hex = (value) => Uint8Array.from(value.match(/../g) ?? [], (pair) => parseInt(pair, 16));
const asHex = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
const base64 = (value) => Uint8Array.from(atob(value), (letter) => letter.charCodeAt(0));
const same = (one, other) => one.length === other.length && one.every((byte, place) => byte === other[place]);

function number(size, write) {
  const content = new DataView(new ArrayBuffer(size));
  write(content);
  return new Uint8Array(content.buffer);
}

function text(value) { return new TextEncoder().encode(value); }
function id(value) { return hex(value.replaceAll("-", "")); }
function integer(value) { return number(8, (content) => content.setBigInt64(0, BigInt(value))); }
function day(value) { return number(4, (content) => content.setInt32(0, Date.parse(`${value}T00:00:00Z`) / 86_400_000)); }
function instant(value) {
  const [, whole, fraction] = /^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,6}))?Z$/.exec(value);
  return integer(BigInt(Date.parse(`${whole}Z`)) * 1000n + BigInt((fraction ?? "").padEnd(6, "0")));
}
function field(content) { return joined([number(4, (size) => size.setUint32(0, content.length)), content]); }

async function entryHash(entry) {
  const fields = FIELDS[entry.version];
  must(fields, `Entries of version ${entry.version} are unknown to this page.`);
  const parts = fields.map(([name, encode]) => (entry[name] === null ? hex("ffffffff") : field(encode(entry[name]))));
  return sha256(Uint8Array.of(0), field(text(`darktree-entry-v${entry.version}`)), ...parts, hex(entry.prev_hash));
}

// RFC 9162, section 2.1.3.2.
async function included(leaf, index, size, proof, expected) {
  if (index < 0 || index >= size) return false;
  let [place, last, value] = [index, size - 1, leaf];
  for (const sibling of proof) {
    if (last === 0) return false;
    if (place % 2 === 1 || place === last) {
      value = await node(sibling, value);
      while (place % 2 === 0 && place !== 0) { place /= 2; last = Math.floor(last / 2); }
    } else value = await node(value, sibling);
    place = Math.floor(place / 2); last = Math.floor(last / 2);
  }
  return last === 0 && same(value, expected);
}

async function signedBy(publicKey, signature, content) {
  try {
    const key = await crypto.subtle.importKey("raw", publicKey, { name: "Ed25519" }, false, ["verify"]);
    return await crypto.subtle.verify({ name: "Ed25519" }, key, signature, content);
  } catch (error) {
    if (error.name !== "NotSupportedError") throw error;
    const { verifyAsync } = await import("./noble-ed25519.js"); // a browser without Ed25519 of its own
    return verifyAsync(signature, content, publicKey);
  }
}

async function openCheckpoint(note, vkeys) {
  const end = note.lastIndexOf("\n\n");
  const body = note.slice(0, end + 1);
  for (const vkey of vkeys) {
    const [, name, keyId, encoded] = /^([^+]+)\+([0-9a-f]{8})\+(.+)$/.exec(vkey);
    const content = base64(encoded);
    const digest = await sha256(text(`${name}\n`), content);
    must(asHex(digest.subarray(0, 4)) === keyId, "A key of the log is not what its name says.");
    for (const line of note.slice(end + 2).trimEnd().split("\n")) {
      const [, signer, signed] = /^\u2014 (\S+) (\S+)$/.exec(line);
      const signature = base64(signed);
      if (signer !== name || asHex(signature.subarray(0, 4)) !== keyId) continue;
      must(await signedBy(content.subarray(1), signature.subarray(4), text(body)), "The checkpoint's signature is wrong.");
      const [origin, size, root] = body.split("\n");
      must(origin === name, "The checkpoint is of another log.");
      return { size: Number(size), root: base64(root), vkey };
    }
  }
  throw new Wrong("No known key signed the checkpoint.");
}

export async function verify(receipt, shownHash) {
  const { entry } = receipt;
  const leaf = await entryHash(entry);
  must(asHex(leaf) === entry.hash, "The entry is not what its hash says.");
  must(entry.hash === shownHash, "The receipt is for another entry than this page shows.");
  const checkpoint = await openCheckpoint(receipt.checkpoint, receipt.keys);
  must(checkpoint.size === Number(receipt.tree_size), "The proof is for another checkpoint.");
  const index = Number(receipt.leaf_index);
  must(
    await included(leaf, index, checkpoint.size, receipt.inclusion_proof.map(hex), checkpoint.root),
    "The entry is not in the log that the checkpoint covers.",
  );
  return { index, size: checkpoint.size, vkey: checkpoint.vkey };
}

function keysSeen() {
  try { return JSON.parse(localStorage.getItem(SEEN) ?? "{}"); } catch { return {}; }
}

// The first key that this browser meets is remembered; another one later is told.
function meet(vkey) {
  const seen = keysSeen();
  const name = vkey.split("+")[1];
  if (seen[vkey]) return `key ${name}, first seen by this browser on ${seen[vkey]}`;
  const isFirst = Object.keys(seen).length === 0;
  seen[vkey] = new Date().toISOString().slice(0, 10);
  try { localStorage.setItem(SEEN, JSON.stringify(seen)); } catch { /* a private window */ }
  return isFirst ? `key ${name}, remembered by this browser from now on` : `key ${name}, which is new to this browser: compare it`;
}

async function fetchReceipt(url) {
  for (let tried = 0; tried < TRIES; tried += 1) {
    const answer = await fetch(url, { credentials: "same-origin" });
    if (answer.status === 200) return readJson(await answer.text());
    if (answer.status !== 202) throw new Error(`The receipt could not be fetched (${answer.status}).`);
    await new Promise((resolve) => setTimeout(resolve, PAUSE_MILLISECONDS));
  }
  return null;
}

async function show(place) {
  const state = place.querySelector(".receipt-state");
  const say = (message, kind) => { state.textContent = message; state.className = `receipt-state notice ${kind}`; };
  if (!globalThis.crypto?.subtle) {
    say("Verifying needs https. Keep the receipt and verify it elsewhere.", "warn");
    return;
  }
  say("Waiting for the checkpoint that covers this entry …", "");
  try {
    const receipt = await fetchReceipt(place.dataset.receipt);
    if (receipt === null) { say("No checkpoint covers this entry yet. Look again in a minute.", "warn"); return; }
    const { index, size, vkey } = await verify(receipt, place.dataset.shownHash);
    say("Verified in your browser.", "good");
    const steps = [
      "The entry is exactly what its hash says.",
      `It is number ${(index + 1).toLocaleString("en")} of the ${size.toLocaleString("en")} entries that the checkpoint covers.`,
      `The checkpoint is signed: ${meet(vkey)}.`,
    ];
    place.querySelector(".checks").replaceChildren(...steps.map((step) => {
      const item = document.createElement("li");
      item.textContent = step;
      return item;
    }));
  } catch (error) {
    say(error instanceof Wrong ? `This receipt does NOT hold: ${error.message}` : String(error.message ?? error), "bad");
  }
}

if (globalThis.document) document.querySelectorAll("[data-receipt]").forEach(show);
