"""A whole platform in processes of its own, what its customers send it, and what its ledger must then say.

Everything is seen from outside: over HTTP as customers and administrators do, and by SQL on the database itself.
"""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import aiohttp
import httpx
import psutil
import psycopg
import pytest
from aiohttp import web
from asking import Answer, Customer, ask
from psycopg.rows import dict_row

DARKTREE = Path(sys.executable).with_name("darktree")
START_SECONDS = 240
STOP_SECONDS = 60
RECOVERY_SECONDS = 60
WORK_SECONDS = 180
HOST = "127.0.0.1"
MODELS = {"fast": "qwen25-14b-awq", "slow": "qwen25-32b-awq"}  # as the example plans price them
LANE = """
apiVersion: darktree.dev/v1alpha1
kind: InferenceLane
metadata:
  name: {name}
  annotations: {{darktree.dev/simulated-tokens-per-second: "{speed}"}}
spec:
  tier: Standard
  model: {{servedName: {model}}}
  engine: {{kind: VLLM, contextLength: 32768}}
"""

T = TypeVar("T")
Place = tuple[str, str]  # a customer, and a kind of operation


def wait_until(true: Callable[[], T], what: str, seconds: float = RECOVERY_SECONDS) -> T:
    """Return the first true value of a condition, asked until a deadline."""
    deadline = time.monotonic() + seconds
    while not (value := true()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.05)
    return value


