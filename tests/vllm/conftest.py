"""A real vLLM on the CPU beside a simulator, both with the same tokenizer, model name and context; and before each of
them a real gateway, with the real ledger and billing behind it.
"""

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from pydantic import SecretStr
from starlette.types import ASGIApp

from darktree_billing.app import make_app as make_billing_app
from darktree_billing.settings import Settings as BillingSettings
from darktree_cli.ports import Ports
from darktree_gateway.app import make_app as make_gateway_app
from darktree_gateway.settings import Settings as GatewaySettings
from darktree_simulator import tiny_model
from darktree_simulator.vllm_process import vllm_command

ROOT = Path(__file__).parents[2]
VLLM_PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
MODEL = "tiny"
CONTEXT_LENGTH = 1024
START_TIMEOUT_SECONDS = 240
IDLE_TIMEOUT_SECONDS = 20
POLL_SECONDS = 0.05
PACED_TOKENS_PER_SECOND = 50.0
DEADLINE_SECONDS = 20.0
STANDS_STILL_READS = 5
TEST_SECONDS = 60

ENGINES, EMBEDDERS = ["simulator", "vllm_engine"], ["simulated_embedder", "vllm_embedder"]
ADMIN_TOKEN = "admin-token-of-the-tests"
DEFAULT_COMPLETION_TOKENS = 64
ENGINE_TOKENS, METERED_TOKENS = "darktree_lane_engine_tokens", "darktree_lane_metered_tokens_total"
PROMPTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hello"}], "ignore_eos": True},
    "/v1/completions": {"prompt": "hello", "ignore_eos": True},
    "/v1/responses": {"input": "hello", "ignore_eos": True},
    "/v1/embeddings": {"input": "hello"},
}

Serving = Callable[[ASGIApp], AbstractContextManager[str]]


