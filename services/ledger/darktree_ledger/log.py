"""Reading the log: checkpoints, tiles, keys, proofs and receipts. Whatever is asked for, a handful of tiles is read."""

from collections.abc import Iterable

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import select

from darktree_kit.errors import BadRequest
from darktree_ledger import merkle
from darktree_ledger.accounts import view
from darktree_ledger.errors import NotInTheLog
from darktree_ledger.models import Entry
from darktree_ledger.receipts import ConsistencyProof, InclusionProof, LogKeyView, Receipt

_ENTRY = text("SELECT * FROM ledger.every_entry WHERE customer_id = :customer_id AND seq = :seq")
_TILES = {
    False: """SELECT t.index AS place, s.hash FROM unnest(CAST(:indexes AS bigint[])) AS t (index)
              JOIN ledger.sealed s ON s.position >= t.index * 256 AND s.position < (t.index + 1) * 256
              ORDER BY s.position""",
    True: """SELECT t.index AS place, s.hash FROM unnest(CAST(:indexes AS bigint[])) AS t (index)
             JOIN ledger.subtree s ON s.level = :level
                  AND s.index >= t.index * 256 AND s.index < (t.index + 1) * 256
             ORDER BY s.index""",
}


async def checkpoint(session: AsyncSession, size: int | None = None) -> tuple[int, str]:
    """Return the size and the note of the newest checkpoint, or of that of this size. Raises NotInTheLog."""
    which = "ORDER BY size DESC LIMIT 1" if size is None else "WHERE size = :size"
    query = f"SELECT size, note FROM ledger.checkpoint {which}"  # noqa: S608 - one of the two above
    row = (await session.execute(text(query), {"size": size})).first()
    if row is None:
        raise NotInTheLog(
            "No checkpoint has been signed yet." if size is None else f"No checkpoint covers {size}."
        )
    return row.size, row.note


async def keys(session: AsyncSession) -> list[LogKeyView]:
    """Return the keys that sign or signed, oldest first."""
    query = "SELECT vkey, endorsement, first_size, added_at FROM ledger.log_key ORDER BY first_size, added_at"
    rows = await session.execute(text(query))
    return [LogKeyView.model_validate(row, from_attributes=True) for row in rows]


async def tile(session: AsyncSession, level: int, index: int) -> list[bytes]:
    """Return the hashes of a tile, as many as there are."""
    return (await _read(session, {(level, index)}))[level, index]


async def inclusion(session: AsyncSession, customer_id: str, seq: int, size: int | None) -> InclusionProof:
    """Prove that an entry is in the log of this size, or of the newest checkpoint's. Raises NotInTheLog."""
    if size is None:
        size, _ = await checkpoint(session)
    elif size > await _size(session):
        raise NotInTheLog(f"The log has fewer than {size} entries.")
    query = "SELECT position, hash FROM ledger.sealed WHERE customer_id = :customer_id AND seq = :seq"
    row = (await session.execute(text(query), {"customer_id": customer_id, "seq": seq})).first()
    if row is None or row.position >= size:
        raise NotInTheLog(f"Entry {seq} of {customer_id} is not in the log of {size} entries yet.")
    proof = await _prove(session, merkle.inclusion(row.position, size))
    return InclusionProof(leaf_index=row.position, tree_size=size, leaf_hash=row.hash.hex(), proof=proof)


async def consistency(session: AsyncSession, first: int, second: int) -> ConsistencyProof:
    """Prove that the log of `first` entries is the beginning of the log of `second`. Raises NotInTheLog."""
    if first > second:
        raise BadRequest("first must not be more than second.", param="first", code="invalid_value")
    if second > await _size(session):
        raise NotInTheLog(f"The log has fewer than {second} entries.")
    return ConsistencyProof(
        first=first, second=second, proof=await _prove(session, merkle.consistency(first, second))
    )


async def receipt(session: AsyncSession, customer_id: str, seq: int) -> Receipt:
    """Return an entry with what proves that the newest checkpoint covers it. Raises NotInTheLog."""
    size, note = await checkpoint(session)
    proof = await inclusion(session, customer_id, seq, size)
    parameters = {"customer_id": customer_id, "seq": seq}
    entry = (await session.execute(select(Entry).from_statement(_ENTRY), parameters)).scalar_one()
    return Receipt(
        entry=view(entry),
        leaf_index=proof.leaf_index,
        tree_size=size,
        inclusion_proof=proof.proof,
        checkpoint=note,
        keys=[key.vkey for key in await keys(session)],
    )


async def _size(session: AsyncSession) -> int:
    size: int = (
        await session.execute(text("SELECT coalesce(max(position) + 1, 0) FROM ledger.sealed"))
    ).scalar_one()
    return size


async def _prove(session: AsyncSession, path: merkle.Path) -> list[str]:
    tiles = await _read(session, merkle.tiles_of(path))
    return [value.hex() for value in merkle.hashes(path, lambda level, index: tiles[level, index])]


async def _read(session: AsyncSession, wanted: Iterable[merkle.Tile]) -> dict[merkle.Tile, list[bytes]]:
    tiles: dict[merkle.Tile, list[bytes]] = {place: [] for place in wanted}
    for level in {level for level, _ in tiles}:
        parameters = {"level": level, "indexes": [index for at, index in tiles if at == level]}
        for row in await session.execute(text(_TILES[level > 0]), parameters):
            tiles[level, row.place].append(row.hash)
    return tiles
