"""Sealing: entries that nobody can still overtake get their positions in the log, and the log's root is signed.

Only `ledger.seal` decides which entries come next, in the order in which their transactions became visible, so that an
entry is never missed and never moves. Here the subtrees over them are computed, in the same transaction, and
checkpoints signed with keys that the database never sees. It all happens on the one connection that holds the lock.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from darktree_kit.notes import Signer, Verifier, parse_verifier, sign
from darktree_ledger import merkle
from darktree_ledger.checkpoints import Checkpoint, Continuation, endorse, parse_checkpoint

LOCK_KEY = 0x64_74_4C_6F_67  # "dtLog", as ledger.log_lock() says
BATCH_ENTRIES = 5_000

Connection = AsyncConnection[TupleRow]


class LogError(Exception):
    """The log must not be continued as it is; the message says why."""


@dataclass(frozen=True)
class Lag:
    """What is recorded and not yet in the log."""

    entries: int
    seconds: float


async def take_lock(connection: Connection) -> bool:
    """Say whether this connection is now the one that seals; it is until it ends."""
    row = await (await connection.execute("SELECT pg_try_advisory_lock(%s)", [LOCK_KEY])).fetchone()
    return bool(row and row[0])


class Log:
    """The log, in the hands of the one sealer."""

    def __init__(self, connection: Connection, signers: Sequence[Signer], edge: merkle.Edge) -> None:
        self._connection = connection
        self._signers = signers
        self._edge = edge
        self.note: str | None = None
        self.checkpoint: Checkpoint | None = None
        self.verifiers: list[Verifier] = []  # of every key that ever signed, oldest first

    @classmethod
    async def open(cls, connection: Connection, signers: Sequence[Signer]) -> "Log":
        """Take the log up where it stands. Raises LogError when it does not fit its last checkpoint, or our keys."""
        size = await _number(connection, "SELECT coalesce(max(position) + 1, 0) FROM ledger.sealed")
        rows = [(await _tile(connection, *tile))[:count] for tile, count in merkle.edge_tiles(size)]
        log = cls(connection, signers, merkle.Edge(rows, size))
        await log._register_keys()
        await log._read_checkpoint()
        return log

    @property
    def size(self) -> int:
        return self._edge.size

    async def seal(self, max_entries: int = BATCH_ENTRIES, *, sweep: bool = False) -> int:
        """Seal the next entries, and return how many. When this raises, the log must be opened anew.

        `sweep` takes entries that the order of visibility does not come to: see `left_behind`.
        """
        async with self._connection.transaction():
            cursor = await self._connection.execute(
                "SELECT position, hash FROM ledger.seal(%s, %s)", [max_entries, sweep], binary=True
            )
            rows = await cursor.fetchall()
            if not rows:
                return 0
            if [row[0] for row in rows] != list(range(self.size, self.size + len(rows))):
                raise LogError(f"somebody else has sealed: {self.size} entries were expected before these")
            subtrees = self._edge.append([row[1] for row in rows])
            if subtrees:
                levels, indexes, hashes = zip(*subtrees, strict=True)
                await self._connection.execute(
                    "SELECT ledger.add_subtrees(%s::smallint[], %s::bigint[], %s::bytea[])",
                    [list(levels), list(indexes), list(hashes)],
                )
        return len(rows)

    async def left_behind(self) -> int:
        """Return how many entries only a sweep will find: none, but for a database restored into another cluster.

        There, transaction ids begin anew, and entries that were not sealed before may wait for ids far away.
        """
        return await _number(self._connection, "SELECT ledger.left_behind()")

    async def has(self, checkpoint: Checkpoint) -> bool:
        """Say whether the log begins with what a checkpoint covers."""
        if checkpoint.size > self.size:
            return False
        path = merkle.whole(checkpoint.size)
        tiles = {tile: await _tile(self._connection, *tile) for tile in merkle.tiles_of(path)}
        return merkle.hashes(path, lambda level, index: tiles[level, index]) == [checkpoint.root]

    async def sign(self) -> bool:
        """Sign a checkpoint when the log has grown since the last; say whether there is a new one."""
        if self.size == (self.checkpoint.size if self.checkpoint else 0):
            return False
        checkpoint = Checkpoint(self._signers[0].name, self.size, self._edge.root())
        note = checkpoint.signed(self._signers)
        await self._connection.execute(
            "SELECT ledger.add_checkpoint(%s, %s, %s)", [checkpoint.size, checkpoint.root, note]
        )
        self.checkpoint, self.note = checkpoint, note
        return True

    async def continue_as(self, verifier: Verifier, ended: Checkpoint) -> str:
        """Record that this log ends, and that one of another origin goes on from where it stands; return the note."""
        origin = self._signers[0].name
        common = Checkpoint(origin, self.size, self._edge.root())
        note = sign(Continuation(ended, common, verifier).text(), self._signers)
        await self._add_key(verifier, note)
        return note

    async def checkpoint_age_seconds(self) -> float:
        """Return the newest checkpoint's age by the database's clock; 0 when there is none."""
        query = (
            "SELECT coalesce(extract(epoch FROM now() - max(signed_at)), 0)::float8 FROM ledger.checkpoint"
        )
        row = await (await self._connection.execute(query)).fetchone()
        assert row is not None
        return float(row[0])

    async def lag(self) -> Lag:
        row = await (
            await self._connection.execute("SELECT entries, seconds FROM ledger.seal_lag()")
        ).fetchone()
        assert row is not None
        return Lag(row[0], row[1])

    async def _register_keys(self) -> None:
        """Record keys that the log has not seen, each endorsed by one that it has."""
        cursor = await self._connection.execute(
            "SELECT vkey FROM ledger.log_key ORDER BY first_size, added_at"
        )
        known: list[Verifier] = [parse_verifier(row[0]) for row in await cursor.fetchall()]
        if known and known[-1].name != self._signers[0].name:
            raise LogError(f"this is the log {known[-1].name}, but the keys are for {self._signers[0].name}")
        voucher = next((signer for signer in self._signers if signer.verifier in known), None)
        if known and voucher is None:
            raise LogError(
                "none of the keys has signed for this log before: list the new key beside the old one"
            )
        for signer in self._signers:
            if signer.verifier in known:
                continue
            note = endorse(signer.verifier, voucher) if voucher else None
            await self._add_key(signer.verifier, note)
            voucher = voucher or signer
        self.verifiers = [
            *known,
            *(signer.verifier for signer in self._signers if signer.verifier not in known),
        ]

    async def _add_key(self, verifier: Verifier, endorsement: str | None) -> None:
        await self._connection.execute("SELECT ledger.add_log_key(%s, %s)", [str(verifier), endorsement])

    async def _read_checkpoint(self) -> None:
        """Read the last checkpoint, and refuse to go on from a log of which it is not the beginning."""
        query = "SELECT note FROM ledger.checkpoint ORDER BY size DESC LIMIT 1"
        row = await (await self._connection.execute(query)).fetchone()
        if row is None:
            return
        checkpoint = parse_checkpoint(row[0].partition("\n\n")[0] + "\n")
        if not await self.has(checkpoint):
            raise LogError(
                f"the log does not begin with the {checkpoint.size} entries of its last checkpoint"
            )
        self.checkpoint, self.note = checkpoint, row[0]


async def _tile(connection: Connection, level: int, index: int) -> list[bytes]:
    table, place = ("sealed", "position") if level == 0 else ("subtree", "index")
    first = index * merkle.TILE_WIDTH
    cursor = await connection.execute(
        f"SELECT hash FROM ledger.{table} WHERE {place} >= %s AND {place} < %s"  # noqa: S608
        + (f" AND level = {level}" if level else "")
        + f" ORDER BY {place}",
        [first, first + merkle.TILE_WIDTH],
    )
    return [row[0] for row in await cursor.fetchall()]


async def _number(connection: Connection, query: str) -> int:
    row = await (await connection.execute(query)).fetchone()
    assert row is not None
    return int(row[0])
