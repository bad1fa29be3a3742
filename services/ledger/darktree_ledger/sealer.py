"""`python -m darktree_ledger.sealer`: the process that seals entries into the log and signs checkpoints.

It alone reads the signing keys; the ledger's service cannot. Any number may run: one holds the log's lock, the others
wait for it. Whatever fails, the round is given up, and the log is taken up again from what is in the database.

    python -m darktree_ledger.sealer new-key ORIGIN FILE

makes a key instead, writes it where only this user may read it, and prints its verifier key.

    python -m darktree_ledger.sealer continue-as ORIGIN FILE

ends a log that lost its end in a restore, and begins one that continues it (continuing.py).
"""

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI

from darktree_kit import clock, logs, server
from darktree_kit.app import create_app
from darktree_kit.db import connect
from darktree_kit.errors import Unavailable
from darktree_kit.notes import MalformedKey, NoteError, Signer, make_signer, parse_signer, write_signer
from darktree_ledger import sealer_metrics as metrics
from darktree_ledger.anchors import Anchors, Target, target_of
from darktree_ledger.checkpoints import Checkpoint, open_checkpoint
from darktree_ledger.s3 import Credentials
from darktree_ledger.sealing import BATCH_ENTRIES, Log, LogError, take_lock
from darktree_ledger.settings import SealerSettings

MAX_KEYS = 8

_log = logging.getLogger(__name__)


def make_app(settings: SealerSettings) -> FastAPI:
    """Return the sealer's application: health and metrics, while it seals beside. Raises MalformedKey, ValueError."""
    signers = read_signers(settings.key_files)
    targets = anchor_targets(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        anchors = Anchors(targets)
        sealer = Sealer(settings, signers, anchors)
        app.state.ready = sealer.ready
        anchors.start()
        work = asyncio.create_task(sealer.work())
        yield
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        await anchors.close()

    return create_app("sealer", lifespan=lifespan, title="Darktree sealer", description=__doc__ or "")


def read_signers(files: Sequence[Path]) -> list[Signer]:
    """Return the keys in these files, oldest first. Raises MalformedKey, OSError."""
    signers = [parse_signer(file.read_text()) for file in files]
    if not 1 <= len(signers) <= MAX_KEYS or len({signer.name for signer in signers}) != 1:
        raise MalformedKey(f"a log has 1 to {MAX_KEYS} keys, and all of them its origin as their name")
    return signers


class Sealer:
    """Seals for as long as it runs and holds the lock."""

    def __init__(self, settings: SealerSettings, signers: Sequence[Signer], anchors: Anchors) -> None:
        self._settings = settings
        self._signers = signers
        self._anchors = anchors
        self._problem: str | None = "it has not reached its database yet"

    async def ready(self) -> None:
        """Raise Unavailable while sealing fails. Waiting for another sealer is no failure."""
        if self._problem is not None:
            raise Unavailable(self._problem)

    async def work(self) -> None:
        """Seal until cancelled."""
        while True:
            try:
                await self._on_one_connection()
            except Exception as error:
                self._problem = f"{type(error).__name__}: {error}"
                metrics.ROUND_FAILURES.inc()
                _log.warning("sealing failed", extra={"error": self._problem[:500]})
            finally:
                metrics.LEADING.set(0)
            await asyncio.sleep(self._settings.seal_seconds)

    async def _on_one_connection(self) -> None:
        async with await connect(self._settings.database_url.get_secret_value()) as connection:
            while not await take_lock(connection):
                self._problem = None
                await asyncio.sleep(self._settings.seal_seconds)
            log = await Log.open(connection, self._signers)
            await self._must_continue_what_is_anchored(log)
            metrics.LEADING.set(1)
            _log.info("sealing", extra={"origin": self._signers[0].name, "size": log.size})
            self._anchor(log)  # whether the last one arrived is not known
            await _drain(log)
            while await log.left_behind() and await log.seal(sweep=True):
                pass
            signed_at = clock.monotonic() - self._settings.checkpoint_seconds
            while True:
                await _drain(log)
                if clock.monotonic() - signed_at >= self._settings.checkpoint_seconds and await log.sign():
                    signed_at = clock.monotonic()
                    self._anchor(log)
                await _measure(log)
                self._problem = None
                await asyncio.sleep(self._settings.seal_seconds)

    async def _must_continue_what_is_anchored(self, log: Log) -> None:
        """Raise LogError when an anchor knows another history: a restore to an earlier moment, or worse."""
        for name, checkpoint in (await anchored(self._anchors, log)).items():
            if not await log.has(checkpoint):
                raise LogError(
                    f"{name} has a checkpoint of {checkpoint.size} entries with which this log does not begin: was the "
                    "database restored to an earlier moment? To go on from there, see docs/operations.md (continue-as)"
                )

    def _anchor(self, log: Log) -> None:
        # Not that of a log that this one continues: it belongs where it was anchored.
        if (
            log.checkpoint is not None
            and log.note is not None
            and log.checkpoint.origin == self._signers[0].name
        ):
            self._anchors.add(log.checkpoint.size, log.note)


async def anchored(anchors: Anchors, log: Log) -> dict[str, Checkpoint]:
    """Return the newest checkpoint of this log, or of one that it continues, at each anchor that can be read."""
    found = {}
    for name, note in (await anchors.newest()).items():
        try:
            found[name] = open_checkpoint(note, log.verifiers)
        except NoteError as error:
            _log.warning("an anchor holds no checkpoint of ours", extra={"target": name, "error": str(error)})
    return found


async def _drain(log: Log) -> None:
    while await log.seal() == BATCH_ENTRIES:
        pass


async def _measure(log: Log) -> None:
    lag = await log.lag()
    metrics.SIZE.set(log.size)
    metrics.LAG_ENTRIES.set(lag.entries)
    metrics.LAG_SECONDS.set(lag.seconds)
    metrics.CHECKPOINT_SIZE.set(log.checkpoint.size if log.checkpoint else 0)
    metrics.CHECKPOINT_AGE.set(await log.checkpoint_age_seconds())


def anchor_targets(settings: SealerSettings) -> list[Target]:
    """Return where checkpoints are also kept. Raises ValueError."""
    headers = _headers(settings.anchor_header.get_secret_value())
    credentials = _credentials(settings)
    return [target_of(url, headers, credentials) for url in settings.anchors]


def _headers(line: str) -> Mapping[str, str]:
    name, separator, value = line.partition(":")
    if line and not (separator and name.strip() and value.strip()):
        raise ValueError("an anchor's header is `Name: value`")
    return {name.strip(): value.strip()} if line else {}


def _credentials(settings: SealerSettings) -> Credentials | None:
    if not settings.s3_access_key:
        return None
    return Credentials(settings.s3_access_key, settings.s3_secret_key.get_secret_value(), settings.s3_region)


def main(arguments: Sequence[str]) -> None:
    if arguments:
        if len(arguments) != 3 or arguments[0] not in {"new-key", "continue-as"}:
            sys.exit(
                "usage: python -m darktree_ledger.sealer [new-key ORIGIN FILE | continue-as ORIGIN FILE]"
            )
        if arguments[0] == "continue-as":
            from darktree_ledger.continuing import command

            command(arguments[1], Path(arguments[2]))
            return
        signer = make_signer(arguments[1])
        write_signer(signer, Path(arguments[2]))
        sys.stdout.write(f"{signer.verifier}\n")
        return
    settings = SealerSettings()
    logs.configure("sealer", settings.log_level)
    server.serve(make_app(settings), [server.listen(settings.host, settings.port)])


if __name__ == "__main__":
    main(sys.argv[1:])
