"""A closed month leaves for the archive: its file proves itself, and nothing that is still asked for is missed."""

import asyncio
import gzip
import hashlib
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import pytest
from typer.testing import CliRunner

from darktree_cli.main import app
from darktree_kit.ids import uuid7
from darktree_ledger.archive import ArchiveError, archive, read
from darktree_ledger.chain import document_hash
from darktree_ledger.client import LedgerClient
from darktree_ledger.schemas import ClawBack, Grant

OCTOBER, NOVEMBER, DECEMBER = date(2025, 10, 1), date(2025, 11, 1), date(2025, 12, 1)
T = TypeVar("T")


def at(instant: str) -> datetime:
    return datetime.fromisoformat(instant).replace(tzinfo=UTC)


def use(ledger: Any, build: Any, customer_id: str, tokens: int = 10) -> None:
    placed = build.hold(customer_id, tokens, 20)
    ledger.one(placed)
    ledger.one(build.settle(placed, tokens, 25))


def seal(ledger: Any) -> None:
    """Do what the sealer does, as far as closing a month looks at it."""
    while ledger.value("SELECT count(*) FROM ledger.seal(1000)"):
        pass
    ledger.admin.execute(
        "SELECT ledger.add_checkpoint((SELECT count(*) FROM ledger.sealed), sha256('root'), 'note')"
    )


def close(ledger: Any, month: date) -> None:
    seal(ledger)
    ledger.runtime.execute("SELECT ledger.close_month(%s)", [month])


@pytest.fixture
def months(ledger: Any, build: Any) -> Any:
    """A ledger with a closed October, a closed November and an open December of 2025."""
    ledger.set_clock("timestamptz '2025-10-20 12:00Z'")
    for customer_id in ("acme", "gone"):
        ledger.customer(customer_id)
        use(ledger, build, customer_id)
    ledger.set_clock("timestamptz '2025-11-20 12:00Z'")
    bought = Grant(
        operation_id=uuid7(), customer_id="acme", amount_nanos=5 * 10**9, source="purchase", reason="r",
        actor="a", reference="ch_1",
    )  # fmt: skip
    ledger.one(bought)
    ledger.bought = bought
    use(ledger, build, "acme", 30)
    ledger.one(claw_back(ledger))
    ledger.set_clock("timestamptz '2025-12-20 12:00Z'")
    close(ledger, OCTOBER)
    close(ledger, NOVEMBER)
    use(ledger, build, "acme")
    ledger.customer("zeta")
    use(ledger, build, "zeta")
    return ledger


def claw_back(ledger: Any, nanos: int = 2 * 10**9) -> ClawBack:
    return ClawBack(
        operation_id=uuid7(), customer_id="acme", purchase_id=ledger.bought.operation_id, amount_nanos=nanos,
        cause="refund", reason="r", actor="a", reference="re_1",
    )  # fmt: skip


def everything(ask: Callable[[Callable[[LedgerClient], Awaitable[Any]]], Any]) -> dict[str, Any]:
    """Return what the ledger says of old times."""

    async def exported(client: LedgerClient, customer_id: str) -> bytes:
        parts = client.export(customer_id, at("2025-01-01"), at("2026-01-01"))
        return b"".join([part async for part in parts])

    async def log(client: LedgerClient) -> bytes:
        return b"".join([part async for part in client.log_entries(10)])

    def as_of(when: datetime, client: LedgerClient) -> Awaitable[Any]:
        return client.as_of("acme", when)

    def balanced(when: datetime, client: LedgerClient) -> Awaitable[Any]:
        return client.trial_balance(when)

    return {
        "acme": ask(lambda client: exported(client, "acme")),
        "gone": ask(lambda client: exported(client, "gone")),
        "log": ask(log),
        "as of": [
            ask(partial(as_of, at(when)))
            for when in ("2025-10-25", "2025-11-01", "2025-11-25", "2025-12-01", "2025-12-25")
        ],
        "as of, gone": ask(lambda client: client.as_of("gone", at("2025-12-25"))),
        "trial balance": [
            ask(partial(balanced, at(when))) for when in ("2025-10-25", "2025-11-01", "2025-12-25")
        ],
        "lines": ask(lambda client: client.month_lines(NOVEMBER)),
        "totals": ask(lambda client: client.month_totals(NOVEMBER)),
        "balances": ask(lambda client: client.month_balances(DECEMBER)),
        "account": ask(lambda client: client.account("acme")),
        "receipt": ask(lambda client: client.receipt("acme", 1)),
    }


