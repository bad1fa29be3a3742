"""The console on a real ledger and a real Postgres whose clock the tests move, and the people who look at it."""

import asyncio
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from email import message_from_string
from email.policy import default as mail_policy
from pathlib import Path
from typing import Any, Protocol

import httpx
import psycopg
import pytest
from pydantic import SecretStr
from starlette.types import ASGIApp

from darktree_billing.app import make_app as make_billing_app
from darktree_billing.settings import Settings
from darktree_kit.db import connect
from darktree_kit.ids import uuid7
from darktree_kit.notes import make_signer, write_signer
from darktree_ledger.app import make_app as make_ledger_app
from darktree_ledger.client import LedgerClient
from darktree_ledger.schemas import ChangeCap, Grant, Hold, Operation, Result, Settle, Void
from darktree_ledger.sealing import Log
from darktree_ledger.settings import Settings as LedgerSettings

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
LOG_KEY = make_signer("darktree.dev/ledger/console-test")
TEAM = "ops@darktree.test"
ADMIN_TOKEN = "admin-token-of-the-tests"

Serving = Callable[[ASGIApp], AbstractContextManager[str]]


class Database(Protocol):
    """What this needs of the session's databases."""

    admin_url: str

    def url_as(self, role: str) -> str: ...


class Person(httpx.Client):
    """Somebody with a browser that knows forms and cookies, and no scripts."""

    def page(self, path: str, status: int = 200) -> str:
        answer = self.get(path, follow_redirects=True)
        assert answer.status_code == status, f"{path}: {answer.status_code} {answer.text}"
        return answer.text

    def csrf(self) -> str:
        found = re.search(r'name="csrf" value="([0-9a-f]{64})"', self.page("/console"))
        assert found is not None
        return found[1]

    def submit(self, path: str, **fields: str) -> httpx.Response:
        """Send a form as a page of ours does."""
        headers = {"Origin": str(self.base_url).rstrip("/")}
        return self.post(path, data={"csrf": self.csrf(), **fields}, headers=headers)


