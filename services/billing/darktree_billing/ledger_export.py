"""The ledger's export: its entries as the log has them, between a signed checkpoint and what proves them by it.

`darktree_ledger.export_file` says the format, and verifies it.
"""

import hashlib
from collections.abc import AsyncIterator
from typing import Any

import orjson

from darktree_billing.accounts import ledger_refusals
from darktree_kit.errors import ApiError, BadRequest
from darktree_kit.notes import NoteError, split
from darktree_ledger.checkpoints import Checkpoint, parse_checkpoint
from darktree_ledger.client import LedgerClient
from darktree_ledger.errors import NotInTheLog
from darktree_ledger.export_file import FORMAT


async def export(ledger: LedgerClient, customer_id: str | None, earlier: str | None) -> AsyncIterator[bytes]:
    """Return the pieces of an export. Raises NotInTheLog before there is a checkpoint, and BadRequest."""
    kept = _checkpoint(earlier) if earlier else None
    with ledger_refusals():
        if customer_id is not None:
            ledger = ledger.of(customer_id)
            await ledger.account(customer_id)
        note = await ledger.checkpoint()
        keys = await ledger.log_keys()
    header = {
        "format": FORMAT,
        "customer_id": customer_id,
        "checkpoint": note,
        "keys": [key.model_dump(mode="json") for key in keys],
    }
    return _pieces(ledger, header, parse_checkpoint(split(note)[0]), kept)


async def _pieces(
    ledger: LedgerClient, header: dict[str, Any], checkpoint: Checkpoint, kept: Checkpoint | None
) -> AsyncIterator[bytes]:
    whole = hashlib.sha256()
    piece = orjson.dumps(header) + b"\n"
    whole.update(piece)
    yield piece
    entries = 0
    if checkpoint.size:
        async for piece in ledger.log_entries(checkpoint.size, header["customer_id"]):
            whole.update(piece)
            entries += piece.count(b"\n")
            yield piece
    trailer: dict[str, Any] = {"entries": entries}
    if header["customer_id"] is not None and entries:
        trailer["proofs"] = await _proofs(ledger, header["customer_id"], entries, checkpoint, kept)
    whole.update(orjson.dumps(trailer))
    yield orjson.dumps(trailer | {"sha256": whole.hexdigest()}) + b"\n"


async def _proofs(
    ledger: LedgerClient, customer_id: str, newest: int, checkpoint: Checkpoint, kept: Checkpoint | None
) -> dict[str, Any]:
    """Prove a customer's newest entry, and where a checkpoint was kept, what was newest then and that the log grew."""
    proofs: dict[str, Any] = {"inclusion": await _inclusion(ledger, customer_id, newest, checkpoint.size)}
    if kept is not None and 0 < kept.size <= checkpoint.size:
        proofs["consistency"] = (await ledger.consistency(kept.size, checkpoint.size)).proof
        proofs["earlier"] = await _newest_before(ledger, customer_id, newest, kept.size)
    return proofs


async def _newest_before(
    ledger: LedgerClient, customer_id: str, newest: int, size: int
) -> dict[str, Any] | None:
    """Prove the newest of a customer's entries in the log of this size, found by halving; None when there is none."""
    proof, low, high = None, 1, newest
    while low <= high:
        middle = (low + high) // 2
        found = await _inclusion(ledger, customer_id, middle, size)
        if found is None:
            high = middle - 1
        else:
            proof, low = found, middle + 1
    return proof


async def _inclusion(ledger: LedgerClient, customer_id: str, seq: int, size: int) -> dict[str, Any] | None:
    try:
        found = await ledger.inclusion(customer_id, seq, size)
    except ApiError as error:
        if error.answer_code == NotInTheLog.code:
            return None
        raise
    return {"seq": seq, "leaf_index": found.leaf_index, "proof": found.proof}


def _checkpoint(note: str) -> Checkpoint:
    try:
        return parse_checkpoint(split(note)[0])
    except NoteError as error:
        raise BadRequest(f"earlier: {error}.", param="earlier", code="invalid_value") from error
