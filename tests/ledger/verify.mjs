// A verifier in another language, written from docs/ledger-format.md alone: node's own crypto, and nothing of Darktree.
//
//   node verify.mjs vectors docs/ledger-vectors.json
//   node verify.mjs receipt RECEIPT.json VKEY
//
// Prints what was verified; exits with 1 and says what is wrong otherwise.

import { createHash, createPublicKey, verify as verifySignature } from "node:crypto";
import { readFileSync } from "node:fs";

const V1_FIELDS = [
  ["customer_id", text], ["seq", integer], ["entry_id", id], ["kind", text], ["debit_account", text],
  ["credit_account", text], ["amount_nanos", integer], ["balance_after_nanos", integer], ["usage_day", day],
  ["hold_id", id], ["key_id", text], ["model", text], ["lane", text], ["prompt_tokens", integer],
  ["completion_tokens", integer], ["prompt_price_nanos", integer], ["completion_price_nanos", integer],
  ["outcome", text], ["reason", text], ["actor", text], ["reference", text], ["recorded_at", instant],
];
const FIELDS = { 1: V1_FIELDS, 2: [...V1_FIELDS, ["bonus_nanos", integer]] };

// Integers go to 2^63 - 1, which a float cannot hold: long ones are read as text.
function readJson(file) {
  const content = readFileSync(file, "utf8");
  return JSON.parse(content.replace(/"(?:[^"\\]|\\.)*"|-?\d{16,}/g, (part) => part[0] === '"' ? part : `"${part}"`));
}

const sha256 = (...parts) => createHash("sha256").update(Buffer.concat(parts)).digest();
const node = (left, right) => sha256(Buffer.from([1]), left, right);
const hex = (value) => Buffer.from(value, "hex");
const must = (truth, what) => { if (!truth) { console.error(`WRONG: ${what}`); process.exit(1); } };

function field(content) {
  const length = Buffer.alloc(4);
  length.writeUInt32BE(content.length);
  return Buffer.concat([length, content]);
}

function text(value) { return Buffer.from(value, "utf8"); }
function id(value) { return hex(value.replaceAll("-", "")); }

function integer(value) {
  const content = Buffer.alloc(8);
  content.writeBigInt64BE(BigInt(value));
  return content;
}

function day(value) {
  const content = Buffer.alloc(4);
  content.writeInt32BE(Date.parse(`${value}T00:00:00Z`) / 86_400_000);
  return content;
}

function instant(value) {
  const [, whole, fraction] = /^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,6}))?Z$/.exec(value);
  return integer(BigInt(Date.parse(`${whole}Z`)) * 1000n + BigInt((fraction ?? "").padEnd(6, "0")));
}

const genesis = (customer) => sha256(field(text("darktree-account-v1")), field(text(customer)));

function entryHash(entry) {
  const parts = FIELDS[entry.version].map(([name, encode]) =>
    entry[name] === null ? Buffer.from("ffffffff", "hex") : field(encode(entry[name])));
  return sha256(Buffer.from([0]), field(text(`darktree-entry-v${entry.version}`)), ...parts, hex(entry.prev_hash));
}

function root(leaves) {
  if (leaves.length === 0) return sha256();
  if (leaves.length === 1) return leaves[0];
  let half = 1;
  while (half * 2 < leaves.length) half *= 2;
  return node(root(leaves.slice(0, half)), root(leaves.slice(half)));
}

// RFC 9162, section 2.1.3.2.
function included(leaf, index, size, proof, expected) {
  if (index < 0 || index >= size) return false;
  let [place, last, value] = [index, size - 1, leaf];
  for (const sibling of proof) {
    if (last === 0) return false;
    if (place % 2 === 1 || place === last) {
      value = node(sibling, value);
      while (place % 2 === 0 && place !== 0) { place /= 2; last = Math.floor(last / 2); }
    } else value = node(value, sibling);
    place = Math.floor(place / 2); last = Math.floor(last / 2);
  }
  return last === 0 && value.equals(expected);
}

// RFC 9162, section 2.1.4.2.
function consistent(first, second, proof, firstRoot, secondRoot) {
  if (first === second) return proof.length === 0 && firstRoot.equals(secondRoot);
  const known = Number.isInteger(Math.log2(first)) ? [firstRoot, ...proof] : [...proof];
  let [place, last] = [first - 1, second - 1];
  while (place % 2 === 1) { place = Math.floor(place / 2); last = Math.floor(last / 2); }
  let [old, young] = [known[0], known[0]];
  for (const sibling of known.slice(1)) {
    if (last === 0) return false;
    if (place % 2 === 1 || place === last) {
      old = node(sibling, old); young = node(sibling, young);
      while (place % 2 === 0 && place !== 0) { place /= 2; last = Math.floor(last / 2); }
    } else young = node(young, sibling);
    place = Math.floor(place / 2); last = Math.floor(last / 2);
  }
  return last === 0 && old.equals(firstRoot) && young.equals(secondRoot);
}

