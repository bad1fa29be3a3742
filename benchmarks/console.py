"""The console in a browser: for each page how long it takes and what it weighs, with nothing cached, and what it costs.

    python benchmarks/console.py [--rounds 7]

A customer with a month behind it (its ledger's clock moved while it was lived) is looked at in Debian's Chromium, one
page at a time, each in a browser context of its own. The platform is `darktree up`'s: every service a process.
"""

import argparse
import asyncio
import json
import re
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email import message_from_string
from email.policy import default as mail_policy
from pathlib import Path
from typing import Any

import httpx
import psycopg
from pairs import hold_of, settle_of
from playwright.async_api import Browser, async_playwright
from stage import Stage, cpu_seconds, platform

from darktree_billing.schemas import AdjustCredits, CreateKey, GrantCredits, SetCap
from darktree_ledger.client import LedgerClient

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
EMAIL = "bench@example.com"
DAYS = 30
REQUESTS_A_DAY = 40
CAP_TOKENS = 7_000
COUNTED = ("billing", "ledger", "postgres")
PAGES = {
    "overview": "/console",
    "usage": "/console/usage",
    "ledger": "/console/ledger",
    "entry": "/console/ledger/500",
    "keys": "/console/keys",
    "buy": "/console/buy",
    "statements": "/console/statements",
    "statement": "/console/statements/{month}",
    "cap": "/console/cap",
    "budget": "/console/budget",
    "dedicated": "/console/dedicated",
    "members": "/console/members",
}
TIMES = """() => {
    const [page] = performance.getEntriesByType("navigation");
    const all = [page, ...performance.getEntriesByType("resource")];
    return {
        loaded_ms: page.loadEventEnd, first_byte_ms: page.responseStart, requests: all.length,
        bytes: all.reduce((sum, one) => sum + one.transferSize, 0),
    };
}"""


@dataclass
class Page:
    """A page, and what each look at it took."""

    name: str
    looks: list[dict[str, float]] = field(default_factory=list)
    cpu_ms: dict[str, float] = field(default_factory=dict)

    def all(self, what: str) -> list[float]:
        return [look[what] for look in self.looks]

    def summary(self) -> dict[str, Any]:
        return {
            "loaded_ms": round(statistics.median(self.all("loaded_ms"))),
            "loaded_ms_at_most": round(max(self.all("loaded_ms"))),
            "first_byte_ms": round(statistics.median(self.all("first_byte_ms"))),
            "kilobytes": round(max(self.all("bytes")) / 1000),
            "requests": round(max(self.all("requests"))),
            "cpu_ms": {name: round(value, 1) for name, value in self.cpu_ms.items()},
        }


async def sign_up(stage: Stage) -> tuple[str, str]:
    """Sign somebody up by the mailed link; return the session's cookie and the new customer's id."""
    url = stage.ready["console_url"].removesuffix("/console")
    async with httpx.AsyncClient(base_url=url, headers={"Origin": url}) as person:
        await person.post("/console/sign-in", data={"email": EMAIL})
        parts = re.split(
            r"^From darktree .*\n", Path(stage.ready["mail_file"]).read_text(), flags=re.MULTILINE
        )
        mail: Any = message_from_string(parts[-1], policy=mail_policy)
        link = re.search(r"https?://[^/\s]+(/console/sign-in/\S+)", mail.get_content())
        assert link is not None
        await person.post(link[1])
        csrf = re.search(r'name="csrf" value="([0-9a-f]+)"', (await person.get("/console/welcome")).text)
        assert csrf is not None
        await person.post("/console/welcome", data={"csrf": csrf[1], "name": "Bench & Sons"})
        cookie = person.cookies["darktree"]
    with psycopg.connect(stage.ready["database_url"]) as connection:
        row = connection.execute(
            "SELECT customer_id FROM billing.member WHERE email = %s", [EMAIL]
        ).fetchone()
    assert row is not None
    return cookie, row[0]


