"""What every peer is to the benchmark: an address to send the same load to, processes to weigh, and words about it."""

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
from stage import MODEL

START_TIMEOUT_SECONDS = 300.0  # LiteLLM imports for half a minute on an idle machine
ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = ROOT / ".venv-peers"


class Missing(Exception):
    """The peer is not installed, or does not start: it is left out, and the report says why."""


@dataclass
class Peer:
    """One running proxy."""

    name: str
    version: str
    configuration: str
    does: str
    port: int
    key: str
    parts: Callable[[], Mapping[str, Sequence[psutil.Process]]]  # what its work costs, by part
    headers: Mapping[str, str] = field(default_factory=dict)

    def processes(self) -> list[psutil.Process]:
        return [process for tree in self.parts().values() for process in tree if process.is_running()]

    def cpu_seconds(self) -> dict[str, float]:
        """Return each part's processor time so far."""
        found = {}
        for part, tree in self.parts().items():
            times = [process.cpu_times() for process in tree if process.is_running()]
            found[part] = sum(time_.user + time_.system for time_ in times)
        return found

    def megabytes(self) -> float:
        """Return the memory of all its processes, shared pages counted once (PSS)."""
        return sum(process.memory_full_info().pss for process in self.processes()) / 2**20


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def tool(name: str, *paths: str) -> str:
    """Return where a program is. Raises Missing."""
    found = shutil.which(name, path=":".join(paths) or None)
    if found is None:
        raise Missing(f"{name} is not installed")
    return found


@contextmanager
def process(
    command: Sequence[str], *, environment: Mapping[str, str] | None = None
) -> Iterator[psutil.Process]:
    """Run a program, quietly, for as long as the block lasts."""
    with tempfile.TemporaryFile() as said:
        running = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, env=environment)
        try:
            yield psutil.Process(running.pid)
        finally:
            for child in (
                psutil.Process(running.pid).children(recursive=True) if running.poll() is None else ()
            ):
                child.terminate()
            running.terminate()
            running.wait(30)


def tree_of(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def until_it_answers(peer: Peer) -> None:
    """Wait for the first right answer. Raises Missing when none comes."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "What do you sell?"}], "max_tokens": 16}
    headers = {"Authorization": f"Bearer {peer.key}"} | dict(peer.headers)
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    last: object = None
    while time.monotonic() < deadline:
        try:
            url = f"http://127.0.0.1:{peer.port}/v1/chat/completions"
            answer = httpx.post(url, json=body, headers=headers, timeout=30)
            if answer.status_code == 200 and "Predictable" in answer.text:
                return
            last = f"{answer.status_code} {answer.text[:200]}"
        except httpx.HTTPError as error:
            last = error
        time.sleep(0.2)
    raise Missing(f"{peer.name} did not answer: {last}")
