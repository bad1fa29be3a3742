"""What the superuser can do: first he meets triggers, and when he takes them off, the proofs tell what he did.

Each tampering is done in a transaction in which nothing guards the tables any more, exported as the service exports it,
verified without the database, and rolled back.
"""

import hashlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import psycopg
import pytest
from psycopg import Connection

from darktree_kit import notes
from darktree_kit.db import connect
from darktree_kit.ids import uuid7
from darktree_ledger import log_entries, merkle
from darktree_ledger.checkpoints import Checkpoint, parse_checkpoint
from darktree_ledger.export_file import FORMAT, Report, verify
from darktree_ledger.schemas import Adjust, ClawBack, Reinstate
from darktree_ledger.sealing import Log, LogError

ORIGIN = "darktree.dev/ledger/test"
KEY = notes.make_signer(ORIGIN)
MUTABLE = {"account", "day_usage", "hold", "alembic_version"}  # projections, which entries tell again
NOT_HASHED = {
    "xid"
}  # in which transaction an entry was written; it only orders the log, which is proven by itself
TAMPERED = 4  # the number of the entry of acme that is tampered with, of eight

_ALTERED = {
    "text": "coalesce({0}, '') || 'x'",
    "bigint": "coalesce({0}, 0) + 1",
    "smallint": "3 - {0}",
    "uuid": "gen_random_uuid()",
    "date": "coalesce({0}, '2026-01-01') + 1",
    "timestamp with time zone": "{0} + interval '1 microsecond'",
    "bytea": "set_byte({0}, 0, 255 - get_byte({0}, 0))",
}
_OPEN = """
DO $$
DECLARE guard record;
BEGIN
    FOR guard IN SELECT DISTINCT tgrelid::regclass AS name FROM pg_trigger WHERE tgname = 'refuse_change' LOOP
        EXECUTE format('ALTER TABLE %s DISABLE TRIGGER ALL', guard.name);
    END LOOP;
    FOR guard IN SELECT conname AS name FROM pg_constraint
                 WHERE conrelid = 'ledger.entry'::regclass AND contype = 'c' LOOP
        EXECUTE format('ALTER TABLE ledger.entry DROP CONSTRAINT %I', guard.name);
    END LOOP;
    ALTER TABLE ledger.sealed DROP CONSTRAINT sealed_pkey, DROP CONSTRAINT sealed_customer_id_seq_key;
END $$
"""


def test_even_the_superuser_meets_the_triggers_on_every_table_and_partition(shared_ledger: Any) -> None:
    rows = shared_ledger.admin.execute(
        """SELECT c.relname, a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = 1
           WHERE c.relnamespace = 'ledger'::regnamespace AND c.relkind IN ('r', 'p')"""
    ).fetchall()
    guarded = [(name, column) for name, column in rows if name not in MUTABLE]
    assert len(guarded) > 12
    for role in ("origin", "replica"):
        shared_ledger.admin.execute(f"SET session_replication_role = {role}")
        for name, column in guarded:
            kinds = shared_ledger.admin.execute(
                "SELECT tgname, tgenabled::text, tgtype & 60 FROM pg_trigger WHERE tgrelid = %s::regclass ORDER BY 1",
                [f"ledger.{name}"],
            ).fetchall()
            # Always: for each row that is deleted (8) or updated (16), and for a truncation (32).
            assert ("refuse_change", "A", 24) in kinds, name
            assert ("refuse_truncate", "A", 32) in kinds, name
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="append-only"):
                shared_ledger.admin.execute(f"TRUNCATE ledger.{name} CASCADE")
            if shared_ledger.value(f"SELECT count(*) FROM ledger.{name}"):
                for text in (
                    f"UPDATE ledger.{name} SET {column} = {column}",
                    f"DELETE FROM ledger.{name}",
                    f"MERGE INTO ledger.{name} USING (SELECT) s ON true WHEN MATCHED THEN DELETE",
                ):
                    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="append-only"):
                        shared_ledger.admin.execute(text)
    shared_ledger.admin.execute("RESET session_replication_role")


def sign(connection: Connection[Any], signer: notes.Signer = KEY) -> str:
    """Sign a checkpoint of the log as it is, as the sealer does."""
    hashes = [row[0] for row in connection.execute("SELECT hash FROM ledger.sealed ORDER BY position")]
    root = merkle.root(hashes)
    note = Checkpoint(ORIGIN, len(hashes), root).signed([signer])
    connection.execute("SELECT ledger.add_checkpoint(%s, %s, %s)", [len(hashes), root, note])
    return note


