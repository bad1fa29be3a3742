"""The drill: back up under load, go on, lose everything, restore elsewhere, prove what is there, and go on."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from fleet import Copy, Traffic

from darktree_kit.notes import parse_signer
from darktree_ledger.checkpoints import parse_checkpoint

Platform = Any  # what tests/platform/conftest.py makes, which cannot be imported
DARKTREE = str(Path(sys.executable).with_name("darktree"))
SOON = {"DARKTREE_SEALER_SEAL_SECONDS": "0.1", "DARKTREE_SEALER_CHECKPOINT_SECONDS": "0.2"}
NEXT = "darktree.dev/ledger/after-the-restore"
CLIENTS = 6
LOAD_SECONDS = 300
PASSWORD = "unused: the socket is trusted"


def a_chat(number: int) -> dict[str, Any]:
    return {
        "model": "qwen25-14b-awq",
        "messages": [{"role": "user", "content": "Count the leaves"}],
        "max_tokens": 5 + number % 20,
        "extra_body": {"ignore_eos": True},
    }


def darktree(*words: str, env: dict[str, str] | None = None, code: int = 0) -> Any:
    """Run a command, and return its JSON."""
    ran = subprocess.run(
        [DARKTREE, *words, "--output", "json"], env=env, capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == code, ran.stdout + ran.stderr
    return json.loads(ran.stdout)


def size_of(note: str) -> int:
    return parse_checkpoint(note.partition("\n\n")[0] + "\n").size


@dataclass
class Drill:
    """What is left after the disaster: a backup, and checkpoints that were kept elsewhere."""

    platform: Platform
    folder: Path
    customers: list[Any]
    before: Path  # a checkpoint from before the backup
    newest: Path  # the last that was anchored
    made: dict[str, Any]
    metric: float

    @property
    def backup(self) -> Path:
        return self.folder / "backup"

    @property
    def key(self) -> str:
        return str(parse_signer((self.platform.data_dir / "log-key").read_text()).verifier)

    @property
    def lost_entries(self) -> int:
        return size_of(self.newest.read_text()) - int(self.made["log_entries"])


@pytest.fixture(scope="module")
def platform(started: Any) -> Iterator[Platform]:
    with started({"fast": 2000, "slow": 40}, gateways=1, **SOON) as running:
        yield running


@pytest.fixture(scope="module")
def drill(
    platform: Platform, eventually: Callable[..., Any], tmp_path_factory: Any, background: Any
) -> Drill:
    """Load, a checkpoint kept, a backup under load, more load, and the last checkpoint kept."""
    folder = tmp_path_factory.mktemp("drill")
    latest = platform.data_dir / "anchors" / "latest"
    customers = [platform.customer(cap_tokens=1_000_000) for _ in range(2)]

    def keep(name: str, entries: int) -> Path:
        kept: Path = folder / name
        eventually(
            lambda: latest.exists() and size_of(latest.read_text()) >= entries, "a checkpoint is anchored"
        )
        kept.write_text(latest.read_text())
        return kept

    def recorded() -> int:
        (row,) = platform.sql("SELECT count(*) AS entries FROM ledger.entry")
        return int(row["entries"])

    async def load() -> dict[str, Any]:
        async with Traffic(platform.base_url, customers, CLIENTS, a_chat) as traffic:
            await traffic.until(40)
            keep("before", recorded() - CLIENTS)
            words = ("backup", str(folder / "backup"), "--data-dir", str(platform.data_dir))
            made: dict[str, Any] = await traffic.during(lambda: darktree(*words))
            await traffic.until(40)
        assert traffic.failures == []
        return made

    made = background.start(load()).result(LOAD_SECONDS)
    metrics = httpx.get(platform.processes["billing"]["url"] + "/metrics").text
    told = next(line for line in metrics.splitlines() if line.startswith("darktree_backup_last_success"))
    newest = keep("newest", recorded())
    return Drill(platform, folder, customers, folder / "before", newest, made, float(told.split()[1]))


@dataclass
class Restored:
    """The services on the restored database."""

    told: dict[str, Any]
    database: Any
    ledger: Copy
    billing: Copy
    start_sealer: Callable[..., Copy]

    @property
    def admin(self) -> dict[str, str]:
        return {
            "DARKTREE_ADMIN_URL": self.billing.url,
            "DARKTREE_ADMIN_TOKEN": self.billing.environment["DARKTREE_BILLING_ADMIN_TOKEN"],
        }


@pytest.fixture(scope="module")
def restored(drill: Drill, empty_database: Callable[[], Any]) -> Iterator[Restored]:
    """The backup in another cluster's new database, and services on it."""
    database, platform = empty_database(), drill.platform
    copies: list[Copy] = []
    words = ("restore", str(drill.backup), "--checkpoint", str(drill.newest))
    passwords = {f"DARKTREE_{role}_ROLE_PASSWORD": PASSWORD for role in ("LEDGER", "SEALER", "BILLING")}
    told = darktree(*words, env={"DATABASE_URL": database.admin_url} | passwords)

    def copy(service: str, **settings: str) -> Copy:
        url = database.url_as(f"darktree_{service}")
        environment = platform.process(service).environ()
        log = drill.folder / f"{service}-{len(copies)}.log"
        copies.append(Copy(environment, service, log, {"DATABASE_URL": url, **settings}, health="/healthz"))
        return copies[-1]

    try:
        ledger = copy("ledger")
        yield Restored(
            told, database, ledger, copy("billing", LEDGER_URL=ledger.url), lambda **s: copy("sealer", **s)
        )
    finally:
        for running in copies:
            running.close()


