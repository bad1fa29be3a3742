"""Several copies of a platform's services behind fronts, as a cluster runs them, and customers with OpenAI's library.

A copy is one more process with the environment of the one that `darktree up` started. A front is what stands before
copies: TCP, in turn, and on to the next when one refuses the connection.
"""

import asyncio
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
from held_ports import free_port
from openai import AsyncOpenAI, OpenAIError

HOST = "127.0.0.1"
START_SECONDS = 90.0
STOP_SECONDS = 60.0
REQUEST_SECONDS = 120.0
POLL_SECONDS = 0.05
PIECE_BYTES = 65_536


class Front:
    """One address for several processes. It knows nothing of them but who refuses a connection."""

    def __init__(self) -> None:
        self.ports: list[int] = []
        self._turn = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        opening = asyncio.start_server(self._relay, HOST, 0)
        self._server = asyncio.run_coroutine_threadsafe(opening, self._loop).result(10)
        self.url = f"http://{HOST}:{self._server.sockets[0].getsockname()[1]}"

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    async def _close(self) -> None:
        self._server.close()
        relays = asyncio.all_tasks() - {asyncio.current_task()}
        for relay in relays:
            relay.cancel()
        await asyncio.gather(*relays, return_exceptions=True)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind = await self._connect()
        if behind is None:
            writer.transport.abort()
            return
        with suppress(asyncio.CancelledError):  # the front was closed
            await asyncio.gather(_copy(reader, behind[1]), _copy(behind[0], writer))

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        ports = list(self.ports)
        self._turn += 1
        for offset in range(len(ports)):
            with suppress(OSError):
                return await asyncio.open_connection(HOST, ports[(self._turn + offset) % len(ports)])
        return None


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while piece := await reader.read(PIECE_BYTES):
            writer.write(piece)
            await writer.drain()
        writer.close()
    except OSError:
        writer.transport.abort()


class Copy:
    """One process of a service, ready when this returns."""

    def __init__(
        self,
        environment: Mapping[str, str],
        service: str,
        log: Path,
        settings: Mapping[str, str | None],
        health: str = "/readyz",
    ) -> None:
        self.service = service
        self._health = health
        self.environment = dict(environment)
        self.port = free_port()
        prefix = f"DARKTREE_{service.upper()}_"
        given: dict[str, str | None] = {"HOST": HOST, "PORT": str(self.port), **settings}
        for name, value in given.items():
            self.environment.pop(prefix + name, None)
            if value is not None:
                self.environment[prefix + name] = value
        self.url = f"http://{HOST}:{self.port}"
        self.log = log
        module = {"sealer": "darktree_ledger.sealer"}.get(service, f"darktree_{service}")
        with log.open("ab") as sink:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", module], env=self.environment, stdout=sink, stderr=sink, cwd="/"
            )
        self._until_ready()

    def _until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            with suppress(httpx.HTTPError):
                if httpx.get(self.url + self._health, timeout=5).status_code == 200:
                    return
            assert self._popen.poll() is None, self.log.read_text()[-4_000:]
            assert time.monotonic() < deadline, (
                f"{self.service} is not ready: {self.log.read_text()[-4_000:]}"
            )
            time.sleep(POLL_SECONDS)

    def terminate(self) -> None:
        """SIGTERM, as Kubernetes asks a pod to go. Once everything is finished, uvicorn ends by the same signal."""
        self._popen.terminate()
        code = self._popen.wait(STOP_SECONDS)
        log = self.log.read_text()
        assert code in {0, -signal.SIGTERM}, f"ended with {code}: {log[-4_000:]}"
        assert "Finished server process" in log, log[-4_000:]

    def close(self) -> None:
        if self._popen.poll() is None:
            self._popen.kill()
            self._popen.wait()


class Fleet:
    """Copies of services before a platform's database and engines; each kind behind a front of its own."""

    def __init__(self, platform: Any) -> None:
        self.platform = platform
        self.fronts = {service: Front() for service in ("ledger", "billing", "gateway")}
        self.copies: dict[str, list[Copy]] = {service: [] for service in self.fronts}
        self._settings: dict[str, dict[str, str | None]] = {
            "ledger": {},
            "billing": {"LEDGER_URL": self.fronts["ledger"].url},
            "gateway": {
                "LEDGER_URL": self.fronts["ledger"].url,
                "BILLING_URL": self.fronts["billing"].url,
                "PRIVATE_PORT": "0",
                "SHARED_PORT": "false",
            },
        }
        self._numbers = iter(range(1, 10_000))

    @property
    def base_url(self) -> str:
        return self.fronts["gateway"].url + "/v1"

    def add(self, service: str, **settings: str | None) -> Copy:
        """Start a copy and put it behind its front. Settings stay for the copies after it; None unsets one."""
        self._settings[service] |= settings
        name = "gateway-1" if service == "gateway" else service
        running = self.platform.process(name)
        number = next(self._numbers)
        chosen = dict(self._settings[service])
        if service == "gateway":
            chosen |= {"JOURNAL_DIR": str(self.platform.data_dir / "fleet-journal")}
        log = self.platform.data_dir / "logs" / f"{service}-copy-{number}.log"
        copy = Copy(running.environ(), service, log, chosen)
        self.copies[service].append(copy)
        self.fronts[service].ports.append(copy.port)
        return copy

    def replace(self, service: str, **settings: str | None) -> None:
        """Start a new copy, then ask the oldest to go: what a rolling update without surge to spare does."""
        self.add(service, **settings)
        oldest = self.copies[service].pop(0)
        oldest.terminate()
        self.fronts[service].ports.remove(oldest.port)

    def close(self) -> None:
        for front in self.fronts.values():
            front.close()
        for copies in self.copies.values():
            for copy in copies:
                copy.close()


