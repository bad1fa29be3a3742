"""Runs the real `darktree` command in processes of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import pytest

DARKTREE = Path(sys.executable).with_name("darktree")
START_SECONDS = 90
STOP_SECONDS = 60
DOCTOR_SECONDS = 90

Ran = subprocess.CompletedProcess[str]


def clean_environment(**added: str) -> dict[str, str]:
    """Return this environment without anything that leads a command to another platform."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("DARKTREE_", "DATABASE_"))
    }
    return kept | added


def run_darktree(*words: str, cwd: Path | None = None, timeout: float = 180, **added: str) -> Ran:
    """Run one command to its end."""
    return subprocess.run(
        [DARKTREE, *words],
        cwd=cwd,
        env=clean_environment(**added),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def wait_until(true: Callable[[], Any], what: str, seconds: float = 30) -> Any:
    """Return the first true value of a condition, asked until a deadline."""
    deadline = time.monotonic() + seconds
    while not (value := true()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)
    return value


@dataclass
class Running:
    """A `darktree up` that has said that it is ready."""

    popen: subprocess.Popen[str]
    data_dir: Path
    ready_file: Path
    out: Path
    err: Path

    @property
    def ready(self) -> dict[str, str]:
        answer: dict[str, str] = json.loads(self.ready_file.read_text())
        return answer

    @property
    def record(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads((self.data_dir / "platform.json").read_text())
        return answer

    def pid(self, name: str) -> int:
        return int(self.record["processes"][name]["pid"])

    def processes(self) -> list[psutil.Process]:
        """Return the supervisor, its children and theirs."""
        supervisor = psutil.Process(self.popen.pid)
        return [supervisor, *supervisor.children(recursive=True)]

    def command(self, *words: str) -> Ran:
        return run_darktree(*words, "--data-dir", str(self.data_dir))

    def json(self, *words: str) -> Any:
        """Return what a command prints as JSON, having checked that it went well."""
        ran = self.command(*words, "--output", "json")
        assert ran.returncode == 0, ran.stderr
        return json.loads(ran.stdout)

    def found_well(self) -> Any:
        """Return what the doctor says once all is well: on a busy machine a probe may run out of its time."""

        def said() -> Any:
            ran = self.command("doctor", "--output", "json")
            return json.loads(ran.stdout) if ran.returncode == 0 else None

        return wait_until(said, "all is well", DOCTOR_SECONDS)

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        self.popen.send_signal(number)
        return self.popen.wait(STOP_SECONDS)


Start = Callable[..., Running]


def _start(stack: ExitStack, folder: Path, *words: str, **added: str) -> Running:
    out, err = folder / "out", folder / "err"
    running = Running(
        popen=subprocess.Popen(
            [DARKTREE, "up", "--data-dir", "data", "--port", "0", "--ready-file", "ready.json", *words],
            cwd=folder,
            env=clean_environment(**added),
            stdout=stack.enter_context(out.open("w")),
            stderr=stack.enter_context(err.open("w")),
            text=True,
        ),
        data_dir=folder / "data",
        ready_file=folder / "ready.json",
        out=out,
        err=err,
    )
    stack.callback(_end, running)
    wait_until(
        lambda: running.ready_file.exists() or running.popen.poll() is not None,
        "the platform is ready",
        START_SECONDS,
    )
    assert running.popen.poll() is None, err.read_text()
    return running


def _end(running: Running) -> None:
    if running.popen.poll() is None:
        running.popen.send_signal(signal.SIGINT)
        try:
            running.popen.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            running.popen.kill()


@pytest.fixture(scope="session")
def darktree() -> Callable[..., Ran]:
    """Runs one command: `darktree("plans", "list", cwd=...)`."""
    return run_darktree


@pytest.fixture(scope="session")
def eventually() -> Callable[..., Any]:
    """Waits for something to be true, with a deadline, and returns it."""
    return wait_until


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder for a platform. Not pytest's own: every session that starts closes the folder above those to all but
    root, which is not who runs Postgres."""
    with TemporaryDirectory(prefix="dt-") as made:
        yield Path(made)


@pytest.fixture
def start(folder: Path) -> Iterator[Start]:
    """Starts platforms, one after the other, in the same folder; they end with the test."""
    with ExitStack() as stack:
        yield lambda *words, **added: _start(stack, folder, *words, **added)


@pytest.fixture(scope="module")
def platform() -> Iterator[Running]:
    """One platform with two gateways, for every test of a module."""
    with TemporaryDirectory(prefix="dt-") as made, ExitStack() as stack:
        yield _start(stack, Path(made), "--gateways", "2")
