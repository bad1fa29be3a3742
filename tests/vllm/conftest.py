"""A real vLLM on the CPU beside a simulator, both with the same tokenizer, model name and context."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

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


@dataclass(frozen=True)
class ServedEngine:
    """An engine that answers, with the counters that a bill must equal."""

    base_url: str
    model: str
    context_length: int

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


@pytest.fixture(scope="session")
def vllm_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedEngine]:
    """A real vLLM; starting it takes half a minute."""
    if not VLLM_PYTHON.exists():
        pytest.skip('there is no real vLLM here: run "make vllm"')
    folder = tmp_path_factory.mktemp("vllm")
    script = str(tiny_model.__file__)
    subprocess.run([VLLM_PYTHON, script, folder / "model"], check=True, capture_output=True)
    port = _free_port()
    command = vllm_command(VLLM_PYTHON, folder / "model", MODEL, port, CONTEXT_LENGTH)
    with _started(command.argv, command.env, port, folder / "log") as engine:
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
def _simulator(tokens_per_second: float, folder: Path) -> Iterator[ServedEngine]:
    port = _free_port()
    argv = [sys.executable, "-m", "darktree_simulator", "--model", MODEL, "--port", str(port)]
    argv += ["--context-length", str(CONTEXT_LENGTH), "--tokens-per-second", str(tokens_per_second)]
    with _started(argv, {}, port, folder / "log") as engine:
        yield engine


@contextmanager
def _started(argv: list[str], env: Mapping[str, str], port: int, log: Path) -> Iterator[ServedEngine]:
    with log.open("wb") as output:
        process = subprocess.Popen(argv, env=os.environ | env, stdout=output, stderr=subprocess.STDOUT)
    try:
        _wait_until_healthy(process, port, log)
        yield ServedEngine(f"http://127.0.0.1:{port}", MODEL, CONTEXT_LENGTH)
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


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


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
        self._said: list[bytearray] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def usages(self) -> list[dict[str, int]]:
        """Return every usage that passed, oldest first."""
        text = b"".join(self._said).decode("utf-8", "replace")
        return [json.loads(found) for found in re.findall(r'"usage":(\{[^{}]*\})', text)]

    def completion_tokens(self) -> int:
        return (self.usages() or [{"completion_tokens": 0}])[-1]["completion_tokens"]

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
                said = bytearray()
                self._said.append(said)
                threading.Thread(target=self._pump, args=(near, far, None), daemon=True).start()
                threading.Thread(target=self._pump, args=(far, near, said), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, said: bytearray | None) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
                if said is not None:
                    said += data
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="session")
def make_tap() -> Callable[[str], Tap]:
    """Taps the connections to an engine."""
    return Tap
