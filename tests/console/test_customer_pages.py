"""What a customer's pages do beside showing: invitations, receipts, statements as files, filters, another cap."""

import csv
import io
import json
import re
from pathlib import Path
from subprocess import run
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
BOSS, COLLEAGUE = "boss@acme.test", "colleague@acme.test"


@pytest.fixture(scope="module")
def acme(platform: Any) -> Any:
    """A customer with two charges and a sealed log; yields the first member's browser."""
    platform.clock("2026-11-10 09:00Z")
    boss = platform.sign_up(BOSS, "Acme Ltd")
    customer = platform.customer_of(BOSS)
    assert boss.submit("/console/keys", name="ci", expires="").status_code == 201
    ((key,),) = platform.sql("SELECT id FROM billing.api_key WHERE customer_id = %s", customer)
    platform.clock("2026-11-10 09:01Z")
    platform.grant(customer, 50)
    platform.set_cap(customer, 2000)
    platform.clock("2026-11-11 09:00Z")
    assert platform.use(customer, key, 800) == "done"
    assert platform.use(customer, key, 400, "qwen25-32b-awq") == "done"
    platform.seal()
    return boss


def test_a_member_invites_another_who_sees_the_same_account_and_is_removed(platform: Any, acme: Any) -> None:
    assert acme.submit("/console/members", email=COLLEAGUE.upper()).status_code == 303
    assert "Acme Ltd invites you to" in platform.mails()[-1]["Subject"]
    colleague = platform.browser()
    origin = {"Origin": str(colleague.base_url).rstrip("/")}
    assert colleague.post(platform.link(COLLEAGUE), headers=origin).status_code == 303
    assert "Acme Ltd" in colleague.page("/console")
    found = re.search(r"/console/members/(mem_[0-9a-f]{32})/remove", acme.page("/console/members"))
    assert found is not None
    assert acme.submit(found[0]).status_code == 303
    assert colleague.get("/console").headers["location"] == "/console/sign-in", "the session ended with it"


def test_nobody_removes_themselves_or_invites_another_customers_member(platform: Any, acme: Any) -> None:
    ((own,),) = platform.sql("SELECT id FROM billing.member WHERE email = %s", BOSS)
    assert acme.submit(f"/console/members/{own}/remove").status_code == 409
    platform.sign_up("rival@other.test", "Other")
    refused = acme.submit("/console/members", email="rival@other.test")
    assert refused.status_code == 400
    assert "another account already" in refused.text


def test_the_receipt_is_the_one_that_any_verifier_accepts(acme: Any, tmp_path: Path) -> None:
    answer = acme.get("/console/ledger/3/receipt.json")
    assert answer.status_code == 200
    (tmp_path / "receipt.json").write_bytes(answer.content)
    command = [
        "node",
        ROOT / "tests/ledger/verify.mjs",
        "receipt",
        tmp_path / "receipt.json",
        answer.json()["keys"][0],
    ]
    verified = run(command, capture_output=True, text=True, check=False)
    assert verified.returncode == 0, verified.stdout + verified.stderr


def test_what_is_not_in_the_ledger_is_not_found(acme: Any) -> None:
    for path in (
        "/console/ledger/999",
        "/console/ledger/999/receipt.json",
        "/console/ledger/0",
        "/console/ledger/x",
    ):
        assert acme.get(path).status_code == 404, path


def test_the_ledger_is_filtered_by_what_the_form_sends_and_ignores_nonsense(acme: Any) -> None:
    assert acme.page("/console/ledger").count("#") >= 3
    only = acme.page("/console/ledger?kind=usage&model=qwen25-32b-awq&key=&day=2026-11-11")
    assert "/console/ledger/3" in only
    assert "/console/ledger/2" not in only
    assert "No entry is like this" in acme.page("/console/ledger?day=2026-11-12")
    for query in ("kind=nonsense", "after=nonsense", "day=2026-99-99", "key=nonsense", "model=%00"):
        assert acme.get(f"/console/ledger?{query}").status_code == 200, query


def test_page_and_files_of_a_statement_have_the_same_numbers(acme: Any) -> None:
    page = acme.page("/console/statements/2026-11")
    assert "1,200 tokens" in page
    body = json.loads(acme.get("/console/statements/2026-11.json").content)
    assert body["totals"]["usage_nanos"] == 1200 * 750_000
    assert body["totals"]["closing_nanos"] == 49_100_000_000
    assert "$49.10" in page
    lines = list(csv.reader(io.StringIO(acme.get("/console/statements/2026-11.csv").text)))
    assert any("49.10" in cell for line in lines for cell in line)
    pdf = acme.get("/console/statements/2026-11.pdf")
    assert pdf.content.startswith(b"%PDF-")
    assert pdf.headers["content-disposition"].startswith('attachment; filename="DT-2026-11-')


def test_other_days_are_chosen_by_a_form(acme: Any) -> None:
    chosen = acme.get("/console/statements?first=2026-11-10&last=2026-11-11")
    assert chosen.headers["location"] == "/console/statements/2026-11-10_2026-11-11"
    assert "$49.10" in acme.page(chosen.headers["location"])
    assert acme.get("/console/statements?first=2026-11-11&last=2026-11-10").status_code == 400
    for period in ("2026-13", "2026-11-11_2026-11-10", "x"):
        assert acme.get(f"/console/statements/{period}").status_code in {400, 404}, period


def test_a_form_that_is_wrong_says_so_beside_the_field_and_keeps_what_was_typed(acme: Any) -> None:
    wrong = acme.submit("/console/cap", cap_tokens="lots", reason="because")
    assert wrong.status_code == 400
    assert 'aria-invalid="true" aria-describedby="cap_tokens-problem"' in wrong.text
    assert 'value="because"' in wrong.text
    assert acme.submit("/console/keys", name="", expires="").status_code == 400
    assert acme.submit("/console/keys", name="x", expires="12345").status_code == 400
    assert acme.submit("/console/members", email="nobody").status_code == 400


def test_a_cap_is_asked_for_once_at_a_time(acme: Any) -> None:
    assert acme.submit("/console/cap", cap_tokens="9,000", reason="a batch").status_code == 303
    again = acme.submit("/console/cap", cap_tokens="10000", reason="more")
    assert again.status_code == 400
    assert "You asked for 9,000 tokens a day" in acme.page("/console/cap")


def test_without_a_key_for_stripe_buying_is_off_and_says_so(acme: Any) -> None:
    assert "Buying is switched off here" in acme.page("/console/buy")
    assert acme.submit("/console/buy", plan="solo").status_code == 503
    assert acme.get("/console/buy/return?order=ord_" + "0" * 32).status_code == 404


def test_static_files_are_kept_for_ever_and_only_by_their_content(acme: Any) -> None:
    page = acme.page("/console")
    for path in set(re.findall(r'"(/console/static/[^"#]+)', page)):
        answer = acme.get(path)
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert re.search(r"\.[0-9a-f]{10}\.", path), path
    assert acme.get("/console/static/console.css").status_code == 404
    assert acme.get("/console/static/../shell.py").status_code == 404
