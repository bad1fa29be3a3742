"""The page where a payer pays, as a browser without JavaScript uses it."""

import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from typing import Any

import httpx
import pytest
from stripe import StripeClient

from darktree_stripe_simulator.client import StripeStandIn

MakeSession = Callable[..., str]


class Form(HTMLParser):
    """The fields of a page's form with their values, and whether each has a label."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.values: dict[str, str] = {}
        self.ids: set[str] = set()
        self.labelled: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        if tag == "label":
            self.labelled.add(known["for"] or "")
        if tag == "input":
            self.ids.add(known["id"] or "")
            if known.get("type") != "radio" or "checked" in known:
                self.values[known["name"] or ""] = known.get("value") or ""


@pytest.fixture
def browser() -> Iterator[httpx.Client]:
    with httpx.Client() as client:
        yield client


def test_a_payer_pays_by_card_and_comes_back_with_the_sessions_id(
    browser: httpx.Client, api: StripeClient, make_session: MakeSession
) -> None:
    id = make_session()
    url = str(api.v1.checkout.sessions.retrieve(id).url)
    page = browser.get(url)
    assert "$50.00" in page.text
    assert "Solo" in page.text
    form = Form(page.text)
    assert form.ids <= form.labelled
    assert form.values["number_card"] == "4242424242424242"
    answer = browser.post(url, data=form.values | {"email": "a@example.com", "name": "A"})
    assert answer.status_code == 303
    assert answer.headers["location"] == f"https://console.example/paid?session={id}"
    assert api.v1.checkout.sessions.retrieve(id).payment_status == "paid"
    assert browser.get(url).status_code == 303, "paid twice"
    assert browser.post(url, data=form.values).status_code == 303
    assert len(api.v1.charges.list().data) == 1


def test_a_declined_card_is_told_on_the_page_and_what_was_typed_stays(
    browser: httpx.Client, api: StripeClient, make_session: MakeSession
) -> None:
    url = str(api.v1.checkout.sessions.retrieve(make_session()).url)
    typed = {"method": "card", "number_card": "4000 0000 0000 0002", "email": "a@example.com", "name": "<A>"}
    answer = browser.post(url, data=typed)
    assert answer.status_code == 200, "browsers write other statuses to their console as errors"
    assert "Your card was declined." in answer.text
    assert Form(answer.text).values["name"] == "<A>"
    assert "<A>" not in answer.text
    for number, says in (("4242", "card number is invalid"), ("4539148803436467", "test numbers")):
        assert says in browser.post(url, data=typed | {"number_card": number}).text
    assert "e-mail address is missing" in browser.post(url, data=typed | {"email": ""}).text
    assert "Choose how to pay" in browser.post(url, data=typed | {"method": "cash"}).text


def test_a_bank_debit_comes_back_at_once_and_is_paid_later(
    browser: httpx.Client, stripe: StripeStandIn, api: StripeClient, make_session: MakeSession
) -> None:
    id = make_session(customer_email="known@example.com")
    url = str(api.v1.checkout.sessions.retrieve(id).url)
    assert "known@example.com" in browser.get(url).text
    data = {"method": "us_bank_account", "number_us_bank_account": "000123456789"}
    assert browser.post(url, data=data).status_code == 303
    session = api.v1.checkout.sessions.retrieve(id)
    assert (session.status, session.payment_status) == ("complete", "unpaid")
    assert session.customer_details is not None
    assert session.customer_details.email == "known@example.com"


@pytest.mark.parametrize(("number", "status"), [("000123456789", "paid"), ("000111111116", "unpaid")])
def test_a_debit_settles_by_itself_when_its_time_has_come(
    make_stripe: Callable[..., Any], line_item: dict[str, Any], number: str, status: str
) -> None:
    with make_stripe(settle_seconds=5) as stripe:
        addresses: Any = {"api": stripe.url}
        sessions = StripeClient(stripe.key, base_addresses=addresses).v1.checkout.sessions
        params: Any = {"mode": "payment", "success_url": "https://a.example/", "line_items": [line_item]}
        id = sessions.create(params).id
        stripe.pay(id, method="us_bank_account", number=number)
        stripe.advance(5)
        assert sessions.retrieve(id).payment_status == status
        assert len(stripe.events("checkout.session.async_payment_succeeded")) == (status == "paid")


def test_a_page_that_is_not_or_no_longer_there_says_so(
    browser: httpx.Client, stripe: StripeStandIn, api: StripeClient, make_session: MakeSession
) -> None:
    id = make_session(cancel_url="https://console.example/no?a=1&b=2")
    url = str(api.v1.checkout.sessions.retrieve(id).url)
    assert 'href="https://console.example/no?a=1&amp;b=2"' in browser.get(url).text.replace("'", '"')
    api.v1.checkout.sessions.expire(id)
    assert browser.get(url).status_code == 410
    assert browser.get(f"{stripe.url}/pay/cs_test_none").status_code == 404
    assert browser.get(f"{stripe.url}/receipts/ch_none").status_code == 404


def test_a_receipt_says_what_was_paid_and_refunded(
    browser: httpx.Client, stripe: StripeStandIn, api: StripeClient, make_session: MakeSession
) -> None:
    stripe.pay(make_session())
    (charge,) = api.v1.charges.list().data
    api.v1.refunds.create({"charge": charge.id, "amount": 1250})
    page = browser.get(str(charge.receipt_url)).text
    assert re.findall(r"\$[0-9.]+", page) == ["$50.00", "$12.50"]
    assert "4242" in page


def test_names_are_shown_as_text(
    browser: httpx.Client, api: StripeClient, make_session: MakeSession, line_item: dict[str, Any]
) -> None:
    line_item["price_data"]["product_data"]["name"] = "<script>alert(1)</script>"
    url = str(api.v1.checkout.sessions.retrieve(make_session()).url)
    assert "<script>" not in browser.get(url).text
