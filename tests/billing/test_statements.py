"""Statements over HTTP, on a real ledger whose clock the test moves and whose log it seals and signs."""

import csv
import io
import json
import os
import random
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pypdfium2
import pytest

from darktree_billing.client import AdminClient
from darktree_billing.statement_verification import verify
from darktree_kit.db import connect
from darktree_kit.ids import uuid7
from darktree_kit.notes import make_signer, write_signer
from darktree_ledger import export_file
from darktree_ledger.client import LedgerClient
from darktree_ledger.schemas import ChangeCap, ClawBack, Grant, Hold, Operation, Result, Settle
from darktree_ledger.sealing import Log

DARKTREE = Path(sys.executable).with_name("darktree")
DOLLAR = 1_000_000_000
PRICE = 750_000
LOG_KEY, BOOKS_KEY = make_signer("darktree.dev/ledger/test"), make_signer("darktree.dev/books/test")


class Books:
    """A platform with one customer, whose time and whose log the test moves."""

    def __init__(self, platform: Any, folder: Path, billing_token: str, log: Log) -> None:
        self.platform, self.folder, self.log = platform, folder, log
        write_signer(BOOKS_KEY, folder / "the-books-key")
        self.url = platform.serve_billing(
            books_key_file=folder / "the-books-key", seller_name="Seller & Sons"
        )
        self.http: httpx.Client = platform.http(url=self.url)
        self.tokens = {"billing": billing_token, "gateway": platform.gateway_token}
        self.clock("2026-11-01 08:00Z")
        body = {"id": "acme", "name": "Acme <Ltd>", "plan": "solo", "email": "a@acme.test"}
        assert self.http.post("/admin/customers", json=body).status_code == 201
        self.key: dict[str, Any] = self.http.post("/admin/customers/acme/keys", json={"name": "ci"}).json()

    def clock(self, instant: str) -> None:
        self.platform.sql(
            "CREATE OR REPLACE FUNCTION ledger.clock_now() RETURNS timestamptz LANGUAGE sql VOLATILE "
            f"AS $clock$ SELECT timestamptz '{instant}' $clock$"
        )
        self.platform.sql("SELECT ledger.prepare_months()")

    async def seal(self) -> str:
        """Seal and sign everything; return the checkpoint."""
        while await self.log.seal():
            pass
        await self.log.sign()
        note: str = self.platform.sql("SELECT note FROM ledger.checkpoint ORDER BY size DESC LIMIT 1")[0][0]
        return note

    async def apply(self, who: str, *operations: Operation) -> list[Result]:
        client = LedgerClient(self.platform.ledger_url, self.tokens[who])
        results = await client.apply_batch(list(operations))
        await client.close()
        return results

    async def grant(self, dollars: int, source: Any = "purchase") -> Grant:
        made = Grant(
            operation_id=uuid7(), customer_id="acme", amount_nanos=dollars * DOLLAR, source=source,
            reason=f"a {source}", actor="test", reference="cs_1",
        )  # fmt: skip
        assert (await self.apply("billing", made))[0].outcome == "done"
        return made

    async def use(self, tokens: int, model: str = "qwen25-14b-awq") -> str:
        """Use so many tokens; return how the hold ended."""
        hold = Hold(
            hold_id=uuid7(), customer_id="acme", key_id=self.key["id"], model=model, lane="standard",
            prompt_tokens=tokens, completion_tokens=1, exact=True, prompt_price_nanos=PRICE,
            completion_price_nanos=2 * PRICE, ttl_seconds=60,
        )  # fmt: skip
        held = (await self.apply("gateway", hold))[0]
        if held.outcome != "done":
            return str(held.reason)
        settle = Settle(
            hold_id=hold.hold_id, customer_id="acme", entry_id=uuid7(), prompt_tokens=tokens, completion_tokens=1
        )  # fmt: skip
        return (await self.apply("gateway", settle))[0].outcome

    async def november(self) -> str:
        """Live through a month in which everything happens; return the checkpoint in its middle."""
        bought = await self.grant(50)
        await self.grant(1, "bonus")
        for day in (2, 3):
            self.clock(f"2026-11-0{day} 12:00Z")
            assert [await self.use(900), await self.use(1098)] == ["done", "done"]
            assert await self.use(10) == "cap"
        kept = await self.seal()
        self.clock("2026-11-12 09:00Z")
        raised = ChangeCap(
            operation_id=uuid7(), customer_id="acme", cap_tokens=7000, reason="more", actor="test"
        )
        await self.apply("billing", raised)
        await self.use(500, "qwen25-32b-awq")
        self.clock("2026-11-20 09:00Z")
        clawed = ClawBack(
            operation_id=uuid7(), customer_id="acme", purchase_id=bought.operation_id, amount_nanos=49 * DOLLAR,
            cause="refund", reason="asked for it", actor="test", reference="re_1",
        )  # fmt: skip
        assert (await self.apply("billing", clawed))[0].outcome == "done"
        return kept

    def get(self, name: str, **params: str) -> httpx.Response:
        return self.http.get(f"/admin/customers/acme/statements/{name}", params=params)

    def statement(self, name: str = "2026-11.json") -> bytes:
        answer = self.get(name)
        assert answer.status_code == 200, answer.text
        return answer.content

    async def close(self, month: str) -> None:
        client = LedgerClient(self.platform.ledger_url, self.tokens["billing"])
        await client.close_month(date.fromisoformat(f"{month}-01"))
        await client.close()


