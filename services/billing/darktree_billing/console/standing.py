"""How a customer stands: what is left, what it buys of each model, and how long it lasts at the present pace."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from darktree_billing.plans import Plans, tokens_bought
from darktree_ledger.client import LedgerClient
from darktree_ledger.schemas import AccountView, DayView

PACE_DAYS = 7
SHOWN_DAYS = 30


@dataclass(frozen=True)
class Buys:
    """What the balance buys of one model, counted with the dearer kind of token."""

    name: str
    tokens: int | None
    price_nanos: int


@dataclass(frozen=True)
class Standing:
    """An account as a person looks at it. `lasts` is None while there is no pace."""

    account: AccountView
    days: list[DayView]
    buys: list[Buys]
    pace_nanos: int
    lasts: timedelta | None

    @property
    def cap_left_tokens(self) -> int:
        return max(self.account.cap_tokens - self.account.day_tokens - self.account.day_held_tokens, 0)

    @property
    def refused_today(self) -> int:
        return next((day.refused_requests for day in self.days if day.day == self.account.day), 0)


async def standing(ledger: LedgerClient, plans: Plans, customer_id: str) -> Standing:
    """Return how a customer stands now. Raises the ledger's refusals."""
    recent = await ledger.recent(customer_id, SHOWN_DAYS)
    account, days = recent.account, recent.days
    pace = pace_nanos(days, account.day)
    return Standing(
        account=account,
        days=days,
        buys=[
            Buys(model.display_name, tokens_bought(account.balance_nanos, price), price)
            for model in plans.models
            for price in [model.dearest_price_nanos]
        ],
        pace_nanos=pace,
        lasts=timedelta(days=min(account.balance_nanos // pace, 100_000)) if pace else None,
    )


def pace_nanos(days: Sequence[DayView], today: date) -> int:
    """Return the mean of a day's charges over the last week, or over the days since the first charge in it."""
    start = today - timedelta(days=PACE_DAYS - 1)
    charged = [day for day in days if day.day >= start and day.amount_nanos]
    if not charged:
        return 0
    span = (today - min(day.day for day in charged)).days + 1
    return sum(day.amount_nanos for day in charged) // span