@contextmanager
def moved_clock(stage: Stage) -> Iterator[Any]:
    """Lets the ledger's clock be set, and gives it its own time back."""
    define = (
        "CREATE OR REPLACE FUNCTION ledger.clock_now() RETURNS timestamptz LANGUAGE sql VOLATILE "
        "AS $clock$ {} $clock$"
    )
    with psycopg.connect(stage.ready["database_url"], autocommit=True) as connection:

        def set_clock(at: datetime) -> None:
            connection.execute(define.format(f"SELECT timestamptz '{at.isoformat()}'").encode())
            connection.execute("SELECT ledger.prepare_months()")

        yield set_clock
        connection.execute(define.format("SELECT clock_timestamp()").encode())


async def live(stage: Stage) -> str:
    """Have a customer live through a month of purchases and requests; return the session's cookie."""
    now = datetime.now(UTC)
    with moved_clock(stage) as set_clock:
        set_clock(now - timedelta(days=DAYS))
        cookie, customer_id = await sign_up(stage)
        with psycopg.connect(stage.ready["database_url"], autocommit=True) as connection:
            connection.execute(
                "UPDATE billing.customer SET created_at = %s WHERE id = %s",
                [now - timedelta(days=DAYS), customer_id],
            )
        keys = [
            (await stage.admin.create_key(customer_id, CreateKey(name=f"key {number}"))).id
            for number in range(4)
        ]
        await stage.admin.set_cap(customer_id, SetCap(cap_tokens=CAP_TOKENS))
        await stage.admin.grant(customer_id, GrantCredits(dollars="1000", reason="a benchmark"))
        settings: dict[str, str] = stage.processes()["ledger"][0].environ()
        url = f"http://127.0.0.1:{settings['DARKTREE_LEDGER_PORT']}"
        gateway = LedgerClient(url, settings["DARKTREE_LEDGER_GATEWAY_TOKEN"])
        for day in range(DAYS):
            set_clock(now - timedelta(days=DAYS - 1 - day, minutes=1))
            await stage.admin.adjust(customer_id, AdjustCredits(dollars="1", reason="a day's credit"))
            holds = [
                hold_of(customer_id).model_copy(update={"key_id": keys[number % len(keys)]})
                for number in range(REQUESTS_A_DAY)
            ]
            await gateway.apply_batch([operation for hold in holds for operation in (hold, settle_of(hold))])
        await gateway.close()
    return cookie


async def look(browser: Browser, stage: Stage, cookie: str, path: str) -> dict[str, float]:
    """Look at a page for the first time, in a browser that has nothing of it."""
    url = stage.ready["console_url"].removesuffix("/console")
    context = await browser.new_context(viewport={"width": 1280, "height": 900})
    await context.add_cookies([{"name": "darktree", "value": cookie, "url": url}])
    page = await context.new_page()
    answer = await page.goto(url + path, wait_until="load")
    assert answer is not None
    assert answer.status == 200, path
    assert "/sign-in" not in page.url
    await page.wait_for_function("performance.getEntriesByType('navigation')[0].loadEventEnd > 0")
    times: dict[str, float] = await page.evaluate(TIMES)
    await context.close()
    return times


async def measure(rounds: int) -> dict[str, Any]:
    """Look at every page so many times, the pages in turns."""
    month = f"{datetime.now(UTC):%Y-%m}"
    pages = [Page(name) for name in PAGES]
    async with platform(1, upstream_port=1) as stage, async_playwright() as playwright:
        cookie = await live(stage)
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        paths = {name: path.format(month=month) for name, path in PAGES.items()}
        for path in paths.values():
            await look(
                browser, stage, cookie, path
            )  # a first look warms the services, not the browser's cache
        processes = {name: tree for name, tree in stage.processes().items() if name in COUNTED}
        for _ in range(rounds):
            for page in pages:
                before = cpu_seconds(processes)
                page.looks.append(await look(browser, stage, cookie, paths[page.name]))
                after = cpu_seconds(processes)
                for name in processes:
                    page.cpu_ms[name] = (
                        page.cpu_ms.get(name, 0.0) + (after[name] - before[name]) * 1000 / rounds
                    )
        await browser.close()
    return {page.name: page.summary() for page in pages}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="looks at each page (default: 9)")
    print(json.dumps(asyncio.run(measure(parser.parse_args().rounds))))