@dataclass
class Platform:
    """A running `darktree up`."""

    data_dir: Path
    ready: Mapping[str, str]
    numbers: Iterator[int] = field(default_factory=lambda: iter(range(1, 10_000)))

    @property
    def base_url(self) -> str:
        return self.ready["base_url"]

    @property
    def processes(self) -> dict[str, dict[str, Any]]:
        record: dict[str, Any] = json.loads((self.data_dir / "platform.json").read_text())
        found: dict[str, dict[str, Any]] = record["processes"]
        return found

    @property
    def gateways(self) -> list[str]:
        return sorted(name for name in self.processes if name.startswith("gateway-"))

    def process(self, name: str) -> psutil.Process | None:
        """Return a process while it lives; never another one that got its number later."""
        record = self.processes[name]
        with suppress(psutil.NoSuchProcess):
            found = psutil.Process(record["pid"])
            if abs(found.create_time() - record["started"]) < 1 and found.status() != psutil.STATUS_ZOMBIE:
                return found
        return None

    def kill(self, name: str) -> bool:
        """kill -9; say whether it was alive."""
        with suppress(psutil.NoSuchProcess):  # it ended this moment
            if (found := self.process(name)) is not None:
                found.send_signal(signal.SIGKILL)
                return True
        return False

    def answers(self, name: str) -> bool:
        """Say whether a process runs and is ready."""
        if self.process(name) is None:
            return False
        try:
            if name == "postgres":
                return bool(self.sql("SELECT 1 AS one"))
            path = "/health" if name.startswith("lane-") else "/readyz"
            return httpx.get(self.processes[name]["url"] + path, timeout=5).status_code == 200
        except (httpx.HTTPError, psycopg.Error):
            return False

    def until_back(self, *names: str) -> None:
        """Wait until these, or all, answer."""
        for name in names or self.processes:
            wait_until(lambda name=name: self.answers(name), f"{name} is back")  # type: ignore[misc]

    def admin(self, method: str, path: str, **body: Any) -> Any:
        """Call billing as an administrator."""
        headers = {"Authorization": f"Bearer {self.ready['admin_token']}"}
        url = self.ready["admin_url"] + "/admin" + path
        answer = httpx.request(method, url, headers=headers, json=body or None, timeout=60)
        assert answer.status_code < 300, f"{method} {path}: {answer.text}"
        return answer.json()

    def customer(self, cap_tokens: int, dollars: str = "100") -> Customer:
        """Make a customer with a key, a cap and a balance."""
        name = f"customer-{next(self.numbers)}"
        self.admin("POST", "/customers", id=name, name=name, plan="solo")
        self.admin("PUT", f"/customers/{name}/cap", cap_tokens=cap_tokens)
        grant = self.admin("POST", f"/customers/{name}/grants", dollars=dollars, reason="for a test")
        key = self.admin("POST", f"/customers/{name}/keys", name="test")["key"]
        return Customer(name, key, cap_tokens, grant["amount_nanos"])

    def account(self, customer: Customer) -> Any:
        return self.admin("GET", f"/customers/{customer.id}/balance")

    def sql(self, query: str, *values: Any) -> list[dict[str, Any]]:
        with (
            psycopg.connect(self.ready["database_url"], connect_timeout=5, row_factory=dict_row) as session,
            session.cursor() as cursor,
        ):
            return cursor.execute(query.encode(), values).fetchall()

    def entries(self, customer: Customer) -> list[dict[str, Any]]:
        """Return a customer's charges, oldest first, straight from the table."""
        return self.sql(
            "SELECT * FROM ledger.entry WHERE customer_id = %s AND kind <> 'grant' ORDER BY seq", customer.id
        )

    def charged(self, answer: Answer) -> list[tuple[str, int, int]]:
        """Return (kind, prompt tokens, completion tokens) of every entry of one request."""
        rows = self.sql("SELECT * FROM ledger.entry WHERE hold_id = %s ORDER BY seq", answer.hold_id)
        return [(row["kind"], row["prompt_tokens"], row["completion_tokens"]) for row in rows]

    def day_tokens(self, customer: Customer) -> int:
        rows = self.sql(
            "SELECT prompt_tokens + completion_tokens AS tokens FROM ledger.day_usage WHERE customer_id = %s",
            customer.id,
        )
        return sum(row["tokens"] for row in rows)

    def open_holds(self, customers: Iterable[Customer]) -> int:
        """Return how many holds nobody has resolved, having let the ledger look at each customer once."""
        for customer in customers:
            with suppress(httpx.HTTPError):
                headers = {"Authorization": f"Bearer {customer.key}"}
                httpx.get(self.base_url + "/models", headers=headers, timeout=5)
        (row,) = self.sql(
            "SELECT count(*) AS holds FROM ledger.hold WHERE state = 'open' AND customer_id = ANY (%s)",
            [customer.id for customer in customers],
        )
        return int(row["holds"])

    def journals(self) -> list[Path]:
        return sorted((self.data_dir / "journal").glob("*.journal.jsonl"))

    def dead_letters(self) -> str:
        file = self.data_dir / "journal" / "dead-letter.jsonl"
        return file.read_text() if file.exists() else ""

    def engine_tokens(self) -> Counter[str]:
        """Return what the engines of all lanes have counted, by kind, since they started."""
        counted: Counter[str] = Counter()
        for name, record in self.processes.items():
            if name.startswith("lane-"):
                counted += self.counters(record["url"], prompt="vllm:prompt_tokens_total",
                                         completion="vllm:generation_tokens_total")  # fmt: skip
        return counted

    def requests_served(self) -> dict[str, int]:
        """Return how many answers each gateway has given with a 200."""
        served = r'darktree_http_requests_total{[^}]*status="200"'
        return {
            name: self.counters(self.processes[name]["url"], requests=served)["requests"]
            for name in self.gateways
        }

    @staticmethod
    def counters(url: str, **patterns: str) -> Counter[str]:
        text = httpx.get(url + "/metrics", timeout=10).text
        return Counter(
            {
                name: int(sum(map(float, re.findall(rf"^{pattern}[^ ]* (\S+)", text, re.MULTILINE))))
                for name, pattern in patterns.items()
            }
        )

    def check_by_command(self) -> Any:
        """Return what `darktree ledger check` says."""
        command = [str(DARKTREE), "ledger", "check", "--data-dir", str(self.data_dir), "--output", "json"]
        ran = subprocess.run(command, env=_environment(), capture_output=True, text=True, timeout=60)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return json.loads(ran.stdout)

    def must_add_up(self, customers: Iterable[Customer], answers: Iterable[Answer]) -> None:
        """Check, once everything is quiet, all that the platform promises about money."""
        customers, answers = list(customers), list(answers)
        wait_until(lambda: not self.open_holds(customers), "every hold is resolved")
        wait_until(lambda: not self.journals(), "every journal is replayed")
        assert self.dead_letters() == ""
        assert self.admin("POST", "/ledger/check")["problems"] == []
        entries: dict[uuid.UUID, list[dict[str, Any]]] = {}
        for customer in customers:
            rows = self.entries(customer)
            for row in rows:
                entries.setdefault(row["hold_id"], []).append(row)
            self._must_be_within_limits(customer, rows)
            self._must_be_one_chain(customer)
        for rows in entries.values():
            assert max(Counter(row["kind"] for row in rows).values()) == 1, f"charged twice: {rows}"
        for answer in answers:
            if answer.whole:
                rows = entries.get(answer.hold_id, [])
                recorded = (
                    sum(row["prompt_tokens"] for row in rows),
                    sum(row["completion_tokens"] for row in rows),
                )
                assert recorded == answer.usage, f"{answer} is recorded as {rows}"

    def _must_be_within_limits(self, customer: Customer, rows: list[dict[str, Any]]) -> None:
        charges = [row for row in rows if row["kind"] == "usage"]
        tokens: Counter[Any] = Counter()
        for row in charges:
            tokens[row["usage_day"]] += row["prompt_tokens"] + row["completion_tokens"]
        amount_nanos = sum(row["amount_nanos"] for row in charges)
        assert self.day_tokens(customer) == tokens.total()
        assert max(tokens.values(), default=0) <= customer.cap_tokens
        account = self.account(customer)
        assert account["balance_nanos"] == customer.granted_nanos - amount_nanos >= 0
        assert (account["held_nanos"], account["day_held_tokens"], account["open_holds"]) == (0, 0, 0)

    def _must_be_one_chain(self, customer: Customer) -> None:
        rows = self.sql("SELECT * FROM ledger.entry WHERE customer_id = %s ORDER BY seq", customer.id)
        (account,) = self.sql("SELECT * FROM ledger.account WHERE customer_id = %s", customer.id)
        assert [row["seq"] for row in rows] == list(range(1, account["seq"] + 1))
        links = [row["hash"] for row in rows]
        assert [row["prev_hash"] for row in rows[1:]] == links[:-1]
        assert account["head"] == links[-1]


