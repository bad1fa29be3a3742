"""The bookkeeper's chart of accounts: which account of her books stands for which account of the ledger.

`examples/books.yaml` says everything; each part may be left out and then is as it is here. Names are QuickBooks'
(Online: 100 characters, Desktop: 31 a level, no quotes; a colon stands between a parent and its sub-account).
"""

import hashlib
import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from darktree_billing.yaml_document import MAX_FILE_BYTES, parse_document
from darktree_kit.money import NANOS_PER_CENT, parse_dollars

MAX_NAME = 100
MAX_LEVEL = 31
MAX_LEVELS = 5
MODEL = "{model}"
_LEVEL = re.compile(r'[^\x00-\x1f\x7f":]+')


class ChartError(ValueError):
    """The books file cannot be used; the message names the place and what to do."""


def _account(name: str) -> str:
    levels = name.replace(MODEL, "model").split(":")
    if len(name) > MAX_NAME or len(levels) > MAX_LEVELS:
        raise ValueError(f"an account's name has at most {MAX_NAME} characters and {MAX_LEVELS} levels")
    for level in levels:
        if not _LEVEL.fullmatch(level) or level != level.strip() or len(level) > MAX_LEVEL:
            raise ValueError(
                f"{level!r}: each level of a name has 1 to {MAX_LEVEL} characters, no quotes and no spaces around"
            )
        level.encode("cp1252")  # a UnicodeError is a ValueError, and says which character
    return name


def _cents(text: str) -> int:
    nanos = parse_dollars(text) if isinstance(text, str) else -1
    if nanos < 0 or nanos % NANOS_PER_CENT:
        raise ValueError(
            'write dollars, or percent, with two decimals at most as text in quotes, such as "0.30"'
        )
    return nanos // NANOS_PER_CENT


Hundredths = Annotated[
    int, BeforeValidator(_cents), PlainSerializer(lambda number: f"{number // 100}.{number % 100:02d}")
]
Account = Annotated[str, AfterValidator(_account)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Accounts(_Part):
    """Names in the books, by the ledger's account. `{model}` stands for the model's own name."""

    stripe_clearing: Account = "Stripe Clearing"
    bank: Account = "Checking"
    customer_credits: Account = "Deferred Revenue:Customer Credits"
    bonus_credits: Account = "Deferred Revenue:Bonus Credits"
    sales_tax_payable: Account = "Sales Tax Payable"
    revenue: Account = "Usage Revenue:{model}"
    house_absorbed: Account = "Usage Revenue:Absorbed by the house"
    adjustments: Account = "Credit Adjustments"
    refunds: Account = "Refunds:Used Credits"
    disputes: Account = "Disputes:Used Credits"
    stripe_fees: Account = "Processing Fees:Stripe"
    dispute_fees: Account = "Processing Fees:Disputes"


class StripeFee(_Part):
    """What Stripe is expected to keep of a charge: hundredths of a percent of it, and cents."""

    basis_points: Hundredths = Field(alias="percent")
    fixed_cents: Hundredths = Field(alias="fixed")

    def of(self, amount_cents: int) -> int:
        """Return the fee of a charge in cents, half a cent up."""
        return (amount_cents * self.basis_points + 5_000) // 10_000 + self.fixed_cents


class Chart(_Part):
    """How a month is written down in the books."""

    company: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f]+$")] = "Darktree"
    number_prefix: Annotated[str, Field(pattern=r"^[A-Z]{2}$")] = "DT"
    accounts: Accounts = Accounts()
    models: dict[str, Account] = {}  # a model's name in the books, where it is not its id
    customer_named: list[str] = []  # accounts whose lines carry a customer's name (receivable, payable)
    stripe_fee: StripeFee | None = None

    def account(self, account: str, model: str | None = None) -> str:
        """Return the name of a ledger's account. Raises ChartError for one that the books do not know."""
        name = getattr(self.accounts, account, None)
        if name is None:
            raise ChartError(f"the books have no name for the ledger's account {account}")
        return str(name).replace(MODEL, self.models.get(model or "", _fitting(model or "other")))


def parse_chart(content: bytes, name: str = "the books file") -> Chart:
    """Return what a books file says. Raises ChartError naming the first mistakes."""
    try:
        return parse_document(content, Chart, name)
    except ValueError as error:
        raise ChartError(str(error)) from error


def load_chart(path: Path | None) -> Chart:
    """Return what the books file says; the defaults when none is named. Raises ChartError."""
    if path is None:
        return Chart()
    try:
        with path.open("rb") as file:
            return parse_chart(file.read(MAX_FILE_BYTES + 1), str(path))
    except OSError as error:
        raise ChartError(f"{path}: {error.strerror}; set DARKTREE_BILLING_BOOKS_FILE") from error


def _fitting(model: str) -> str:
    """Return a model's id as one level of a name; what is too long keeps its end apart by a hash."""
    level = re.sub(r'[:"]', "-", model)
    if len(level) <= MAX_LEVEL:
        return level
    return f"{level[: MAX_LEVEL - 5]}-{hashlib.sha256(model.encode()).hexdigest()[:4]}"