@pytest.fixture
async def books(own_platform: Any, tmp_path: Path, billing_token: str) -> AsyncIterator[Books]:
    async with AsyncExitStack() as stack:
        url = own_platform.database.url_as("darktree_sealer")
        log = await Log.open(await stack.enter_async_context(await connect(url)), [LOG_KEY])
        yield Books(own_platform, tmp_path, billing_token, log)


def written(folder: Path, content: bytes) -> Path:
    file = folder / "statement.json"
    file.write_bytes(content)
    return file


TRUSTED = [LOG_KEY.verifier, BOOKS_KEY.verifier]


async def test_a_closed_month_has_one_statement_for_ever_and_it_is_proven(
    books: Books, tmp_path: Path
) -> None:
    await books.november()
    books.clock("2026-12-01 00:05Z")
    await books.seal()
    await books.close("2026-11")
    content = {format: books.statement(f"2026-11.{format}") for format in ("json", "csv", "pdf")}
    report = verify(written(tmp_path, content["json"]), TRUSTED)
    assert report.failures.kept == []
    assert (report.number, report.signed_by) == ("DT-2026-11-acme", str(BOOKS_KEY.verifier))

    told = json.loads(content["json"])
    totals, used = told["totals"], 4 * (PRICE * 1) + PRICE * 2 * (900 + 1098 + 2) + PRICE * 502
    assert told["statement"]["status"] == "final"
    assert totals["usage_nanos"] == used == totals["bonus_used_nanos"] + used - DOLLAR
    assert totals["purchases_nanos"] == 50 * DOLLAR
    assert totals["bonus_nanos"] == DOLLAR
    clawed = 50 * DOLLAR + DOLLAR - used  # what was unused; the rest of the 49 dollars the house lost
    assert totals["adjustments_nanos"] == -min(49 * DOLLAR, clawed)
    assert totals["closing_nanos"] == max(0, clawed - 49 * DOLLAR)
    assert [row["model"] for row in told["usage_by_model"]] == ["qwen25-14b-awq", "qwen25-32b-awq"]
    assert told["keys"][0]["name"] == "ci"
    assert told["caps"]["refused_requests"] == 2
    assert told["caps"]["days_at_cap"] == 2
    assert [change["cap_tokens"] for change in told["caps"]["changes"]] == [2000, 7000]

    # December, with usage, a cap, a key and a checkpoint of its own, changes nothing in it.
    await books.grant(5)
    books.clock("2026-12-02 10:00Z")
    await books.use(100)
    await books.seal()
    assert {format: books.statement(f"2026-11.{format}") for format in content} == content
    december = verify(written(tmp_path, books.statement("2026-12.json")), TRUSTED)
    assert december.failures.kept == []
    told_then = json.loads((tmp_path / "statement.json").read_bytes())
    assert told_then["totals"]["opening_nanos"] == totals["closing_nanos"]
    assert told_then["chain"]["opening"]["head"] == told["chain"]["closing"]["head"]
    kept = told["proof"]["checkpoint"]
    assert verify(tmp_path / "statement.json", TRUSTED, kept).earlier is not None