@pytest.fixture
def ask(ledger_url: str, billing_token: str) -> Callable[[Callable[[LedgerClient], Awaitable[T]]], T]:
    def asked(use_client: Callable[[LedgerClient], Awaitable[T]]) -> T:
        async def asking() -> T:
            client = LedgerClient(ledger_url, billing_token)
            try:
                return await use_client(client)
            finally:
                await client.close()

        return asyncio.run(asking())

    return asked


def test_what_is_archived_is_told_as_before_and_the_check_stands_on_its_base(
    months: Any, build: Any, database: Any, tmp_path: Path, ask: Any
) -> None:
    before = everything(ask)
    assert ask(lambda client: client.check()).problems == []
    for month in (OCTOBER, NOVEMBER):
        archive(database.admin_url, month, tmp_path)
    assert everything(ask) == before
    report = ask(lambda client: client.check())
    assert (report.problems, report.entries) == ([], 5)
    assert months.value("SELECT count(*) FROM ledger.archived_entry") == 10
    use(months, build, "acme")
    use(months, build, "gone")  # all of whose entries are in the archive
    seal(months)
    assert ask(lambda client: client.check()).problems == []


def test_a_claw_back_knows_what_was_clawed_back_in_an_archived_month(
    months: Any, database: Any, tmp_path: Path
) -> None:
    for month in (OCTOBER, NOVEMBER):
        archive(database.admin_url, month, tmp_path)
    assert months.one(claw_back(months, 4 * 10**9)).reason == "exceeds_purchase"
    assert months.one(claw_back(months, 3 * 10**9)).outcome == "done"


def test_the_file_proves_itself_and_is_the_same_for_the_same_month(
    months: Any, database: Any, tmp_path: Path, make_database: Any
) -> None:
    done = archive(database.admin_url, OCTOBER, tmp_path)
    manifest = json.loads(done.manifest.read_text())
    content = done.file.read_bytes()
    assert manifest["sha256"] == done.sha256 == hashlib.sha256(content).hexdigest()
    assert (manifest["entries"], manifest["customers"], manifest["bytes"]) == (6, 2, len(content))
    assert (manifest["first"]["customer_id"], manifest["first"]["seq"]) == ("acme", 1)
    assert (manifest["last"]["customer_id"], manifest["last"]["seq"]) == ("gone", 3)
    assert manifest["log"] == {
        "tree_size": months.value("SELECT tree_size FROM ledger.closed_month WHERE month = '2025-10-01'"),
        "root": hashlib.sha256(b"root").hexdigest(),
        "checkpoint": "note",
    }
    assert content[4:8] == bytes(4)  # gzip's place for a time
    for document in read(done.file):
        assert document_hash(document, bytes.fromhex(document["prev_hash"])).hex() == document["hash"]
    kept = months.value("SELECT encode(sha256, 'hex') FROM ledger.archived_month")
    assert kept == done.sha256
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "ledger-2025-10.jsonl.gz",
        "ledger-2025-10.manifest.json",
    ]
    assert gzip.decompress(content).count(b"\n") == 6


