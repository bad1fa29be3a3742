"""A stranger's whole story in a browser, on a platform that `darktree up` started: from an address to a revoked key."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from email import message_from_string
from email.policy import default as mail_policy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import openai
import pytest
from playwright.sync_api import Page, sync_playwright

DARKTREE = Path(sys.executable).with_name("darktree")
PICTURES = Path(__file__).resolve().parents[2] / "build" / "screenshots"
CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
START_SECONDS = 120
CARD = "4242 4242 4242 4242"
DECLINED = "4000 0000 0000 0002"
EMAIL = "stranger@startup.test"
SOLO_CAP_TOKENS = 2_000
A_PROMPT_TOKENS = 40  # what is left of the cap when not even a prompt fits
DOLLARS_PER_TOKEN = Decimal("0.00075")
REVOKED_WITHIN_SECONDS = 10
SEALED_WITHIN_SECONDS = 40
STORY_SECONDS = 120
LANE = """
apiVersion: darktree.dev/v1alpha1
kind: InferenceLane
metadata:
  name: fast
  annotations: {darktree.dev/simulated-tokens-per-second: "4000"}
spec:
  tier: Standard
  model: {servedName: qwen25-14b-awq}
  engine: {kind: VLLM, contextLength: 32768}
"""

T = TypeVar("T")


def until(true: Callable[[], T], what: str, seconds: float = START_SECONDS) -> T:
    """Return the first true value of a condition, asked until a deadline."""
    deadline = time.monotonic() + seconds
    while not (value := true()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.05)
    return value


@pytest.fixture(scope="module")
def platform() -> Iterator[dict[str, str]]:
    """A platform in processes of its own; yields what its ready file says."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("DARKTREE_", "DATABASE_", "STRIPE_"))
    }
    with TemporaryDirectory(prefix="dt-") as made:
        folder = Path(made)
        (folder / "lanes").mkdir()
        (folder / "lanes" / "fast.yaml").write_text(LANE)
        words = ["--port", "0", "--ready-file", "ready.json", "--lanes", "lanes", "--data-dir", "data"]
        with (folder / "err").open("wb") as err:
            running = subprocess.Popen(
                [DARKTREE, "up", *words], cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=err
            )
        try:
            ready = folder / "ready.json"
            until(lambda: ready.exists() or running.poll() is not None, "the platform is ready")
            assert running.poll() is None, (folder / "err").read_text()
            yield json.loads(ready.read_text())
        finally:
            running.send_signal(signal.SIGINT)
            running.wait(60)
            print((folder / "err").read_text())


@pytest.fixture
def page() -> Iterator[Page]:
    complaints: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        opened = browser.new_page(viewport={"width": 1280, "height": 900})
        opened.set_default_timeout(20_000)
        opened.on("pageerror", lambda error: complaints.append(str(error)))
        opened.on(
            "console", lambda message: complaints.append(message.text) if message.type == "error" else None
        )
        yield opened
        browser.close()
    assert complaints == []


def picture(page: Page, name: str) -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=PICTURES / f"story-{name}.png", full_page=True)


def mailed_link(platform: dict[str, str]) -> str:
    def newest() -> str | None:
        file = Path(platform["mail_file"])
        parts = re.split(
            r"^From darktree .*\n", file.read_text() if file.exists() else "", flags=re.MULTILINE
        )
        for part in reversed(parts[1:]):
            mail: Any = message_from_string(part, policy=mail_policy)
            if mail["To"] == EMAIL:
                return re.search(r"https?://\S+/console/sign-in/\S+", mail.get_content())[0]  # type: ignore[index]
        return None

    found = until(newest, "a link is mailed", 10)
    assert found is not None
    return found


def test_a_stranger_buys_calls_watches_hits_the_cap_and_revokes_without_anyones_help(
    platform: dict[str, str], page: Page
) -> None:
    day_left_seconds = 86_400 - time.time() % 86_400
    if day_left_seconds < STORY_SECONDS:  # at midnight the day's tokens begin anew
        time.sleep(day_left_seconds + 1)
    _sign_up(platform, page)
    _buy(page)
    client = openai.OpenAI(base_url=platform["base_url"], api_key=_make_key(page), max_retries=0)
    tokens = _call_and_watch(client, page)
    tokens += _hit_the_cap(client, page)
    assert SOLO_CAP_TOKENS - A_PROMPT_TOKENS < tokens <= SOLO_CAP_TOKENS
    _verify_a_receipt(page)
    _read_the_statement(page, tokens)
    _revoke(client, page)
    page.get_by_role("button", name="Sign out").click()
    page.get_by_role("heading", name="Sign in or sign up").wait_for()


