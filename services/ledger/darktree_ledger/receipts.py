"""Receipts and proofs as they go over the wire, and what it takes to believe them: no database, no network."""

from collections.abc import Iterable
from datetime import datetime

from pydantic import BaseModel, Field

from darktree_kit.notes import Verifier
from darktree_ledger.chain import entry_hash
from darktree_ledger.checkpoints import Checkpoint, open_checkpoint
from darktree_ledger.merkle import verify_inclusion
from darktree_ledger.schemas import EntryView


class ReceiptError(ValueError):
    """A receipt does not prove what it says."""


class InclusionProof(BaseModel):
    """Shows that an entry is number `leaf_index` of the first `tree_size` of the log. Hashes are hexadecimal."""

    leaf_index: int
    tree_size: int
    leaf_hash: str
    proof: list[str]


class ConsistencyProof(BaseModel):
    """Shows that the log of `first` entries is the beginning of the log of `second`. Hashes are hexadecimal."""

    first: int
    second: int
    proof: list[str]


class LogKeyView(BaseModel):
    """A key that signs checkpoints, and the note by which a key before it vouches for it (null for the first)."""

    vkey: str
    endorsement: str | None
    first_size: int = Field(description="The log's size when the key was added.")
    added_at: datetime


class Receipt(BaseModel):
    """An entry, and what proves that a signed checkpoint covers it.

    The keys are named for convenience: trust them because of where you first saw them, not because they are here.
    """

    entry: EntryView
    leaf_index: int
    tree_size: int
    inclusion_proof: list[str]
    checkpoint: str = Field(description="A signed note (C2SP tlog-checkpoint).")
    keys: list[str] = Field(description="Verifier keys of the log, oldest first.")


def check_receipt(receipt: Receipt, verifiers: Iterable[Verifier]) -> Checkpoint:
    """Return the checkpoint that covers a receipt's entry.

    Raises ReceiptError when entry and checkpoint do not fit, and NoteError when no trusted key signed the checkpoint.
    """
    entry = receipt.entry
    checkpoint = open_checkpoint(receipt.checkpoint, verifiers)
    try:
        prev_hash, leaf = bytes.fromhex(entry.prev_hash), bytes.fromhex(entry.hash)
        proof = [bytes.fromhex(value) for value in receipt.inclusion_proof]
    except ValueError as error:
        raise ReceiptError("a hash is not hexadecimal") from error
    if entry_hash(entry, prev_hash) != leaf:
        raise ReceiptError(f"entry {entry.seq} of {entry.customer_id} is not what its hash says")
    if receipt.tree_size != checkpoint.size:
        raise ReceiptError("the proof is for another checkpoint")
    if not verify_inclusion(leaf, receipt.leaf_index, checkpoint.size, proof, checkpoint.root):
        raise ReceiptError(
            f"entry {entry.seq} of {entry.customer_id} is not in the log that the checkpoint covers"
        )
    return checkpoint