async def test_all_three_formats_have_the_same_numbers(books: Books) -> None:
    await books.november()
    told = json.loads(books.statement("2026-11.json"))
    rows = list(csv.DictReader(io.StringIO(books.statement("2026-11.csv").decode())))
    equation = {row["item"]: row["amount_usd"] for row in rows if row["section"] == "equation"}
    assert nanos(equation["closing balance"]) == told["totals"]["closing_nanos"]
    assert nanos(equation["usage"]) == -told["totals"]["usage_nanos"]
    document = pypdfium2.PdfDocument(books.statement("2026-11.pdf"))
    text = "\n".join(page.get_textpage().get_text_range() for page in document)
    for expected in ("Seller & Sons", "Acme <Ltd>", "DT-2026-11-acme", "Closing balance", "ci (dt_live_"):
        assert expected in text
    assert f"{told['totals']['usage_nanos'] / DOLLAR}" in text


async def test_an_open_month_is_preliminary_and_tells_of_what_runs(books: Books, tmp_path: Path) -> None:
    await books.grant(50)
    running = Hold(
        hold_id=uuid7(), customer_id="acme", key_id="k", model="m", lane="standard", prompt_tokens=5,
        completion_tokens=5, exact=True, prompt_price_nanos=PRICE, completion_price_nanos=PRICE, ttl_seconds=3600,
    )  # fmt: skip
    await books.apply("gateway", running)
    told = json.loads(books.statement())
    assert told["statement"]["status"] == "preliminary"
    assert told["holds"] == {"open": 1, "held_nanos": 10 * PRICE}
    assert told["proof"] is None  # nothing is sealed yet, and it is said so
    assert verify(written(tmp_path, books.statement())).failures.kept == []
    empty = json.loads(books.statement("2026-10.json"))
    assert (empty["totals"]["closing_nanos"], empty["entries"]) == (0, [])
    for name in ("2026-10.pdf", "2026-11-01_2026-11-01.pdf", "2026-11-01_2026-11-15.csv"):
        assert books.statement(name)


async def test_any_period_can_be_told_and_periods_join(books: Books, tmp_path: Path) -> None:
    await books.november()
    await books.seal()
    told = []
    for name in ("2026-11-01_2026-11-02.json", "2026-11-03_2026-11-30.json", "2026-11.json"):
        assert verify(written(tmp_path, books.statement(name)), TRUSTED).failures.kept == []
        told.append(json.loads((tmp_path / "statement.json").read_bytes()))
    first, second, whole = told
    assert first["chain"]["closing"] == second["chain"]["opening"]
    assert first["totals"]["closing_nanos"] == second["totals"]["opening_nanos"]
    assert (
        first["totals"]["usage_nanos"] + second["totals"]["usage_nanos"] == (whole["totals"]["usage_nanos"])
    )


async def test_what_cannot_be_told_is_refused(books: Books) -> None:
    for name, status in (
        ("2026-13.json", 400), ("2026-11.txt", 400), ("november.pdf", 400), ("2026-11-05_2026-11-01.json", 400),
        ("2024-01-01_2026-11-01.json", 400), ("2026-02-30_2026-03-01.csv", 400),
    ):  # fmt: skip
        assert books.get(name).status_code == status, name
    assert books.http.get("/admin/customers/nobody/statements/2026-11.json").status_code == 404
    assert (
        books.platform.http(token="").get("/admin/customers/acme/statements/2026-11.json").status_code == 401
    )
    unsigned = books.platform.http(url=books.platform.serve_billing(books_key_file=None))
    answer = unsigned.get("/admin/customers/acme/statements/2026-11.json")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_books_key")


