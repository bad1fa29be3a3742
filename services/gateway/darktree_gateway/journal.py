"""Settlements that the ledger could not take, kept on disk until it can.

Each process appends to a file of its own, which it keeps locked while it lives; a line is durable before `append`
returns, and many appends share one flush. Replay seals the current file first, applies every line in order, and
removes the file when the ledger has acknowledged all of it: a settlement repeated is the same settlement. Files of
processes that died (nobody holds their lock) are replayed by whoever finds them. What the ledger refuses for good
goes to a dead-letter file for a person: never lost, never silent.

A line is eight hexadecimal digits of CRC-32, a space, the operation as JSON, and a newline. A line that was torn by a
crash does not pass its CRC; nothing was promised about it.
"""

import asyncio
import fcntl
import logging
import os
import zlib
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import orjson
from pydantic import ValidationError

from darktree_gateway import metrics
from darktree_kit.errors import ApiError, Unreachable
from darktree_kit.ids import uuid7
from darktree_ledger.schemas import Operation, Result, Settle

MAX_JOURNAL_BYTES = 64 * 1024 * 1024
MAX_REPLAY_BATCH = 500
MAX_WAITING_LINES = 20_000
DEAD_LETTER_NAME = "dead-letter.jsonl"
_SUFFIX = ".journal.jsonl"

ApplyBatch = Callable[[list[Operation]], Awaitable[list[Result]]]
_log = logging.getLogger(__name__)


def encode_line(operation: Settle) -> bytes:
    content = operation.model_dump_json().encode()
    return b"%08x %b\n" % (zlib.crc32(content), content)


def decode_lines(data: bytes) -> tuple[list[Settle], list[bytes]]:
    """Return the settlements in a file, and the lines that are whole but cannot be read.

    The last line is left out when it has no newline: it was torn, so its writer was never told that it is durable.
    """
    operations, strange = [], []
    for line in data.split(b"\n")[:-1]:
        operation = _decode_line(line)
        if operation is None:
            strange.append(line)
        else:
            operations.append(operation)
    return operations, strange


def _decode_line(line: bytes) -> Settle | None:
    checksum, _, content = line.partition(b" ")
    if checksum != b"%08x" % zlib.crc32(content):
        return None
    try:
        return Settle.model_validate_json(content)
    except ValidationError:
        return None