def until(condition: Callable[[], Any], what: str) -> Any:
    """Return the first true value of a condition, asked until a deadline."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(POLL_SECONDS)
    return value


@dataclass(frozen=True)
class ServedEngine:
    """An engine that answers, with the counters that a bill must equal."""

    base_url: str
    model: str
    context_length: int
    pid: int

    def counters(self) -> tuple[int, int]:
        """(prompt tokens, generation tokens) since the engine started, once nothing runs any more.

        The engine counts the prompt once for each of `n` choices, which the usage of an answer does not.
        """
        deadline = time.monotonic() + IDLE_TIMEOUT_SECONDS
        while time.monotonic() < deadline:
            text = httpx.get(f"{self.base_url}/metrics").text
            if not _metric(text, "vllm:num_requests_running") and not _metric(
                text, "vllm:num_requests_waiting"
            ):
                return _metric(text, "vllm:prompt_tokens_total"), _metric(
                    text, "vllm:generation_tokens_total"
                )
            time.sleep(POLL_SECONDS)
        raise AssertionError("the engine is still busy")

    def say_no_more_than(self, tokens: int) -> None:
        """Have a simulator fall silent after so many tokens of an answer; vLLM is silenced once it has said them."""
        httpx.post(f"{self.base_url}/faults", json={"stall_after_tokens": tokens})

    @contextmanager
    def silenced(self, heard: Callable[[], int] = lambda: 0) -> Iterator[None]:
        """Suspend what generates, until it was left: whoever leaves an answer has `heard` all that was generated.

        It is a child of vLLM's server, which goes on. The simulator has no children and is silent by itself.
        """

        def said() -> tuple[int, int]:
            text = httpx.get(f"{self.base_url}/metrics").text  # a turn of the server
            return _metric(text, "vllm:generation_tokens_total"), heard()

        generating = psutil.Process(self.pid).children(recursive=True)
        for process in generating:
            process.suspend()
        try:
            until(lambda: len({said() for _ in range(STANDS_STILL_READS)}) == 1, "the engine is silent")
            yield
            httpx.get(f"{self.base_url}/health")  # it has read by now that it was left
        finally:
            for process in generating:
                process.resume()


@pytest.fixture(scope="session")
def vllm_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedEngine]:
    """A real vLLM; starting it takes half a minute."""
    with _vllm(tmp_path_factory.mktemp("vllm")) as engine:
        yield engine


@pytest.fixture(scope="session")
def vllm_embedder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedEngine]:
    """A real vLLM that embeds with the same model."""
    with _vllm(tmp_path_factory.mktemp("vllm-embedder"), pooling=True) as engine:
        yield engine


@contextmanager
def _vllm(folder: Path, *, pooling: bool = False) -> Iterator[ServedEngine]:
    if not VLLM_PYTHON.exists():
        pytest.skip('there is no real vLLM here: run "make vllm"')
    script = str(tiny_model.__file__)
    subprocess.run([VLLM_PYTHON, script, folder / "model"], check=True, capture_output=True)
    with Ports() as ports:
        port = ports.free()
        command = vllm_command(VLLM_PYTHON, folder / "model", MODEL, port, CONTEXT_LENGTH, pooling=pooling)
        with _started(command.argv, command.env, port, folder / "log") as engine:
            yield engine


@pytest.fixture(scope="session")
def simulated_embedder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedEngine]:
    words = ["--embedding-dimensions", str(tiny_model.HIDDEN_SIZE)]
    with _simulator(0.0, tmp_path_factory.mktemp("embedder"), *words) as engine:
        yield engine


@pytest.fixture(scope="session")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedEngine]:
    """The simulator as a process of its own, as fast as it can."""
    with _simulator(0.0, tmp_path_factory.mktemp("simulator")) as engine:
        yield engine


@pytest.fixture
def paced_simulator(tmp_path: Path) -> Iterator[ServedEngine]:
    """A simulator that makes one token at a time, as an engine does."""
    with _simulator(PACED_TOKENS_PER_SECOND, tmp_path) as engine:
        yield engine


@contextmanager
def _simulator(tokens_per_second: float, folder: Path, *words: str) -> Iterator[ServedEngine]:
    with Ports() as ports:
        port = ports.free()
        argv = [sys.executable, "-m", "darktree_simulator", "--model", MODEL, "--port", str(port)]
        argv += ["--context-length", str(CONTEXT_LENGTH), "--tokens-per-second", str(tokens_per_second)]
        with _started([*argv, *words], {}, port, folder / "log") as engine:
            yield engine


@contextmanager
def _started(argv: list[str], env: Mapping[str, str], port: int, log: Path) -> Iterator[ServedEngine]:
    with log.open("wb") as output:
        process = subprocess.Popen(argv, env=os.environ | env, stdout=output, stderr=subprocess.STDOUT)
    try:
        _wait_until_healthy(process, port, log)
        yield ServedEngine(f"http://127.0.0.1:{port}", MODEL, CONTEXT_LENGTH, process.pid)
    finally:
        process.terminate()
        try:
            process.wait(IDLE_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_healthy(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(POLL_SECONDS)
    pytest.fail(f"the engine did not start:\n{log.read_text()[-3000:]}")


def _metric(text: str, name: str) -> int:
    found = re.search(rf"^{re.escape(name)}\{{[^}}]*\}} (\S+)$", text, re.MULTILINE)
    assert found, f"no metric {name}"
    return int(float(found.group(1)))


class Tap:
    """A TCP forwarder between gateway and engine that remembers what the engine said."""

    def __init__(self, url: str) -> None:
        host, _, port = url.removeprefix("http://").partition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._said: list[tuple[bytearray, threading.Thread]] = []
        self._passing = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def usages(self) -> list[dict[str, int]]:
        """Return every usage that passed, oldest first: what is told here has reached the gateway."""
        with self._passing:
            text = b"".join(said for said, _ in self._said).decode("utf-8", "replace")
        return [json.loads(found) for found in re.findall(r'"usage":(\{[^{}]*\})', text)]

    def completion_tokens(self) -> int:
        return (self.usages() or [{"completion_tokens": 0}])[-1]["completion_tokens"]

    def streams(self) -> bool:
        """Return whether a streamed answer has begun on a connection that is still open."""
        return any(b"text/event-stream" in said and pump.is_alive() for said, pump in self._said)

    def close(self) -> None:
        # Or the accept goes on, and takes the connections of whoever is given the descriptor next.
        with suppress(OSError):  # only Linux shuts what listens
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
                near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # what is passed on has arrived
                said = bytearray()
                pump = threading.Thread(target=self._pump, args=(far, near, said), daemon=True)
                pump.start()
                self._said.append((said, pump))
                threading.Thread(target=self._pump, args=(near, far, bytearray()), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, said: bytearray) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                with self._passing:
                    said += data
                    sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="session")
def make_tap() -> Callable[[str], Tap]:
    """Taps the connections to an engine."""
    return Tap


@dataclass
class Services:
    """A ledger and a billing; gateways are added, each with its own lane."""

    ledger_url: str
    billing_url: str
    token: str
    folder: Path
    http: httpx.Client = field(repr=False)
    serving: Serving = field(repr=False)
    tap: Callable[[str], Any] = field(repr=False)

    def gateway(self, engine: Any, lane: str, stack: ExitStack) -> "Metered":
        """Serve a gateway with one lane, whose engine is behind a tap."""
        tap = self.tap(engine.base_url)
        stack.callback(tap.close)
        folder = self.folder / uuid.uuid4().hex
        folder.mkdir()
        document = {
            "kind": "InferenceLane",
            "metadata": {"name": lane},
            "spec": {
                "tier": "Standard",
                "model": {"servedName": MODEL},
                "engine": {"kind": "VLLM", "contextLength": engine.context_length},
            },
            "status": {"endpoints": [{"url": tap.url}]},
        }
        (folder / "lanes.yaml").write_text(yaml.safe_dump(document))
        settings = GatewaySettings(
            ledger_url=self.ledger_url,
            ledger_token=SecretStr(self.token),
            billing_url=self.billing_url,
            billing_token=SecretStr(self.token),
            lanes_file=folder / "lanes.yaml",
            journal_dir=folder / "journal",
            in_flight_wait_seconds=0.0,
            engine_metrics_interval_seconds=0.1,
        )
        url = stack.enter_context(self.serving(make_gateway_app(settings)))
        until(lambda: self.http.get(f"{url}/readyz").status_code == 200, "the gateway is ready")
        return Metered(self, engine, tap, lane, url)


@dataclass
class Metered:
    """A gateway before one engine."""

    services: Services
    engine: Any
    tap: Any
    lane: str
    url: str

    def counters(self) -> tuple[int, int]:
        """(prompt tokens, generation tokens) that the engine itself has counted, once nothing runs in it any more."""

        def idle() -> str | None:
            text = self.services.http.get(f"{self.engine.base_url}/metrics").text
            busy = (_metric(text, f"vllm:num_requests_{state}") for state in ("running", "waiting"))
            return None if any(busy) else text

        text: str = until(idle, "the engine is idle")
        return _metric(text, "vllm:prompt_tokens_total"), _metric(text, "vllm:generation_tokens_total")

    def customer(self, *, cap_tokens: int = 10_000_000, dollars: str = "1000") -> "Customer":
        day_left_seconds = 86_400 - time.time() % 86_400
        if day_left_seconds < TEST_SECONDS:  # at midnight the day's tokens begin anew
            time.sleep(day_left_seconds + 1)
        name = f"c-{uuid.uuid4().hex[:12]}"

        def admin(method: str, path: str, body: Any) -> Any:
            headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
            url = f"{self.services.billing_url}/admin/customers{path}"
            answer = self.services.http.request(method, url, headers=headers, json=body)
            assert answer.status_code < 400, answer.text
            return answer.json()

        admin("POST", "", {"id": name, "name": "A customer", "plan": "solo"})
        admin("PUT", f"/{name}/cap", {"cap_tokens": cap_tokens})
        admin("POST", f"/{name}/grants", {"dollars": dollars, "reason": "for the test"})
        key = admin("POST", f"/{name}/keys", {})["key"]
        return Customer(name, key, self)

    @contextmanager
    def silenced(self, customer: "Customer") -> Iterator[None]:
        """Let the customer leave an answer while the engine says nothing: the gateway has read all that was made."""
        with self.engine.silenced(lambda: len(self.tap.usages())):
            assert customer.charges() == []  # a turn of the gateway, too
            yield
            until(lambda: not self.tap.streams(), "the engine is left")

    def metric(self, name: str, kind: str) -> int:
        text = self.services.http.get(f"{self.url}/metrics").text
        endpoint = f'endpoint="{self.tap.url}",' if name == ENGINE_TOKENS else ""
        sample = rf'^{name}\{{{endpoint}kind="{kind}",lane="{self.lane}"\}} (\S+)$'
        return sum(int(float(value)) for value in re.findall(sample, text, re.MULTILINE))

    def metered(self) -> tuple[int, int]:
        return self.metric(METERED_TOKENS, "prompt"), self.metric(METERED_TOKENS, "completion")


@dataclass
class Customer:
    id: str
    key: str
    metered: Metered = field(repr=False)

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    def ask(self, path: str, **body: Any) -> httpx.Response:
        url = self.metered.url + path
        return self.metered.services.http.post(
            url, json={"model": MODEL} | PROMPTS[path] | body, headers=self.headers
        )

    def charges(self) -> list[dict[str, Any]]:
        answer = self.metered.services.http.get(f"{self.metered.url}/v1/usage", headers=self.headers)
        assert answer.status_code == 200, answer.text
        found: list[dict[str, Any]] = answer.json()["data"]
        return found

    def account(self) -> dict[str, Any]:
        services = self.metered.services
        headers = {"Authorization": f"Bearer {services.token}"}
        url = f"{services.ledger_url}/v1/accounts/{self.id}"
        found: dict[str, Any] = services.http.get(url, headers=headers).json()
        return found

    def settled(self) -> dict[str, Any]:
        """Return the account once nothing is held."""
        until(lambda: self.account()["open_holds"] == 0, "no hold is left")
        return self.account()


@pytest.fixture(scope="module")
def services(
    make_database: Callable[[], Any],
    make_ledger_service: Callable[[Any], AbstractContextManager[str]],
    serving_context: Serving,
    gateway_token: str,
    billing_token: str,
    make_tap: Callable[[str], Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Services]:
    folder = tmp_path_factory.mktemp("metering")
    plan = {"id": "solo", "display_name": "Solo", "price": "50", "default_cap_tokens": 2000}
    price = {"prompt_price_per_thousand": "0.75", "completion_price_per_thousand": "0.75"}
    model: dict[str, Any] = {
        "id": MODEL,
        "display_name": MODEL,
        "default_completion_tokens": DEFAULT_COMPLETION_TOKENS,
    }
    model["released"] = date(2024, 9, 19)
    (folder / "plans.yaml").write_text(yaml.safe_dump({"plans": [plan], "models": [model | price]}))
    database = make_database()
    with ExitStack() as stack:
        ledger_url = stack.enter_context(make_ledger_service(database))
        billing = make_billing_app(
            BillingSettings(
                database_url=SecretStr(database.url_as("darktree_billing")),
                ledger_url=ledger_url,
                ledger_token=SecretStr(billing_token),
                gateway_token=SecretStr(gateway_token),
                admin_token=SecretStr(ADMIN_TOKEN),
                key_pepper=SecretStr("a pepper that only the tests know"),
                plans_file=folder / "plans.yaml",
            )
        )
        billing_url = stack.enter_context(serving_context(billing))
        http = stack.enter_context(httpx.Client(timeout=60))
        yield Services(ledger_url, billing_url, gateway_token, folder, http, serving_context, make_tap)


@pytest.fixture(scope="module", params=ENGINES)
def metered(request: pytest.FixtureRequest, services: Services) -> Iterator[Metered]:
    """A gateway before the simulator, and then one before a real vLLM."""
    with ExitStack() as stack:
        yield services.gateway(request.getfixturevalue(request.param), request.param, stack)


@pytest.fixture(params=ENGINES)
def paced(request: pytest.FixtureRequest, services: Services) -> Iterator[Metered]:
    """A gateway before an engine that makes one token at a time: vLLM, or the simulator at a set speed."""
    name = "paced_simulator" if request.param == "simulator" else request.param
    with ExitStack() as stack:
        yield services.gateway(request.getfixturevalue(name), name, stack)


@pytest.fixture
def customer(metered: Metered) -> Customer:
    return metered.customer()


@pytest.fixture(scope="module", params=EMBEDDERS)
def embedding(request: pytest.FixtureRequest, services: Services) -> Iterator[Metered]:
    """A gateway before an engine that embeds: the simulator, and then a real vLLM."""
    with ExitStack() as stack:
        yield services.gateway(request.getfixturevalue(request.param), request.param, stack)
