"""The platform under test: `darktree up` in a folder of its own, its standard lane pointed at the canned upstream."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import yaml

from darktree_billing.client import AdminClient
from darktree_billing.schemas import CreateCustomer, CreateKey, GrantCredits, SetCap

HERE = Path(__file__).parent
MODEL = "qwen25-14b-awq"
START_TIMEOUT_SECONDS = 120
LARGE_CAP_TOKENS = 100_000_000
LARGE_CREDIT_DOLLARS = "1000000"
BODY = {"model": MODEL, "messages": [{"role": "user", "content": "What do you sell?"}], "max_tokens": 16}


@dataclass
class Stage:
    """A running platform with its upstream."""

    base_url: str
    data_dir: Path
    admin: AdminClient
    upstream_port: int
    ready: dict[str, str]

    @property
    def gateway(self) -> tuple[str, int]:
        parts = urlsplit(self.base_url)
        assert parts.hostname is not None
        assert parts.port is not None
        return parts.hostname, parts.port

    def processes(self) -> dict[str, list[psutil.Process]]:
        """Return each process that Darktree runs, with its children, by name."""
        record = json.loads((self.data_dir / "platform.json").read_text())
        found = {}
        for name, about in record["processes"].items():
            if not name.startswith("lane-"):
                parent = psutil.Process(about["pid"])
                found[name] = [parent, *parent.children(recursive=True)]
        return found

    async def customer(self, customer_id: str, *, cap_tokens: int, dollars: str) -> str:
        """Make a customer with a cap and credits; return a key."""
        await self.admin.create_customer(CreateCustomer(id=customer_id, name=customer_id, plan="solo"))
        await self.admin.set_cap(customer_id, SetCap(cap_tokens=cap_tokens))
        await self.admin.grant(customer_id, GrantCredits(dollars=dollars, reason="a benchmark"))
        return (await self.admin.create_key(customer_id, CreateKey(name="benchmark"))).key


def cpu_seconds(processes: dict[str, list[psutil.Process]]) -> dict[str, float]:
    """Return the processor time of each process tree so far."""
    taken = {}
    for name, tree in processes.items():
        times = [process.cpu_times() for process in tree if process.is_running()]
        taken[name] = sum(time.user + time.system for time in times)
    return taken


def peak_megabytes(processes: dict[str, list[psutil.Process]]) -> dict[str, float]:
    """Return the largest memory each process has had (a tree's shared pages counted once a process)."""
    peaks = {}
    for name, tree in processes.items():
        status = [Path(f"/proc/{process.pid}/status").read_text() for process in tree if process.is_running()]
        peaks[name] = sum(int(text.split("VmHWM:")[1].split()[0]) for text in status) / 1024
    return peaks


@contextmanager
def upstream(port: int) -> Iterator[None]:
    """Run the canned lane."""
    process = subprocess.Popen([sys.executable, str(HERE / "upstream.py"), str(port)])
    try:
        yield
    finally:
        process.terminate()
        process.wait()


@asynccontextmanager
async def platform(gateways: int, upstream_port: int) -> AsyncIterator[Stage]:
    """Run `darktree up` with so many gateways, and stop it."""
    with TemporaryDirectory(prefix="dt-") as folder:
        ready_file, data_dir = Path(folder) / "ready.json", Path(folder) / "data"
        command = ["--data-dir", str(data_dir), "--port", "0", "--ready-file", str(ready_file)]
        process = subprocess.Popen(
            [str(Path(sys.executable).parent / "darktree"), "up", *command, "--gateways", str(gateways)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            ready = await _ready(process, ready_file)
            admin = AdminClient(ready["admin_url"], ready["admin_token"])
            stage = Stage(ready["base_url"], data_dir, admin, upstream_port, ready)
            _point_at_upstream(data_dir / "lanes.yaml", upstream_port)
            yield stage
            await admin.close()
        finally:
            process.terminate()
            process.wait()


async def until_served_by_upstream(stage: Stage, key: str) -> None:
    """Wait until every gateway has read the new lanes file."""
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    served = 0
    async with httpx.AsyncClient() as client:
        while served < 20:
            assert time.monotonic() < deadline, "the gateways did not take the new lanes file"
            url, headers = f"{stage.base_url}/chat/completions", {"Authorization": f"Bearer {key}"}
            answer = await client.post(url, json=BODY, headers=headers | {"Connection": "close"})
            served = served + 1 if "Predictable" in answer.text else 0
            await asyncio.sleep(0.05)


def _point_at_upstream(lanes_file: Path, port: int) -> None:
    documents = list(yaml.safe_load_all(lanes_file.read_text()))
    for document in documents:
        document["status"] = {"endpoints": [{"url": f"http://127.0.0.1:{port}"}]}
    lanes_file.write_text(yaml.safe_dump_all(documents))


async def _ready(process: subprocess.Popen[bytes], ready_file: Path) -> Any:
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while not ready_file.exists():
        assert process.poll() is None, "darktree up ended; run it by hand to see why"
        assert time.monotonic() < deadline, "darktree up is not ready"
        await asyncio.sleep(0.1)
    return json.loads(ready_file.read_text())
