"""`darktree up`, for real: what it prints works, what dies comes back, and a Ctrl-C leaves nothing behind."""

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from darktree_kit.notes import parse_signer
from darktree_ledger.receipts import Receipt, check_receipt

Running = Any  # tests/cli/conftest.py, which cannot be imported
Eventually = Callable[..., None]
Darktree = Callable[..., subprocess.CompletedProcess[str]]

REPOSITORY = Path(__file__).resolve().parents[2]


def ask(running: Running, max_tokens: int = 8) -> httpx.Response:
    """Send one completion as the demo customer."""
    return httpx.post(
        running.ready["base_url"] + "/chat/completions",
        headers={"Authorization": f"Bearer {running.ready['api_key']}"},
        json={
            "model": "qwen25-14b-awq",
            "max_tokens": max_tokens,
            "messages": [{"role": "user", "content": "Hi"}],
        },
        timeout=30,
    )


def printed(running: Running, first: str, last: str) -> str:
    """Return the lines between two, as somebody would copy them."""
    lines = running.out.read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(first))
    end = next(number for number, line in enumerate(lines) if number >= start and line.startswith(last))
    return "\n".join(lines[start : end + 1])


def test_the_printed_curl_line_works_as_printed(platform: Running) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    ran = subprocess.run(["bash", "-c", printed(platform, "curl", "  -d")], capture_output=True, timeout=60)
    assert json.loads(ran.stdout)["usage"]["total_tokens"] > 0


def test_the_printed_python_works_as_printed(platform: Running) -> None:
    snippet = printed(platform, "from openai", "print(answer.usage)")
    ran = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True, timeout=60)
    assert "total_tokens" in ran.stdout, ran.stderr


def test_the_ready_file_holds_what_another_program_needs_and_is_private(platform: Running) -> None:
    ready = platform.ready
    assert set(ready) == {
        *("base_url", "api_key", "customer_id", "admin_url", "admin_token", "database_url"),
        *("console_url", "mail_file", "stripe_url"),
    }
    assert ready["base_url"].endswith("/v1")
    assert ready["console_url"] == ready["admin_url"] + "/console"
    assert stat.S_IMODE(platform.ready_file.stat().st_mode) == 0o600
    admin = {"Authorization": f"Bearer {ready['admin_token']}"}
    assert httpx.get(ready["admin_url"] + "/admin/customers/demo", headers=admin).json()["plan"] == "solo"


def test_a_bundle_is_bought_at_the_stand_in_without_an_account_at_stripe(
    platform: Running, eventually: Eventually
) -> None:
    ready = platform.ready
    admin = {"Authorization": f"Bearer {ready['admin_token']}"}
    customer = f"{ready['admin_url']}/admin/customers/{ready['customer_id']}"

    def balance_nanos() -> int:
        return int(httpx.get(f"{customer}/balance", headers=admin).json()["balance_nanos"])

    before = balance_nanos()
    order = httpx.post(f"{customer}/checkouts", headers=admin, json={"plan": "solo"}).json()
    assert order["url"].startswith(ready["stripe_url"])
    form = {"method": "card", "number_card": "4242 4242 4242 4242", "email": "a@example.com"}
    paid = httpx.post(order["url"], data=form)
    assert paid.status_code == 303
    assert paid.headers["location"].startswith(ready["console_url"])
    # Nobody opens the page that the payer comes back to: the event that Stripe sends is enough.
    eventually(lambda: balance_nanos() == before + 50 * 10**9, "the event brings the credits")


def test_the_printed_console_mails_its_sign_in_links_to_the_printed_mailbox(
    platform: Running, eventually: Eventually
) -> None:
    console, mailbox = platform.ready["console_url"], Path(platform.ready["mail_file"])
    words = platform.out.read_text().split()
    assert console in words
    assert str(mailbox) + ";" in words
    asked = httpx.post(
        f"{console}/sign-in",
        data={"email": "new@example.com"},
        headers={"Origin": platform.ready["admin_url"]},
    )
    assert asked.status_code == 200, asked.text
    eventually(mailbox.exists, "a mail")
    assert f"{console}/sign-in/" in mailbox.read_text()


