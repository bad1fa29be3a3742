"""Billing and the real ledger, each on a real socket, on a real Postgres that migrations made."""

import csv
import io
import re
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol

import httpx
import psycopg
import pytest
import pytest_asyncio
from pydantic import SecretStr
from starlette.types import ASGIApp

from darktree_billing.app import make_app as make_billing_app
from darktree_billing.client import AdminClient, BillingClient
from darktree_billing.settings import Settings
from darktree_cli.ports import Ports
from darktree_kit.money import NANOS_PER_CENT
from darktree_kit.notes import make_signer, write_signer
from darktree_ledger.app import make_app as make_ledger_app
from darktree_ledger.settings import Settings as LedgerSettings
from darktree_stripe_simulator.client import StripeStandIn

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PEPPER = "a pepper that only the tests know"
ADMIN_TOKEN = "admin-token-of-the-tests"
DEADLINE_SECONDS = 20

Serving = Callable[[ASGIApp], AbstractContextManager[str]]


class Database(Protocol):
    """What this needs of the session's databases."""

    admin_url: str

    def url_as(self, role: str) -> str: ...


@dataclass
class Platform:
    """A running ledger and a running billing, and the ways in."""

    database: Database
    serving: Serving
    billing_url: str
    ledger_url: str
    plans_file: Path
    settings: Settings
    admin_token: str
    gateway_token: str
    stack: ExitStack = field(repr=False)

    def http(self, token: str | None = None, url: str | None = None) -> httpx.Client:
        """Return a client with this token (the administrator's when none is named; none when empty)."""
        token = self.admin_token if token is None else token
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        client = httpx.Client(base_url=url or self.billing_url, headers=headers, timeout=30)
        return self.stack.enter_context(client)

    def sql(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """Execute one statement as the superuser."""
        with psycopg.connect(self.database.admin_url, autocommit=True) as connection:
            cursor = connection.execute(statement.encode(), values or None)
            return cursor.fetchall() if cursor.description else []

    def serve_billing(self, **changes: Any) -> str:
        """Serve another billing on the same database, with other settings, and return its address."""
        settings = self.settings.model_copy(update=changes)
        return self.stack.enter_context(self.serving(make_billing_app(settings)))


@pytest.fixture(scope="session")
def running_platform(
    make_database: Callable[[], Database], serving_context: Serving, gateway_token: str, billing_token: str
) -> Callable[[Path], AbstractContextManager[Platform]]:
    """Runs a platform on a fresh database for as long as a `with` lasts."""

    @contextmanager
    def run(folder: Path) -> Iterator[Platform]:
        plans_file = folder / "plans.yaml"
        plans_file.write_bytes((EXAMPLES / "plans.yaml").read_bytes())
        write_signer(make_signer("books.darktree.test"), folder / "books-key")
        database = make_database()
        ledger = make_ledger_app(
            LedgerSettings(
                database_url=SecretStr(database.url_as("darktree_ledger")),
                gateway_token=SecretStr(gateway_token),
                billing_token=SecretStr(billing_token),
            )
        )
        with ExitStack() as stack:
            ledger_url = stack.enter_context(serving_context(ledger))
            settings = Settings(
                database_url=SecretStr(database.url_as("darktree_billing")),
                ledger_url=ledger_url,
                ledger_token=SecretStr(billing_token),
                gateway_token=SecretStr(gateway_token),
                admin_token=SecretStr(ADMIN_TOKEN),
                key_pepper=SecretStr(PEPPER),
                plans_file=plans_file,
                books_key_file=folder / "books-key",
            )
            billing_url = stack.enter_context(serving_context(make_billing_app(settings)))
            yield Platform(
                database=database,
                serving=serving_context,
                billing_url=billing_url,
                ledger_url=ledger_url,
                plans_file=plans_file,
                settings=settings,
                admin_token=ADMIN_TOKEN,
                gateway_token=gateway_token,
                stack=stack,
            )

    return run


@pytest.fixture(scope="module")
def platform(
    running_platform: Callable[[Path], AbstractContextManager[Platform]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Platform]:
    """A platform that a module's tests share: each makes customers of its own."""
    with running_platform(tmp_path_factory.mktemp("platform")) as running:
        yield running


@pytest.fixture
def own_platform(
    running_platform: Callable[[Path], AbstractContextManager[Platform]], tmp_path: Path
) -> Iterator[Platform]:
    """A platform for one test alone, for tests that count everything or break something."""
    with running_platform(tmp_path) as running:
        yield running


@dataclass
class Store:
    """A platform that sells through a stand-in for Stripe, and the ways in."""

    platform: Platform
    stripe: StripeStandIn
    billing_url: str
    http: httpx.Client

    def customer(self, plan: str = "solo") -> str:
        """Return a customer who is on a plan, as an administrator makes one."""
        body = {"name": "Acme", "email": "acme@example.com", "plan": plan}
        return str(self.answer("POST", "/admin/customers", body)["id"])

    def order(self, customer_id: str, plan: str = "solo") -> dict[str, Any]:
        """Begin to buy; return the order, with its session."""
        path = f"/admin/customers/{customer_id}/checkouts"
        return self.see(self.answer("POST", path, {"plan": plan})["order_id"])

    def bought(self, customer_id: str, plan: str = "solo") -> dict[str, Any]:
        """Buy with a card; return the order once the credits are granted."""
        order = self.order(customer_id, plan)
        self.stripe.pay(order["session_id"])
        self.handle()
        paid = self.see(order["id"])
        assert paid["state"] == "paid", paid
        return paid

    def see(self, order_id: str) -> dict[str, Any]:
        return self.answer("GET", f"/admin/orders/{order_id}")

    def handle(self) -> None:
        """Deliver what was not delivered, and wait until everything was handled."""
        self.stripe.deliver()
        self.wait(lambda: self.status()["events_waiting"] == 0)

    def status(self) -> dict[str, Any]:
        return self.answer("GET", "/admin/payments/status")

    def balance(self, customer_id: str) -> int:
        """Return the balance in cents."""
        nanos: int = self.answer("GET", f"/admin/customers/{customer_id}/balance")["balance_nanos"]
        assert nanos % NANOS_PER_CENT == 0
        return nanos // NANOS_PER_CENT

    def entries(self, customer_id: str) -> list[tuple[str, str, str, int, str | None]]:
        """Return what moved, oldest first: kind, from, to, cents, reference."""
        page = self.answer("GET", f"/admin/customers/{customer_id}/entries")["data"]
        return [
            (
                row["kind"],
                row["debit_account"],
                row["credit_account"],
                row["amount_nanos"] // NANOS_PER_CENT,
                row["reference"],
            )
            for row in reversed(page)
        ]

    def answer(self, method: str, path: str, body: Any = None, status: int | None = None) -> dict[str, Any]:
        answer = self.http.request(method, path, json=body)
        assert answer.status_code == status if status else answer.is_success, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def wait(self, is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not is_so():
            assert time.monotonic() < deadline, self.answer("GET", "/admin/events?state=waiting")
            time.sleep(0.01)


@pytest.fixture(scope="session")
def running_store(
    make_stripe: Callable[..., AbstractContextManager[StripeStandIn]],
) -> Callable[..., AbstractContextManager[Store]]:
    """Lets a platform sell for as long as a `with` lasts."""

    @contextmanager
    def run(platform: Platform, **changes: Any) -> Iterator[Store]:
        with make_stripe() as stripe:
            url = platform.serve_billing(
                **{
                    "stripe_api_key": SecretStr(stripe.key),
                    "stripe_api_base": stripe.url,
                    "stripe_webhook_secrets": SecretStr(stripe.webhook_secret),
                    "stripe_poll_seconds": 86_400,
                }
                | changes
            )
            stripe.send_to(f"{url}/webhooks/stripe")
            store = Store(platform, stripe, url, platform.http(url=url))
            # The first sweep would take what a test leaves to the webhook.
            if changes.get("stripe_workers") != 0:
                store.wait(lambda: store.status()["swept_at"] is not None)
            yield store

    return run


@pytest.fixture(scope="module")
def store(platform: Platform, running_store: Callable[..., AbstractContextManager[Store]]) -> Iterator[Store]:
    """A platform that sells, which a module's tests share: each has customers of its own."""
    with running_store(platform) as running:
        yield running


@pytest_asyncio.fixture
async def admin(platform: Platform) -> AsyncIterator[AdminClient]:
    client = AdminClient(platform.billing_url, platform.admin_token)
    yield client
    await client.close()


@pytest_asyncio.fixture
async def gateway(platform: Platform) -> AsyncIterator[BillingClient]:
    client = BillingClient(platform.billing_url, platform.gateway_token)
    yield client
    await client.close()


@pytest.fixture
def http(platform: Platform) -> httpx.Client:
    """The administrator, over plain HTTP."""
    return platform.http()


@pytest.fixture
def unused_url() -> Iterator[str]:
    """An address where nobody listens, unless the test lets somebody."""
    with Ports() as ports:
        yield f"http://127.0.0.1:{ports.free()}"


@pytest.fixture
def at_once() -> Callable[[list[Callable[[], Any]]], list[Any]]:
    """Run calls at the same time and return their results."""

    def run(calls: list[Callable[[], Any]]) -> list[Any]:
        barrier = threading.Barrier(len(calls))

        def start(call: Callable[[], Any]) -> Any:
            barrier.wait(timeout=10)
            return call()

        with ThreadPoolExecutor(len(calls)) as pool:
            return list(pool.map(start, calls))

    return run


@pytest.fixture(scope="session")
def online_rules() -> Callable[..., dict[str, list[dict[str, str]]]]:
    """Applies the rules of QuickBooks Online's import to a file; returns its rows by entry."""
    return _check_online


@pytest.fixture(scope="session")
def desktop_rules() -> Callable[[bytes], list[list[dict[str, str]]]]:
    """Applies the rules of QuickBooks Desktop's IIF files to a file; returns its lines by transaction."""
    return _check_desktop


_AMOUNT = re.compile(r"[0-9]{1,11}\.[0-9]{2}")
_SIGNED = re.compile(r"-?[0-9]{1,11}\.[0-9]{2}")


def _check_date(written: str) -> None:
    assert re.fullmatch(r"\d\d/\d\d/\d{4}", written)
    month, day, year = map(int, written.split("/"))
    date(year, month, day)


def _check_online(content: bytes, named: frozenset[str] = frozenset()) -> dict[str, list[dict[str, str]]]:
    """Apply the rules of QuickBooks Online's import of journal entries; return the rows of each entry.

    Intuit, "Import journal entries in QuickBooks Online", and the limits of its API's JournalEntry.
    """
    written = content.decode("cp1252")
    assert not written.startswith("\ufeff")
    assert written.endswith("\r\n")
    assert "\n" not in written.replace("\r\n", "")
    assert "\t" not in written
    rows = list(csv.DictReader(io.StringIO(written, newline=""), strict=True))
    assert written.split("\r\n")[0] == "JournalNo,JournalDate,AccountName,Debits,Credits,Description,Name"
    entries: dict[str, list[dict[str, str]]] = defaultdict(list)
    last = ""
    for row in rows:
        assert None not in row, "a row has too many cells"
        assert row["JournalNo"] == last or row["JournalNo"] not in entries, "an entry's rows stand together"
        last = row["JournalNo"]
        entries[last].append(row)
        assert re.fullmatch(r"[A-Z0-9-]{1,21}", last)
        _check_date(row["JournalDate"])
        assert bool(row["Debits"]) != bool(row["Credits"]), "a line is a debit or a credit"
        assert _AMOUNT.fullmatch(row["Debits"] or row["Credits"])
        assert Decimal(row["Debits"] or row["Credits"]) > 0
        assert 1 <= len(row["AccountName"]) <= 100
        assert '"' not in row["AccountName"]
        assert all(level.strip() == level and level for level in row["AccountName"].split(":"))
        assert len(row["Description"]) <= 4000
        assert len(row["Name"]) <= 210
        assert not row["Description"].startswith(("=", "+", "-", "@"))
        assert row["AccountName"] not in named or row["Name"], "a receivable's line needs a name"
    for number, lines in entries.items():
        assert len(lines) >= 2, number
        assert len({line["JournalDate"] for line in lines}) == 1, number
        debits = sum(Decimal(line["Debits"] or 0) for line in lines)
        assert debits == sum(Decimal(line["Credits"] or 0) for line in lines), number
    return entries


def _check_desktop(content: bytes) -> list[list[dict[str, str]]]:
    """Apply the rules of an IIF file (Intuit, "IIF overview: import kit"); return the lines of each transaction."""
    written = content.decode("cp1252")
    assert written.endswith("\r\n")
    assert '"' not in written
    lines = [line.split("\t") for line in written.removesuffix("\r\n").split("\r\n")]
    headers: dict[str, list[str]] = {}
    while lines and lines[0][0].startswith("!"):
        keyword, *columns = lines.pop(0)
        headers[keyword.removeprefix("!")] = columns
    assert list(headers) == ["TRNS", "SPL", "ENDTRNS"]
    assert {"TRNSTYPE", "ACCNT", "AMOUNT"} <= set(headers["TRNS"])
    assert headers["TRNS"] == headers["SPL"]
    transactions: list[list[dict[str, str]]] = []
    within = False
    for keyword, *cells in lines:
        if keyword == "ENDTRNS":
            assert within
            assert len(transactions[-1]) >= 2
            assert sum(Decimal(line["AMOUNT"]) for line in transactions[-1]) == 0
            within = False
            continue
        assert keyword == ("SPL" if within else "TRNS")
        if not within:
            transactions.append([])
        within = True
        assert len(cells) == len(headers[keyword])
        line = dict(zip(headers[keyword], cells, strict=True))
        transactions[-1].append(line)
        assert line["TRNSTYPE"] == "GENERAL JOURNAL"
        _check_date(line["DATE"])
        assert _SIGNED.fullmatch(line["AMOUNT"])
        assert 1 <= len(line["DOCNUM"]) <= 11, "QuickBooks Desktop's numbers have eleven characters"
        assert line["ACCNT"]
        assert all(1 <= len(level) <= 31 for level in line["ACCNT"].split(":"))
        assert len(line["ACCNT"]) <= 159
        assert len(line["NAME"]) <= 209
        assert len(line["MEMO"]) <= 4095
    assert not within
    return transactions