def _sign_up(platform: dict[str, str], page: Page) -> None:
    page.goto(platform["console_url"])
    page.get_by_label("E-mail address").fill(EMAIL)
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Look into your mail").wait_for()
    page.goto(mailed_link(platform))
    page.get_by_role("button", name="Sign in").click()
    page.get_by_label("Name of the account").fill("Startup & Sons")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Overview").wait_for()
    picture(page, "1-signed-up")


def _buy(page: Page) -> None:
    page.get_by_role("link", name="Buy credits").first.click()
    picture(page, "2-bundles")
    page.get_by_role("button", name="Buy Solo for $50").click()
    page.wait_for_url(re.compile("/pay/"))
    number = page.locator("#number_card")
    number.fill(DECLINED)
    page.get_by_role("button", name=re.compile("^Pay")).click()
    page.get_by_role("alert").get_by_text("declined").wait_for()
    picture(page, "3-declined")
    page.locator("#number_card").fill(CARD)
    page.get_by_role("button", name=re.compile("^Pay")).click()
    page.get_by_text("$50.00 are in your balance").wait_for()
    picture(page, "4-paid")


def _make_key(page: Page) -> str:
    page.get_by_role("link", name="Make a key").click()
    page.get_by_label("Name", exact=True).fill("the first program")
    page.get_by_role("button", name="Make a key").click()
    key = page.get_by_role("textbox", name="The key").input_value()
    picture(page, "5-key")
    page.get_by_role("link", name="I have copied it").click()
    assert key not in page.content()
    return key


def _call_and_watch(client: openai.OpenAI, page: Page) -> int:
    """Call while the overview is open: the usage shows there by itself."""
    page.get_by_role("link", name="Overview").click()
    answer = client.chat.completions.create(
        model="qwen25-14b-awq", max_tokens=150, messages=[{"role": "user", "content": "What is a dark tree?"}]
    )
    assert answer.usage is not None
    page.get_by_text(re.compile(rf"^{answer.usage.total_tokens:,} of 2,000 tokens")).wait_for()
    picture(page, "6-used")
    return answer.usage.total_tokens


def _hit_the_cap(client: openai.OpenAI, page: Page) -> int:
    tokens = 0
    refusal: openai.RateLimitError | None = None
    while refusal is None:
        try:
            answer = client.chat.completions.create(
                model="qwen25-14b-awq", max_tokens=900, messages=[{"role": "user", "content": "Go on."}]
            )
        except openai.RateLimitError as error:
            refusal = error
        else:
            assert answer.usage is not None
            tokens += answer.usage.total_tokens
    assert refusal.code == "rate_limit_exceeded"
    page.get_by_text("1 request refused today.").wait_for()
    picture(page, "7-at-the-cap")
    page.get_by_role("link", name="Daily cap").click()
    page.get_by_label("Tokens a day").fill("10,000")
    page.get_by_label("What for").fill("more programs")
    page.get_by_role("button", name="Ask", exact=True).click()
    page.get_by_text("You asked for 10,000 tokens a day.").wait_for()
    picture(page, "8-asked")
    return tokens


def _verify_a_receipt(page: Page) -> None:
    page.get_by_role("link", name="Ledger").click()
    page.get_by_role("link", name=re.compile("^#")).first.click()
    page.get_by_text("Verified in your browser.").wait_for(timeout=SEALED_WITHIN_SECONDS * 1000)
    picture(page, "9-verified")


def _read_the_statement(page: Page, tokens: int) -> None:
    page.get_by_role("link", name="Statements").click()
    page.locator("tbody th a").first.click()
    page.get_by_role("heading", name="From opening to closing").wait_for()
    page.wait_for_load_state()
    assert f"{tokens:,} tokens" in page.inner_text("main")
    assert f"${50 - tokens * DOLLARS_PER_TOKEN:.5f}".rstrip("0") in page.inner_text("main")
    picture(page, "10-statement")
    with page.expect_download() as download:
        page.get_by_role("link", name="PDF").click()
    assert Path(download.value.path()).read_bytes().startswith(b"%PDF-")


def _revoke(client: openai.OpenAI, page: Page) -> None:
    page.get_by_role("link", name="API keys").click()
    page.get_by_label("Revoke the first program").click()
    page.get_by_role("button", name="Revoke the first program").click()
    page.get_by_text("the first program is revoked").wait_for()
    picture(page, "11-revoked")

    def refused() -> bool:
        try:
            client.models.list()
        except openai.AuthenticationError:
            return True
        return False

    until(refused, "the key is refused", REVOKED_WITHIN_SECONDS)
