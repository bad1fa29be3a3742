"""Administration through the command line, on a running platform."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from darktree_cli.main import app

DARKTREE = Path(sys.executable).with_name("darktree")
Running = Any  # tests/cli/conftest.py, which cannot be imported
Darktree = Callable[..., subprocess.CompletedProcess[str]]


def test_a_customer_is_made_given_a_key_credits_and_a_cap_and_the_ledger_says_so(platform: Running) -> None:
    made = platform.json(
        "customers", "create", "Acme Ltd", "--id", "acme", "--plan", "team", "--email", "a@acme.test"
    )
    assert (made["id"], made["plan"]) == ("acme", "team")
    assert platform.json("customers", "show", "acme") == made
    assert "acme" in [customer["id"] for customer in platform.json("customers", "list")["data"]]

    key = platform.json("keys", "create", "acme", "--name", "laptop")
    assert key["key"].startswith("dt_live_")
    listed = platform.json("keys", "list", "acme")["data"]
    assert [(found["name"], found["status"], "key" in found) for found in listed] == [
        ("laptop", "active", False)
    ]
    assert platform.json("keys", "revoke", key["id"])["status"] == "revoked"

    assert platform.json("caps", "show", "acme")["cap_tokens"] == 7000
    limited = platform.json("limits", "set", "acme", "--per-minute", "600")
    assert limited == platform.json("limits", "show", "acme")
    assert limited["in_force"] == {"requests_per_minute": 600, "concurrent_requests": None}
    assert platform.json("caps", "set", "acme", "9000", "--reason", "a busy week")["cap_tokens"] == 9000

    granted = platform.json("credits", "grant", "acme", "--dollars", "12.50", "--reason", "welcome")
    assert granted["balance_nanos"] == 12_500_000_000
    assert platform.json("ledger", "balance", "acme")["balance_nanos"] == 12_500_000_000
    entries = platform.json("ledger", "entries", "acme")["data"]
    assert [(entry["kind"], entry["reason"]) for entry in entries] == [("grant", "welcome")]
    assert platform.json("ledger", "check")["problems"] == []


def test_a_grant_repeated_with_its_id_gives_nothing_more(platform: Running) -> None:
    platform.json("customers", "create", "Twice", "--id", "twice", "--plan", "solo")
    words = (
        "credits",
        "grant",
        "twice",
        "--dollars",
        "1",
        "--reason",
        "r",
        "--id",
        "01930000-0000-7000-8000-000000000001",
    )
    assert [platform.json(*words)["replayed"] for _ in range(2)] == [False, True]
    assert platform.json("ledger", "balance", "twice")["balance_nanos"] == 1_000_000_000


def test_tables_show_dollars_and_no_secret(platform: Running) -> None:
    plans = platform.command("plans", "list").stdout
    assert "$50.00" in plans
    assert "qwen25-14b-awq" in plans
    keys = platform.command("keys", "list", "demo").stdout
    assert "active" in keys
    assert platform.ready["api_key"] not in keys
    assert "$" in platform.command("ledger", "balance", "demo").stdout


def test_the_doctor_names_every_part_and_finds_all_well(platform: Running) -> None:
    found = platform.found_well()
    looked_at = {finding["what"] for finding in found["findings"]}
    assert found["ok"]
    assert looked_at >= {
        "version",
        "database",
        "postgres",
        "ledger",
        "billing",
        "gateway-1",
        "gateway-2",
        "journal",
    }
    assert len([what for what in looked_at if what.startswith("lane-")]) == 3


def test_backups_in_a_folder_are_named_by_the_time_and_only_the_newest_are_kept(
    platform: Running, tmp_path: Path
) -> None:
    older = [f"darktree-2020-01-0{day}T02-17-00Z" for day in (1, 2, 3)]
    (tmp_path / "somebody's").touch()
    abandoned, running = (tmp_path / f".darktree-2020-01-0{day}T02-17-00Z.part" for day in (1, 2))
    for path in (abandoned, running, *(tmp_path / f"{name}{end}" for name in older for end in ("", ".json"))):
        path.touch()
    os.utime(abandoned, (0, 0))
    made = Path(platform.json("backup", str(tmp_path), "--keep", "2", "--no-record")["file"]).name
    kept = {"somebody's", running.name, older[-1], f"{older[-1]}.json", made, f"{made}.json"}
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_a_refusal_ends_with_one_and_says_why(platform: Running) -> None:
    for words in (
        ("customers", "show", "nobody"),
        ("keys", "list", "nobody"),
        ("caps", "set", "nobody", "5"),
        ("credits", "grant", "nobody", "--dollars", "5", "--reason", "r"),
        ("customers", "create", "Other", "--plan", "no-such-plan"),
    ):
        ran = platform.command(*words)
        assert ran.returncode == 1, words
        assert ran.stderr.startswith("darktree: "), words
        assert "Traceback" not in ran.stderr, words


@pytest.mark.parametrize(
    "words",
    [
        ("caps", "set", "demo", "-1"),
        ("caps", "set", "demo", "many"),
        ("caps", "set", "demo", "999999999999"),
        ("credits", "grant", "demo", "--dollars", "much", "--reason", "r"),
        ("credits", "grant", "demo", "--dollars", "5"),
        ("customers", "create", "A", "--plan", "solo", "--id", "NOT AN ID"),
        ("keys", "create", "demo", "--expires-at", "soon"),
        ("plans", "list", "--output", "xml"),
        ("no-such-command",),
        ("up", "--gateways", "0"),
        ("up", "--engine", "abacus"),
        ("migrate",),
        ("backup", "no-folder", "--keep", "2"),
    ],
)
def test_a_command_used_wrongly_ends_with_two(words: tuple[str, ...]) -> None:
    assert CliRunner().invoke(app, words, env={"DATABASE_URL": None}).exit_code == 2


def test_without_a_running_platform_a_command_ends_with_three(darktree: Darktree, tmp_path: Path) -> None:
    for words, added in (
        (("plans", "list"), {}),
        (("doctor", "--data-dir", str(tmp_path / "none")), {}),
        (("plans", "list"), {"DARKTREE_ADMIN_URL": "http://127.0.0.1:9", "DARKTREE_ADMIN_TOKEN": "x"}),
    ):
        ran = darktree(*words, cwd=tmp_path, **added)
        assert ran.returncode == 3, ran.stderr


def test_a_platform_is_found_by_the_environment_and_from_a_folder_below(
    platform: Running, darktree: Darktree, tmp_path: Path
) -> None:
    ready = platform.ready
    added = {"DARKTREE_ADMIN_URL": ready["admin_url"], "DARKTREE_ADMIN_TOKEN": ready["admin_token"]}
    ran = darktree("doctor", "--output", "json", cwd=tmp_path, **added)
    unwell = [finding["what"] for finding in json.loads(ran.stdout)["findings"] if not finding["ok"]]
    assert unwell == ["backup"], ran.stdout  # an installation wants one; what runs in a folder does not
    wrong = darktree("plans", "list", cwd=tmp_path, **(added | {"DARKTREE_ADMIN_TOKEN": "wrong"}))
    assert wrong.returncode == 1

    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    (tmp_path / ".darktree").symlink_to(platform.data_dir)
    assert darktree("plans", "list", cwd=below).returncode == 0


def test_migrate_brings_an_empty_database_up_to_date_as_often_as_it_is_said(
    darktree: Darktree, tmp_path: Path, empty_database: Callable[[], Any]
) -> None:
    database_url = empty_database().admin_url
    for _ in range(2):
        ran = darktree("migrate", "--output", "json", cwd=tmp_path, DATABASE_URL=database_url)
        assert json.loads(ran.stdout)["schemas"] == ["ledger", "billing"]


def test_whoever_made_the_roles_is_needed_only_once(
    darktree: Darktree, tmp_path: Path, empty_database: Callable[[], Any]
) -> None:
    made = empty_database()
    password = {"DARKTREE_MIGRATOR_ROLE_PASSWORD": "unused: the socket is trusted"}
    for url, added in ((made.admin_url, password), (made.url_as("darktree_migrator"), {})):
        ran = darktree("migrate", "--output", "json", cwd=tmp_path, DATABASE_URL=url, **added)
        assert json.loads(ran.stdout)["roles_with_login"] == (["darktree_migrator"] if added else [])


def test_every_command_has_help_and_the_exit_codes_are_told() -> None:
    told = CliRunner().invoke(app, ["--help"]).stdout
    assert "3 no running platform" in " ".join(told.split())
    for words in (["up"], ["customers", "create"], ["ledger", "check"], ["doctor"], ["migrate"]):
        assert CliRunner().invoke(app, [*words, "--help"]).exit_code == 0


def test_a_statement_is_shown_exported_and_proven_and_so_is_the_ledger(
    platform: Running, eventually: Callable[..., None], tmp_path: Path
) -> None:
    month = f"{datetime.now(UTC):%Y-%m}"
    shown = platform.json("statement", "show", "demo", month)
    assert shown["totals"]["closing_nanos"] == platform.json("ledger", "balance", "demo")["balance_nanos"]
    file = tmp_path / "statement.json"
    platform.json("statement", "export", "demo", month, "--format", "json", "--to", str(file))
    assert platform.command("statement", "export", "demo", month, "--format", "txt").returncode == 2
    ran = subprocess.run([DARKTREE, "statement", "verify", file], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stdout
    eventually(
        lambda: platform.command("ledger", "verify").returncode == 0, "the ledger is signed and proven"
    )
    assert platform.json("ledger", "verify")["verdict"] == "proven"
    assert platform.json("ledger", "verify", "--customer", "demo")["customers"] == 1