def test_nothing_secret_lies_open_in_the_data_directory_or_in_a_log(platform: Running) -> None:
    secrets = [
        value
        for value in json.loads((platform.data_dir / "secrets.json").read_text()).values()
        if value is not None
    ]
    for file in platform.data_dir.rglob("*"):
        if "postgres" in file.relative_to(platform.data_dir).parts or not file.is_file():
            continue
        content = file.read_text(errors="ignore")
        if any(secret in content for secret in secrets):
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
            assert file.suffix != ".log", file


def test_what_is_charged_gets_a_receipt_that_the_anchors_confirm(
    platform: Running, eventually: Eventually
) -> None:
    key = {"Authorization": f"Bearer {platform.ready['api_key']}"}
    charge = f"{platform.ready['base_url']}/usage/{ask(platform).headers['x-request-id']}"
    eventually(lambda: httpx.get(charge, headers=key).json()["receipt"] is not None, "a receipt")
    receipt = httpx.get(charge, headers=key).json()["receipt"]
    anchor = platform.data_dir / "anchors" / f"checkpoint-{receipt['tree_size']:020d}"
    eventually(anchor.exists, "the anchor")
    assert anchor.read_text() == receipt["checkpoint"]
    verifier = parse_signer((platform.data_dir / "log-key").read_text()).verifier
    check_receipt(Receipt.model_validate(receipt), [verifier])
    findings = {finding["what"]: finding for finding in platform.found_well()["findings"]}
    assert findings["sealer"]["ok"]
    assert findings["log"]["ok"], findings["log"]


def test_a_second_up_in_the_same_directory_says_that_one_runs(platform: Running, darktree: Darktree) -> None:
    ran = darktree("up", "--data-dir", str(platform.data_dir), "--port", "0", "--fresh")
    assert ran.returncode == 1
    assert "already running" in ran.stderr
    assert ask(platform).status_code == 200


def test_a_port_that_is_taken_is_told_with_the_option_to_change_it(folder: Path, darktree: Darktree) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ran = darktree("up", "--data-dir", str(folder / "data"), "--port", str(taken.getsockname()[1]))
    assert ran.returncode == 1
    assert "--port" in ran.stderr


def test_vllm_that_is_not_installed_is_told_with_the_command_to_install_it(
    folder: Path, darktree: Darktree
) -> None:
    missing = str(folder / "no" / "python")
    words = ("up", "--data-dir", str(folder / "data"), "--port", "0", "--engine", "vllm")
    ran = darktree(*words, DARKTREE_VLLM_PYTHON=missing)
    assert ran.returncode == 1
    assert "make vllm" in ran.stderr


def test_a_live_key_of_stripes_is_refused_before_anything_is_made(folder: Path, darktree: Darktree) -> None:
    ran = darktree("up", "--data-dir", str(folder / "data"), "--port", "0", STRIPE_API_KEY="sk_live_real")
    assert ran.returncode == 1
    assert "test key" in ran.stderr
    assert "sk_live_real" not in ran.stderr + ran.stdout
    assert not (folder / "data").exists()


def test_a_process_that_cannot_start_is_told_with_its_last_lines(folder: Path, darktree: Darktree) -> None:
    plans = folder / "plans.yaml"
    plans.write_text("plans: nothing is sold here")
    ran = darktree("up", "--data-dir", str(folder / "data"), "--port", "0", "--plans", str(plans))
    assert ran.returncode == 1
    assert "billing ended with exit code" in ran.stderr
    assert "plans.yaml" in ran.stderr.partition("The end of")[2]