def _environment(**added: str) -> dict[str, str]:
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("DARKTREE_", "DATABASE_"))
    }
    return kept | added


@contextmanager
def _started(speeds: Mapping[str, int], gateways: int, **settings: str) -> Iterator[Platform]:
    """Run a platform with one lane a model, at these speeds."""
    with TemporaryDirectory(prefix="dt-") as made:
        folder = Path(made)
        (folder / "lanes").mkdir()
        for name, speed in speeds.items():
            document = LANE.format(name=name, speed=speed, model=MODELS[name])
            (folder / "lanes" / f"{name}.yaml").write_text(document)
        words = ["--port", "0", "--ready-file", "ready.json", "--lanes", "lanes", "--gateways", str(gateways)]
        with (folder / "err").open("wb") as err:
            popen = subprocess.Popen(
                [DARKTREE, "up", "--data-dir", "data", *words],
                cwd=folder,
                env=_environment(**settings),
                stdout=subprocess.DEVNULL,
                stderr=err,
            )
        try:
            ready = folder / "ready.json"
            wait_until(lambda: ready.exists() or popen.poll() is not None, "it is ready", START_SECONDS)
            assert popen.poll() is None, (folder / "err").read_text()
            yield Platform(folder / "data", json.loads(ready.read_text()))
        finally:
            _stop(popen)
            print((folder / "err").read_text())  # what the supervisor said, beside a failure


def _stop(popen: subprocess.Popen[bytes]) -> None:
    popen.send_signal(signal.SIGINT)
    try:
        popen.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        popen.kill()
        popen.wait()


class Background:
    """An event loop in a thread: requests and connections that go on while a test looks and kills."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def start(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.start(work).result(WORK_SECONDS)

    def close(self) -> None:
        self.run(self._end_all())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()

    async def _end_all(self) -> None:
        """What is left unfinished would speak up in whichever test runs when it is collected."""
        unfinished = asyncio.all_tasks() - {asyncio.current_task()}
        for task in unfinished:
            task.cancel()
        await asyncio.wait_for(asyncio.gather(*unfinished, return_exceptions=True), 10)


class Wire:
    """Between one gateway and the ledger: stops a customer's operation before it is sent, or its answer after.

    What is stopped stays so until `let_go`; while `cut`, nobody answers at all.
    """

    def __init__(self, background: Background, ledger_url: str) -> None:
        self.cut = False
        self._background = background
        self._ledger_url = ledger_url
        self._stops: dict[Place, str] = {}
        self._stopped: dict[Place, asyncio.Event] = {}
        self._released: set[Place] = set()
        self.url = background.run(self._open())

    def stop(self, customer: Customer, operation: str, when: str) -> None:
        """Stop a customer's next operation of a kind: `unsent`, or sent and `unheard`."""
        self._stops[customer.id, operation] = when

    def until_stopped(self, customer: Customer, operation: str) -> None:
        wait_until(lambda: (customer.id, operation) in self._stopped, f"{operation} is stopped")

    def release(self, customer: Customer, operation: str) -> None:
        """Let one that is stopped go on to the ledger."""
        self._released.add((customer.id, operation))
        self._background.loop.call_soon_threadsafe(self._stopped[customer.id, operation].set)

    def let_go(self, *, forward: bool = False) -> None:
        """Break the stopped calls, as when the ledger dies; `forward` those that it has not seen."""
        if forward:
            self._released |= self._stopped.keys()
        for event in self._stopped.values():
            self._background.loop.call_soon_threadsafe(event.set)

    def close(self) -> None:
        self._background.run(self._close())

    async def _open(self) -> str:
        self._session = aiohttp.ClientSession()
        application = web.Application(client_max_size=2**24)
        application.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, HOST, 0)
        await site.start()
        return f"http://{HOST}:{self._runner.addresses[0][1]}"

    async def _close(self) -> None:
        for event in self._stopped.values():
            event.set()
        await self._session.close()
        await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.Response:
        content = await request.read()
        place = self._place_to_stop(content) if request.path == "/v1/operations" else None
        when = self._stops.pop(place, "") if place is not None else ""
        if place is not None and when == "unsent":
            await self._wait(place)
            if place not in self._released:
                return self._broken(request)
        try:
            answer = await self._forward(request, content)
        except (aiohttp.ClientError, OSError):
            return self._broken(request)
        if place is not None and when == "unheard":
            await self._wait(place)
            return self._broken(request)
        return self._broken(request) if self.cut else answer

    def _place_to_stop(self, content: bytes) -> Place | None:
        places = ((operation["customer_id"], operation["op"]) for operation in json.loads(content))
        return next((place for place in places if place in self._stops), None)

    async def _wait(self, place: Place) -> None:
        event = self._stopped[place] = asyncio.Event()
        await event.wait()

    async def _forward(self, request: web.Request, content: bytes) -> web.Response:
        if self.cut:
            raise OSError("cut")
        headers = {
            name: value
            for name, value in request.headers.items()
            if name in {"Authorization", "Content-Type"}
        }
        url = self._ledger_url + request.path_qs
        async with self._session.request(request.method, url, data=content, headers=headers) as answer:
            body = await answer.read()
            return web.Response(body=body, status=answer.status, content_type="application/json")

    @staticmethod
    def _broken(request: web.Request) -> web.Response:
        if request.transport is not None:
            request.transport.abort()
        return web.Response(status=500)


