"""The gateway on a real socket, before the real ledger, real billing and a simulated lane; and engines by script."""

import asyncio
import contextlib
import shutil
import socket
import threading
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import httpx
import orjson
import psycopg
import pytest
import yaml
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from darktree_billing.app import make_app as make_billing_app
from darktree_billing.settings import Settings as BillingSettings
from darktree_gateway.app import make_app
from darktree_gateway.settings import Settings
from darktree_ledger.app import make_app as make_ledger_app
from darktree_ledger.settings import Settings as LedgerSettings
from darktree_simulator.app import make_app as make_simulator_app
from darktree_simulator.settings import Settings as SimulatorSettings

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
ADMIN_TOKEN = "admin-token-of-the-tests"
MODEL = "qwen25-14b-awq"
SCRIPTED_MODEL = "qwen25-32b-awq"
CONTEXT_LENGTH = 4096
OBLIGING_PROMPT_TOKENS = 10
PAUSE = "the engine waits for the test to say `go`"
DEADLINE_SECONDS = 30.0

Serving = Callable[[ASGIApp], AbstractContextManager[str]]


class Database(Protocol):
    admin_url: str

    def url_as(self, role: str) -> str: ...


def until(condition: Callable[[], Any], what: str = "the condition") -> Any:
    """Return the first true value of a condition, asked until a deadline."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not come true"
        time.sleep(0.01)
    return value


def set_clock(database: Database, start: datetime) -> None:
    """Let a ledger's clock go on from an instant."""
    with psycopg.connect(database.admin_url, autocommit=True) as connection:
        (now,) = connection.execute("SELECT clock_timestamp()").fetchone() or (None,)
        connection.execute(
            "CREATE OR REPLACE FUNCTION ledger.clock_now() RETURNS timestamptz LANGUAGE sql VOLATILE AS "
            f"$clock$ SELECT clock_timestamp() + (timestamptz '{start}' - timestamptz '{now}') $clock$".encode()
        )


def at_noon(database: Database) -> Database:
    """Let its day begin so that none ends inside a test."""
    set_clock(database, datetime.now(UTC).replace(hour=12))
    return database


def until_ready(url: str) -> None:
    until(lambda: httpx.get(f"{url}/readyz").status_code == 200, "the gateway's readiness")


@pytest.fixture(scope="session")
def eventually() -> Callable[..., Any]:
    return until


class Wire:
    """A TCP forwarder that can be cut: to everybody behind it the service has then gone away."""

    def __init__(self, url: str) -> None:
        self._target = ("127.0.0.1", int(url.rpartition(":")[2]))
        self._sockets: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._whole = True
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self._whole = False
        for end in list(self._sockets):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self._whole = True

    def close(self) -> None:
        self.cut()
        with contextlib.suppress(OSError):  # only Linux shuts what listens
            self._listener.shutdown(socket.SHUT_RDWR)  # whoever waits for a connection would go on waiting
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self._sockets.add(near)  # before it is asked: a cut in between would miss it
            if not self._whole:
                near.close()
                continue
            far = socket.create_connection(self._target)
            self._sockets.add(far)
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)


@dataclass
class ScriptedEngine:
    """An engine that says exactly what a test writes down."""

    url: str = ""
    status: int = 200
    answer: Any = None
    events: list[bytes] = field(default_factory=list)
    end: str = "end"  # or "break": the connection breaks; or "stall": silence until the client leaves
    go: threading.Event = field(default_factory=threading.Event)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    counted: list[dict[str, Any]] = field(default_factory=list)
    count: int = 10
    counts_wait: bool = False  # a count waits for `go` too
    left: int = 0

    def say(self, *events: str | Mapping[str, Any], end: str = "end") -> None:
        self.status, self.answer, self.end = 200, None, end
        texts = [event if isinstance(event, str) else orjson.dumps(event).decode() for event in events]
        self.events = [b"" if text == PAUSE else f"data: {text}\n\n".encode() for text in texts]
        self.go.clear()

    def refuse(self, status: int, answer: Any) -> None:
        self.status, self.answer = status, answer

    def app(self) -> Starlette:
        async def generate(request: Request) -> Response:
            self.bodies.append(orjson.loads(await request.body()))
            if self.answer is not None:
                return Response(orjson.dumps(self.answer), self.status, media_type="application/json")
            return StreamingResponse(self._events(request), media_type="text/event-stream")

        async def tokenize(request: Request) -> Response:
            self.counted.append(orjson.loads(await request.body()))
            while self.counts_wait and not self.go.is_set():
                await asyncio.sleep(0.005)
            return Response(
                orjson.dumps({"count": self.count, "max_model_len": CONTEXT_LENGTH, "tokens": []})
            )

        async def exposition(_: Request) -> Response:
            return Response(
                'vllm:prompt_tokens_total{model_name="m"} 7.0\nvllm:generation_tokens_total 5.0\n'
            )

        return Starlette(
            routes=[
                Route("/v1/chat/completions", generate, methods=["POST"]),
                Route("/v1/completions", generate, methods=["POST"]),
                Route("/tokenize", tokenize, methods=["POST"]),
                Route("/metrics", exposition),
            ]
        )

    async def _events(self, request: Request) -> AsyncIterator[bytes]:
        try:
            for event in list(self.events):
                while not event and not self.go.is_set():
                    await asyncio.sleep(0.005)
                yield event
            if self.end == "break":
                raise ConnectionResetError("as the test wants it")
            while self.end == "stall":
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            self.left += 1
            raise


