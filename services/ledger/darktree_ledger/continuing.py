"""A log that lost its end goes on under another origin: the way forward after a restore to an earlier moment.

The sealer refuses to go on when an anchor knows more than the log has: one origin would have two histories. Here the
log's own keys sign what happened, for everybody to read: how far the log is what it was, and how long it was known to
be. From then on the new origin's key signs. Nothing about the end that was lost is hidden by it: a receipt for what was
lost still proves that it had been recorded.
"""

import asyncio
import sys
from pathlib import Path

from darktree_kit.db import connect
from darktree_kit.notes import make_signer, write_signer
from darktree_ledger.anchors import Anchors
from darktree_ledger.checkpoints import Checkpoint
from darktree_ledger.sealer import anchor_targets, anchored, read_signers
from darktree_ledger.sealing import Log, LogError, take_lock
from darktree_ledger.settings import SealerSettings


def command(origin: str, file: Path) -> None:
    """Continue the log that `DARKTREE_SEALER_*` name as another one; its key goes into a new file."""
    try:
        sys.stdout.write(asyncio.run(continue_log(SealerSettings(), origin, file)))
    except (LogError, ValueError, OSError) as error:
        sys.exit(f"sealer: {error}")


async def continue_log(settings: SealerSettings, origin: str, file: Path) -> str:
    """End the log and begin the one that continues it; return the note that says so.

    Raises LogError when there is no reason to, when another sealer runs, or when the log does not fit what it signed.
    """
    signers = read_signers(settings.key_files)
    if origin == signers[0].name:
        raise LogError(f"{origin} is the log that ended: the one that goes on needs another origin")
    anchors = Anchors(anchor_targets(settings))
    try:
        async with await connect(settings.database_url.get_secret_value()) as connection:
            if not await take_lock(connection):
                raise LogError("another sealer holds the log: stop it first")
            log = await Log.open(connection, signers)
            ended = await _lost(log, anchors)
            signer = make_signer(origin)
            write_signer(signer, file)
            return await log.continue_as(signer.verifier, ended)
    finally:
        await anchors.close()


async def _lost(log: Log, anchors: Anchors) -> Checkpoint:
    """Return the longest checkpoint of this log that it does not begin with any more."""
    known = (await anchored(anchors, log)).values()
    lost = [checkpoint for checkpoint in known if not await log.has(checkpoint)]
    if not known:
        raise LogError(
            "no anchor could be read, and without one nobody knows what the log was: set its old anchors"
        )
    if not lost:
        raise LogError(
            "the log begins with what every anchor has: nothing is lost, and the sealer will go on"
        )
    return max(lost, key=lambda checkpoint: checkpoint.size)