class Journal:
    """One process' part of a directory of journals."""

    def __init__(self, directory: Path, max_bytes: int = MAX_JOURNAL_BYTES) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        directory.mkdir(parents=True, exist_ok=True)
        self._file: _OwnFile | None = None
        self._sealed: list[_OwnFile] = []
        self._waiting: list[tuple[bytes, asyncio.Future[None]]] = []
        self._writer: asyncio.Task[None] | None = None
        self._writing = asyncio.Lock()
        self._told = 0

    @property
    def size_bytes(self) -> int:
        """How much of this process' settlements waits."""
        return sum(file.size for file in [*self._sealed, *([self._file] if self._file else [])])

    def _tell(self) -> None:
        size = self.size_bytes
        metrics.JOURNAL_BYTES.inc(size - self._told)  # a process can have several journals
        self._told = size

    @property
    def empty(self) -> bool:
        return self._file is None and not self._sealed and not self._waiting

    async def append(self, operation: Settle) -> None:
        """Make a settlement durable. Raises OSError when it cannot be."""
        if len(self._waiting) >= MAX_WAITING_LINES:
            raise OSError("too many settlements are waiting for the disk")
        line = encode_line(operation)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((line, future))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write())
        await asyncio.shield(future)

    async def _write(self) -> None:
        while self._waiting:
            async with self._writing:
                batch, self._waiting = self._waiting, []
                try:
                    await asyncio.to_thread(self._append_now, b"".join(line for line, _ in batch))
                except OSError as error:
                    for _, future in batch:
                        if not future.cancelled():
                            future.set_exception(error)
                    continue
            metrics.JOURNALLED.inc(len(batch))
            self._tell()
            for _, future in batch:
                if not future.cancelled():
                    future.set_result(None)

    def _append_now(self, data: bytes) -> None:
        if self.size_bytes + len(data) > self._max_bytes:
            raise OSError(f"the journal is full: it may have {self._max_bytes} bytes")
        if self._file is None:
            self._file = _OwnFile.create(self._directory)
        try:
            self._file.append(data)
        except OSError:
            # What reached the disk is unknown: never write behind a torn line.
            self._sealed.append(self._file)
            self._file = None
            raise

    async def replay(self, apply_batch: ApplyBatch) -> int:
        """Give the ledger everything that waits; return how much it took. Raises Unreachable when it is still away."""
        async with self._writing:
            if self._file is not None and self._file.size:
                self._sealed.append(self._file)
                self._file = None
        for file in await asyncio.to_thread(self._adopt):
            _log.warning("adopted the journal of a process that died", extra={"file": file.path.name})
            self._sealed.append(file)
        replayed = 0
        while self._sealed:
            file = self._sealed[0]
            operations, strange = decode_lines(await asyncio.to_thread(file.path.read_bytes))
            if strange:
                await self._bury([(line.decode("latin-1"), "unreadable") for line in strange])
            for start in range(0, len(operations), MAX_REPLAY_BATCH):
                replayed += await self._apply(operations[start : start + MAX_REPLAY_BATCH], apply_batch)
            self._sealed.pop(0)
            await asyncio.to_thread(file.remove)
            self._tell()
        return replayed

    async def _apply(self, operations: Sequence[Settle], apply_batch: ApplyBatch) -> int:
        try:
            results = await apply_batch(list(operations))
        except ApiError as error:
            if (
                isinstance(error, Unreachable)
                or error.answer_status >= 500
                or error.answer_status in {401, 403}
            ):
                raise
            if len(operations) == 1:
                await self._bury([(operations[0].model_dump_json(), f"{error.answer_code}: {error.message}")])
                return 0
            # One of them is wrong; the others must not suffer for it.
            return sum([await self._apply([operation], apply_batch) for operation in operations])
        refused = [
            (operation.model_dump_json(), result.reason or f"conflict in {result.field}")
            for operation, result in zip(operations, results, strict=True)
            if result.outcome != "done"
        ]
        if refused:
            await self._bury(refused)
        return len(operations) - len(refused)

    async def bury(self, operation: Settle, reason: str) -> None:
        """Put a settlement that the ledger refuses for good where a person will find it."""
        await self._bury([(operation.model_dump_json(), reason)])

    async def _bury(self, letters: list[tuple[str, str]]) -> None:
        _log.error(
            "settlements were refused for good", extra={"count": len(letters), "reason": letters[0][1][:200]}
        )
        metrics.DEAD_LETTERS.inc(len(letters))
        lines = [orjson.dumps({"reason": reason[:500], "line": line}) + b"\n" for line, reason in letters]
        await asyncio.to_thread(append_durably, self._directory / DEAD_LETTER_NAME, b"".join(lines))

    def _adopt(self) -> list["_OwnFile"]:
        mine = {file.path for file in [*self._sealed, *([self._file] if self._file else [])]}
        paths = sorted(set(self._directory.glob(f"*{_SUFFIX}")) - mine)
        return [file for path in paths if (file := _OwnFile.adopt(path)) is not None]

    async def close(self) -> None:
        """Wait for the disk, then let go of the files: what is in them is the next process' work."""
        if self._writer is not None:
            await asyncio.gather(self._writer, return_exceptions=True)
        for file in [*self._sealed, *([self._file] if self._file else [])]:
            file.close()
        self._sealed, self._file = [], None


class _OwnFile:
    """A journal file that this process has locked."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        self.size = os.fstat(descriptor).st_size

    @classmethod
    def create(cls, directory: Path) -> "_OwnFile":
        path = directory / f"{uuid7().hex}{_SUFFIX}"
        unseen = path.with_suffix(".new")
        descriptor = os.open(unseen, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        # Locked before anybody can find it: unlocked, it would be taken for a dead process' file, and removed.
        unseen.rename(path)
        _sync_directory(directory)
        return cls(path, descriptor)

    @classmethod
    def adopt(cls, path: Path) -> "_OwnFile | None":
        """Return the file if nobody alive holds it."""
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return None
        # Between opening and locking, its owner may have replayed it and removed it.
        if not path.exists() or path.stat().st_ino != os.fstat(descriptor).st_ino:
            os.close(descriptor)
            return None
        return cls(path, descriptor)

    def append(self, data: bytes) -> None:
        written = 0
        while written < len(data):
            written += os.write(self._descriptor, data[written:])
        os.fsync(self._descriptor)
        self.size += len(data)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        _sync_directory(self.path.parent)
        self.close()

    def close(self) -> None:
        os.close(self._descriptor)


def append_durably(path: Path, data: bytes) -> None:
    """Append to a file that other processes append to as well; on disk when this returns."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.write(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
