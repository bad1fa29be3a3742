"""Which ledger keeps which customer, and that a client of several can do whatever a client of one can."""

import inspect
from collections import Counter
from datetime import UTC, date, datetime
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darktree_ledger.books_schemas import ClosedMonth, TrialBalanceRow
from darktree_ledger.client import LedgerClient
from darktree_ledger.reports import HoldPage, HoldView
from darktree_ledger.schemas import HOUSE
from darktree_ledger.sharding import SLOTS, ShardedLedger, connect, shard_of, slot_of

CUSTOMER_IDS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)


def test_a_customers_slot_never_changes() -> None:
    # Written down once: a change would look for customers where they are not.
    slots = {"acme": 520, "globex": 367, "initech": 307, "c-1": 667}
    assert {name: slot_of(name) for name in slots} == slots
    assert [shard_of("acme", shards) for shards in (1, 2, 3, 4, 64)] == [0, 1, 1, 2, 32]


@given(CUSTOMER_IDS, st.integers(1, 64))
def test_every_customer_has_one_ledger_and_more_ledgers_only_split_ranges(
    customer_id: str, shards: int
) -> None:
    place = shard_of(customer_id, shards)
    assert 0 <= place < shards
    assert place == slot_of(customer_id) * shards // SLOTS
    assert shard_of(customer_id, 2 * shards) // 2 == place


def test_customers_spread_evenly() -> None:
    spread = Counter(shard_of(f"customer-{number}", 4) for number in range(10_000))
    assert all(2_300 < count < 2_700 for count in spread.values()), spread


def test_the_house_is_in_the_first_ledger() -> None:
    assert {shard_of(HOUSE, shards) for shards in range(1, 65)} == {0}


def test_a_client_of_several_ledgers_answers_every_method_itself() -> None:
    inherited_on_purpose = {"apply_or_raise"}  # which only calls `apply`
    public = {name for name, _ in inspect.getmembers(LedgerClient) if not name.startswith("_")}
    own = {name for name in vars(ShardedLedger) if not name.startswith("_")}
    assert public - own == inherited_on_purpose


@pytest.mark.parametrize("urls", ["", " , ", "http://a,http://a"])
def test_a_list_without_ledgers_or_with_one_twice_is_refused(urls: str) -> None:
    with pytest.raises(ValueError, match="different ledgers"):
        connect(urls, "token")


class Books(LedgerClient):
    """A ledger of which only the books are asked."""

    def __init__(self, debit: int, credit: int, root: str) -> None:
        self._row = (debit, credit)
        self._root = root

    async def trial_balance(self, at: datetime) -> list[TrialBalanceRow]:
        debit, credit = self._row
        return [
            TrialBalanceRow(account="revenue", model="m", debit_nanos=0, credit_nanos=credit),
            TrialBalanceRow(account="customer_credits", model=None, debit_nanos=debit, credit_nanos=0),
        ]

    async def close_month(self, month: date) -> ClosedMonth:
        at = datetime(2026, 12, 1, 0, 2, tzinfo=UTC)
        return ClosedMonth(month=month, tree_size=3, root=self._root, checkpoint="note\n", closed_at=at)


async def test_the_books_of_several_ledgers_are_merged() -> None:
    both = ShardedLedger([Books(3, 5, "aa" * 32), Books(4, 6, "bb" * 32)])
    rows = await both.trial_balance(datetime(2026, 12, 1, tzinfo=UTC))
    assert [(row.account, row.debit_nanos, row.credit_nanos) for row in rows] == [
        ("customer_credits", 7, 0),
        ("revenue", 0, 11),
    ]
    closed = await both.close_month(date(2026, 11, 1))
    assert (closed.tree_size, closed.checkpoint) == (6, "note\n\nnote\n")
    assert closed.root not in ("aa" * 32, "bb" * 32)


class Holds(LedgerClient):
    """A ledger of which only the open holds are asked."""

    def __init__(self, *customer_ids: str) -> None:
        at = datetime(2026, 12, 1, tzinfo=UTC)
        amounts = {"prompt_tokens": 1, "completion_tokens": 1, "amount_nanos": 2, "usage_day": at.date()}
        names = {"key_id": "k", "model": "m", "lane": "l", "placed_at": at, "expires_at": at}
        self._holds = [
            HoldView.model_validate(
                amounts | names | {"hold_id": UUID(int=number), "customer_id": customer_id}
            )
            for number, customer_id in enumerate(sorted(customer_ids))
        ]

    async def open_holds(
        self, *, customer_id: str | None = None, limit: int = 100, after: str | None = None
    ) -> HoldPage:
        later = [
            hold for hold in self._holds if after is None or f"{hold.customer_id}.{hold.hold_id}" > after
        ]
        return HoldPage.of(later[: limit + 1], limit)


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5, 100])
async def test_pages_of_the_open_holds_of_several_ledgers_leave_nothing_out_and_repeat_nothing(
    limit: int,
) -> None:
    several = ShardedLedger([Holds("a", "d", "e"), Holds(), Holds("b", "c")])
    seen, after = "", None
    for _ in range(10):
        page = await several.open_holds(limit=limit, after=after)
        seen += "".join(hold.customer_id for hold in page.data)
        after = page.next
        if after is None:
            break
    assert seen == "abcde"
