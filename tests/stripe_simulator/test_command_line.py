"""Running it as a process: options over environment, a state that cannot be read."""

import subprocess
import sys
from pathlib import Path

import pytest

from darktree_stripe_simulator.__main__ import main, settings_from


def test_an_option_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARKTREE_STRIPE_SIMULATOR_PORT", "9100")
    monkeypatch.setenv("DARKTREE_STRIPE_SIMULATOR_WEBHOOK_SECRETS", '["whsec_a", "whsec_b"]')
    monkeypatch.setenv("DARKTREE_STRIPE_SIMULATOR_SETTLE_SECONDS", "1.5")
    settings = settings_from(["--port", "9200", "--webhook-url", "http://127.0.0.1:1/hook"])
    assert (settings.port, settings.webhook_secrets, settings.settle_seconds) == (
        9200,
        ["whsec_a", "whsec_b"],
        1.5,
    )
    assert settings_from(["--secret", "whsec_c"]).webhook_secrets == ["whsec_c"]


def test_a_file_that_holds_something_else_is_told_and_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "notes.txt"
    for content in ("not ours", "{}", '{"layout": 2}'):
        file.write_text(content)
        assert main(["--state", str(file), "--port", "0"]) == 1
        assert "move it away" in capsys.readouterr().err
        assert file.read_text() == content


def test_its_help_names_every_option_that_the_platform_uses() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "darktree_stripe_simulator", "--help"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 0
    for option in ("--port", "--webhook-url", "--secret", "--state", "--delivery", "--settle-seconds"):
        assert option in ran.stdout
