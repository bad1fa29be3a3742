"""Every entry gets one position in the log, whoever is slow, crashes, or comes second; and what is signed holds."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import psycopg
import pytest
from psycopg import AsyncConnection

from darktree_kit import notes
from darktree_kit.db import connect
from darktree_ledger import merkle
from darktree_ledger.checkpoints import open_checkpoint, trusted_keys
from darktree_ledger.sealing import Log, LogError, take_lock

ORIGIN = "darktree.dev/ledger/test"
KEY = notes.make_signer(ORIGIN)
NEXT_KEY = notes.make_signer(ORIGIN)

Open = Callable[..., Awaitable[Log]]


@pytest.fixture
async def connected(database: Any) -> AsyncIterator[Callable[[], Awaitable[AsyncConnection[Any]]]]:
    async with AsyncExitStack() as stack:

        async def connected() -> AsyncConnection[Any]:
            return await stack.enter_async_context(await connect(database.url_as("darktree_sealer")))

        yield connected


@pytest.fixture
async def opened(connected: Callable[[], Awaitable[AsyncConnection[Any]]]) -> Open:
    """Opens the log as its sealer does, after whoever had it has gone."""
    last: list[AsyncConnection[Any]] = []

    async def opened(*signers: notes.Signer) -> Log:
        if last:
            await last.pop().close()
        last.append(await connected())
        while not await take_lock(last[0]):  # the server is still ending the session before
            pass
        return await Log.open(last[0], signers or [KEY])

    return opened


def grant(ledger: Any, build: Any, count: int, customer_id: str = "acme") -> None:
    """Record so many entries, each in a transaction of its own."""
    ledger.customer(customer_id, dollars=0)
    for _ in range(count):
        ledger.one(build.grant(customer_id, 1))


def grant_many(ledger: Any, build: Any, count: int) -> None:
    """Record so many entries in few transactions."""
    ledger.customer("acme", dollars=0)
    while count > 0:
        ledger.apply(*(build.grant("acme", 1) for _ in range(min(count, 1_000))))
        count -= 1_000


def log_of(ledger: Any) -> list[tuple[int, str, int, bytes]]:
    rows = ledger.admin.execute(
        "SELECT position, customer_id, seq, hash FROM ledger.sealed ORDER BY position"
    )
    return [tuple(row) for row in rows.fetchall()]


def must_be_whole(ledger: Any, log: Log) -> None:
    """Every entry has exactly one position, there is no gap, and the root is that over their hashes."""
    rows = log_of(ledger)
    assert [row[0] for row in rows] == list(range(len(rows)))
    entries = ledger.admin.execute("SELECT customer_id, seq, hash FROM ledger.entry").fetchall()
    assert sorted(row[1:] for row in rows) == sorted(tuple(entry) for entry in entries)
    assert log.size == len(rows)
    assert log._edge.root() == merkle.root([row[3] for row in rows])
    stored = ledger.admin.execute("SELECT level, index, hash FROM ledger.subtree").fetchall()
    assert sorted(map(tuple, stored)) == sorted(merkle.Edge().append([row[3] for row in rows]))


async def test_whatever_is_recorded_is_sealed_in_whatever_batches(
    ledger: Any, build: Any, opened: Open
) -> None:
    grant_many(ledger, build, 1_000)
    log = await opened()
    for size in (1, 255, 256, 300, 1_000):
        await log.seal(size)
    assert await log.seal() == 0
    assert log.size == 1_000
    must_be_whole(ledger, log)
    log = await opened()
    grant_many(ledger, build, 70)
    assert await log.seal() == 70
    must_be_whole(ledger, log)


async def test_an_open_transaction_holds_back_what_comes_after_it_and_nothing_before(
    ledger: Any, build: Any, opened: Open, database: Any
) -> None:
    ledger.customer("slow", dollars=0)
    grant(ledger, build, 3, "before")
    log = await opened()
    with psycopg.connect(database.url_as("darktree_ledger")) as slow:
        body = f"[{build.grant('slow', 1).model_dump_json()}]"
        slow.execute("SELECT ledger.apply(%s::jsonb)", [body])
        grant(ledger, build, 3, "after")
        assert await log.seal() == 3
        assert {row[1] for row in log_of(ledger)} == {"before"}
        assert await log.seal() == 0
        assert (await log.lag()).entries == 3
    assert await log.seal() == 4
    assert [row[1] for row in log_of(ledger)] == ["before"] * 3 + ["slow"] + ["after"] * 3
    must_be_whole(ledger, log)


async def test_a_transaction_that_is_rolled_back_leaves_no_gap(
    ledger: Any, build: Any, opened: Open, database: Any
) -> None:
    ledger.customer("slow", dollars=0)
    log = await opened()
    with psycopg.connect(database.url_as("darktree_ledger")) as slow:
        slow.execute("SELECT ledger.apply(%s::jsonb)", [f"[{build.grant('slow', 1).model_dump_json()}]"])
        grant(ledger, build, 3)
        assert await log.seal() == 0
        slow.rollback()
    assert await log.seal() == 3
    must_be_whole(ledger, log)


async def test_only_one_seals_and_another_takes_over_when_it_goes(
    ledger: Any, build: Any, opened: Open, connected: Callable[[], Awaitable[AsyncConnection[Any]]]
) -> None:
    grant(ledger, build, 3)
    log = await opened()
    second = await connected()
    assert not await take_lock(second)
    with pytest.raises(psycopg.errors.LockNotAvailable):
        await second.execute("SELECT * FROM ledger.seal(10)")
    assert await log.seal(2) == 2
    log = await opened()
    assert await log.seal() == 1
    must_be_whole(ledger, log)


async def test_a_sealer_that_lost_its_lock_unawares_cannot_go_on(
    ledger: Any, build: Any, opened: Open, database: Any
) -> None:
    grant(ledger, build, 3)
    log = await opened()
    async with await connect(database.url_as("darktree_sealer")) as other:
        await log._connection.execute("SELECT pg_advisory_unlock_all()")
        assert await take_lock(other)
        await (await Log.open(other, [KEY])).seal(1)
        await other.execute("SELECT pg_advisory_unlock_all()")  # closing would release it a moment later
    with pytest.raises(LogError, match="somebody else has sealed"):
        await log.seal()
    log = await opened()
    assert await log.seal() == 2
    must_be_whole(ledger, log)


async def test_a_batch_that_was_not_committed_never_was(ledger: Any, build: Any, opened: Open) -> None:
    grant_many(ledger, build, 600)
    log = await opened()
    await log.seal(100)
    async with log._connection.transaction(force_rollback=True):
        assert await log.seal(400) == 400
    log = await opened()
    assert log.size == 100
    assert await log.seal() == 500
    must_be_whole(ledger, log)


async def test_a_crash_between_sealing_and_signing_loses_no_checkpoint(
    ledger: Any, build: Any, opened: Open
) -> None:
    grant_many(ledger, build, 300)
    await (await opened()).seal()
    log = await opened()
    assert await log.sign()
    assert not await log.sign()
    assert log.note is not None
    checkpoint = open_checkpoint(log.note, [KEY.verifier])
    assert (checkpoint.origin, checkpoint.size) == (ORIGIN, 300)
    assert checkpoint.root == merkle.root([row[3] for row in log_of(ledger)])
    assert (await opened()).note == log.note


async def test_an_empty_log_is_not_signed(ledger: Any, opened: Open) -> None:
    log = await opened()
    assert await log.seal() == 0
    assert not await log.sign()
    assert await log.checkpoint_age_seconds() == 0


class Published:
    def __init__(self, vkey: str, endorsement: str | None) -> None:
        self.vkey = vkey
        self.endorsement = endorsement


def published(ledger: Any) -> list[Published]:
    rows = ledger.admin.execute("SELECT vkey, endorsement FROM ledger.log_key ORDER BY first_size, added_at")
    return [Published(*row) for row in rows.fetchall()]


async def test_a_new_key_is_endorsed_by_the_old_one_and_then_signs_alone(
    ledger: Any, build: Any, opened: Open
) -> None:
    grant(ledger, build, 1)
    log = await opened(KEY)
    await log.seal()
    await log.sign()
    grant(ledger, build, 1)
    log = await opened(KEY, NEXT_KEY)
    await log.seal()
    await log.sign()
    assert log.note is not None
    for key in (KEY, NEXT_KEY):
        assert open_checkpoint(log.note, [key.verifier]).size == 2
    grant(ledger, build, 1)
    log = await opened(NEXT_KEY)
    await log.seal()
    await log.sign()
    assert log.note is not None
    with pytest.raises(notes.UnverifiedNote):
        open_checkpoint(log.note, [KEY.verifier])
    keys = published(ledger)
    assert [key.vkey for key in keys] == [str(KEY.verifier), str(NEXT_KEY.verifier)]
    trusted = trusted_keys([KEY.verifier], keys)
    assert open_checkpoint(log.note, trusted).size == 3


async def test_a_key_that_nobody_trusted_endorses_is_not_trusted(ledger: Any, opened: Open) -> None:
    await opened(KEY)
    await opened(KEY, NEXT_KEY)
    stranger = notes.make_signer(ORIGIN)
    keys = published(ledger)
    assert trusted_keys([stranger.verifier], keys) == [stranger.verifier]
    keys[1].endorsement = keys[1].endorsement and keys[1].endorsement.replace("v1", "v2")
    assert trusted_keys([KEY.verifier], keys) == [KEY.verifier]


async def test_a_log_is_not_continued_with_keys_that_it_does_not_know(opened: Open) -> None:
    await opened(KEY)
    with pytest.raises(LogError, match="list the new key beside the old one"):
        await opened(NEXT_KEY)
    with pytest.raises(LogError, match=f"this is the log {ORIGIN}, but"):
        await opened(notes.make_signer("darktree.dev/ledger/other"))


TAMPERINGS = {
    "a hash": "UPDATE ledger.sealed SET hash = sha256('x') WHERE position = 300",
    "a subtree": "UPDATE ledger.subtree SET hash = sha256('x')",
    "the end": "DELETE FROM ledger.sealed WHERE position > 298",
}


@pytest.mark.parametrize("what", TAMPERINGS)
async def test_a_log_that_does_not_fit_its_checkpoint_is_not_continued(
    ledger: Any, build: Any, opened: Open, what: str
) -> None:
    grant_many(ledger, build, 301)
    log = await opened()
    await log.seal()
    await log.sign()
    for table in ("sealed", "subtree"):
        ledger.admin.execute(f"ALTER TABLE ledger.{table} DISABLE TRIGGER ALL")
    ledger.admin.execute(TAMPERINGS[what])
    with pytest.raises(LogError, match="does not begin with the 301 entries"):
        await opened()


async def test_after_a_restore_into_another_cluster_nothing_is_left_behind(
    ledger: Any, build: Any, opened: Open
) -> None:
    """Transaction ids of the old cluster lie far ahead of those that the new one gives."""
    grant(ledger, build, 5, "sealed")
    log = await opened()
    await log.seal()
    await log.sign()
    grant(ledger, build, 4, "waiting")
    for statement in (
        "ALTER TABLE ledger.entry DISABLE TRIGGER ALL",
        "ALTER TABLE ledger.sealed DISABLE TRIGGER ALL",
        "SET session_replication_role = replica",
    ):
        ledger.admin.execute(statement)
    for partition in ledger.admin.execute(
        "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'ledger.entry'::regclass"
    ).fetchall():
        ledger.admin.execute(f"ALTER TABLE {partition[0]} DISABLE TRIGGER ALL")
    for table in ("entry", "sealed"):
        ledger.admin.execute(f"UPDATE ledger.{table} SET xid = (xid::text::bigint + 1000000000)::text::xid8")
    grant(ledger, build, 3, "new")
    log = await opened()
    assert await log.seal() == 3
    assert await log.left_behind() == 4
    assert await log.seal(sweep=True) == 4
    assert await log.left_behind() == 0
    must_be_whole(ledger, log)
    for _ in range(3):
        grant(ledger, build, 2, "newer")
        assert await log.seal() == 2
        assert await log.left_behind() == 0
    must_be_whole(ledger, log)


async def test_what_only_waits_to_be_visible_is_not_left_behind(
    ledger: Any, build: Any, opened: Open, database: Any
) -> None:
    ledger.customer("slow", dollars=0)
    log = await opened()
    with psycopg.connect(database.url_as("darktree_ledger")) as slow:
        slow.execute("SELECT ledger.apply(%s::jsonb)", [f"[{build.grant('slow', 1).model_dump_json()}]"])
        grant(ledger, build, 2)
        assert await log.left_behind() == 0
        assert await log.seal(sweep=True) == 0
    assert await log.seal() == 3
    must_be_whole(ledger, log)


async def test_the_lag_is_how_many_wait_and_how_long_the_oldest_has(
    ledger: Any, build: Any, opened: Open
) -> None:
    ledger.set_clock("now() - interval '90 seconds'")
    grant(ledger, build, 2)
    ledger.set_clock("clock_timestamp()")
    grant(ledger, build, 1)
    log = await opened()
    lag = await log.lag()
    assert lag.entries == 3
    assert 90 <= lag.seconds < 120
    await log.seal()
    assert await log.lag() == type(lag)(0, 0)


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM ledger.entry",
        "SELECT * FROM ledger.account",
        "INSERT INTO ledger.sealed SELECT * FROM ledger.sealed",
        "DELETE FROM ledger.checkpoint",
        "SELECT ledger.apply('[]')",
        "SET ROLE darktree_owner",
    ],
)
async def test_the_sealers_role_reads_no_entry_and_writes_no_table(
    connected: Callable[[], Awaitable[AsyncConnection[Any]]], statement: str
) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        await (await connected()).execute(statement)


def test_the_ledgers_role_cannot_seal(ledger: Any) -> None:
    for call in ("seal(1)", "add_checkpoint(1, sha256('x'), 'note')", "add_log_key('key', NULL)"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            ledger.runtime.execute(f"SELECT ledger.{call}")