def test_a_backup_is_told_to_billing_and_its_metric(drill: Drill) -> None:
    (row,) = drill.platform.sql("SELECT extract(epoch FROM started_at)::float8 AS at, * FROM billing.backup")
    assert (row["made_by"], row["size_bytes"]) == ("darktree backup", drill.backup.stat().st_size)
    assert drill.metric == pytest.approx(row["at"], abs=0.001)
    assert drill.backup.stat().st_mode & 0o077 == 0, "nobody else may read it"


def test_a_restore_tells_how_much_of_the_log_is_missing(drill: Drill, restored: Restored) -> None:
    assert drill.lost_entries > 0
    assert restored.told["log_entries"] >= drill.made["log_entries"] >= size_of(drill.before.read_text())
    missing = size_of(drill.newest.read_text()) - restored.told["log_entries"]
    assert restored.told["log_entries_missing"] == missing > 0


def test_a_backup_goes_into_a_new_database_only_and_an_altered_one_into_none(
    drill: Drill, restored: Restored, empty_database: Callable[[], Any], tmp_path: Path
) -> None:
    words = [DARKTREE, "restore", str(drill.backup)]
    ran = subprocess.run(
        words, env={"DATABASE_URL": restored.database.admin_url}, capture_output=True, text=True
    )
    assert (ran.returncode, "there already" in ran.stderr) == (1, True)
    altered = tmp_path / "backup"
    altered.write_bytes(drill.backup.read_bytes() + b"!")
    altered.with_name("backup.json").write_text(drill.backup.with_name("backup.json").read_text())
    words = [DARKTREE, "restore", str(altered)]
    ran = subprocess.run(
        words, env={"DATABASE_URL": empty_database().admin_url}, capture_output=True, text=True
    )
    assert (ran.returncode, "SHA-256" in ran.stderr) == (1, True)


def test_the_restored_ledger_adds_up_and_is_proven_against_the_kept_checkpoint_and_goes_on_provably(
    drill: Drill, restored: Restored, eventually: Callable[..., Any]
) -> None:
    """One test, because each step needs the one before."""
    assert darktree("ledger", "check", env=restored.admin)["problems"] == []
    verify = ("ledger", "verify", "--key", drill.key, "--checkpoint")
    proven = darktree(*verify, str(drill.before), env=restored.admin)
    assert (proven["verdict"], proven["keys_are_yours"]) == ("proven", True)
    assert proven["earlier"]["size"] == size_of(drill.before.read_text())
    cut = darktree(*verify, str(drill.newest), code=1, env=restored.admin)
    assert "it was cut off" in cut["differs"][0]["what"]

    sealer = restored.start_sealer()
    eventually(
        lambda: "restored to an earlier moment" in httpx.get(sealer.url + "/readyz").text, "it refuses"
    )
    sealer.terminate()
    words = [
        sys.executable,
        "-m",
        "darktree_ledger.sealer",
        "continue-as",
        NEXT,
        str(drill.folder / "next-key"),
    ]
    ran = subprocess.run(words, env=sealer.environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("darktree.dev/log-continuation/v1\n")

    anchors = drill.folder / "anchors"
    sealer = restored.start_sealer(KEY_FILES=str(drill.folder / "next-key"), ANCHORS=anchors.as_uri())
    token = {"Authorization": f"Bearer {restored.admin['DARKTREE_ADMIN_TOKEN']}"}
    grant = f"{restored.billing.url}/admin/customers/{drill.customers[0].id}/grants"
    answer = httpx.post(grant, json={"dollars": "1", "reason": "for what was lost"}, headers=token)
    assert answer.status_code == 200, answer.text
    eventually(
        lambda: (anchors / "latest").exists() and NEXT in (anchors / "latest").read_text(), "it is anchored"
    )

    goes_on = darktree(*verify, str(drill.before), env=restored.admin)
    assert (goes_on["verdict"], goes_on["checkpoint"]["origin"]) == ("proven", NEXT)
    (link,) = goes_on["continues"]
    assert link["ended"]["size"] == size_of(drill.newest.read_text())
    assert link["common"]["size"] == restored.told["log_entries"]
    lost = darktree(*verify, str(drill.newest), code=1, env=restored.admin)
    assert f"the last {link['ended']['size'] - link['common']['size']} are lost" in lost["differs"][0]["what"]
    sealer.terminate()
