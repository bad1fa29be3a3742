"""Ways to pay, by Stripe's own test numbers (docs.stripe.com/testing): each does what it does there."""

import re
from dataclasses import dataclass

CARD, US_BANK_ACCOUNT, SEPA_DEBIT = "card", "us_bank_account", "sepa_debit"
DELAYED = frozenset({US_BANK_ACCOUNT, SEPA_DEBIT})


@dataclass(frozen=True)
class Failure:
    """Why a payment fails: Stripe's error code, decline code and words."""

    code: str
    decline_code: str | None
    message: str


@dataclass(frozen=True)
class Method:
    """A card or an account, and what becomes of a payment with it."""

    kind: str
    number: str
    brand: str = "visa"
    failure: Failure | None = None
    dispute: str | None = None  # the reason of the dispute that follows at once
    inquiry: bool = False
    refund: str = "succeeded"  # at once; `pending` succeeds later, `failing` fails later
    available: bool = False  # without the days of waiting

    @property
    def last4(self) -> str:
        return self.number[-4:]

    @property
    def is_delayed(self) -> bool:
        return self.kind in DELAYED


class UnusableNumber(ValueError):
    """The number is none, or not a test number; the message is for the payer."""


def _declined(
    decline_code: str, message: str = "Your card was declined.", code: str = "card_declined"
) -> Failure:
    return Failure(code, decline_code, message)


_CARDS = (
    Method(CARD, "4242424242424242"),
    Method(CARD, "4000056655665556"),
    Method(CARD, "5555555555554444", "mastercard"),
    Method(CARD, "378282246310005", "amex"),
    Method(CARD, "6011111111111117", "discover"),
    Method(CARD, "4000000000000077", available=True),
    Method(CARD, "4000000000000002", failure=_declined("generic_decline")),
    Method(
        CARD, "4000000000009995", failure=_declined("insufficient_funds", "Your card has insufficient funds.")
    ),
    Method(CARD, "4000000000009987", failure=_declined("lost_card")),
    Method(
        CARD, "4000000000000069", failure=Failure("expired_card", "expired_card", "Your card has expired.")
    ),
    Method(
        CARD,
        "4000000000000127",
        failure=Failure("incorrect_cvc", "incorrect_cvc", "Your card's security code is incorrect."),
    ),
    Method(
        CARD,
        "4000000000000119",
        failure=Failure(
            "processing_error",
            "processing_error",
            "An error occurred while processing your card. Try again in a little bit.",
        ),
    ),
    Method(CARD, "4000000000000259", dispute="fraudulent"),
    Method(CARD, "4000000000002685", dispute="product_not_received"),
    Method(CARD, "4000000000001976", dispute="fraudulent", inquiry=True),
    Method(CARD, "4000000000007726", refund="pending"),
    Method(CARD, "4000000000005126", refund="failing"),
)
_CLOSED = Failure(
    "payment_intent_payment_attempt_failed", "account_closed", "The bank account has been closed."
)
_NO_FUNDS = Failure(
    "payment_intent_payment_attempt_failed",
    "insufficient_funds",
    "The bank account has insufficient funds to complete the purchase.",
)
_ACCOUNTS = (
    Method(US_BANK_ACCOUNT, "000123456789"),
    Method(US_BANK_ACCOUNT, "000111111116", failure=_CLOSED),
    Method(US_BANK_ACCOUNT, "000222222227", failure=_NO_FUNDS),
    Method(US_BANK_ACCOUNT, "000555555559", dispute="debit_not_authorized"),
    Method(SEPA_DEBIT, "AT611904300234573201"),
    Method(SEPA_DEBIT, "AT861904300235473202", failure=_NO_FUNDS),
)
DEFAULT = {CARD: "4242424242424242", US_BANK_ACCOUNT: "000123456789", SEPA_DEBIT: "AT611904300234573201"}
NUMBERS = {method.number: method for method in (*_CARDS, *_ACCOUNTS)}


def method(kind: str, number: str | None = None) -> Method:
    """Return what a number stands for. Raises UnusableNumber."""
    plain = re.sub(r"[\s-]", "", number or DEFAULT[kind]).upper()
    known = NUMBERS.get(plain)
    if known is not None and known.kind == kind:
        return known
    if kind == CARD and not _passes_luhn(plain):
        raise UnusableNumber("Your card number is invalid.")
    what = "card" if kind == CARD else "account"
    raise UnusableNumber(
        f"Your {what} was declined: this is a test, and {what} numbers here are Stripe's test numbers."
    )


def _passes_luhn(number: str) -> bool:
    if not re.fullmatch(r"[0-9]{12,19}", number):
        return False
    digits = [int(digit) for digit in reversed(number)]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[1::2]]
    return (sum(digits[::2]) + sum(doubled)) % 10 == 0
