"""Gateways, a network that loses, repeats, tears, delays and reorders, crashes of everything, and a clock that steps.

The gateways' own client, metering and journal, the real service and a real Postgres: only the network between them is
made up, and it obeys a seed. Every few operations something happens; after all of it not a completed request is without
its entry, none has two, and nobody was ever past a cap or a balance. A failure shows the seed: run it again with it in
SIMULATION_SEED.
"""

import asyncio
import os
import re
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import AsyncConnection

from darktree_gateway.errors import MeteringUnavailable
from darktree_gateway.journal import DEAD_LETTER_NAME
from darktree_gateway.metering import Held, Metering
from darktree_kit import notes
from darktree_kit.db import connect
from darktree_kit.ids import uuid7
from darktree_ledger import merkle
from darktree_ledger.checkpoints import open_checkpoint
from darktree_ledger.client import LedgerClient
from darktree_ledger.schemas import Hold, Renew, Show
from darktree_ledger.sealing import Log, take_lock

OPERATIONS = 10_000
GATEWAYS = 4
WORKERS = 12  # requests at once, of each gateway
CUSTOMERS = [f"customer-{number}" for number in range(6)]
OPERATIONS_BETWEEN_EVENTS = 60
FATES = {"deliver": 84, "lose": 3, "lose the answer": 4, "tear the answer": 2, "repeat": 4, "delay": 3}
KEY = notes.make_signer("darktree.dev/ledger/test")

Service = Callable[[Any], AbstractContextManager[str]]


class Network:
    """What is between one gateway and the ledger. What it delays arrives after later requests, answered to nobody."""

    def __init__(self, random: Random) -> None:
        self.url_of_service: str | None = None  # None while the service is away
        self.calm = False
        self.fates: Counter[str] = Counter()
        self._random = random
        self._delayed: list[bytes] = []

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        async with server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def deliver_delayed(self) -> None:
        while self._delayed:
            await self._ask(self._delayed.pop(self._random.randrange(len(self._delayed))))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                request = await _message(reader)
                fate = "deliver" if self.calm else self._random.choices(list(FATES), list(FATES.values()))[0]
                self.fates[fate] += 1
                if fate == "delay":
                    self._delayed.append(request)
                if fate in {"delay", "lose"}:
                    break
                times = 2 if fate == "repeat" else 1
                answer, *_ = await asyncio.gather(*(self._ask(request) for _ in range(times)))
                if self._random.random() < 0.5:
                    await self.deliver_delayed()
                if fate == "tear the answer":
                    writer.write(answer[: self._random.randrange(len(answer))])
                if fate in {"lose the answer", "tear the answer"}:
                    break
                writer.write(answer)
        except (OSError, asyncio.IncompleteReadError):
            pass  # either end is gone
        finally:
            writer.close()

    async def _ask(self, request: bytes) -> bytes:
        if self.url_of_service is None:
            raise ConnectionRefusedError
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", int(self.url_of_service.rpartition(":")[2])
        )
        try:
            writer.write(request)
            return await _message(reader)
        finally:
            writer.close()