@contextmanager
def fleet_of(platform: Any, *, gateways: int, ledgers: int = 1) -> Iterator[Fleet]:
    """Run copies of a platform's services for as long as a `with` lasts."""
    fleet = Fleet(platform)
    try:
        for _ in range(ledgers):
            fleet.add("ledger")
        fleet.add("billing")
        for _ in range(gateways):
            fleet.add("gateway")
        yield fleet
    finally:
        fleet.close()


@dataclass(frozen=True)
class Served:
    """A whole answer, as a client of OpenAI's library got it."""

    customer_id: str
    request_id: str
    usage: tuple[int, int]
    retries: int
    begun_at: float
    ended_at: float
    whole: bool = True

    @property
    def hold_id(self) -> uuid.UUID:
        return uuid.UUID(hex=self.request_id.removeprefix("req_"))


@dataclass
class Traffic:
    """Clients that ask again and again until the `with` ends. They retry what OpenAI's library retries by itself."""

    base_url: str
    customers: list[Any]
    clients: int
    make: Callable[[int], dict[str, Any]]
    served: list[Served] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    _ended: bool = False
    _tasks: list["asyncio.Task[None]"] = field(default_factory=list)

    async def __aenter__(self) -> "Traffic":
        for number in range(self.clients):
            self._tasks.append(asyncio.create_task(self._use(number)))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._ended = True
        await asyncio.gather(*self._tasks)

    async def during(self, work: Callable[[], Any], answers: int = 20) -> Any:
        """Do something that blocks while some more answers come before it and after it."""
        await self.until(answers)
        done = await asyncio.to_thread(work)
        await self.until(answers)
        return done

    async def until(self, answers: int) -> None:
        """Wait for so many more whole answers."""
        wanted = len(self.served) + answers
        async with asyncio.timeout(REQUEST_SECONDS):
            while len(self.served) < wanted:
                await asyncio.sleep(POLL_SECONDS)

    async def _use(self, number: int) -> None:
        customer = self.customers[number % len(self.customers)]
        async with AsyncOpenAI(
            base_url=self.base_url, api_key=customer.key, timeout=REQUEST_SECONDS
        ) as client:
            count = 0
            while not self._ended:
                count += 1
                try:
                    self.served.append(await self._ask(client, customer.id, self.make(number + count)))
                except (OpenAIError, httpx.HTTPError) as error:
                    code = getattr(error, "code", None)
                    self.failures.append(f"{type(error).__name__}: {code}: {error}")

    async def _ask(self, client: AsyncOpenAI, customer_id: str, body: dict[str, Any]) -> Served:
        begun_at = self.now()
        raw = await client.chat.completions.with_raw_response.create(**body)
        request_id, usage = raw.headers["x-request-id"], None
        if body.get("stream"):
            finished = False
            async for chunk in raw.parse():
                usage = chunk.usage or usage
                finished |= any(choice.finish_reason for choice in chunk.choices)
            assert finished, f"{request_id}: the stream ended without a finish reason"
        else:
            usage = raw.parse().usage
        assert usage is not None, f"{request_id}: no usage"
        used = (usage.prompt_tokens, usage.completion_tokens)
        return Served(customer_id, request_id, used, raw.retries_taken, begun_at, self.now())

    @staticmethod
    def now() -> float:
        return time.monotonic()

    async def until_one_begun_after(self, moment: float) -> None:
        """Wait for a whole answer to a request that was sent after a moment."""
        async with asyncio.timeout(REQUEST_SECONDS):
            while not any(served.begun_at > moment for served in self.served):
                await asyncio.sleep(POLL_SECONDS)

    def longest_pause(self) -> float:
        """Return the longest time without any whole answer."""
        ends = sorted(served.ended_at for served in self.served)
        return max((later - earlier for earlier, later in pairwise(ends)), default=0.0)

    def summary(self) -> str:
        retried = Counter(served.retries for served in self.served)
        longest = max((served.ended_at - served.begun_at for served in self.served), default=0.0)
        return (
            f"{len(self.served)} answers, {len(self.failures)} failures, retries {dict(sorted(retried.items()))}, "
            f"the longest took {longest:.1f} s"
        )
