"""A platform as `darktree up` starts it, two gateways before fast, slow and failing lanes; and its outside witnesses.

The witnesses are the ledger's own account, the engines' own counters, and a proxy that counts what really arrives.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import pytest
import yaml
from openai import AsyncOpenAI, OpenAI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

DARKTREE = Path(sys.executable).with_name("darktree")
START_SECONDS = 180
STOP_SECONDS = 60
DEADLINE_SECONDS = 15.0
POLL_SECONDS = 0.02

QUICK, SLOW, FRAIL, PRIVATE = "quick", "slow", "frail", "private"
PRIVATE_CUSTOMER = "acme"
CONTEXT_LENGTH = 4096
SPEEDS = {QUICK: 1_000_000, SLOW: 40, FRAIL: 1_000_000, PRIVATE: 1_000_000}
# So that the library's own waiting, and not ours, is what its tests see; and a new lane or key is seen soon.
GATEWAY_SETTINGS = {"IN_FLIGHT_WAIT_SECONDS": "0.1", "LANES_SECONDS": "0.1", "KEY_SECONDS": "1"}
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "host"}


def until(condition: Callable[[], Any], what: str, seconds: float = DEADLINE_SECONDS) -> Any:
    """Return the first true value of a condition, asked until a deadline."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(POLL_SECONDS)
    return value


@pytest.fixture(scope="session")
def eventually() -> Callable[..., Any]:
    return until


@dataclass(frozen=True)
class Books:
    """What the ledger holds of a customer; equal before and after means that nothing was charged or is held."""

    entries: int
    balance_nanos: int
    tokens: int  # of every day: midnight may come
    open_holds: int
    held_tokens: int


@dataclass
class Customer:
    id: str
    key: str
    platform: "Platform" = field(repr=False)

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    def post(self, path: str, **options: Any) -> httpx.Response:
        return self.platform.http.post(path, headers=self.headers | options.pop("headers", {}), **options)

    def charge(self, request_id: str | None) -> dict[str, Any]:
        """Return the ledger's entry for one request, as the customer reads it."""
        answer = self.platform.http.get(f"/v1/usage/{request_id}", headers=self.headers)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def books(self) -> Books:
        recent = self.platform.recent(self.id)
        account = recent["account"]
        return Books(
            entries=account["entry_count"],
            balance_nanos=account["balance_nanos"],
            tokens=sum(day["prompt_tokens"] + day["completion_tokens"] for day in recent["days"]),
            open_holds=account["open_holds"],
            held_tokens=account["day_held_tokens"],
        )

    def settled_books(self) -> Books:
        """Return the books once nothing is held any more."""
        until(lambda: self.books().open_holds == 0, "no hold is left")
        return self.books()


@dataclass
class Platform:
    """A running `darktree up` and the ways in."""

    process: subprocess.Popen[str]
    data_dir: Path
    ready: dict[str, str]
    http: httpx.Client
    stack: ExitStack = field(repr=False)

    @property
    def record(self) -> dict[str, Any]:
        return self._json("platform.json")

    @property
    def secrets(self) -> dict[str, str]:
        return self._json("secrets.json")

    def _json(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.data_dir / name).read_text())
        return found

    def url(self, process: str) -> str:
        return str(self.record["processes"][process]["url"])

    def gateway_pids(self) -> list[int]:
        processes = self.record["processes"]
        return [process["pid"] for name, process in processes.items() if name.startswith("gateway-")]

    def admin(self, method: str, path: str, **options: Any) -> Any:
        headers = {"Authorization": f"Bearer {self.ready['admin_token']}"}
        answer = self.http.request(
            method, f"{self.ready['admin_url']}/admin{path}", headers=headers, **options
        )
        assert answer.status_code < 400, answer.text
        return answer.json()

    def customer(self, *, cap_tokens: int = 10_000_000, dollars: str = "1000", name: str = "") -> Customer:
        """Make a customer with credits and a key."""
        name = name or f"c-{uuid.uuid4().hex[:12]}"
        self.admin("POST", "/customers", json={"id": name, "name": "A customer", "plan": "solo"})
        self.admin("PUT", f"/customers/{name}/cap", json={"cap_tokens": cap_tokens})
        if dollars != "0":
            grant = {"dollars": dollars, "reason": "for the test"}
            self.admin("POST", f"/customers/{name}/grants", json=grant)
        return self.with_key(name)

    def with_key(self, customer_id: str, **key: Any) -> Customer:
        made = self.admin("POST", f"/customers/{customer_id}/keys", json=key)
        return Customer(customer_id, made["key"], self)

    def recent(self, customer_id: str) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self.secrets['ledger_gateway_token']}"}
        answer = self.http.get(f"{self.url('ledger')}/v1/accounts/{customer_id}/recent", headers=headers)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def faults(self, lane: str, **faults: Any) -> None:
        """Break a simulated lane, or mend it when nothing is named."""
        url = self.url(f"lane-{lane}") + "/faults"
        self.http.delete(url).raise_for_status()
        if faults:
            self.http.post(url, json=faults).raise_for_status()

    def engine_calls(self) -> dict[str, float]:
        """Return what grows whenever any engine is asked anything: it answers, counts, or refuses."""
        urls = {name: process["url"] for name, process in self.record["processes"].items()}
        texts = {
            name: self.http.get(f"{url}/metrics").text
            for name, url in urls.items()
            if name.startswith(("lane-", "gateway-"))
        }
        counters = (
            "vllm:prompt_tokens_total",
            "darktree_gateway_prompts_counted_total",
            "darktree_gateway_upstream_errors_total",
        )
        return {name: sum(_sum_of(text, name) for text in texts.values()) for name in counters}

    def openai(self, customer: Customer, **options: Any) -> OpenAI:
        chosen = {"api_key": customer.key, "base_url": self.ready["base_url"]} | options
        return self.stack.enter_context(OpenAI(**chosen))

    def async_openai(self, customer: Customer) -> AsyncOpenAI:
        return AsyncOpenAI(api_key=customer.key, base_url=self.ready["base_url"])


