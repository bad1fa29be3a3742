"""The ledger's operations, called as its service's role calls them, and the builders of their bodies."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import psycopg
import pytest

from darktree_kit.ids import uuid7
from darktree_ledger.schemas import (
    OPERATIONS,
    RESULTS,
    ChangeCap,
    Grant,
    Hold,
    OpenAccount,
    Operation,
    Result,
    Settle,
)

PRICE_NANOS = 750_000
DOLLAR = 1_000_000_000


class Ledger:
    """Applies operations through the SQL function, on one connection, with a clock that the test can move."""

    def __init__(self, admin_url: str, runtime_url: str) -> None:
        self.admin = psycopg.connect(admin_url, autocommit=True)
        self.runtime = psycopg.connect(runtime_url, autocommit=True)
        self.runtime.execute("SELECT ledger.prepare_months()")

    def close(self) -> None:
        self.admin.close()
        self.runtime.close()

    def apply(self, *operations: Operation) -> list[Result]:
        body = OPERATIONS.dump_json(list(operations)).decode()
        row = self.runtime.execute("SELECT ledger.apply(%s::jsonb)", [body]).fetchone()
        assert row is not None
        return RESULTS.validate_json(row[0])

    def one(self, operation: Operation) -> Result:
        return self.apply(operation)[0]

    def set_clock(self, expression: str) -> None:
        """Let the ledger's clock say an SQL expression, such as `timestamptz '2026-11-23 23:59:59Z'`."""
        self.admin.execute(
            f"CREATE OR REPLACE FUNCTION ledger.clock_now() RETURNS timestamptz LANGUAGE sql VOLATILE "
            f"AS $clock$ SELECT {expression} $clock$"
        )
        self.runtime.execute("SELECT ledger.prepare_months()")

    def value(self, query: str, *parameters: Any) -> Any:
        row = self.admin.execute(query, parameters).fetchone()
        assert row is not None
        return row[0]

    def customer(self, customer_id: str = "acme", *, cap_tokens: int = 1_000, dollars: int = 50) -> str:
        self.apply(
            open_account(customer_id, cap_tokens),
            *([grant(customer_id, dollars * DOLLAR)] if dollars else []),
        )
        return customer_id


def open_account(customer_id: str, cap_tokens: int) -> OpenAccount:
    return OpenAccount(operation_id=uuid7(), customer_id=customer_id, cap_tokens=cap_tokens, actor="test")


def grant(customer_id: str, amount_nanos: int, **changes: Any) -> Grant:
    body: dict[str, Any] = {"operation_id": uuid7(), "source": "bonus", "reason": "a test", "actor": "test"}
    return Grant(**(body | {"customer_id": customer_id, "amount_nanos": amount_nanos} | changes))


def hold(customer_id: str, prompt_tokens: int, completion_tokens: int, **changes: Any) -> Hold:
    body: dict[str, Any] = {
        "hold_id": uuid7(),
        "key_id": "key",
        "model": "qwen25-14b-awq",
        "lane": "standard",
        "exact": True,
        "prompt_price_nanos": PRICE_NANOS,
        "completion_price_nanos": PRICE_NANOS,
        "ttl_seconds": 60,
    }
    asked = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    return Hold(**(body | {"customer_id": customer_id} | asked | changes))


def settle(placed: Hold, prompt_tokens: int, completion_tokens: int, **changes: Any) -> Settle:
    body: dict[str, Any] = {"hold_id": placed.hold_id, "customer_id": placed.customer_id, "entry_id": uuid7()}
    return Settle(
        **(body | {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens} | changes)
    )


def cap(customer_id: str, cap_tokens: int) -> ChangeCap:
    return ChangeCap(
        operation_id=uuid7(), customer_id=customer_id, cap_tokens=cap_tokens, reason="a test", actor="test"
    )


class Build:
    """The builders, as one fixture: tests cannot import each other."""

    open = staticmethod(open_account)
    grant = staticmethod(grant)
    hold = staticmethod(hold)
    settle = staticmethod(settle)
    cap = staticmethod(cap)
    price_nanos = PRICE_NANOS
    dollar = DOLLAR


@pytest.fixture(scope="session")
def build() -> type[Build]:
    return Build


@contextmanager
def ledger_of(database: Any) -> Iterator[Ledger]:
    opened = Ledger(database.admin_url, database.url_as("darktree_ledger"))
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def open_ledger() -> Callable[[Any], AbstractContextManager[Ledger]]:
    """Opens a ledger on any database; a context manager."""
    return ledger_of


@pytest.fixture
def ledger(database: Any) -> Iterator[Ledger]:
    """A ledger on the test's own database."""
    with ledger_of(database) as opened:
        yield opened


@pytest.fixture(scope="module")
def shared_ledger(make_database: Callable[[], Any]) -> Iterator[Ledger]:
    """A ledger for a module whose tests change nothing in it."""
    with ledger_of(make_database()) as opened:
        yield opened