function parseKey(vkey) {
  const [, name, keyId, encoded] = /^([^+]+)\+([0-9a-f]{8})\+(.+)$/.exec(vkey);
  const content = Buffer.from(encoded, "base64");
  must(sha256(text(`${name}\n`), content).subarray(0, 4).toString("hex") === keyId, `the id of ${vkey}`);
  const der = Buffer.concat([hex("302a300506032b6570032100"), content.subarray(1)]);
  return { name, keyId, key: createPublicKey({ key: der, format: "der", type: "spki" }) };
}

function openNote(note, vkey) {
  const { name, keyId, key } = parseKey(vkey);
  const end = note.lastIndexOf("\n\n");
  const body = note.slice(0, end + 1);
  for (const line of note.slice(end + 2).trimEnd().split("\n")) {
    const [, signer, encoded] = /^\u2014 (\S+) (\S+)$/.exec(line);
    const content = Buffer.from(encoded, "base64");
    if (signer !== name || content.subarray(0, 4).toString("hex") !== keyId) continue;
    must(verifySignature(null, text(body), key, content.subarray(4)), `the signature of ${name}+${keyId}`);
    return body;
  }
  return must(false, `no signature of ${name}+${keyId}`);
}

function openCheckpoint(note, vkey) {
  const [origin, size, encoded] = openNote(note, vkey).split("\n");
  must(origin === parseKey(vkey).name, "the checkpoint is of another log");
  return { size: Number(size), root: Buffer.from(encoded, "base64") };
}

function checkReceipt(receipt, vkey) {
  const { entry } = receipt;
  const what = `entry ${entry.seq} of ${entry.customer_id}`;
  const checkpoint = openCheckpoint(receipt.checkpoint, vkey);
  must(checkpoint.size === receipt.tree_size, "the proof is for another checkpoint");
  must(entryHash(entry).equals(hex(entry.hash)), `${what} is not what its hash says`);
  const proof = receipt.inclusion_proof.map(hex);
  must(included(hex(entry.hash), receipt.leaf_index, checkpoint.size, proof, checkpoint.root), `${what} is not in the log`);
  console.log(`${what} is number ${receipt.leaf_index} of the ${checkpoint.size} that the checkpoint covers`);
}

function checkVectors(vectors) {
  const heads = new Map(vectors.genesis.map(({ customer_id, hash }) => {
    must(genesis(customer_id).equals(hex(hash)), `genesis of ${customer_id}`);
    return [customer_id, hash];
  }));
  for (const entry of vectors.entries) {
    must(entry.prev_hash === heads.get(entry.customer_id), `entry ${entry.entry_id} does not follow`);
    must(entryHash(entry).equals(hex(entry.hash)), `entry ${entry.entry_id}`);
    heads.set(entry.customer_id, entry.hash);
  }
  const { tree } = vectors;
  const leaves = [...Array(300).keys()].map((number) => sha256(Buffer.from([0]), text(String(number))));
  for (const { size, root: expected } of tree.roots) must(root(leaves.slice(0, size)).equals(hex(expected)), `root of ${size}`);
  for (const { leaf_index: index, tree_size: size, proof } of tree.inclusion)
    must(included(leaves[index], index, size, proof.map(hex), root(leaves.slice(0, size))), `inclusion of ${index} in ${size}`);
  for (const { first, second, proof } of tree.consistency)
    must(consistent(first, second, proof.map(hex), root(leaves.slice(0, first)), root(leaves.slice(0, second))),
      `consistency of ${first} and ${second}`);
  for (const vkey of vectors.checkpoint.vkeys) {
    const checkpoint = openCheckpoint(vectors.checkpoint.note, vkey);
    const log = vectors.checkpoint.leaves.map(hex);
    must(checkpoint.size === log.length && checkpoint.root.equals(root(log)), "the checkpoint");
    checkReceipt(vectors.receipt, vkey);
  }
  const { old_vkey, new_vkey, endorsement } = vectors.rotation;
  const { name } = parseKey(new_vkey);
  must(openNote(endorsement, old_vkey) === `darktree.dev/key-rotation/v1\n${name}\n${new_vkey}\n`, "the endorsement");
  console.log(`${vectors.entries.length} entries, the tree, its proofs, checkpoint, keys and receipt are right`);
}

const [, , command, file, vkey] = process.argv;
if (command === "vectors") checkVectors(readJson(file));
else if (command === "receipt") checkReceipt(readJson(file), vkey);
else must(false, "usage: node verify.mjs vectors FILE | receipt FILE VKEY");