async def test_the_exported_ledger_is_proven_and_compared_with_what_was_kept(
    books: Books, tmp_path: Path
) -> None:
    assert books.http.get("/admin/ledger/export").status_code == 404  # nothing is signed yet
    kept = await books.november()
    await books.seal()
    admin = AdminClient(books.url, books.platform.admin_token)
    for customer, note in ((None, None), ("acme", None), ("acme", kept)):
        file = tmp_path / "ledger.jsonl"
        file.write_bytes(b"".join([piece async for piece in admin.export_ledger(customer, note)]))
        report = export_file.verify(file, [LOG_KEY.verifier], kept if note or not customer else None)
        assert report.failures.kept == [], (customer, note)
        assert report.entries == report.checkpoint.size  # type: ignore[union-attr]
        if note or not customer:
            assert report.earlier_entries == report.earlier.size == 6  # type: ignore[union-attr]
    await admin.close()


async def test_flipping_any_byte_of_an_export_is_found(books: Books, tmp_path: Path) -> None:
    kept = await books.november()
    await books.seal()
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    for words in ("", f"?customer_id=acme&earlier={quote(kept)}"):
        content = books.http.get(f"/admin/ledger/export{words}").content
        file = tmp_path / "ledger.jsonl"
        for place in [*chance.sample(range(len(content)), 400), *range(len(content) - 80, len(content))]:
            altered = bytearray(content)
            altered[place] ^= 1 << chance.randrange(8)
            file.write_bytes(altered)
            try:
                report = export_file.verify(file, [LOG_KEY.verifier], kept)
            except export_file.Unreadable:
                continue
            assert report.failures.count, f"byte {place} went unseen: {altered[place - 30 : place + 30]!r}"


def clean(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command with nothing in its environment: no platform, no database, no variables of ours."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(cwd)}
    return subprocess.run(
        [DARKTREE, *words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=60
    )


async def test_a_clean_environment_proves_a_statement_and_finds_a_flipped_byte(
    books: Books, tmp_path: Path
) -> None:
    await books.november()
    kept = tmp_path / "kept"
    kept.write_text(await books.seal())
    file = written(tmp_path, books.statement())
    keys = ["--key", str(LOG_KEY.verifier), "--key", str(BOOKS_KEY.verifier)]
    ran = clean("statement", "verify", str(file), *keys, "--checkpoint", str(kept), cwd=tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "PROVEN." in ran.stdout
    assert "It does not prove:" in ran.stdout
    assert "that a token count was right when it was recorded" in ran.stdout

    content = bytearray(file.read_bytes())
    place = content.index(b'"seq":4,', content.index(b'"entries": [')) + 100
    content[place] ^= 1
    file.write_bytes(content)
    ran = clean("statement", "verify", str(file), *keys, cwd=tmp_path)
    assert ran.returncode == 1
    assert "entry 4 " in ran.stdout, ran.stdout
    told = json.loads(clean("statement", "verify", str(file), "-o", "json", cwd=tmp_path).stdout)
    assert told["verdict"] == "differs"
    assert {row.get("seq") for row in told["differs"]} >= {4}

    pdf = tmp_path / "statement.pdf"
    pdf.write_bytes(books.statement("2026-11.pdf"))
    assert clean("statement", "verify", str(pdf), cwd=tmp_path).returncode == 2
    assert clean("statement", "verify", "absent.json", cwd=tmp_path).returncode == 2


async def test_a_clean_environment_proves_the_ledger_and_finds_a_flipped_byte(
    books: Books, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    kept.write_text(await books.november())
    await books.seal()
    file = tmp_path / "ledger.jsonl"
    file.write_bytes(books.http.get("/admin/ledger/export").content)
    words = ("ledger", "verify", str(file), "--key", str(LOG_KEY.verifier), "--checkpoint", str(kept))
    ran = clean(*words, cwd=tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "the first 6 of them were already in the log of 6 entries that you kept" in ran.stdout
    content = bytearray(file.read_bytes())
    place = content.index(b'"reason":', content.index(b'"seq":2')) + len(b'"reason":"a')
    content[place] ^= 1
    file.write_bytes(content)
    ran = clean(*words, cwd=tmp_path)
    assert ran.returncode == 1
    assert "customer acme, entry 2 " in ran.stdout
    assert clean("ledger", "verify", "absent", cwd=tmp_path).returncode == 2


def nanos(dollars: str) -> int:
    sign = -1 if dollars.startswith("-") else 1
    whole, _, decimals = dollars.removeprefix("-").partition(".")
    return sign * (int(whole) * DOLLAR + int(decimals.ljust(9, "0")))
