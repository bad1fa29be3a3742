"""Closing months over HTTP, on a real ledger whose clock the test moves and whose entries it seals."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import psycopg
import pypdfium2
import pytest

from darktree_billing.pack import unpack, verify_pack
from darktree_kit.ids import uuid7
from darktree_kit.notes import make_signer, write_signer
from darktree_ledger.client import LedgerClient
from darktree_ledger.schemas import ClawBack, Grant, Hold, Operation, Result, Settle

DOLLAR = 1_000_000_000
PRICE = 750_000
HEADER = "id,Type,Source,Amount,Fee,Net,Currency,Created (UTC),Available On (UTC),Description,Transfer,payment_intent\n"
Rules = Callable[..., Any]


class Close:
    """A platform whose months can be ended."""

    def __init__(self, platform: Any, folder: Path, billing_token: str, stack: ExitStack) -> None:
        self.platform = platform
        self.signer = make_signer("books.darktree.test")
        key_file = folder / "books-key"
        write_signer(self.signer, key_file)
        self.books_file = folder / "books.yaml"
        self.books_file.write_text("company: Acme Inference\n")
        url = platform.serve_billing(books_key_file=key_file, books_file=self.books_file)
        self.http: httpx.Client = platform.http(url=url)
        self.tokens = {"billing": billing_token, "gateway": platform.gateway_token}
        self.customer_ids: set[str] = set()

    def clock(self, instant: str) -> None:
        self.platform.sql(
            "CREATE OR REPLACE FUNCTION ledger.clock_now() RETURNS timestamptz LANGUAGE sql VOLATILE "
            f"AS $clock$ SELECT timestamptz '{instant}' $clock$"
        )
        self.platform.sql("SELECT ledger.prepare_months()")

    def seal(self) -> None:
        """Do what the sealer does, as far as closing a month looks at it."""
        while self.platform.sql("SELECT count(*) FROM ledger.seal(1000)") != [(0,)]:
            pass
        self.platform.sql(
            "SELECT ledger.add_checkpoint((SELECT count(*) FROM ledger.sealed), sha256('root'), 'a note')"
        )

    def end(self, instant: str) -> None:
        self.clock(instant)
        self.seal()

    async def apply(self, who: str, *operations: Operation) -> list[Result]:
        client = LedgerClient(self.platform.ledger_url, self.tokens[who])
        results = await client.apply_batch(list(operations))
        await client.close()
        assert all(result.outcome == "done" for result in results), results
        return results

    def customer(self, customer_id: str, name: str) -> None:
        body = {"id": customer_id, "name": name, "plan": "scale"}
        assert self.http.post("/admin/customers", json=body).status_code == 201

    async def sell(self, customer_id: str, dollars: int, reference: str) -> Grant:
        sold = Grant(
            operation_id=uuid7(), customer_id=customer_id, amount_nanos=dollars * DOLLAR, source="purchase",
            reason="a purchase", actor="test", reference=reference,
        )  # fmt: skip
        await self.apply("billing", sold)
        return sold

    async def use(self, customer_id: str, tokens: int, model: str = "qwen25-14b-awq") -> None:
        hold = Hold(
            hold_id=uuid7(), customer_id=customer_id, key_id="k", model=model, lane="standard", prompt_tokens=tokens,
            completion_tokens=0, exact=True, prompt_price_nanos=PRICE, completion_price_nanos=PRICE, ttl_seconds=60,
        )  # fmt: skip
        settle = Settle(
            hold_id=hold.hold_id,
            customer_id=customer_id,
            entry_id=uuid7(),
            prompt_tokens=tokens,
            completion_tokens=0,
        )
        await self.apply("gateway", hold, settle)

    def bring(self, *rows: str) -> httpx.Response:
        return self.http.post("/admin/balance-transactions", json={"file": HEADER + "\n".join(rows) + "\n"})

    def close(self, month: str) -> httpx.Response:
        return self.http.post(f"/admin/closes/{month}")

    def pack(self, month: str) -> bytes:
        answer = self.http.get(f"/admin/closes/{month}/pack.zip")
        assert answer.status_code == 200, answer.text
        return answer.content


@pytest.fixture
def closing(own_platform: Any, billing_token: str) -> Iterator[Close]:
    with TemporaryDirectory(prefix="dt-") as folder, ExitStack() as stack:
        yield Close(own_platform, Path(folder), billing_token, stack)


CHARGE = "txn_1,charge,ch_1,150.00,4.65,145.35,usd,2026-11-03 10:02,2026-11-05 00:00,Team,,pi_1"
REFUND = "txn_2,refund,re_1,-20.00,0.00,-20.00,usd,2026-11-12 10:02,2026-11-12 00:00,,,"
PAYOUT = "txn_3,payout,po_1,-100.00,0.00,-100.00,usd,2026-11-25 00:00,2026-11-25 00:00,STRIPE PAYOUT,,"


async def november(closing: Close) -> None:
    """Live through a month in which everything agrees, and let it end."""
    closing.clock("2026-11-03 10:00Z")
    closing.customer("acme", "Acme Ltd")
    sold = await closing.sell("acme", 150, "pi_1")
    closing.http.post("/admin/customers/acme/grants", json={"dollars": "1", "reason": "welcome"})
    await closing.use("acme", 2_001)
    closing.clock("2026-11-12 10:00Z")
    await closing.apply(
        "billing",
        ClawBack(
            operation_id=uuid7(), customer_id="acme", purchase_id=sold.operation_id, amount_nanos=20 * DOLLAR,
            cause="refund", reason="asked for", actor="test", reference="re_1",
        ),
    )  # fmt: skip
    await closing.use("acme", 1_001, "qwen25-32b-awq")
    assert closing.bring(CHARGE, REFUND, PAYOUT).json()["imported"] == 3
    closing.end("2026-12-02 09:00Z")


async def test_a_month_closes_with_files_that_quickbooks_takes_and_that_tie_to_the_ledger(
    closing: Close, online_rules: Rules, desktop_rules: Rules
) -> None:
    await november(closing)
    closed = closing.close("2026-11").json()
    assert (closed["is_new"], closed["differs"], closed["exceptions"]) == (True, [], 0)
    files = unpack(closing.pack("2026-11"))
    assert verify_pack(files, [closing.signer.verifier]).manifest_sha256 == closed["manifest_sha256"]
    online = online_rules(files["journal.csv"])
    assert list(online) == [
        "DT-2026-11-REV", "DT-2026-11-PUR-03", "DT-2026-11-REF-12", "DT-2026-11-FEE-03", "DT-2026-11-PAY-25",
    ]  # fmt: skip
    assert len(desktop_rules(files["journal.iif"])) == len(online)
    revenue = {row["AccountName"]: row["Debits"] or row["Credits"] for row in online["DT-2026-11-REV"]}
    assert revenue == {  # $1.50075 less the dollar that was given, and $0.75075
        "Deferred Revenue:Customer Credits": "1.25",
        "Usage Revenue:qwen25-14b-awq": "0.50",
        "Usage Revenue:qwen25-32b-awq": "0.75",
    }
    assert (
        b"acme,Acme Ltd,0.00,150.00,0.00,-1.2515,-20.00,0.00,128.7485,0.00" in files["deferred-revenue.csv"]
    )
    page = pypdfium2.PdfDocument(files["summary.pdf"])[0].get_textpage().get_text_range()
    assert "Acme Inference" in page
    assert "November 2026" in page
    assert json.loads(files["manifest.json"])["status"] == "closed"


async def test_closing_twice_gives_the_same_bytes_whatever_is_configured_by_then(closing: Close) -> None:
    await november(closing)
    first = closing.close("2026-11").json()
    pack = closing.pack("2026-11")
    closing.books_file.write_text('company: Another\nstripe_fee: {percent: "9", fixed: "9"}\n')
    again = closing.close("2026-11").json()
    assert again == first | {"is_new": False}
    assert closing.pack("2026-11") == pack
    listed = closing.http.get("/admin/closes").json()
    assert listed["books_key"] == str(closing.signer.verifier)
    assert listed["data"] == [{name: first[name] for name in listed["data"][0]}]


async def test_a_late_fact_goes_to_the_open_month_and_changes_no_closed_one(closing: Close) -> None:
    await november(closing)
    closing.close("2026-11")
    pack = closing.pack("2026-11")
    closing.clock("2026-11-30 23:59Z")  # the clock stepped back
    await closing.use("acme", 1_000)
    late = "txn_9,stripe_fee,,-2.00,0.00,-2.00,usd,2026-11-29 00:00,2026-11-29 00:00,Radar,,"
    assert closing.bring(late).json()["months"] == ["2026-12"]
    closing.end("2027-01-02 09:00Z")
    again = closing.close("2026-11").json()
    assert again["differs"] == []
    assert closing.pack("2026-11") == pack
    assert closing.close("2026-12").json()["exceptions"] == 0
    journal = unpack(closing.pack("2026-12"))["journal.csv"].decode()
    assert "DT-2026-12-REV,12/31/2026,Deferred Revenue:Customer Credits,0.75,," in journal
    assert "DT-2026-12-FEE-01,12/01/2026,Processing Fees:Stripe,2.00,," in journal
    assert len(journal.splitlines()) == 5


async def test_exceptions_are_listed_until_the_other_side_comes(closing: Close) -> None:
    closing.clock("2026-11-03 10:00Z")
    closing.customer("acme", "Acme Ltd")
    await closing.sell("acme", 150, "pi_1")
    closing.end("2026-12-02 09:00Z")
    assert closing.close("2026-11").json()["exceptions"] == 1
    exceptions = unpack(closing.pack("2026-11"))["exceptions.csv"].decode()
    assert "purchase_without_charge,2026-11-03,27,acme,pi_1,150.00,,150.00," in exceptions
    closing.bring(CHARGE)
    closing.end("2027-01-02 09:00Z")
    assert closing.close("2026-12").json()["exceptions"] == 0
    clearing = unpack(closing.pack("2026-12"))["stripe-clearing.csv"].decode()
    assert "Closing,145.35,145.35,0.00" in clearing


async def test_a_month_that_cannot_be_closed_says_why(closing: Close) -> None:
    def refusal(answer: httpx.Response) -> tuple[int, str]:
        return answer.status_code, answer.json()["error"]["message"]

    closing.clock("2026-11-03 10:00Z")
    closing.customer("acme", "Acme Ltd")
    await closing.sell("acme", 150, "pi_1")
    for month, status, said in (
        ("2026-11", 409, "has not ended"),
        ("2026-13", 400, "month"),
        ("november", 400, "month"),
    ):
        code, message = refusal(closing.close(month))
        assert (code, said in message) == (status, True), message
    closing.clock("2026-12-02 09:00Z")
    code, message = refusal(closing.close("2026-11"))
    assert (code, "not sealed" in message) == (409, True)
    assert refusal(closing.http.get("/admin/closes/2026-11/pack.zip"))[0] == 404
    code, message = refusal(closing.http.get("/admin/closes/2026-12/preview.zip"))
    assert (code, "close the months before" in message) == (409, True)
    closing.seal()
    closing.books_file.write_text("accounts: {banc: X}")
    code, message = refusal(closing.close("2026-11"))
    assert (code, "accounts.banc" in message) == (409, True)
    closing.books_file.write_text("company: X")
    assert closing.close("2026-11").status_code == 200
    assert refusal(closing.http.get("/admin/closes/2026-11/preview.zip"))[0] == 409
    assert closing.http.get("/admin/closes/2026-12/preview.zip").status_code == 200
    await closing.sell("acme", 150, "pi_2")
    code, message = refusal(closing.http.get("/admin/closes/2027-01/preview.zip"))
    assert (code, "close 2026-12 first" in message) == (409, True)
    assert refusal(closing.http.get("/admin/closes/2099-01/preview.zip"))[0] == 409
    without_key = closing.platform.http(url=closing.platform.serve_billing(books_key_file=None))
    code, message = refusal(without_key.post("/admin/closes/2026-11"))
    assert (code, "DARKTREE_BILLING_BOOKS_KEY_FILE" in message) == (503, True)


async def test_an_open_month_can_be_previewed_and_says_that_it_is_one(closing: Close) -> None:
    closing.clock("2026-11-03 10:00Z")
    closing.customer("acme", "Acme Ltd")
    await closing.sell("acme", 150, "pi_1")
    await closing.use("acme", 1_000)
    answer = closing.http.get("/admin/closes/2026-11/preview.zip")
    assert answer.headers["content-disposition"] == 'attachment; filename="PREVIEW-close-2026-11.zip"'
    files = unpack(answer.content)
    assert all(name.startswith("PREVIEW-") for name in files)
    assert json.loads(files["PREVIEW-manifest.json"])["status"] == "preview"
    assert b"acme,Acme Ltd,0.00,150.00,0.00,-0.75,0.00,0.00,149.25" in files["PREVIEW-deferred-revenue.csv"]


async def test_a_closed_month_whose_history_was_rewritten_is_told_at_the_next_close(closing: Close) -> None:
    await november(closing)
    closing.close("2026-11")
    closing.platform.sql("ALTER TABLE ledger.month_total DISABLE TRIGGER ALL")
    closing.platform.sql(
        "UPDATE ledger.month_total SET prompt_tokens = prompt_tokens + 1 WHERE kind = 'usage'"
    )
    assert closing.close("2026-11").json()["differs"] == ["revenue.csv"]
    closing.platform.sql(
        "UPDATE ledger.month_total SET amount_nanos = amount_nanos + 1000000000 WHERE kind = 'usage'"
    )
    assert {"journal.csv", "journal.iif", "deferred-revenue.csv"} <= set(
        closing.close("2026-11").json()["differs"]
    )
    closing.platform.sql("UPDATE ledger.month_total SET bonus_nanos = 0 WHERE kind = 'grant'")
    closing.platform.sql("UPDATE ledger.month_total SET amount_nanos = 1 WHERE kind = 'grant'")
    refused = closing.close("2026-11")
    assert (refused.status_code, "totals and its lines differ" in refused.text) == (409, True)


def test_the_role_of_billing_can_change_or_delete_no_closed_month_and_no_amount(own_platform: Any) -> None:
    with psycopg.connect(own_platform.database.url_as("darktree_billing"), autocommit=True) as connection:
        for statement in (
            "UPDATE billing.closed_month SET pack = ''",
            "DELETE FROM billing.closed_month",
            "TRUNCATE billing.closed_month",
            "UPDATE billing.balance_transaction SET amount_cents = 1",
            "UPDATE billing.balance_transaction SET book_month = '2026-01'",
            "DELETE FROM billing.balance_transaction",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement.encode())


async def test_an_import_posts_fees_and_payouts_once_and_changes_nothing_when_repeated(
    closing: Close,
) -> None:
    first = closing.bring(CHARGE, REFUND, PAYOUT).json()
    assert first == {"imported": 3, "known_before": 0, "learned": 0, "posted": 2, "months": ["2026-11"]}
    assert closing.bring(CHARGE, REFUND, PAYOUT).json()["known_before"] == 3
    posted = closing.platform.sql(
        "SELECT debit_account, credit_account, amount_nanos, reference, usage_day::text FROM ledger.entry"
        " WHERE customer_id = '_house' ORDER BY seq"
    )
    assert sorted(posted) == [
        ("bank", "stripe_clearing", 100 * DOLLAR, "txn_3", "2026-11-25"),
        ("stripe_fees", "stripe_clearing", 4_650_000_000, "txn_1", "2026-11-03"),
    ]


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ("4.65,145.35", "4.66,145.34", "fee_cents"),
        ("150.00,4.65,145.35", "151.00,5.65,145.35", "amount_cents"),
        (",usd,", ",eur,", "currency"),
        ("charge,ch_1", "refund,ch_1", "category"),
        ("charge,ch_1", "charge,ch_2", "source"),
        ("2026-11-03", "2026-11-04", "created"),
    ],
)
def test_a_transaction_that_comes_again_with_something_else_is_refused_naming_the_field(
    closing: Close, old: str, new: str, field: str
) -> None:
    closing.bring(CHARGE)
    assert old in CHARGE
    refused = closing.bring(CHARGE.replace(old, new, 1))
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (409, "balance_transaction_differs", field)


def test_a_payout_that_stripe_tells_later_is_learned_and_compared_with_its_items(closing: Close) -> None:
    closing.bring(CHARGE, PAYOUT)
    with_payout = CHARGE.replace("Team,,pi_1", "Team,po_1,pi_1")
    assert closing.bring(with_payout).json()["learned"] == 1
    files = unpack(closing.http.get("/admin/closes/2026-11/preview.zip").content)
    assert b"payout_split,2026-11-25,5,,po_1,145.35,100.00,0.00," in files["PREVIEW-exceptions.csv"]
    rest = PAYOUT.replace("txn_3", "txn_4").replace("-100.00", "-45.35")
    closing.bring(rest)
    files = unpack(closing.http.get("/admin/closes/2026-11/preview.zip").content)
    assert b"payout_split" not in files["PREVIEW-exceptions.csv"]


def test_a_file_that_is_no_report_is_refused_and_nothing_of_it_is_kept(closing: Close) -> None:
    refused = closing.bring(CHARGE, PAYOUT.replace("-100.00,usd", "-100.01,usd"))
    assert refused.status_code == 400
    assert "row 2: net" in refused.json()["error"]["message"]
    assert closing.platform.sql("SELECT count(*) FROM billing.balance_transaction") == [(0,)]


def test_closing_needs_the_administrators_token(closing: Close) -> None:
    for token, status in (("", 401), (closing.tokens["gateway"], 403)):
        client = closing.platform.http(token, url=str(closing.http.base_url))
        assert client.post("/admin/closes/2026-11").status_code == status
        assert client.get("/admin/closes/2026-11/pack.zip").status_code == status


def run(closing: Close, *words: str, exit_code: int = 0) -> str:
    """Run `darktree close ...` in a process of its own; return what it says."""
    environment = {
        **os.environ,
        "DARKTREE_ADMIN_URL": str(closing.http.base_url),
        "DARKTREE_ADMIN_TOKEN": closing.platform.admin_token,
    }
    darktree = Path(sys.executable).with_name("darktree")
    ran = subprocess.run(
        [darktree, "close", *words], env=environment, capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == exit_code, ran.stderr
    return ran.stdout + ran.stderr


def test_the_command_imports_previews_closes_lists_and_verifies(closing: Close, tmp_path: Path) -> None:
    closing.clock("2026-11-03 10:00Z")
    report = tmp_path / "stripe.csv"
    report.write_text(HEADER + CHARGE + "\n")
    assert "posted           1 entries" in run(closing, "import", str(report))
    assert "has not ended" in run(closing, "2026-11", exit_code=1)
    assert "PREVIEW" in run(closing, "2026-11", "--preview", "--to", str(tmp_path))
    assert (tmp_path / "PREVIEW-close-2026-11" / "PREVIEW-summary.pdf").is_file()
    assert "preview" in run(closing, "verify", str(tmp_path / "PREVIEW-close-2026-11"), exit_code=1)
    closing.end("2026-12-02 09:00Z")
    assert "closed now" in run(closing, "2026-11", "--to", str(tmp_path))
    again = json.loads(run(closing, "2026-11", "--to", str(tmp_path), "--output", "json"))
    assert (again["is_new"], again["differs"]) == (False, [])
    assert str(closing.signer.verifier) in run(closing, "list")

    folder, key = tmp_path / "close-2026-11", str(closing.signer.verifier)
    assert "no file was changed since the holder of this key signed them" in run(
        closing, "verify", str(folder), "--key", key
    )
    (tmp_path / "pack.zip").write_bytes(closing.pack("2026-11"))
    assert (
        json.loads(run(closing, "verify", str(tmp_path / "pack.zip"), "-o", "json"))["is_key_trusted"]
        is False
    )
    content = (folder / "journal.csv").read_bytes()
    (folder / "journal.csv").write_bytes(content.replace(b"4.65", b"4.66", 1))
    assert "journal.csv was changed after it was signed" in run(closing, "verify", str(folder), exit_code=1)
    run(closing, "verify", str(folder), "--key", "nonsense", exit_code=2)
    assert "no column `id`" in run(closing, "import", str(folder / "README.txt"), exit_code=1)
