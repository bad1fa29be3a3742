"""Every page in a real browser: complete, quiet, light, and usable by everybody; a picture of each is kept.

The pictures lie in build/screenshots. An account with three weeks behind it is looked at on a desk and on a phone.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
PICTURES = ROOT / "build" / "screenshots"
AXE = Path(__file__).parent / "axe" / "axe.min.js"
MAX_PAGE_BYTES = 150_000
MAX_PAGE_REQUESTS = 8
CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
EMAIL = "ada@acme.test"
PAGES = {
    "overview": "/console",
    "usage": "/console/usage",
    "usage-by-key": "/console/usage?days=7&by=key",
    "ledger": "/console/ledger",
    "ledger-filtered": "/console/ledger?kind=grant",
    "entry": "/console/ledger/5",
    "keys": "/console/keys",
    "buy": "/console/buy",
    "statements": "/console/statements",
    "statement": "/console/statements/2026-11",
    "cap": "/console/cap",
    "budget": "/console/budget?prompt=900&completion=300&a_day=8",
    "dedicated": "/console/dedicated",
    "members": "/console/members",
    "not-found": "/console/nowhere",
}


DARK = {"overview", "usage", "keys", "buy", "cap"}  # between them, every colour


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield running
        running.close()


@pytest.fixture(scope="module")
def lived(platform: Any) -> Any:
    """A platform with an account that has seen three weeks."""
    platform.clock("2026-11-01 09:00Z")
    ada = platform.sign_up(EMAIL, "Acme Ltd")
    customer = platform.customer_of(EMAIL)
    platform.sql("UPDATE billing.customer SET created_at = '2026-10-20', plan = 'team'")
    keys = []
    for name in ("production", "laptop of Ada", "old batch job"):
        made = ada.submit("/console/keys", name=name, expires="90")
        assert made.status_code == 201, made.text
        keys.append(platform.sql("SELECT id FROM billing.api_key ORDER BY created_at DESC LIMIT 1")[0][0])
    ada.submit(f"/console/keys/{keys[2]}/revoke")
    platform.clock("2026-11-01 10:00Z")
    platform.grant(customer, 150)
    platform.set_cap(customer, 7000)
    platform.grant(customer, 5, "bonus")
    models = ("qwen25-14b-awq", "qwen25-32b-awq")
    for day in range(2, 24):
        platform.clock(f"2026-11-{day:02d} 1{day % 8}:24:31.25Z")
        for turn in range(1 + day * 7 % 3):
            tokens = 400 + (day * 977 + turn * 613) % 2400
            platform.use(customer, keys[(day + turn) % 3], tokens, models[(day * 3 + turn) % 2])
    platform.use(customer, keys[0], 4000)
    platform.use(customer, keys[0], 4000)
    ada.submit("/console/cap", cap_tokens="15,000", reason="a nightly evaluation of 2,000 documents")
    ada.submit("/console/members", email="grace@acme.test")
    platform.seal()
    return platform


@pytest.fixture(scope="module")
def cookies() -> dict[str, str]:
    """The session of each person, begun once."""
    return {}


@pytest.fixture
def visit(
    lived: Any, browser: Browser, cookies: dict[str, str], request: pytest.FixtureRequest
) -> Iterator[Any]:
    """Opens a browser that is signed in; everything it complains about fails the test."""
    contexts: list[BrowserContext] = []
    complaints: list[str] = []

    def open_page(viewport: Any = DESK, email: str | None = EMAIL, **options: Any) -> Page:
        context = browser.new_context(viewport=viewport, reduced_motion="reduce", **options)
        contexts.append(context)
        if email is not None:
            if email not in cookies:
                cookies[email] = lived.sign_in(email).cookies["darktree"]
            context.add_cookies([{"name": "darktree", "value": cookies[email], "url": lived.billing_url}])
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "console", lambda message: complaints.append(message.text) if message.type == "error" else None
        )
        return page

    yield open_page
    for context in contexts:
        context.close()
    expected = getattr(request.node, "expected_complaints", ())
    assert [one for one in complaints if not any(part in one for part in expected)] == []


def picture(page: Page, name: str) -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=PICTURES / f"{name}.png", full_page=True)


def accessible(page: Page) -> None:
    """Have axe look at the page. By a function of the browser's tools: the page's own rules let no script in."""
    found = page.evaluate(AXE.read_text() + "\naxe.run().then(found => JSON.stringify(found.violations))")
    violations = [
        (one["id"], one["help"], [node["html"] for node in one["nodes"]][:3]) for one in json.loads(found)
    ]
    assert violations == [], (page.url, violations)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_complete_quiet_and_accessible_on_a_desk_and_on_a_phone(
    name: str, visit: Any, lived: Any, request: pytest.FixtureRequest
) -> None:
    if name == "not-found":
        request.node.expected_complaints = ("404",)
    page = visit()
    answer = page.goto(lived.billing_url + PAGES[name], wait_until="load")
    assert answer.status == (404 if name == "not-found" else 200)
    assert page.title()
    assert page.locator("h1").count() == 1
    if name == "entry":
        page.get_by_text("Verified in your browser.").wait_for()
    accessible(page)
    picture(page, name)
    page.set_viewport_size(PHONE)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "it is wider than a phone"
    picture(page, f"{name}-phone")
    page.emulate_media(color_scheme="dark")
    if name in DARK:
        accessible(page)
    picture(page, f"{name}-dark")


def test_no_page_weighs_more_than_its_bound(visit: Any, lived: Any) -> None:
    times = {}
    for name, path in PAGES.items():
        if name == "not-found":
            continue
        page = visit()  # nothing is cached
        sizes: list[int] = []
        page.on("requestfinished", lambda sent, sizes=sizes: sizes.append(sum(
            sent.sizes()[part] for part in ("responseBodySize", "responseHeadersSize"))))  # fmt: skip
        page.goto(lived.billing_url + path, wait_until="load")
        page.wait_for_function("performance.getEntriesByType('navigation')[0].loadEventEnd > 0")
        timing = page.evaluate("performance.getEntriesByType('navigation')[0].toJSON()")
        times[name] = round(timing["loadEventEnd"])
        assert sum(sizes) < MAX_PAGE_BYTES, (name, sizes)
        assert len(sizes) <= MAX_PAGE_REQUESTS, (name, sizes)
        page.context.close()
    print("milliseconds until loaded, nothing cached:", times)


def test_the_menu_on_a_phone_opens_and_leads_on_with_the_keyboard_alone(visit: Any, lived: Any) -> None:
    page = visit(PHONE)
    page.goto(lived.billing_url + "/console")
    assert not page.get_by_role("link", name="Budget guide").is_visible()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the page"
    for _ in range(2):
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    link = page.get_by_role("link", name="Budget guide")
    link.wait_for()
    picture(page, "menu-phone")
    link.focus()
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("/console/budget"))


def test_every_page_works_without_scripts(visit: Any, lived: Any) -> None:
    page = visit(java_script_enabled=False)
    for name, path in PAGES.items():
        if name != "not-found":
            assert page.goto(lived.billing_url + path).status == 200
    page.goto(lived.billing_url + "/console/keys")
    page.get_by_label("Name", exact=True).fill("made without scripts")
    page.get_by_role("button", name="Make a key").click()
    assert page.get_by_role("textbox", name="The key").input_value().startswith("dt_live_")
    page.get_by_role("link", name="I have copied it").click()
    page.get_by_label("Revoke made without scripts").click()
    page.get_by_role("button", name="Revoke made without scripts").click()
    assert "made without scripts is revoked" in page.get_by_role("status").inner_text()


def test_the_pages_before_signing_in_are_accessible(visit: Any, lived: Any) -> None:
    page = visit(email=None)
    page.goto(lived.billing_url + "/console/usage?days=7")
    assert page.url.endswith("/console/sign-in?next=/console/usage%3Fdays%3D7")
    accessible(page)
    picture(page, "sign-in")
    page.get_by_label("E-mail address").fill(EMAIL)
    page.get_by_role("button", name="Mail me a link").click()
    page.get_by_role("heading", name="Look into your mail").wait_for()
    accessible(page)
    picture(page, "link-sent")
    page.goto(lived.billing_url + lived.link(EMAIL))
    accessible(page)
    picture(page, "use-link")
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(re.compile(r"/console/usage\?days=7"))


def test_a_new_account_is_told_what_to_do_first(visit: Any, lived: Any) -> None:
    lived.sign_up("new@startup.test", "<b>Startup</b> & Sons")
    page = visit(email="new@startup.test")
    page.goto(lived.billing_url + "/console")
    page.get_by_role("heading", name="Three steps to the first answer").wait_for()
    accessible(page)
    picture(page, "overview-new")
    assert page.locator(".who-name").inner_text() == "<b>Startup</b> & Sons"
    for path in PAGES.values():
        if "/ledger/" not in path and "nowhere" not in path:
            assert page.goto(lived.billing_url + path).status == 200, path