@pytest.fixture(scope="module")
def kept(shared_ledger: Any, build: Any) -> str:
    """The checkpoint that somebody kept of a log of two customers; afterwards two more entries are signed for."""
    ledger = shared_ledger
    said: dict[str, Any] = {"customer_id": "acme", "reason": "a test", "actor": "test"}
    ledger.customer("acme", dollars=1)
    ledger.customer("zeta", dollars=1)
    bought = build.grant("acme", build.dollar, source="purchase", reference="cs_1")
    placed = build.hold("acme", 10, 20)
    ledger.apply(bought, placed)
    ledger.one(build.settle(placed, 10, 25))
    clawed = ClawBack(
        operation_id=uuid7(), purchase_id=bought.operation_id, amount_nanos=9, cause="dispute", **said
    )
    ledger.one(clawed)
    ledger.one(Reinstate(operation_id=uuid7(), claw_back_id=clawed.operation_id, **said))
    ledger.one(Adjust(operation_id=uuid7(), amount_nanos=-5, **said))
    ledger.admin.execute("SELECT ledger.seal(100)")
    ledger.admin.execute("SELECT ledger.add_log_key(%s, NULL)", [str(KEY.verifier)])
    note = sign(ledger.admin)
    ledger.apply(build.grant("acme", 1), build.grant("zeta", 1))
    ledger.admin.execute("SELECT ledger.seal(100)")
    sign(ledger.admin)
    return note


@pytest.fixture
def superuser(shared_ledger: Any, kept: str) -> Iterator[Connection[Any]]:
    """The superuser, who has just taken every guard off, and whose work is rolled back in the end."""
    info = shared_ledger.admin.info
    with psycopg.connect(f"postgresql://postgres@/{info.dbname}?host={info.host}") as connection:
        connection.execute(_OPEN)
        yield connection
        connection.rollback()


@pytest.fixture
def verified(superuser: Connection[Any], kept: str, tmp_path: Path) -> Callable[..., Report]:
    """Exports the log as it is now, and verifies it with the key, and the checkpoint, of somebody outside."""

    def verified(*, with_kept: bool = True) -> Report:
        rows = superuser.execute("SELECT note FROM ledger.checkpoint ORDER BY size DESC LIMIT 1").fetchone()
        note = rows[0] if rows else kept
        keys = superuser.execute("SELECT vkey, endorsement FROM ledger.log_key").fetchall()
        views = [
            {"vkey": vkey, "endorsement": by, "first_size": 0, "added_at": datetime(2026, 11, 1, tzinfo=UTC)}
            for vkey, by in keys
        ]
        head = {"format": FORMAT, "customer_id": None, "checkpoint": note, "keys": views}
        query = str(log_entries._ALL).replace(
            ":size", str(parse_checkpoint(note.partition("\n\n")[0] + "\n").size)
        )
        lines = [row[0].encode() for row in superuser.execute(query)]
        content = b"".join(line + b"\n" for line in [orjson.dumps(head), *lines])
        last = {"entries": len(lines)}
        digest = hashlib.sha256(content + orjson.dumps(last)).hexdigest()
        path = tmp_path / "export.jsonl"
        path.write_bytes(content + orjson.dumps(last | {"sha256": digest}) + b"\n")
        return verify(path, [KEY.verifier], kept if with_kept else None)

    return verified


def said(report: Report) -> str:
    return "\n".join(map(str, report.failures.kept))


def test_an_untouched_log_is_proven(verified: Callable[..., Report]) -> None:
    report = verified()
    assert (said(report), report.entries, report.customers, report.pinned) == ("", 10, 2, True)
    assert (report.earlier.size, report.checkpoint.size) == (8, 10)  # type: ignore[union-attr]


def test_every_column_of_an_entry_is_proven(
    superuser: Connection[Any], verified: Callable[..., Report]
) -> None:
    columns = superuser.execute(
        """SELECT attname, format_type(atttypid, NULL) FROM pg_attribute
           WHERE attrelid = 'ledger.entry'::regclass AND attnum > 0 ORDER BY attnum"""
    ).fetchall()
    assert len(columns) > 25
    for name, kind in columns:
        with superuser.transaction(force_rollback=True):
            superuser.execute(
                f"UPDATE ledger.entry SET {name} = {_ALTERED[kind].format(name)} "
                f"WHERE customer_id = 'acme' AND seq = {TAMPERED}"
                if kind in _ALTERED
                else "SELECT"
            )
            failures = verified().failures.kept
            named = {(failure.customer_id, failure.seq) for failure in failures}
            assert (("acme", TAMPERED) in named) == (name not in NOT_HASHED), name


