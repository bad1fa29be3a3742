"""Anchors: places outside our control that keep checkpoints, so that a rewritten log cannot hide.

A target is a folder (`file:///...`) or anything that takes HTTP PUT (`https://...`): an object store, best with its
objects locked. Each checkpoint becomes one object, and `latest` a copy of the newest. Anchoring is never waited for.
"""

import asyncio
import base64
import hashlib
import logging
import os
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from darktree_kit import clock
from darktree_kit.errors import ApiError
from darktree_kit.http import InternalClient
from darktree_ledger import sealer_metrics as metrics
from darktree_ledger.s3 import Credentials

LATEST = "latest"
MAX_WAITING = 1_000
FIRST_BACKOFF_SECONDS = 1.0
LAST_BACKOFF_SECONDS = 60.0

_log = logging.getLogger(__name__)


class AnchorError(Exception):
    """A checkpoint could not be anchored."""


class Target(Protocol):
    """Where checkpoints are kept. `name` is for logs and metrics and holds no secret."""

    name: str

    async def put(self, size: int, note: str) -> None: ...

    async def newest(self) -> str | None: ...

    async def close(self) -> None: ...


def object_name(size: int) -> str:
    """Return what a checkpoint's object is called; names sort by size."""
    return f"checkpoint-{size:020d}"


def target_of(url: str, headers: Mapping[str, str], credentials: Credentials | None = None) -> Target:
    """Return the target that a URL names; `headers` go with every PUT, signed when there are credentials.

    Raises ValueError.
    """
    parts = urlsplit(url)
    if parts.scheme == "file" and parts.netloc in {"", "localhost"} and parts.path:
        return Folder(Path(unquote(parts.path)))
    if parts.scheme in {"http", "https"} and parts.hostname and not parts.query:
        return Store(url, headers, credentials)
    raise ValueError("an anchor is file:///folder or http(s)://host/path without a query")


class Folder:
    """A folder. A checkpoint that it has is never replaced by another one of the same size."""

    def __init__(self, path: Path) -> None:
        self.name = f"file://{path}"
        self._path = path

    async def put(self, size: int, note: str) -> None:
        try:
            await asyncio.to_thread(self._put, size, note.encode())
        except OSError as error:
            raise AnchorError(str(error)) from error

    async def newest(self) -> str | None:
        latest = self._path / LATEST
        return latest.read_text() if latest.exists() else None

    async def close(self) -> None: ...

    def _put(self, size: int, content: bytes) -> None:
        self._path.mkdir(parents=True, exist_ok=True)
        file = self._path / object_name(size)
        if not file.exists():
            self._write(file, content)
        elif file.read_bytes() != content:
            raise AnchorError(f"{file} holds another checkpoint of this size: the log was forked")
        self._write(self._path / LATEST, content)

    def _write(self, file: Path, content: bytes) -> None:
        beside = file.with_name(f".{file.name}.new")
        with beside.open("wb") as opened:
            opened.write(content)
            opened.flush()
            os.fsync(opened.fileno())
        beside.replace(file)


class Store:
    """An object store or any other server that takes PUT; S3's signature is made when there are credentials."""

    def __init__(self, url: str, headers: Mapping[str, str], credentials: Credentials | None = None) -> None:
        parts = urlsplit(url)
        self._url = url.rstrip("/")
        self._credentials = credentials
        self.name = f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path}"
        self._headers = {"Content-Type": "text/plain; charset=utf-8", **headers}
        self._http = InternalClient(url, "", service=self.name)

    async def put(self, size: int, note: str) -> None:
        for name in (object_name(size), LATEST):
            await self._send("PUT", name, note.encode())

    async def newest(self) -> str | None:
        return (await self._send("GET", LATEST, b"")).decode()

    async def close(self) -> None:
        await self._http.close()

    async def _send(self, method: str, name: str, body: bytes) -> bytes:
        headers = self._headers
        if self._credentials is not None:
            # Without a checksum of the body S3 refuses objects that are to be locked.
            checksum = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
            headers = self._credentials.headers(
                method, f"{self._url}/{name}", body, clock.utc_now(), {**headers, "Content-MD5": checksum}
            )
        return await self._http.call(method, f"/{name}", body=body, headers=headers)


class Anchors:
    """Carries every checkpoint to every target, each at its own pace."""

    def __init__(self, targets: Sequence[Target], backoff_seconds: float = FIRST_BACKOFF_SECONDS) -> None:
        self._queues = [_Queue(target, backoff_seconds) for target in targets]
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [asyncio.create_task(queue.work()) for queue in self._queues]

    def add(self, size: int, note: str) -> None:
        for queue in self._queues:
            queue.add(size, note)

    async def newest(self) -> dict[str, str]:
        """Return the newest note of each target that has one and can be read, by the target's name."""
        found = {}
        for queue in self._queues:
            with suppress(ApiError, OSError, UnicodeDecodeError):
                if note := await queue.target.newest():
                    found[queue.target.name] = note
        return found

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for queue in self._queues:
            await queue.target.close()


class _Queue:
    """What waits for one target. When it is away for long, the oldest give way: a newer checkpoint covers them."""

    def __init__(self, target: Target, backoff_seconds: float) -> None:
        self.target = target
        self._backoff_seconds = backoff_seconds
        self._waiting: deque[tuple[int, str]] = deque(maxlen=MAX_WAITING)
        self._some = asyncio.Event()
        metrics.ANCHOR_FAILURES.labels(target.name)

    def add(self, size: int, note: str) -> None:
        self._waiting.append((size, note))
        self._some.set()

    async def work(self) -> None:
        backoff = self._backoff_seconds
        while True:
            await self._some.wait()
            size, note = self._waiting[0]
            try:
                await self.target.put(size, note)
            except Exception as error:
                metrics.ANCHOR_FAILURES.labels(self.target.name).inc()
                detail = {"target": self.target.name, "size": size, "error": str(error)[:500]}
                _log.warning("a checkpoint was not anchored", extra=detail)
                await asyncio.sleep(backoff)
                backoff = min(2 * backoff, LAST_BACKOFF_SECONDS)
                continue
            backoff = self._backoff_seconds
            metrics.ANCHORED_SIZE.labels(self.target.name).set(size)
            if self._waiting[0][0] == size:
                self._waiting.popleft()
            if not self._waiting:
                self._some.clear()