@pytest.mark.parametrize(
    ("month", "why"),
    [(DECEMBER, "not closed"), (NOVEMBER, "earlier month"), (date(2024, 1, 1), "not closed")],
)
def test_a_month_that_is_open_or_not_the_oldest_is_not_archived(
    months: Any, database: Any, tmp_path: Path, month: date, why: str
) -> None:
    with pytest.raises(ArchiveError, match=why):
        archive(database.admin_url, month, tmp_path)
    assert not list(tmp_path.glob("*.manifest.json"))
    assert months.value("SELECT count(*) FROM ledger.archived_month") == 0
    assert months.value("SELECT count(*) FROM ledger.entry") == 15


def test_a_month_is_archived_once(months: Any, database: Any, tmp_path: Path) -> None:
    archive(database.admin_url, OCTOBER, tmp_path)
    with pytest.raises(ArchiveError, match="archived already"):
        archive(database.admin_url, OCTOBER, tmp_path)


def test_an_entry_that_was_changed_is_not_archived(months: Any, database: Any, tmp_path: Path) -> None:
    for table in ("entry", "entry_2025_10"):
        months.admin.execute(f"ALTER TABLE ledger.{table} DISABLE TRIGGER refuse_change")
    months.admin.execute(
        "UPDATE ledger.entry SET actor = 'somebody else' WHERE seq = 1 AND customer_id = 'gone'"
    )
    with pytest.raises(ArchiveError, match="entry 1 of gone of the file is not what its hash says"):
        archive(database.admin_url, OCTOBER, tmp_path)
    assert months.value("SELECT count(*) FROM ledger.archived_entry") == 0


def test_the_check_finds_a_base_that_is_not_the_logs(
    months: Any, database: Any, tmp_path: Path, ask: Any
) -> None:
    archive(database.admin_url, OCTOBER, tmp_path)
    months.admin.execute("ALTER TABLE ledger.archive_base DISABLE TRIGGER refuse_change")
    months.admin.execute(
        "UPDATE ledger.archive_base SET head = sha256('x'), balance_nanos = balance_nanos + 1"
    )
    found = {(problem.customer_id, problem.what) for problem in ask(lambda client: client.check()).problems}
    expected = {"where the archive ends", "balance_nanos"}
    assert {("acme", what) for what in expected} | {("gone", what) for what in expected} <= found
    assert ("acme", "the chain at entry 4") in found


@pytest.mark.parametrize("role", ["postgres", "darktree_ledger"])
@pytest.mark.parametrize(
    "harm",
    [
        "UPDATE ledger.archived_entry SET actor = 'x'",
        "DELETE FROM ledger.archived_entry_2025_10",
        "TRUNCATE ledger.archived_entry_2025_10",
        "TRUNCATE ledger.archived_entry",
        "SET session_replication_role = replica; DELETE FROM ledger.archived_entry",
        "DELETE FROM ledger.archive_base",
        "UPDATE ledger.archived_month SET entries = 0",
    ],
)
def test_nobody_changes_what_is_archived(
    months: Any, database: Any, tmp_path: Path, role: str, harm: str
) -> None:
    archive(database.admin_url, OCTOBER, tmp_path)
    with (
        psycopg.connect(database.url_as(role)) as connection,
        pytest.raises(psycopg.Error, match=r"refused|permission denied"),
    ):
        connection.execute(harm)


def test_the_services_cannot_archive(months: Any, database: Any, tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="permission denied"):
        archive(database.url_as("darktree_ledger"), OCTOBER, tmp_path)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        months.runtime.execute("SELECT ledger.archive_month('2025-10-01', 6, sha256('x'))")


def test_the_command_line_archives_what_database_url_names(
    months: Any, database: Any, tmp_path: Path
) -> None:
    words = ["ledger", "archive", "2025-10", "--folder", str(tmp_path)]
    ran = CliRunner().invoke(app, words, env={"DATABASE_URL": database.admin_url})
    assert (ran.exit_code, "ledger-2025-10.jsonl.gz" in ran.output) == (0, True), ran.output
    again = CliRunner().invoke(app, words, env={"DATABASE_URL": database.admin_url})
    assert again.exit_code == 1
