"""Child processes: started, watched, started again when they die, and stopped in order.

Each child has its own session, so that a Ctrl-C in the terminal reaches only the supervisor, which then stops the
children one stage after the other. A child whose supervisor is killed is told by the kernel (Linux).
"""

import asyncio
import ctypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import psutil

from darktree_cli.platform import Process
from darktree_cli.state import ProcessRecord
from darktree_kit import clock

FIRST_BACKOFF_SECONDS = 0.25
LAST_BACKOFF_SECONDS = 10.0
STEADY_SECONDS = 20.0  # who ran for so long starts again with the first backoff
PROBE_SECONDS = 0.05
LAST_LINES = 15
LAST_BYTES = 8_192
MAX_LOG_BYTES = 64 * 1024 * 1024
LOG_CHECK_SECONDS = 60.0
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None

Probe = Callable[[Process], Awaitable[bool]]
Say = Callable[[str], None]


class StartFailed(Exception):
    """A process ended, or did not get ready in time, while the platform was starting."""


class Child:
    """A process and what became of it."""

    def __init__(self, process: Process, log: Path) -> None:
        self.process = process
        self.log = log
        self.popen: subprocess.Popen[bytes] | None = None
        self.exited = asyncio.Event()
        self.ready = False
        self.started_at = 0.0
        self.record: ProcessRecord | None = None

    @property
    def running(self) -> bool:
        return self.popen is not None and not self.exited.is_set()

    def spawn(self) -> None:
        process = self.process
        descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        uid, gid = process.user or (None, None)
        try:
            self.popen = subprocess.Popen(  # noqa: S603 (the plan's own command)
                process.argv,
                env=dict(process.env),
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                cwd="/",
                start_new_session=True,
                preexec_fn=_tie_to_parent(os.getpid(), process.stop_signal),
                user=uid,
                group=gid,
                extra_groups=[] if process.user else None,
            )
        finally:
            os.close(descriptor)
        self.exited.clear()
        self.started_at = clock.monotonic()
        with suppress(psutil.NoSuchProcess):
            started = psutil.Process(self.popen.pid).create_time()
            self.record = ProcessRecord(
                pid=self.popen.pid, started=started, url=process.url, log=str(self.log)
            )

    def reap(self) -> None:
        """Note the child's end, if it has come."""
        if self.popen is not None and not self.exited.is_set() and self.popen.poll() is not None:
            self.exited.set()

    def send(self, number: signal.Signals) -> None:
        if self.popen is not None and self.running:
            with suppress(ProcessLookupError):
                self.popen.send_signal(number)

    def kill(self) -> None:
        """End the child without asking, and whatever it started in its session."""
        self.send(self.process.kill_signal)
        if self.popen is not None and self.process.kill_signal == signal.SIGKILL:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.popen.pid, signal.SIGKILL)

    def how_it_ended(self) -> str:
        code = self.popen.returncode if self.popen is not None else None
        if code is not None and code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        return f"ended with exit code {code}"