def _sum_of(exposition: str, name: str) -> float:
    samples = re.findall(rf"^{re.escape(name)}(?:\{{[^\n]*\}})? (\S+)$", exposition, re.MULTILINE)
    return sum(map(float, samples))


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    """One platform for every test of a module: each makes customers of its own."""
    with TemporaryDirectory(prefix="dt-") as made, ExitStack() as stack:
        folder = Path(made)
        _write_configuration(folder)
        running = _start(folder, stack)
        running.customer(name=PRIVATE_CUSTOMER)
        yield running


@pytest.fixture
def customer(platform: Platform) -> Customer:
    return platform.customer()


def _start(folder: Path, stack: ExitStack) -> Platform:
    words = ["up", "--data-dir", "data", "--port", "0", "--ready-file", "ready.json", "--gateways", "2"]
    words += ["--plans", "plans.yaml", "--lanes", "lanes"]
    inherited = {name: text for name, text in os.environ.items() if not name.startswith("DARKTREE_")}
    inherited.pop("DATABASE_URL", None)
    settings = {f"DARKTREE_GATEWAY_{name}": text for name, text in GATEWAY_SETTINGS.items()}
    process = subprocess.Popen(
        [DARKTREE, *words],
        cwd=folder,
        env=inherited | settings,
        stdout=stack.enter_context((folder / "out").open("w")),
        stderr=stack.enter_context((folder / "err").open("w")),
        text=True,
    )
    stack.callback(_stop, process)
    ready = folder / "ready.json"
    until(lambda: ready.exists() or process.poll() is not None, "the platform is ready", START_SECONDS)
    assert process.poll() is None, (folder / "err").read_text()
    told = json.loads(ready.read_text())
    http = stack.enter_context(httpx.Client(base_url=told["base_url"].removesuffix("/v1"), timeout=60))
    return Platform(process, folder / "data", told, http, stack)


def _stop(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()


def _write_configuration(folder: Path) -> None:
    price = {"prompt_price_per_thousand": "0.75", "completion_price_per_thousand": "0.75"}
    plan = {"id": "solo", "display_name": "Solo", "price": "50", "default_cap_tokens": 2000}
    models = [
        {"id": name, "display_name": name, "default_completion_tokens": 256, "released": date(2024, 9, 19)}
        | price
        for name in SPEEDS
    ]
    (folder / "plans.yaml").write_text(yaml.safe_dump({"plans": [plan], "models": models}))
    (folder / "lanes").mkdir()
    for name, speed in SPEEDS.items():
        tier = (
            {"tier": "Dedicated", "customerRef": PRIVATE_CUSTOMER}
            if name == PRIVATE
            else {"tier": "Standard"}
        )
        document = {
            "apiVersion": "darktree.dev/v1alpha1",
            "kind": "InferenceLane",
            "metadata": {
                "name": name,
                "annotations": {"darktree.dev/simulated-tokens-per-second": str(speed)},
            },
            "spec": tier
            | {
                "model": {"servedName": name},
                "engine": {"kind": "Simulator", "contextLength": CONTEXT_LENGTH},
            },
        }
        (folder / "lanes" / f"{name}.yaml").write_text(yaml.safe_dump(document))


@dataclass
class Arrivals:
    """A reverse proxy before the platform that remembers each request that really arrived, and its answer."""

    target: str
    base_url: str = ""
    statuses: list[int] = field(default_factory=list)

    def app(self) -> Starlette:
        async def forward(request: Request) -> StreamingResponse:
            client = httpx.AsyncClient(timeout=60)
            headers = [(k, v) for k, v in request.headers.raw if k.decode().lower() not in HOP_BY_HOP]
            sent = client.build_request(
                request.method,
                self.target + request.url.path,
                headers=headers,
                content=await request.body(),
            )
            answer = await client.send(sent, stream=True)
            self.statuses.append(answer.status_code)

            async def content() -> AsyncIterator[bytes]:
                try:
                    async for part in answer.aiter_raw():
                        yield part
                finally:
                    await answer.aclose()
                    await client.aclose()

            kept = {name: text for name, text in answer.headers.items() if name.lower() not in HOP_BY_HOP}
            return StreamingResponse(content(), answer.status_code, headers=kept)

        return Starlette(routes=[Route("/{path:path}", forward, methods=["GET", "POST"])])


@pytest.fixture
def arrivals(
    platform: Platform, serving_context: Callable[[ASGIApp], AbstractContextManager[str]]
) -> Iterator[Arrivals]:
    proxy = Arrivals(target=platform.ready["base_url"].removesuffix("/v1"))
    with serving_context(proxy.app()) as url:
        proxy.base_url = f"{url}/v1"
        yield proxy
