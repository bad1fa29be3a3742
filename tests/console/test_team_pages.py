"""The team's pages in a real browser, on a desk and on a phone: quiet, accessible, light; a picture of each is kept."""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, sync_playwright
from pydantic import SecretStr

from darktree_kit.ids import uuid7
from darktree_stripe_simulator.client import StripeStandIn

PICTURES = Path(__file__).resolve().parents[2] / "build" / "screenshots"
AXE = Path(__file__).parent / "axe" / "axe.min.js"
MAX_PAGE_BYTES = 150_000
CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
TEAM = "ops@darktree.test"
PAGES = {
    "home": "",
    "customers": "/customers",
    "customer": "/customers/acme",
    "entries": "/customers/acme/entries",
    "caps": "/caps",
    "cap": "/caps/{cap}",
    "lane-requests": "/dedicated",
    "lane-request": "/dedicated/{lane}",
    "holds": "/holds",
    "orders": "/orders",
    "order": "/orders/{order}",
    "disputes": "/disputes",
    "events": "/events",
    "lanes": "/lanes",
    "reconciliation": "/reconciliation",
}


@pytest.fixture(scope="module")
def busy(platform: Any, make_stripe: Callable[..., AbstractContextManager[StripeStandIn]]) -> Iterator[Any]:
    """A platform on which something of everything waits for the team; yields its address, cookie and ids."""
    with make_stripe() as stripe:
        url = platform.serve_billing(
            stripe_api_key=SecretStr(stripe.key),
            stripe_api_base=stripe.url,
            stripe_webhook_secrets=SecretStr(stripe.webhook_secret),
            stripe_poll_seconds=86_400,
        )
        stripe.send_to(f"{url}/webhooks/stripe")
        member = platform.sign_up("ada@acme.test", "Acme Ltd", platform.browser(url))
        made = platform.customer_of("ada@acme.test")
        headers = {"Authorization": f"Bearer {platform.settings.admin_token.get_secret_value()}"}
        admin = httpx.Client(base_url=url, headers=headers, timeout=30)
        admin.post("/admin/customers", json={"id": "acme", "name": "Acme GmbH & Co. KG", "plan": "team"})
        platform.sql("UPDATE billing.member SET customer_id = 'acme' WHERE email = 'ada@acme.test'")
        admin.post("/admin/customers/acme/grants", json={"dollars": "50", "reason": "a warm welcome"})
        admin.post("/admin/customers/acme/adjustments", json={"dollars": "-2.5", "reason": "given twice"})
        admin.post("/admin/customers/acme/keys", json={"name": "laptop"})
        order = _bought(admin, stripe)
        stripe.dispute(admin.get(f"/admin/orders/{_bought(admin, stripe)}").json()["charge_id"])
        stripe.deliver()
        _dead_letter(platform)
        admin.put(f"/admin/customers/{made}/freeze", json={"frozen": True, "reason": "a stolen card"})
        member.submit("/console/cap", cap_tokens="9,000", reason="a launch with four times the usual traffic")
        lane = {"model": "qwen25-14b-awq", "tokens_per_day": "50000000", "first_token_milliseconds": "400"}
        member.submit("/console/dedicated", **lane, reason="our support desk goes live in January")
        _engines(platform)
        _hold(platform)
        staff = platform.sign_in(TEAM, platform.browser(url))
        ((cap,),) = platform.sql("SELECT id FROM billing.cap_request")
        ((lane_id,),) = platform.sql("SELECT id FROM billing.lane_request")
        yield {
            "url": url,
            "cookie": staff.cookies["darktree"],
            "ids": {"cap": cap, "lane": lane_id, "order": order},
        }
        admin.close()


def _bought(admin: httpx.Client, stripe: StripeStandIn) -> str:
    made = admin.post("/admin/customers/acme/checkouts", json={"plan": "solo"}).json()
    order = admin.get(f"/admin/orders/{made['order_id']}").json()
    stripe.pay(order["session_id"])
    assert admin.post(f"/admin/orders/{order['id']}/check").json()["state"] == "paid"
    return str(order["id"])


def _dead_letter(platform: Any) -> None:
    """Make one of the events look as if it had failed for good, once none is being handled any more."""
    deadline = time.monotonic() + 60
    while platform.sql("SELECT FROM billing.stripe_event WHERE state = 'waiting'"):
        assert time.monotonic() < deadline, "the events are not handled"
        threading.Event().wait(0.05)
    platform.sql(
        "UPDATE billing.stripe_event SET state = 'dead', attempts = 9, error = 'the ledger did not answer'"
        " WHERE id = (SELECT max(id) FROM billing.stripe_event WHERE state <> 'waiting')"
    )