class Gateway:
    """One more gateway of a platform, behind a wire to the ledger, that the test starts and kills itself."""

    def __init__(self, platform: Platform, wire: Wire, journal_dir: Path) -> None:
        self.wire = wire
        self.journal_dir = journal_dir
        self._port = socket.socket()  # bound, not listening: nobody else is given the number
        self._port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._port.bind((HOST, 0))
        self._url = f"http://{HOST}:{self._port.getsockname()[1]}"
        self.base_url = self._url + "/v1"
        self._log = platform.data_dir / "logs" / f"gateway-at-{self._port.getsockname()[1]}.log"
        first = platform.process("gateway-1")
        assert first is not None
        self._env = first.environ() | {
            "DARKTREE_GATEWAY_LEDGER_URL": wire.url,
            "DARKTREE_GATEWAY_JOURNAL_DIR": str(journal_dir),
            "DARKTREE_GATEWAY_PORT": str(self._port.getsockname()[1]),
            "DARKTREE_GATEWAY_PRIVATE_PORT": "0",
            "DARKTREE_GATEWAY_SHARED_PORT": "false",
        }
        self._popen: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "darktree_gateway"]
        with self._log.open("ab") as log:
            self._popen = subprocess.Popen(command, env=self._env, stdout=log, stderr=log)

    def kill(self) -> None:
        """kill -9."""
        assert self._popen is not None
        self._popen.kill()
        self._popen.wait()

    def is_ready(self) -> bool:
        try:
            return httpx.get(self._url + "/readyz", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def until_quiet(self) -> None:
        """Wait until it is ready and has nothing left to tell the ledger."""
        wait_until(
            lambda: self.is_ready() and not self.journals(), "the gateway is ready and its journal empty"
        )

    def journals(self) -> list[Path]:
        return sorted(self.journal_dir.glob("*.journal.jsonl"))

    def journalled(self) -> bytes:
        return b"".join(file.read_bytes() for file in self.journals())

    def close(self) -> None:
        self.kill()
        self._port.close()


@pytest.fixture(scope="session")
def eventually() -> Callable[..., Any]:
    """Waits for something to be true, with a deadline, and returns it."""
    return wait_until


@pytest.fixture(scope="session")
def send() -> Callable[..., Coroutine[Any, Any, Answer]]:
    """Sends one request: `await send(session, base_url, customer, body)`."""
    return ask


@pytest.fixture(scope="session")
def started() -> Callable[..., Any]:
    """Runs a platform for as long as a `with` lasts: `started({"fast": 2000, "slow": 20}, gateways=2)`."""
    return _started


@pytest.fixture(scope="module")
def background() -> Iterator[Background]:
    made = Background()
    yield made
    made.close()


@pytest.fixture(scope="module")
def add_gateway(background: Background) -> Iterator[Callable[[Platform, Path], Gateway]]:
    """Starts one more gateway with a journal in this folder; it ends with the module."""
    with ExitStack() as stack:

        def add(platform: Platform, journal_dir: Path) -> Gateway:
            wire = Wire(background, platform.processes["ledger"]["url"])
            stack.callback(wire.close)
            gateway = Gateway(platform, wire, journal_dir)
            stack.callback(gateway.close)
            return gateway

        yield add