class ObligingEngine:
    """An engine that does what is asked: calls its tool, keeps to its form, fails once, lets wait, or says Oslo."""

    def __init__(self) -> None:
        self.failed: set[str] = set()

    def app(self) -> Starlette:
        async def generate(request: Request) -> Response:
            body = orjson.loads(await request.body())
            last = body["messages"][-1]
            asked = str(last["content"])
            if "fail" in asked and asked not in self.failed:
                self.failed.add(asked)
                return Response(b"{}", 500)
            if "wait" in asked:
                await asyncio.sleep(DEADLINE_SECONDS)
            return StreamingResponse(_events_of(body, last), media_type="text/event-stream")

        async def tokenize(_: Request) -> Response:
            return Response(orjson.dumps({"count": OBLIGING_PROMPT_TOKENS, "max_model_len": CONTEXT_LENGTH}))

        return Starlette(
            routes=[
                Route("/v1/chat/completions", generate, methods=["POST"]),
                Route("/tokenize", tokenize, methods=["POST"]),
            ]
        )


async def _events_of(body: dict[str, Any], last: dict[str, Any]) -> AsyncIterator[bytes]:
    deltas: list[dict[str, Any]] = [{"content": "Os"}, {"content": "lo"}]
    finish_reason = "stop"
    if body.get("tools") and body.get("tool_choice") != "none" and last["role"] == "user":
        named: dict[str, Any] = {
            "id": "call_1",
            "type": "function",
            "function": {"name": "weather", "arguments": ""},
        }
        pieces = [named, *({"function": {"arguments": text}} for text in ('{"city"', ': "Oslo"}'))]
        deltas = [{"tool_calls": [{"index": 0} | piece]} for piece in pieces]
        finish_reason = "tool_calls"
    elif (body.get("response_format") or {}).get("type") in {"json_schema", "json_object"}:
        deltas = [{"content": '{"city": '}, {"content": '"Oslo"}'}]
    chunk: dict[str, Any] = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": body["model"],
    }
    steps = [{"role": "assistant", "content": ""}, *deltas]
    for used, delta in enumerate(steps):
        choice: dict[str, Any] = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
        if used == len(steps) - 1:
            choice["finish_reason"] = finish_reason
        event = chunk | {"choices": [choice], "usage": _usage(OBLIGING_PROMPT_TOKENS, used)}
        yield b"data: " + orjson.dumps(event) + b"\n\n"
    whole = chunk | {"choices": [], "usage": _usage(OBLIGING_PROMPT_TOKENS, len(deltas))}
    yield b"data: " + orjson.dumps(whole) + b"\n\ndata: [DONE]\n\n"


def _usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}


@dataclass
class Customer:
    id: str
    key: str
    client: httpx.Client

    def chat(self, text: str = "Tell me of trees.", **options: Any) -> httpx.Response:
        body = {"model": MODEL, "messages": [{"role": "user", "content": text}]} | options
        return self.client.post("/v1/chat/completions", json=body)

    def complete(self, prompt: Any = "Once upon", **options: Any) -> httpx.Response:
        return self.client.post("/v1/completions", json={"model": MODEL, "prompt": prompt} | options)

    def credits(self) -> dict[str, Any]:
        answer = self.client.get("/v1/credits")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def usage(self, **params: Any) -> list[dict[str, Any]]:
        answer = self.client.get("/v1/usage", params=params)
        assert answer.status_code == 200, answer.text
        charges: list[dict[str, Any]] = answer.json()["data"]
        return charges