class Supervisor:
    """The children of one platform. `changed` is called whenever a process id did."""

    def __init__(self, logs: Path, probe: Probe, say: Say, changed: Callable[[], None]) -> None:
        self._logs = logs
        self._probe = probe
        self._say = say
        self._changed = changed
        self._children: dict[str, Child] = {}
        self._keepers: list[asyncio.Task[None]] = []
        self._stopping = False
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self._reap)
        self._keepers.append(asyncio.create_task(self._bound_logs()))

    def records(self) -> dict[str, ProcessRecord]:
        return {name: child.record for name, child in self._children.items() if child.record is not None}

    def start(self, process: Process) -> None:
        """Start a process and, once it was ready, keep it running."""
        log = self._logs / f"{process.name}.log"
        _shorten(log)
        child = self._children[process.name] = Child(process, log)
        child.spawn()
        self._changed()
        self._keepers.append(asyncio.create_task(self._keep(child)))

    async def until_ready(self, name: str) -> None:
        """Wait until the process says that it is ready. Raises StartFailed with its last lines."""
        child = self._children[name]
        until = clock.monotonic() + child.process.start_seconds
        while not await self._probe(child.process):
            if child.exited.is_set():
                raise StartFailed(f"{name} {child.how_it_ended()}.\n{last_lines(child.log)}")
            if clock.monotonic() > until:
                raise StartFailed(
                    f"{name} was not ready after {child.process.start_seconds:g} s.\n{last_lines(child.log)}"
                )
            await asyncio.sleep(PROBE_SECONDS)
        child.ready = True

    async def stop(self) -> None:
        """Stop every process, the last stage first."""
        self._stopping = True
        for keeper in self._keepers:
            keeper.cancel()
        for stage in sorted({child.process.stage for child in self._children.values()}, reverse=True):
            stopped = [child for child in self._children.values() if child.process.stage == stage]
            for child in stopped:
                child.send(child.process.stop_signal)
            await asyncio.gather(*(self._stopped(child) for child in stopped))

    def kill(self) -> None:
        """Kill every process at once; a `stop` that is under way then ends."""
        for child in self._children.values():
            child.kill()

    async def _stopped(self, child: Child) -> None:
        if not child.running:
            return
        try:
            await asyncio.wait_for(child.exited.wait(), child.process.stop_seconds)
        except TimeoutError:
            self._say(f"{child.process.name} did not stop in {child.process.stop_seconds:g} s: killed")
            child.send(signal.SIGKILL)
            await child.exited.wait()
        if child.process.kill_signal == signal.SIGKILL:
            child.kill()  # what it left behind in its session

    async def _keep(self, child: Child) -> None:
        backoff = FIRST_BACKOFF_SECONDS
        while True:
            await child.exited.wait()
            if not child.ready:  # `until_ready` tells why
                return
            lasted = clock.monotonic() - child.started_at
            backoff = FIRST_BACKOFF_SECONDS if lasted > STEADY_SECONDS else backoff
            self._say(f"{child.process.name} {child.how_it_ended()}; starting it again")
            await asyncio.sleep(backoff)
            backoff = min(2 * backoff, LAST_BACKOFF_SECONDS)
            child.spawn()
            self._changed()
            if await self._answers_or_ends(child):
                self._say(f"{child.process.name} is back")

    async def _answers_or_ends(self, child: Child) -> bool:
        while child.running:
            if await self._probe(child.process):
                return True
            await asyncio.sleep(PROBE_SECONDS)
        return False

    def _reap(self) -> None:
        for child in self._children.values():
            child.reap()

    async def _bound_logs(self) -> None:
        while True:
            await asyncio.sleep(LOG_CHECK_SECONDS)
            for child in self._children.values():
                _shorten(child.log)


def end(records: dict[str, ProcessRecord], say: Say) -> None:
    """End processes that a supervisor left behind when it was killed, gateways first."""
    left = {name: found for name, record in sorted(records.items()) if (found := _found(record))}
    for name, process in left.items():
        say(f"{name} was left running by a killed supervisor: stopping it")
        with suppress(psutil.Error):
            process.send_signal(signal.SIGINT if name == "postgres" else signal.SIGTERM)
    _, alive = psutil.wait_procs(left.values(), timeout=10)
    for process in alive:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=5)


def last_lines(log: Path) -> str:
    """Return the end of a log, for a message."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - LAST_BYTES))
            lines = file.read().decode(errors="replace").splitlines()[-LAST_LINES:]
    except OSError:
        lines = []
    return "\n".join([f"The end of {log}:", *(f"  {line}" for line in lines)])


def _found(record: ProcessRecord) -> psutil.Process | None:
    with suppress(psutil.Error):
        process = psutil.Process(record.pid)
        if abs(process.create_time() - record.started) < 1 and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


def _shorten(log: Path) -> None:
    """Keep a log within its bound: one older file beside it. Its writer appends, so it can be cut under it."""
    with suppress(FileNotFoundError):
        if log.stat().st_size > MAX_LOG_BYTES:
            shutil.copyfile(log, log.with_suffix(".log.1"))
            os.truncate(log, 0)


def _tie_to_parent(parent: int, number: signal.Signals) -> Callable[[], None] | None:
    """Return what a child does before it executes: ask the kernel for this signal when its parent is gone."""
    if _LIBC is None:
        return None
    prctl = _LIBC.prctl

    def tie() -> None:
        prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return tie
