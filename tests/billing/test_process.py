"""The process: started by its environment, stopped by a signal, and clear about what keeps it from starting."""

import os
import signal
import subprocess
import sys
import time
from typing import Any

import httpx
import pytest

from darktree_billing.settings import Settings

START_SECONDS = 180


@pytest.fixture
def environment(platform: Any, unused_url: str) -> dict[str, str]:
    """What a process needs to join the platform."""
    settings: Settings = platform.settings
    values = {
        "PORT": unused_url.rpartition(":")[2],
        "DATABASE_URL": settings.database_url.get_secret_value(),
        "LEDGER_URL": settings.ledger_url,
        "LEDGER_TOKEN": settings.ledger_token.get_secret_value(),
        "GATEWAY_TOKEN": platform.gateway_token,
        "ADMIN_TOKEN": platform.admin_token,
        "KEY_PEPPER": settings.key_pepper.get_secret_value(),
        "PLANS_FILE": str(platform.plans_file),
    }
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("DARKTREE_")}
    return inherited | {f"DARKTREE_BILLING_{name}": value for name, value in values.items()}


def test_a_process_serves_what_its_environment_says_and_stops_when_told(
    environment: dict[str, str], unused_url: str
) -> None:
    command = [sys.executable, "-m", "darktree_billing"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            deadline = time.monotonic() + START_SECONDS
            while not _is_ready(unused_url):
                assert process.poll() is None, process.communicate()[1]
                assert time.monotonic() < deadline, "billing did not become ready"
                time.sleep(0.05)
            token = {"Authorization": f"Bearer {environment['DARKTREE_BILLING_ADMIN_TOKEN']}"}
            assert httpx.get(f"{unused_url}/admin/plans", headers=token).status_code == 200
            assert "darktree_http_requests_total" in httpx.get(f"{unused_url}/metrics").text
        finally:
            process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=START_SECONDS)
    assert process.returncode in {0, -signal.SIGTERM}
    assert '"service":"billing"' in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ADMIN_TOKEN": None}, "admin_token"),
        ({"KEY_PEPPER": "short-pepper"}, "key_pepper"),
        ({"KEY_PEPPER_VERSION": "0"}, "key_pepper_version"),
        ({"PLANS_FILE": "nowhere.yaml"}, "billing does not start: nowhere.yaml: No such file"),
    ],
)
def test_a_process_that_cannot_start_says_why_and_shows_no_secret(
    environment: dict[str, str], change: dict[str, str | None], said: str
) -> None:
    for name, value in change.items():
        environment.pop(f"DARKTREE_BILLING_{name}", None)
        if value is not None:
            environment[f"DARKTREE_BILLING_{name}"] = value
    command = [sys.executable, "-m", "darktree_billing"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=START_SECONDS)
    assert ended.returncode == 1
    assert said in ended.stderr
    for name, value in environment.items():
        if name.startswith("DARKTREE_BILLING_") and name.endswith(("_TOKEN", "_PEPPER", "_URL")):
            assert value not in ended.stderr


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").status_code == 200
    except httpx.TransportError:
        return False