@dataclass
class Platform:
    """A running ledger and a running billing, and the ways in."""

    database: Database
    serving: Serving
    billing_url: str
    ledger_url: str
    settings: Settings
    stack: ExitStack = field(repr=False)

    @property
    def mail_file(self) -> Path:
        assert self.settings.mail_file is not None
        return self.settings.mail_file

    def sql(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """Execute one statement as the superuser."""
        with psycopg.connect(self.database.admin_url, autocommit=True) as connection:
            cursor = connection.execute(statement.encode(), values or None)
            return cursor.fetchall() if cursor.description else []

    def clock(self, instant: str) -> None:
        """Set the ledger's clock."""
        self.sql(
            "CREATE OR REPLACE FUNCTION ledger.clock_now() RETURNS timestamptz LANGUAGE sql VOLATILE "
            f"AS $clock$ SELECT timestamptz '{instant}' $clock$"
        )
        self.sql("SELECT ledger.prepare_months()")

    def serve_billing(self, **changes: Any) -> str:
        """Serve another billing on the same database, with other settings, and return its address."""
        return self.stack.enter_context(
            self.serving(make_billing_app(self.settings.model_copy(update=changes)))
        )

    def browser(self, url: str | None = None) -> Person:
        return self.stack.enter_context(Person(base_url=url or self.billing_url, timeout=30))

    def mails(self) -> list[Any]:
        """Return every mail so far, oldest first."""
        text = self.mail_file.read_text() if self.mail_file.exists() else ""
        parts = re.split(r"^From darktree .*\n", text, flags=re.MULTILINE)[1:]
        return [message_from_string(part, policy=mail_policy) for part in parts]

    def link(self, email: str) -> str:
        """Return the path of the newest sign-in link that was mailed to somebody."""
        mail = next(mail for mail in reversed(self.mails()) if mail["To"] == email)
        found = re.search(r"https?://[^/\s]+(/console/sign-in/\S+)", mail.get_content())
        assert found is not None
        return found[1]

    def sign_in(self, email: str, person: Person | None = None) -> Person:
        """Sign somebody in by the link in the mail."""
        person = person or self.browser()
        headers = {"Origin": str(person.base_url).rstrip("/")}
        sent = person.post("/console/sign-in", data={"email": email}, headers=headers)
        assert sent.status_code == 200, sent.text
        self.sql(
            "UPDATE billing.sign_in_link SET created_at = created_at - interval '1 hour'"
        )  # room for more
        assert person.post(self.link(email), headers=headers).status_code == 303
        return person

    def sign_up(self, email: str, name: str = "Acme Ltd", person: Person | None = None) -> Person:
        """Sign somebody in and open an account."""
        person = self.sign_in(email, person)
        page = person.page("/console/welcome")
        token = re.search(r'name="csrf" value="([0-9a-f]{64})"', page)
        assert token is not None
        headers = {"Origin": str(person.base_url).rstrip("/")}
        done = person.post("/console/welcome", data={"csrf": token[1], "name": name}, headers=headers)
        assert done.status_code == 303, done.text
        return person

    def apply(self, *operations: Operation) -> list[Result]:
        """Apply operations one after the other, holds and settlements as a gateway."""

        async def run() -> list[Result]:
            tokens = (self.settings.gateway_token, self.settings.ledger_token)
            gateway, billing = (LedgerClient(self.ledger_url, token.get_secret_value()) for token in tokens)
            results = []
            for operation in operations:
                of_gateway = operation.op in {"hold", "settle", "void", "renew"}
                results.append(await (gateway if of_gateway else billing).apply(operation))
            for client in (gateway, billing):
                await client.close()
            return results

        return asyncio.run(run())

    def grant(self, customer_id: str, dollars: int, source: Any = "purchase") -> None:
        grant = Grant(
            operation_id=uuid7(), customer_id=customer_id, amount_nanos=dollars * 10**9, source=source,
            reason=f"a {source}", actor="test", reference="pi_test",
        )  # fmt: skip
        assert self.apply(grant)[0].outcome == "done"

    def set_cap(self, customer_id: str, cap_tokens: int) -> None:
        change = ChangeCap(
            operation_id=uuid7(), customer_id=customer_id, cap_tokens=cap_tokens,
            reason="the plan's cap", actor="stripe"
        )  # fmt: skip
        assert self.apply(change)[0].outcome == "done"

    def use(self, customer_id: str, key_id: str, tokens: int, model: str = "qwen25-14b-awq") -> str:
        """Use so many tokens; return why not, or `done`."""
        prompt = tokens * 3 // 4
        hold = Hold(
            hold_id=uuid7(), customer_id=customer_id, key_id=key_id, model=model, lane="standard",
            prompt_tokens=prompt, completion_tokens=tokens - prompt, exact=True, prompt_price_nanos=750_000,
            completion_price_nanos=750_000, ttl_seconds=60,
        )  # fmt: skip
        settle = Settle(
            hold_id=hold.hold_id, customer_id=customer_id, entry_id=uuid7(), prompt_tokens=prompt,
            completion_tokens=tokens - prompt,
        )  # fmt: skip
        held = self.apply(hold)[0]
        if held.outcome != "done" or (held.completion_tokens or 0) < tokens - prompt:
            if held.outcome == "done":
                self.apply(Void(hold_id=hold.hold_id, customer_id=customer_id))
            return held.reason or "clamped"
        return self.apply(settle)[0].outcome

    def seal(self) -> None:
        """Put every entry under a signed checkpoint."""

        async def run() -> None:
            connection = await connect(self.database.url_as("darktree_sealer"))
            async with connection:
                log = await Log.open(connection, [LOG_KEY])
                while await log.seal():
                    pass
                await log.sign()

        asyncio.run(run())

    def customer_of(self, email: str) -> str:
        ((customer_id,),) = self.sql("SELECT customer_id FROM billing.member WHERE email = %s", email)
        return str(customer_id)


@pytest.fixture(scope="session")
def running_platform(
    make_database: Callable[[], Database], serving_context: Serving, gateway_token: str, billing_token: str
) -> Callable[[Path], AbstractContextManager[Platform]]:
    """Runs a platform on a fresh database for as long as a `with` lasts."""

    @contextmanager
    def run(folder: Path) -> Iterator[Platform]:
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
                key_pepper=SecretStr("a pepper that only the tests know"),
                plans_file=EXAMPLES / "plans.yaml",
                books_key_file=folder / "books-key",
                mail_file=folder / "mail",
                team_emails=TEAM,
                links_per_address=100_000,
            )
            url = stack.enter_context(serving_context(make_billing_app(settings)))
            yield Platform(database, serving_context, url, ledger_url, settings, stack)

    return run


@pytest.fixture(scope="module")
def platform(
    running_platform: Callable[[Path], AbstractContextManager[Platform]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Platform]:
    """A platform that a module's tests share: each signs up people of its own."""
    with running_platform(tmp_path_factory.mktemp("platform")) as running:
        yield running