def _engines(platform: Any) -> None:
    platform.sql(
        "INSERT INTO billing.engine_run SELECT lane, 'http://10.42.0.' || number || ':8000',"
        " now() - interval '50 minutes', 120000 * number, 340000 * number, 0, 0, now()"
        " FROM unnest(ARRAY['standard-qwen25-14b-awq', 'premium-qwen25-32b-awq']) lane, generate_series(5, 6) number"
    )
    platform.sql(
        "INSERT INTO billing.lane_reading VALUES ('standard-qwen25-14b-awq', now() - interval '5 hours', 1, 1),"
        " ('premium-qwen25-32b-awq', now() - interval '5 hours', 1319999, 3739999)"
    )


def _hold(platform: Any) -> None:
    hold = {
        "op": "hold", "hold_id": str(uuid7()), "customer_id": "acme", "key_id": "laptop", "model": "qwen25-14b-awq",
        "lane": "standard-qwen25-14b-awq", "prompt_tokens": 100, "completion_tokens": 100, "exact": True,
        "prompt_price_nanos": 750_000, "completion_price_nanos": 750_000, "ttl_seconds": 3_600,
    }  # fmt: skip
    headers = {"Authorization": f"Bearer {platform.settings.gateway_token.get_secret_value()}"}
    answer = httpx.post(f"{platform.ledger_url}/v1/operations", json=[hold], headers=headers)
    assert answer.json()[0]["outcome"] == "done", answer.text


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield running
        running.close()


@contextmanager
def looking(browser: Browser, busy: Any, viewport: Any, **options: Any) -> Iterator[Page]:
    """Open a browser of the team's; what it complains about is a failure."""
    complaints: list[str] = []
    context = browser.new_context(viewport=viewport, reduced_motion="reduce", **options)
    context.add_cookies([{"name": "darktree", "value": busy["cookie"], "url": busy["url"]}])
    page = context.new_page()
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    yield page
    context.close()
    assert complaints == []


def address(busy: Any, name: str) -> str:
    return str(busy["url"] + "/admin/console" + PAGES[name].format(**busy["ids"]))


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_quiet_accessible_and_fits_a_desk_and_a_phone(
    busy: Any, browser: Browser, name: str
) -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    with looking(browser, busy, DESK) as page:
        sizes: list[int] = []
        page.on("response", lambda answer: sizes.append(len(answer.body())))
        answer = page.goto(address(busy, name), wait_until="load")
        assert answer is not None
        assert answer.status == 200
        assert page.locator("h1").count() == 1
        assert sum(sizes) < MAX_PAGE_BYTES
        found = page.evaluate(AXE.read_text() + "\naxe.run().then(found => JSON.stringify(found.violations))")
        told = [(one["id"], [node["html"] for node in one["nodes"]][:3]) for one in json.loads(found)]
        assert told == []
        for place, viewport in (("desk", DESK), ("phone", PHONE)):
            page.set_viewport_size(viewport)  # type: ignore[arg-type]
            wider = page.evaluate(
                "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            )
            assert wider <= 0, f"{wider} pixels too wide on a {place}"
            page.screenshot(path=PICTURES / f"team-{name}-{place}.png", full_page=True)


def test_in_the_dark_colours_have_contrast_too(busy: Any, browser: Browser) -> None:
    with looking(browser, busy, DESK, color_scheme="dark") as page:
        for name in ("home", "customer", "events", "lane-request"):
            page.goto(address(busy, name))
            rules = '{"runOnly": ["color-contrast"]}'
            run = f"\naxe.run({rules}).then(found => JSON.stringify(found.violations))"
            assert json.loads(page.evaluate(AXE.read_text() + run)) == [], name
            page.screenshot(path=PICTURES / f"team-{name}-dark.png", full_page=True)


def test_a_request_is_answered_with_the_keyboard_alone(busy: Any, browser: Browser) -> None:
    with looking(browser, busy, DESK) as page:
        page.goto(busy["url"] + "/admin/console")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the page"
        page.get_by_role("link", name=re.compile("^Answer acme$")).first.focus()
        page.keyboard.press("Enter")
        tokens = page.get_by_label("Tokens a day, when approved")
        tokens.wait_for()
        page.wait_for_load_state()
        tokens.focus()
        page.keyboard.press("Control+A")
        page.keyboard.type("8,000")
        page.keyboard.press("Tab")
        page.keyboard.type("enjoy")
        page.keyboard.press("Enter")
        page.get_by_role("status").get_by_text("acme may use 8,000 tokens a day.").wait_for()