@dataclass
class Platform:
    """A gateway and everything behind it."""

    gateway_url: str
    ledger: Wire
    billing: Wire
    simulator_url: str
    engine: ScriptedEngine
    lanes_file: Path
    journal_dir: Path
    settings: Settings
    database: Database
    stack: ExitStack
    serving: Serving

    @property
    def plans_file(self) -> Path:
        return self.lanes_file.with_name("plans.yaml")

    def admin(self, method: str, path: str, **options: Any) -> Any:
        url = f"http://127.0.0.1:{self.billing_port}/admin{path}"
        answer = httpx.request(method, url, headers={"Authorization": f"Bearer {ADMIN_TOKEN}"}, **options)
        assert answer.status_code < 400, answer.text
        return answer.json()

    billing_port: int = 0
    ledgers: list[Wire] = field(default_factory=list)
    databases: list[Database] = field(default_factory=list)

    def customer(self, *, cap_tokens: int = 1_000_000, dollars: str = "100") -> Customer:
        """Make a customer with credits and a key."""
        name = f"c-{uuid.uuid4().hex[:12]}"
        self.admin("POST", "/customers", json={"id": name, "name": "A customer", "plan": "solo"})
        self.admin("PUT", f"/customers/{name}/cap", json={"cap_tokens": cap_tokens})
        if dollars != "0":
            self.admin(
                "POST", f"/customers/{name}/grants", json={"dollars": dollars, "reason": "for the test"}
            )
        return self.client_of(name)

    def client_of(self, customer_id: str, url: str | None = None, **key: Any) -> Customer:
        made = self.admin("POST", f"/customers/{customer_id}/keys", json=key)
        client = httpx.Client(
            base_url=url or self.gateway_url, headers={"Authorization": f"Bearer {made['key']}"}, timeout=30
        )
        return Customer(customer_id, made["key"], self.stack.enter_context(client))

    def faults(self, **faults: Any) -> None:
        """Break the simulated lane, or mend it when nothing is named."""
        httpx.delete(f"{self.simulator_url}/faults").raise_for_status()
        if faults:
            httpx.post(f"{self.simulator_url}/faults", json=faults).raise_for_status()

    def engine_tokens(self) -> tuple[int, int]:
        """Return what the simulated engine says it has processed: prompt and generated tokens."""
        from darktree_gateway.reconciliation import total_of

        text = httpx.get(f"{self.simulator_url}/metrics").text
        names = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total")
        prompt, generated = (int(total_of(text, name)) for name in names)
        return prompt, generated

    def sql(self, statement: str, *values: Any, ledger: int = 0) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.databases[ledger].admin_url, autocommit=True) as connection:
            return connection.execute(statement.encode(), values).fetchall()

    def set_clock(self, start: datetime) -> None:
        set_clock(self.database, start)

    def open_holds(self, customer_id: str) -> int:
        rows = self.sql(
            "SELECT count(*) FROM ledger.hold WHERE customer_id = %s AND state = 'open'", customer_id
        )
        return int(rows[0][0])

    def serve_model(self, model: str, app: ASGIApp, *, context_tokens: int = CONTEXT_LENGTH) -> str:
        """Serve one more model, $0.02 a thousand tokens, until the platform ends; returns its engine's address."""
        url = self.stack.enter_context(self.serving(app))
        plans = yaml.safe_load(self.plans_file.read_text())
        price = {f"{kind}_price_per_thousand": "0.02" for kind in ("prompt", "completion")}
        known = {"id": model, "display_name": model, "default_completion_tokens": 64}
        plans["models"].append(known | price | {"released": plans["models"][0]["released"]})
        self.plans_file.write_text(yaml.safe_dump(plans))
        document = lane(model, model, url)
        document["spec"]["engine"]["contextLength"] = context_tokens
        self.lanes_file.write_text(self.lanes_file.read_text() + "---\n" + yaml.safe_dump(document))
        client = self.customer().client
        until(lambda: client.get(f"/v1/models/{model}").status_code == 200, "the model is served")
        return url

    def another_gateway(self, **changes: Any) -> str:
        """Serve another gateway, with other settings, until the platform ends; returns its address."""
        settings = self.settings.model_copy(update=changes)
        url = self.stack.enter_context(self.serving(make_app(settings)))
        if not settings.private_port:
            until_ready(url)
        return url


def lane(name: str, model: str, *urls: str, customer: str | None = None) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "tier": "Dedicated" if customer else "Standard",
        "model": {"servedName": model},
        "engine": {"kind": "Simulator", "contextLength": CONTEXT_LENGTH},
    }
    if customer:
        spec["customerRef"] = customer
    return {
        "apiVersion": "darktree.dev/v1alpha1",
        "kind": "InferenceLane",
        "metadata": {"name": name},
        "spec": spec,
        "status": {"endpoints": [{"url": url} for url in urls]},
    }


@pytest.fixture(scope="session")
def make_lane() -> Callable[..., dict[str, Any]]:
    return lane


def ledger_app(database: Database, gateway_token: str, billing_token: str) -> ASGIApp:
    return make_ledger_app(
        LedgerSettings(
            database_url=SecretStr(database.url_as("darktree_ledger")),
            gateway_token=SecretStr(gateway_token),
            billing_token=SecretStr(billing_token),
        )
    )


