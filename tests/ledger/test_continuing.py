"""A log that lost its end goes on under another origin, and only then. tests/platform/test_restore.py has the drill."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pydantic import SecretStr

from darktree_kit.db import connect
from darktree_kit.notes import Signer, make_signer, parse_signer, sign, write_signer
from darktree_ledger.anchors import LATEST, target_of
from darktree_ledger.checkpoints import Checkpoint, Continuation, continuations, endorse, trusted_keys
from darktree_ledger.continuing import continue_log
from darktree_ledger.receipts import LogKeyView
from darktree_ledger.sealing import Log, LogError
from darktree_ledger.settings import SealerSettings

ORIGIN = "darktree.dev/ledger/test"
NEXT = "darktree.dev/ledger/test-2"
MOMENT = datetime(2026, 11, 26, tzinfo=UTC)


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    made = make_signer(ORIGIN)
    write_signer(made, tmp_path / "key")
    return made


@pytest.fixture
def chosen(database: Any, tmp_path: Path, signer: Signer) -> SealerSettings:
    return SealerSettings(
        database_url=SecretStr(database.url_as("darktree_sealer")),
        key_files=[tmp_path / "key"],
        anchors=[f"file://{tmp_path / 'anchors'}"],
    )


@pytest.fixture
async def sealed(ledger: Any, database: Any, signer: Signer, tmp_path: Path) -> Checkpoint:
    """A log of one entry, and an anchor that says so."""
    ledger.customer("acme")
    async with await connect(database.url_as("darktree_sealer")) as connection:
        log = await Log.open(connection, [signer])
        await log.seal()
        await log.sign()
    assert log.note is not None
    assert log.checkpoint is not None
    await target_of(f"file://{tmp_path / 'anchors'}", {}).put(log.checkpoint.size, log.note)
    return log.checkpoint


def know(tmp_path: Path, signer: Signer, checkpoint: Checkpoint) -> None:
    (tmp_path / "anchors" / LATEST).write_text(checkpoint.signed([signer]))


async def test_a_log_that_lost_its_end_is_continued_and_its_own_key_says_so(
    chosen: SealerSettings, sealed: Checkpoint, signer: Signer, tmp_path: Path, database: Any, ledger: Any
) -> None:
    lost = Checkpoint(ORIGIN, 7, bytes(32))
    know(tmp_path, signer, lost)
    note = await continue_log(chosen, NEXT, tmp_path / "next")
    successor = parse_signer((tmp_path / "next").read_text())
    (found,) = continuations([signer.verifier], [LogKeyView.model_validate(_newest_key(ledger))])
    assert found == Continuation(lost, Checkpoint(ORIGIN, 1, sealed.root), successor.verifier)
    assert note.startswith(found.text())
    async with await connect(database.url_as("darktree_sealer")) as connection:
        log = await Log.open(connection, [successor])
        assert log.verifiers == [signer.verifier, successor.verifier]
        with pytest.raises(LogError, match=r"this is the log darktree\.dev/ledger/test-2"):
            await Log.open(connection, [signer])


def _newest_key(ledger: Any) -> dict[str, Any]:
    row = ledger.admin.execute(
        "SELECT vkey, endorsement, first_size, added_at FROM ledger.log_key ORDER BY added_at DESC LIMIT 1"
    ).fetchone()
    return dict(zip(("vkey", "endorsement", "first_size", "added_at"), row, strict=True))


@pytest.mark.parametrize(
    ("origin", "anchors", "why"),
    [
        (NEXT, "anchors", "nothing is lost"),
        (NEXT, "nowhere", "no anchor could be read"),
        (ORIGIN, "anchors", "needs another origin"),
    ],
)
async def test_a_log_is_not_continued_without_a_reason(
    chosen: SealerSettings, sealed: Checkpoint, tmp_path: Path, origin: str, anchors: str, why: str
) -> None:
    changed = chosen.model_copy(update={"anchors": [f"file://{tmp_path / anchors}"]})
    with pytest.raises(LogError, match=why):
        await continue_log(changed, origin, tmp_path / "next")
    assert not (tmp_path / "next").exists()


async def test_a_log_is_not_continued_while_a_sealer_holds_it(
    chosen: SealerSettings, sealed: Checkpoint, tmp_path: Path, database: Any
) -> None:
    with psycopg.connect(database.url_as("darktree_sealer"), autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock(%s)", [0x64_74_4C_6F_67])
        with pytest.raises(LogError, match="another sealer"):
            await continue_log(chosen, NEXT, tmp_path / "next")


def test_only_a_key_of_the_log_that_ended_makes_the_next_ones_key_trusted() -> None:
    old, new, stranger = make_signer(ORIGIN), make_signer(NEXT), make_signer(ORIGIN)
    ended, common = Checkpoint(ORIGIN, 7, bytes(32)), Checkpoint(ORIGIN, 5, bytes(32))
    text = Continuation(ended, common, new.verifier).text()

    def trusted(endorsement: str) -> bool:
        published = [
            LogKeyView(vkey=str(new.verifier), endorsement=endorsement, first_size=5, added_at=MOMENT)
        ]
        return new.verifier in trusted_keys([old.verifier], published)

    assert trusted(sign(text, [old]))
    assert not trusted(sign(text, [stranger]))
    assert not trusted(sign(text, [new]))
    assert not trusted(sign(text.replace(ORIGIN, NEXT), [old])), "a key speaks for its own log only"
    assert not trusted(sign(text.replace(str(new.verifier), str(stranger.verifier)), [old]))
    assert not trusted(endorse(new.verifier, old)), "a rotation stays within an origin"