def test_a_database_that_does_not_answer_is_told(folder: Path, darktree: Darktree) -> None:
    words = ("up", "--data-dir", str(folder / "data"), "--port", "0")
    ran = darktree(*words, DATABASE_URL="postgresql://postgres@127.0.0.1:9/nowhere")
    assert ran.returncode == 1
    assert "could not be migrated" in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize(
    "name", ["gateway-1", "lane-standard-qwen25-14b-awq", "stripe", "billing", "ledger", "sealer", "postgres"]
)
def test_a_process_that_is_killed_is_started_again_and_requests_are_served(
    platform: Running, eventually: Eventually, name: str
) -> None:
    before = platform.pid(name)
    os.kill(before, signal.SIGKILL)
    eventually(lambda: f"{name} is back" in platform.err.read_text(), f"{name} is back")
    assert platform.pid(name) != before
    assert f"{name} was killed by SIGKILL; starting it again" in platform.err.read_text()
    eventually(lambda: ask(platform).status_code == 200, "a request is served")


def test_after_every_process_was_killed_the_doctor_and_the_ledger_find_all_well(
    platform: Running,
) -> None:
    platform.found_well()
    assert platform.json("ledger", "check")["problems"] == []


def test_state_survives_a_stop_and_a_crash_and_fresh_starts_over(
    start: Callable[..., Running], eventually: Eventually
) -> None:
    first = start()
    first_ready = first.ready
    assert ask(first).status_code == 200
    everything = first.processes()
    assert len(everything) > 7
    assert first.stop() == 0
    assert [process for process in everything if process.is_running()] == []
    assert not first.ready_file.exists()
    assert not (first.data_dir / "platform.json").exists()

    second = start()
    assert second.ready["api_key"] == first_ready["api_key"]
    assert ask(second).status_code == 200
    assert [entry["kind"] for entry in second.json("ledger", "entries", "demo")["data"]] == [
        "usage",
        "usage",
        "grant",
    ]
    everything = second.processes()
    second.popen.kill()
    second.popen.wait()
    eventually(
        lambda: not [process for process in everything if alive(process)], "the children follow their parent"
    )
    second.ready_file.unlink()

    third = start("--fresh")
    assert third.ready["api_key"] != first_ready["api_key"]
    assert [entry["kind"] for entry in third.json("ledger", "entries", "demo")["data"]] == ["grant"]
    assert third.stop(signal.SIGTERM) == 0


def test_a_database_of_ones_own_is_used_and_left_running(
    start: Callable[..., Running], empty_database: Callable[[], Any]
) -> None:
    running = start(DATABASE_URL=empty_database().admin_url)
    assert "postgres" not in running.record["processes"]
    assert ask(running).status_code == 200
    assert running.found_well()["ok"]


def test_a_running_stream_is_finished_before_the_platform_stops(start: Callable[..., Running]) -> None:
    running = start()
    body = {
        "model": "qwen25-32b-awq",
        "max_tokens": 100,
        "ignore_eos": True,
        "stream": True,
        "messages": [{"role": "user", "content": "Count"}],
    }
    headers = {"Authorization": f"Bearer {running.ready['api_key']}"}
    url = running.ready["base_url"] + "/chat/completions"
    with httpx.stream("POST", url, headers=headers, json=body, timeout=30) as answer:
        lines = answer.iter_lines()
        next(lines)
        running.popen.send_signal(signal.SIGINT)
        rest = list(lines)
    assert rest[-2:] == ["data: [DONE]", ""] or "data: [DONE]" in rest
    assert running.popen.wait(60) == 0


def test_a_second_ctrl_c_kills_what_is_still_running(
    start: Callable[..., Running], eventually: Eventually
) -> None:
    running = start()
    everything = running.processes()
    # A process that cannot react would keep the first Ctrl-C waiting.
    os.kill(running.pid("gateway-1"), signal.SIGSTOP)
    running.popen.send_signal(signal.SIGINT)
    eventually(lambda: "stopping" in running.err.read_text(), "it began to stop")
    running.popen.send_signal(signal.SIGINT)
    running.popen.wait(20)
    eventually(lambda: not [process for process in everything if alive(process)], "nothing is left")


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