async def _message(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: *(\d+)", head)
    assert length is not None
    return head + await reader.readexactly(int(length[1]))


@dataclass
class Gateway:
    """A gateway's ledger side, and the requests that it serves."""

    metering: Metering
    client: LedgerClient
    replaying: asyncio.Lock = field(default_factory=asyncio.Lock)
    workers: list[asyncio.Task[None]] = field(default_factory=list)

    async def die(self) -> None:
        """Stop between any two steps, and leave behind what is on disk. Its locks go, as a process' do."""
        while tasks := [
            task
            for task in [*self.workers, *self.metering._tasks, self.client._sender]
            if task is not None and not task.done()
        ]:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for journal in self.metering._journals.values():
            await journal.close()


class Simulation:
    """Everything there is, and what is known of it from outside."""

    def __init__(self, seed: int, database: Any, service: Service, ledger: Any, folder: Path) -> None:
        self.random = Random(seed)
        self.database, self.service, self.ledger, self.folder = database, service, ledger, folder
        self.networks = [Network(Random(f"{seed}/{number}")) for number in range(GATEWAYS)]
        self.gateways: list[Gateway] = []
        self.completed: dict[UUID, tuple[int, int]] = {}
        self.operations = self._target = 0
        self._reached = asyncio.Event()
        self.outcomes: Counter[str] = Counter()
        self.highest_cap = dict.fromkeys(CUSTOMERS, 0)
        self.offset_seconds = 0
        self.checkpoints: list[tuple[int, bytes]] = []
        self._served: AbstractContextManager[str] | None = None
        self._connection: AsyncConnection[Any] | None = None
        self._log: Log | None = None

    async def start_service(self) -> None:
        self._served = self.service(self.database)
        url = await asyncio.to_thread(self._served.__enter__)
        for network in self.networks:
            network.url_of_service = url

    async def stop_service(self) -> None:
        for network in self.networks:
            network.url_of_service = None
        assert self._served is not None
        await asyncio.to_thread(self._served.__exit__, None, None, None)

    def start_gateway(self, number: int, url: str, token: str) -> None:
        client = LedgerClient(url, token)
        metering = Metering(client, self.folder, ttl_seconds=60, request_seconds=600)
        gateway = Gateway(metering, client)
        self.gateways[number : number + 1] = [gateway]
        for worker in range(WORKERS):
            random = Random(f"{self.random.random()}/{number}/{worker}")
            gateway.workers.append(asyncio.create_task(self._work(gateway, random)))

    async def _work(self, gateway: Gateway, random: Random) -> None:
        while self.operations < OPERATIONS:
            try:
                await self._request(gateway, random)
            except MeteringUnavailable:
                self.outcomes["unavailable"] += 1
                async with gateway.replaying:
                    await gateway.metering.replay()

    async def _request(self, gateway: Gateway, random: Random) -> None:
        """Serve one request as the gateway does: hold, perhaps renew, and settle or void."""
        metering, customer_id = gateway.metering, random.choice(CUSTOMERS)
        metering.check_open(customer_id)
        placed = Hold(
            hold_id=uuid7(), customer_id=customer_id, key_id="key", model="m", lane="standard",
            prompt_tokens=random.randrange(1, 50), completion_tokens=random.randrange(1, 50),
            exact=random.random() < 0.8, prompt_price_nanos=3, completion_price_nanos=7, ttl_seconds=60,
        )  # fmt: skip
        granted = await metering.hold(placed)
        self._count()  # not while the ledger is away: nothing would be left to do when it is back
        self.outcomes[granted.reason or granted.outcome] += 1
        if granted.outcome != "done":
            return
        held = Held(placed.hold_id, uuid7(), customer_id, "standard", since=0, renewed_at=0)
        if random.random() < 0.1:
            self._count()
            renewal = Renew(hold_id=placed.hold_id, customer_id=customer_id, ttl_seconds=60)
            await asyncio.gather(gateway.client.apply(renewal), return_exceptions=True)
        self._count()
        if random.random() < 0.1:
            await metering.void(held)
            return
        assert granted.completion_tokens is not None
        used = random.randrange(placed.prompt_tokens + 1), random.randrange(granted.completion_tokens + 3)
        await metering.settle(held, *used, "completed")
        self.completed[placed.hold_id] = used

    def _count(self) -> None:
        self.operations += 1
        if self.operations >= self._target:
            self._reached.set()

    async def reach(self, operations: int) -> None:
        """Wait until there were so many operations, or a worker broke."""
        self._target, self._reached = operations, asyncio.Event()
        reached = asyncio.create_task(self._reached.wait())
        workers = [task for gateway in self.gateways for task in gateway.workers]
        done, _ = await asyncio.wait([reached, *workers], return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    async def seal(self) -> None:
        """What the sealer does, from the beginning when its connection was killed."""
        try:
            if self._log is None:
                self._connection = await connect(self.database.url_as("darktree_sealer"))
                if not await take_lock(self._connection):
                    return  # the server is still ending the session before
                self._log = await Log.open(self._connection, [KEY])
            await self._log.seal(self.random.choice([1, 100, 5_000]))
            if await self._log.sign():
                assert self._log.note is not None
                checkpoint = open_checkpoint(self._log.note, [KEY.verifier])
                self.checkpoints.append((checkpoint.size, checkpoint.root))
        except psycopg.Error:
            self._log = None

    def step_the_clock(self, seconds: int) -> None:
        self.offset_seconds += seconds
        self.ledger.set_clock(f"clock_timestamp() + interval '{self.offset_seconds} seconds'")

    def nobody_is_past_a_cap_or_a_balance(self) -> None:
        rows = self.ledger.admin.execute(
            """SELECT customer_id, balance_nanos, held_nanos, coalesce(max(prompt_tokens + completion_tokens), 0),
                      coalesce(max(prompt_tokens + completion_tokens + held_tokens), 0)
               FROM ledger.account LEFT JOIN ledger.day_usage USING (customer_id)
               WHERE customer_id <> '_house' GROUP BY 1"""
        )
        for customer_id, balance, held, used, used_and_held in rows.fetchall():
            assert 0 <= held <= balance
            assert used <= used_and_held <= self.highest_cap[customer_id]

    def administer(self, build: Any) -> None:
        customer_id = self.random.choice(CUSTOMERS)
        cap_tokens = self.random.randrange(1_000, 30_000)
        self.highest_cap[customer_id] = max(self.highest_cap[customer_id], cap_tokens)
        self.ledger.apply(
            build.cap(customer_id, cap_tokens), build.grant(customer_id, self.random.randrange(1, 100_000))
        )

    async def sealed_once(self) -> None:
        entries = self.ledger.value("SELECT sum(seq) FROM ledger.account")
        while self.ledger.value("SELECT count(*) FROM ledger.sealed") < entries:
            await self.seal()
        rows = self.ledger.admin.execute(
            """SELECT s.position, s.hash, e.hash FROM ledger.sealed s
               FULL JOIN ledger.entry e USING (customer_id, seq) ORDER BY 1"""
        ).fetchall()
        assert [row[0] for row in rows] == list(range(len(rows)))
        assert all(row[1] == row[2] for row in rows)
        for size, root in self.checkpoints:
            assert merkle.root([row[1] for row in rows[:size]]) == root
        if self._connection is not None:
            await self._connection.close()


@pytest.mark.timeout(600)
async def test_whatever_is_lost_repeated_delayed_or_killed_every_charge_is_made_once(
    database: Any, ledger: Any, build: Any, make_ledger_service: Service, tmp_path: Path,
    gateway_token: str, billing_token: str,
) -> None:  # fmt: skip
    seed = int(os.environ.get("SIMULATION_SEED") or secrets.randbits(32))
    print(f"SIMULATION_SEED={seed}")
    simulation = Simulation(seed, database, make_ledger_service, ledger, tmp_path)
    for customer_id in CUSTOMERS:
        ledger.customer(customer_id, cap_tokens=0, dollars=0)
        simulation.administer(build)
    await simulation.start_service()
    async with AsyncExitStack() as stack:
        urls = [await stack.enter_async_context(network.opened()) for network in simulation.networks]
        for number, url in enumerate(urls):
            simulation.start_gateway(number, url, gateway_token)
        await go_through_everything(simulation, build, urls, gateway_token)
        await settle_down(simulation)
        assert simulation.networks[0].url_of_service is not None
        billing = LedgerClient(simulation.networks[0].url_of_service, billing_token)
        simulation.step_the_clock(86_400)
        for customer_id in CUSTOMERS:
            await billing.apply(Show(customer_id=customer_id))
        report = await billing.check()
        await billing.close()
    await simulation.stop_service()
    print(simulation.operations, simulation.outcomes, sum((n.fates for n in simulation.networks), Counter()))
    assert simulation.operations >= OPERATIONS
    assert (report.problems, report.open_holds) == ([], 0)
    each_completed_request_is_charged_once(simulation)
    simulation.nobody_is_past_a_cap_or_a_balance()
    await simulation.sealed_once()
    assert not (tmp_path / DEAD_LETTER_NAME).exists()


async def go_through_everything(simulation: Simulation, build: Any, urls: list[str], token: str) -> None:
    async def a_gateway_is_killed() -> None:
        number = simulation.random.randrange(GATEWAYS)
        await simulation.gateways[number].die()
        simulation.start_gateway(number, urls[number], token)

    async def the_service_is_restarted() -> None:
        await simulation.stop_service()
        await simulation.start_service()

    async def the_databases_connections_are_killed() -> None:
        simulation.ledger.admin.execute(
            """SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()
               AND usename IN ('darktree_ledger', 'darktree_sealer') AND pid <> %s""",
            [simulation.ledger.runtime.info.backend_pid],
        )

    async def the_clock_steps() -> None:
        simulation.step_the_clock(simulation.random.choice([-600, -5, 5, 61, 600, 30_000]))

    async def billing_does_something() -> None:
        simulation.administer(build)

    events: dict[Callable[[], Awaitable[None]], int] = {
        a_gateway_is_killed: 3,
        the_service_is_restarted: 1,
        the_databases_connections_are_killed: 2,
        the_clock_steps: 4,
        billing_does_something: 6,
        simulation.seal: 6,
    }
    while simulation.operations < OPERATIONS:
        await simulation.reach(min(simulation.operations + OPERATIONS_BETWEEN_EVENTS, OPERATIONS))
        [event] = simulation.random.choices(list(events), list(events.values()))
        simulation.outcomes[event.__name__] += 1
        await event()
        simulation.nobody_is_past_a_cap_or_a_balance()


async def settle_down(simulation: Simulation) -> None:
    """Let everything that still waits arrive, and replay what is in the journals."""
    await asyncio.gather(*(task for gateway in simulation.gateways for task in gateway.workers))
    for network in simulation.networks:
        network.calm = True
        await network.deliver_delayed()
    for gateway in simulation.gateways:
        await gateway.metering.close()
        await gateway.client.close()


def each_completed_request_is_charged_once(simulation: Simulation) -> None:
    rows = simulation.ledger.admin.execute(
        """SELECT hold_id, count(*) FILTER (WHERE kind = 'usage'), count(*) FILTER (WHERE kind = 'absorbed'),
                  sum(prompt_tokens)::int, sum(completion_tokens)::int
           FROM ledger.entry WHERE hold_id IS NOT NULL GROUP BY 1"""
    )
    charged = {row[0]: row[1:] for row in rows.fetchall()}
    assert len(simulation.completed) > OPERATIONS // 10
    for hold_id, used in simulation.completed.items():
        usages, absorbed, *tokens = charged.get(hold_id, (0, 0, 0, 0))
        assert (usages <= 1, absorbed <= 1, tuple(tokens)) == (True, True, used), hold_id
        assert usages + absorbed >= 1, hold_id