@pytest.mark.parametrize(
    ("harm", "found"),
    [
        ("DELETE FROM ledger.entry WHERE customer_id = 'acme' AND seq = 4", "acme, entry 4: is missing"),
        ("DELETE FROM ledger.entry WHERE customer_id = 'acme' AND seq = 1", "acme, entry 1: is missing"),
        ("DELETE FROM ledger.entry WHERE customer_id = 'acme' AND seq = 8", "acme, entry 8: is missing"),
        ("DELETE FROM ledger.entry", "zeta, entry 1: is missing"),
        ("UPDATE ledger.entry SET seq = 9 - seq WHERE customer_id = 'acme' AND seq IN (4, 5)",
         "acme, entry 4 "),
        ("UPDATE ledger.entry SET customer_id = CASE customer_id WHEN 'acme' THEN 'zeta' ELSE 'acme' END WHERE seq = 1",
         "acme, entry 1 "),
        ("INSERT INTO ledger.entry SELECT (jsonb_populate_record(e, jsonb_build_object('entry_id', gen_random_uuid(),"
         " 'recorded_at', e.recorded_at + interval '1 second'))).* FROM ledger.entry e"
         " WHERE customer_id = 'acme' AND seq = 4",
         "acme, entry 4 "),
        ("UPDATE ledger.sealed SET hash = sha256('x') WHERE position = 2", "sealed in the log"),
        ("UPDATE ledger.sealed SET seq = 9 - seq WHERE customer_id = 'acme' AND seq IN (4, 5)",
         "acme, entry 4 "),
        ("UPDATE ledger.sealed SET position = 7 - position WHERE position IN (3, 4)", "one was altered or moved"),
        ("DELETE FROM ledger.sealed WHERE position = 3", "entries 3 to 3 before it are missing"),
        ("DELETE FROM ledger.sealed WHERE position > 5", "the log had 8 entries when you kept its checkpoint"),
        ("DELETE FROM ledger.sealed", "the log had 8 entries when you kept its checkpoint"),
        ("DELETE FROM ledger.entry e USING ledger.sealed s WHERE s.position > 5 AND s.customer_id = e.customer_id"
         " AND s.seq = e.seq; DELETE FROM ledger.sealed WHERE position > 5;"
         " UPDATE ledger.checkpoint SET size = 6 WHERE size = 8; DELETE FROM ledger.checkpoint WHERE size = 10",
         "it was cut off"),
        ("TRUNCATE ledger.entry, ledger.sealed, ledger.checkpoint CASCADE", "it was cut off"),
        ("UPDATE ledger.checkpoint SET note = replace(note, E'\\n10\\n', E'\\n11\\n')", "the checkpoint: "),
        ("UPDATE ledger.checkpoint SET note = overlay(note PLACING 'AAAA' FROM length(note) - 20)", "the checkpoint: "),
    ],
)  # fmt: skip
def test_what_is_deleted_moved_inserted_or_cut_off_is_found(
    superuser: Connection[Any], verified: Callable[..., Report], harm: str, found: str
) -> None:
    superuser.execute(harm)
    assert found in said(verified())


def rewrite(superuser: Connection[Any], customer_id: str) -> None:
    """Give every entry of a customer the hash that it should have, and the log those hashes."""
    superuser.execute(
        """DO $$
        DECLARE
            e ledger.entry;
            head bytea;
            balance bigint := 0;
        BEGIN
            FOR e IN SELECT * FROM ledger.entry WHERE customer_id = 'acme' ORDER BY seq LOOP
                balance := balance + CASE WHEN e.credit_account = 'customer_credits' THEN e.amount_nanos ELSE 0 END
                                   - CASE WHEN e.debit_account = 'customer_credits' THEN e.amount_nanos ELSE 0 END;
                e.balance_after_nanos := balance;
                e.prev_hash := coalesce(head, e.prev_hash);
                e.hash := ledger.entry_hash(e);
                UPDATE ledger.entry x SET hash = e.hash, prev_hash = e.prev_hash, balance_after_nanos = balance
                WHERE x.customer_id = e.customer_id AND x.seq = e.seq;
                UPDATE ledger.sealed x SET hash = e.hash WHERE x.customer_id = e.customer_id AND x.seq = e.seq;
                head := e.hash;
            END LOOP;
        END $$""".replace("'acme'", f"'{customer_id}'")
    )


def test_a_chain_that_is_rewritten_and_signed_anew_is_found_by_who_kept_a_checkpoint(
    superuser: Connection[Any], verified: Callable[..., Report]
) -> None:
    superuser.execute(
        "UPDATE ledger.entry SET amount_nanos = amount_nanos + 7 WHERE customer_id = 'acme' AND kind = 'adjustment'"
    )
    rewrite(superuser, "acme")
    superuser.execute("DELETE FROM ledger.checkpoint")
    sign(superuser)
    assert said(verified(with_kept=False)) == ""  # what the signer signs twice is only found beside the first
    assert "history was rewritten" in said(verified())


def test_a_log_that_is_signed_by_another_key_is_refused(
    superuser: Connection[Any], verified: Callable[..., Report]
) -> None:
    mine = notes.make_signer(ORIGIN)
    superuser.execute("DELETE FROM ledger.checkpoint")
    superuser.execute("UPDATE ledger.log_key SET vkey = %s", [str(mine.verifier)])
    sign(superuser, mine)
    assert "the checkpoint: " in said(verified())


async def test_a_sealer_does_not_go_on_from_subtrees_that_were_altered(
    ledger: Any, build: Any, database: Any
) -> None:
    ledger.customer("acme", dollars=0)
    ledger.apply(*(build.grant("acme", 1) for _ in range(300)))
    url = database.url_as("darktree_sealer")
    async with await connect(url) as connection:
        log = await Log.open(connection, [KEY])
        await log.seal()
        await log.sign()
    ledger.admin.execute("ALTER TABLE ledger.subtree DISABLE TRIGGER ALL")
    ledger.admin.execute("UPDATE ledger.subtree SET hash = sha256('x')")
    async with await connect(url) as connection:
        with pytest.raises(LogError, match="its last checkpoint"):
            await Log.open(connection, [KEY])
