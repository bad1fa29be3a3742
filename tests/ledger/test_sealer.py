"""The sealer's process: it seals, signs and anchors, waits while another does, and may be killed at any moment."""

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from pydantic import SecretStr
from starlette.types import ASGIApp

from darktree_kit.notes import MalformedKey, make_signer, parse_signer, parse_verifier, write_signer
from darktree_ledger import merkle
from darktree_ledger.anchors import LATEST
from darktree_ledger.checkpoints import Checkpoint, open_checkpoint
from darktree_ledger.sealer import make_app
from darktree_ledger.settings import SealerSettings

ORIGIN = "darktree.dev/ledger/test"
DEADLINE_SECONDS = 180
KILLS = 4


def until(true: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not (value := true()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return value


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    file = tmp_path / "key"
    write_signer(make_signer(ORIGIN), file)
    return file


def settings(database: Any, key_file: Path, folder: Path) -> SealerSettings:
    return SealerSettings(
        database_url=SecretStr(database.url_as("darktree_sealer")),
        key_files=[key_file],
        anchors=[f"file://{folder}"],
        seal_seconds=0.02,
        checkpoint_seconds=0.05,
    )


def anchored(folder: Path, key_file: Path) -> Checkpoint | None:
    if not (folder / LATEST).exists():
        return None
    return open_checkpoint((folder / LATEST).read_text(), [parse_signer(key_file.read_text()).verifier])


def metric(url: str, name: str) -> float:
    return float(httpx.get(f"{url}/metrics").text.split(f"\n{name} ")[1].split()[0])


def test_what_is_recorded_is_sealed_signed_and_anchored(
    ledger: Any, build: Any, database: Any, key_file: Path, tmp_path: Path, serve: Callable[[ASGIApp], str]
) -> None:
    folder = tmp_path / "anchors"
    url = serve(make_app(settings(database, key_file, folder)))
    ledger.customer("acme")
    until(lambda: (found := anchored(folder, key_file)) and found.size == 1)
    ledger.apply(*(build.grant("acme", 1) for _ in range(500)))
    until(lambda: (found := anchored(folder, key_file)) and found.size == 501)
    assert httpx.get(f"{url}/readyz").status_code == 200
    until(lambda: metric(url, "darktree_sealer_checkpoint_entries") == 501)
    assert metric(url, "darktree_sealer_log_entries") == 501
    assert metric(url, "darktree_sealer_leading") == 1
    assert metric(url, "darktree_sealer_lag_entries") == 0
    assert metric(url, "darktree_sealer_checkpoint_age_seconds") < 60
    assert len(list(folder.glob("checkpoint-*"))) == ledger.value("SELECT count(*) FROM ledger.checkpoint")


def test_a_sealer_whose_keys_the_log_does_not_know_is_not_ready_and_says_why(
    ledger: Any, database: Any, key_file: Path, tmp_path: Path, serve: Callable[[ASGIApp], str]
) -> None:
    ledger.admin.execute("SELECT ledger.add_log_key(%s, NULL)", [str(make_signer(ORIGIN).verifier)])
    url = serve(make_app(settings(database, key_file, tmp_path / "anchors")))
    answer = until(lambda: "old one" in (found := httpx.get(f"{url}/readyz")).text and found)
    assert answer.status_code == 503
    assert "list the new key beside the old one" in answer.text
    assert httpx.get(f"{url}/healthz").status_code == 200


def test_a_sealer_survives_the_loss_of_its_connection(
    ledger: Any, build: Any, database: Any, key_file: Path, tmp_path: Path, serve: Callable[[ASGIApp], str]
) -> None:
    folder = tmp_path / "anchors"
    serve(make_app(settings(database, key_file, folder)))
    ledger.customer("acme")
    until(lambda: anchored(folder, key_file))
    ledger.admin.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'darktree_sealer'"
    )
    ledger.one(build.grant("acme", 1))
    until(lambda: (found := anchored(folder, key_file)) and found.size == 2)


def test_a_sealer_does_not_fork_a_log_that_an_anchor_knows_otherwise(
    ledger: Any,
    build: Any,
    database: Any,
    key_file: Path,
    tmp_path: Path,
    serving_context: Callable[..., Any],
) -> None:
    """As after a restore to an earlier moment: the anchor has a checkpoint of more entries."""
    chosen = settings(database, key_file, tmp_path / "anchors")
    ledger.customer("acme")
    with serving_context(make_app(chosen)):
        until(lambda: anchored(tmp_path / "anchors", key_file))
    signer = parse_signer(key_file.read_text())
    (tmp_path / "anchors" / LATEST).write_text(Checkpoint(ORIGIN, 2, bytes(32)).signed([signer]))
    ledger.one(build.grant("acme", 1))
    with serving_context(make_app(chosen)) as url:
        until(lambda: "restored to an earlier moment" in httpx.get(f"{url}/readyz").text)
    assert ledger.value("SELECT count(*) FROM ledger.sealed") == 1
    moved = chosen.model_copy(update={"anchors": [f"file://{tmp_path}/elsewhere"]})
    with serving_context(make_app(moved)):
        until(lambda: (found := anchored(tmp_path / "elsewhere", key_file)) and found.size == 2)


@contextmanager
def process(chosen: SealerSettings) -> Iterator[subprocess.Popen[bytes]]:
    environment = os.environ | {
        "DARKTREE_SEALER_DATABASE_URL": chosen.database_url.get_secret_value(),
        "DARKTREE_SEALER_KEY_FILES": ",".join(map(str, chosen.key_files)),
        "DARKTREE_SEALER_ANCHORS": ",".join(chosen.anchors),
        "DARKTREE_SEALER_SEAL_SECONDS": str(chosen.seal_seconds),
        "DARKTREE_SEALER_CHECKPOINT_SECONDS": str(chosen.checkpoint_seconds),
    }
    command = [sys.executable, "-m", "darktree_ledger.sealer"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as popen:
        try:
            yield popen
        finally:
            popen.kill()


def test_kills_at_any_moment_and_two_sealers_at_once_leave_one_whole_log(
    ledger: Any, build: Any, database: Any, key_file: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "anchors"
    chosen = settings(database, key_file, folder)
    ledger.customer("acme", dollars=0)

    def sealed() -> int:
        return int(ledger.value("SELECT count(*) FROM ledger.sealed"))

    def record(count: int) -> None:
        for _ in range(count):
            ledger.apply(*(build.grant("acme", 1) for _ in range(500)))

    def more_than(before: int) -> bool:
        return sealed() > before

    for _ in range(KILLS):
        before = sealed()
        with process(chosen) as first, process(chosen) as second:
            record(4)
            until(partial(more_than, before))
            record(2)
            for popen in (first, second):
                psutil.Process(popen.pid).send_signal(signal.SIGKILL)
    with process(chosen):
        total = KILLS * 3_000
        until(lambda: (found := anchored(folder, key_file)) and found.size == total)
    hashes = [
        row[0] for row in ledger.admin.execute("SELECT hash FROM ledger.sealed ORDER BY position").fetchall()
    ]
    recorded = ledger.admin.execute("SELECT hash FROM ledger.entry").fetchall()
    assert sorted(hashes) == sorted(row[0] for row in recorded)
    verifier = parse_signer(key_file.read_text()).verifier
    for file in folder.glob("checkpoint-*"):
        checkpoint = open_checkpoint(file.read_text(), [verifier])
        assert checkpoint.root == merkle.root(hashes[: checkpoint.size])


def test_a_key_is_made_once_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    file = tmp_path / "key"
    command = [sys.executable, "-m", "darktree_ledger.sealer", "new-key", ORIGIN, str(file)]
    made = subprocess.run(command, check=True, capture_output=True, text=True)
    assert str(parse_verifier(made.stdout)) == str(parse_signer(file.read_text()).verifier)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    content = file.read_bytes()
    assert subprocess.run(command, capture_output=True).returncode != 0
    assert file.read_bytes() == content


def test_keys_of_several_logs_are_refused(database: Any, key_file: Path, tmp_path: Path) -> None:
    write_signer(make_signer("darktree.dev/ledger/other"), tmp_path / "other")
    chosen = settings(database, key_file, tmp_path).model_copy(
        update={"key_files": [key_file, tmp_path / "other"]}
    )
    with pytest.raises(MalformedKey, match="all of them its origin"):
        make_app(chosen)