@pytest.fixture(scope="session")
def running_platform(
    make_database: Callable[[], Database], serving_context: Serving, gateway_token: str, billing_token: str
) -> Callable[[Path], AbstractContextManager[Platform]]:
    @contextlib.contextmanager
    def run(folder: Path, ledgers: int = 1) -> Iterator[Platform]:
        databases = [at_noon(make_database()) for _ in range(ledgers)]
        database = databases[0]
        with ExitStack() as stack:
            ledger_urls = [
                stack.enter_context(serving_context(ledger_app(each, gateway_token, billing_token)))
                for each in databases
            ]
            plans_file = Path(shutil.copy(EXAMPLES / "plans.yaml", folder))
            billing_app = make_billing_app(
                BillingSettings(
                    database_url=SecretStr(database.url_as("darktree_billing")),
                    ledger_url=",".join(ledger_urls),
                    ledger_token=SecretStr(billing_token),
                    gateway_token=SecretStr(gateway_token),
                    admin_token=SecretStr(ADMIN_TOKEN),
                    key_pepper=SecretStr("a pepper that only the tests know"),
                    plans_file=plans_file,
                )
            )
            billing_url = stack.enter_context(serving_context(billing_app))
            simulator = make_simulator_app(
                SimulatorSettings(models=[MODEL], context_length=CONTEXT_LENGTH, tokens_per_second=0)
            )
            simulator_url = stack.enter_context(serving_context(simulator))
            engine = ScriptedEngine()
            engine.url = stack.enter_context(serving_context(engine.app()))
            lanes_file = folder / "lanes.yaml"
            documents = [lane("standard", MODEL, simulator_url), lane("scripted", SCRIPTED_MODEL, engine.url)]
            lanes_file.write_text(yaml.safe_dump_all(documents))
            *ledger_wires, billing_wire = wires = [Wire(url) for url in (*ledger_urls, billing_url)]
            for wire in wires:
                stack.callback(wire.close)
            settings = Settings(
                ledger_url=",".join(wire.url for wire in ledger_wires),
                ledger_token=SecretStr(gateway_token),
                billing_url=billing_wire.url,
                billing_token=SecretStr(gateway_token),
                lanes_file=lanes_file,
                journal_dir=folder / "journal",
                lanes_seconds=0.05,
                catalog_seconds=0.5,
                journal_replay_seconds=0.1,
                in_flight_wait_seconds=1.0,
                engine_metrics_interval_seconds=0.2,
            )
            gateway_url = stack.enter_context(serving_context(make_app(settings)))
            until_ready(gateway_url)
            yield Platform(
                gateway_url=gateway_url,
                ledger=ledger_wires[0],
                billing=billing_wire,
                simulator_url=simulator_url,
                engine=engine,
                lanes_file=lanes_file,
                journal_dir=settings.journal_dir,
                settings=settings,
                database=database,
                stack=stack,
                serving=serving_context,
                billing_port=int(billing_url.rpartition(":")[2]),
                ledgers=ledger_wires,
                databases=databases,
            )

    return run


@pytest.fixture(scope="module")
def platform(
    running_platform: Callable[[Path], AbstractContextManager[Platform]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Platform]:
    """A platform that a module's tests share: each makes customers of its own."""
    with running_platform(tmp_path_factory.mktemp("gateway")) as running:
        yield running


@pytest.fixture
def customer(platform: Platform) -> Customer:
    return platform.customer()


@pytest.fixture
def engine(platform: Platform) -> ScriptedEngine:
    """The scripted engine behind the premium model, as new."""
    platform.engine.bodies.clear()
    platform.engine.counted.clear()
    platform.engine.left = 0
    platform.engine.say("[DONE]")
    return platform.engine


@pytest.fixture(scope="session")
def obliging_engine() -> Callable[[], ASGIApp]:
    """Makes engines that do what they are asked."""
    return lambda: ObligingEngine().app()


@pytest.fixture(scope="session")
def events_of() -> Callable[[bytes], list[Any]]:
    """Decodes a stream into its events; the last is the text [DONE]."""

    def decode(content: bytes) -> list[Any]:
        events = [event for event in content.split(b"\n\n") if event]
        assert all(event.startswith(b"data: ") for event in events), events
        texts = [event[len(b"data: ") :] for event in events]
        return [text.decode() if text == b"[DONE]" else orjson.loads(text) for text in texts]

    return decode


@pytest.fixture(scope="session")
def awaiting() -> Callable[[Awaitable[Any]], Any]:
    return lambda awaitable: asyncio.run(awaitable)  # type: ignore[arg-type]
