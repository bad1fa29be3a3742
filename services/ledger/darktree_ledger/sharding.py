"""Customers over several ledgers, each with a Postgres of its own: whoever holds a client need not know how many.

A customer is the only scope of a lock, so nothing about one customer ever concerns two ledgers. SHA-256 of the id says
which of 1,024 slots a customer has, for ever; equal, contiguous ranges of slots belong to the ledgers in the order in
which they are listed. What concerns the house is in the first. Books are asked of every ledger and merged.
"""

import asyncio
import hashlib
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import date, datetime
from typing import TypeVar
from uuid import UUID

from darktree_ledger.books_schemas import AsOf, ClosedMonth, MonthBalance, MonthTotals, TrialBalanceRow
from darktree_ledger.client import LedgerClient
from darktree_ledger.receipts import ConsistencyProof, InclusionProof, LogKeyView, Receipt
from darktree_ledger.reports import HoldPage, LaneTokens, RecentDays, Reconciliation, UsageRow
from darktree_ledger.schemas import (
    HOUSE,
    AccountView,
    CapChangeView,
    CheckReport,
    DayView,
    EntryFilter,
    EntryPage,
    EntryView,
    Operation,
    Result,
)

SLOTS = 1_024
MAX_SHARDS = 64

Answer = TypeVar("Answer")


def slot_of(customer_id: str) -> int:
    """Return a customer's slot: the first ten bits of the SHA-256 of the id. Never to be changed."""
    return int.from_bytes(hashlib.sha256(customer_id.encode()).digest()[:2], "big") >> 6


def shard_of(customer_id: str, shards: int) -> int:
    """Return which of so many ledgers keeps a customer."""
    return 0 if customer_id == HOUSE else slot_of(customer_id) * shards // SLOTS


def connect(urls: str, token: str) -> LedgerClient:
    """Return a client of the ledger at this URL, or of several with commas between. Raises ValueError."""
    listed = [url.strip() for url in urls.split(",") if url.strip()]
    if not 1 <= len(listed) <= MAX_SHARDS or len(set(listed)) < len(listed):
        raise ValueError(f"name 1 to {MAX_SHARDS} different ledgers, with commas between")
    clients = [LedgerClient(url, token) for url in listed]
    return clients[0] if len(clients) == 1 else ShardedLedger(clients)


class ShardedLedger(LedgerClient):
    """Several ledgers as one. A ledger that is away refuses its own customers, and nobody else."""

    def __init__(self, shards: Sequence[LedgerClient]) -> None:
        self._shards = tuple(shards)

    @property
    def shards(self) -> tuple[LedgerClient, ...]:
        return self._shards

    def of(self, customer_id: str) -> LedgerClient:
        return self._shards[shard_of(customer_id, len(self._shards))]

    async def close(self) -> None:
        await self._every(lambda shard: shard.close())

    async def ready(self) -> None:
        await self._every(lambda shard: shard.ready())

    async def apply(self, operation: Operation) -> Result:
        return await self.of(operation.customer_id).apply(operation)

    async def apply_batch(self, operations: list[Operation]) -> list[Result]:
        """Apply each ledger's part in its order; when one is away, the others' parts are applied all the same."""
        parts: dict[LedgerClient, list[int]] = defaultdict(list)
        for place, operation in enumerate(operations):
            parts[self.of(operation.customer_id)].append(place)
        answers = await asyncio.gather(
            *(shard.apply_batch([operations[place] for place in places]) for shard, places in parts.items()),
            return_exceptions=True,
        )
        results: dict[int, Result] = {}
        for places, answer in zip(parts.values(), answers, strict=True):
            if isinstance(answer, BaseException):
                raise answer
            results |= zip(places, answer, strict=True)
        return [results[place] for place in range(len(operations))]

    async def account(self, customer_id: str) -> AccountView:
        return await self.of(customer_id).account(customer_id)

    async def recent(self, customer_id: str, days: int) -> RecentDays:
        return await self.of(customer_id).recent(customer_id, days)

    async def entries(
        self,
        customer_id: str,
        *,
        limit: int = 100,
        after: str | None = None,
        kind: str | None = None,
        which: EntryFilter | None = None,
    ) -> EntryPage:
        one = self.of(customer_id)
        return await one.entries(customer_id, limit=limit, after=after, kind=kind, which=which)

    async def entry_of_hold(self, customer_id: str, hold_id: UUID) -> list[EntryView]:
        return await self.of(customer_id).entry_of_hold(customer_id, hold_id)

    async def open_holds(
        self, *, customer_id: str | None = None, limit: int = 100, after: str | None = None
    ) -> HoldPage:
        if customer_id is not None:
            return await self.of(customer_id).open_holds(customer_id=customer_id, limit=limit, after=after)
        pages = await self._every(lambda shard: shard.open_holds(limit=limit, after=after))
        holds = sorted(
            _joined([page.data for page in pages]), key=lambda hold: (hold.customer_id, hold.hold_id)
        )
        merged = HoldPage.of(holds, limit)
        if merged.next is None and any(page.next for page in pages):  # one shard has just as many, and more
            return HoldPage.of([*holds, holds[-1]], limit)
        return merged

    async def days(self, customer_id: str, first: date, last: date) -> list[DayView]:
        return await self.of(customer_id).days(customer_id, first, last)

    async def usage(self, customer_id: str, first: date, last: date) -> list[UsageRow]:
        return await self.of(customer_id).usage(customer_id, first, last)

    async def cap_changes(self, customer_id: str, after: UUID | None = None) -> list[CapChangeView]:
        return await self.of(customer_id).cap_changes(customer_id, after)

    async def receipt(self, customer_id: str, seq: int) -> Receipt | None:
        return await self.of(customer_id).receipt(customer_id, seq)

    async def inclusion(self, customer_id: str, seq: int, size: int | None = None) -> InclusionProof:
        return await self.of(customer_id).inclusion(customer_id, seq, size)

    def log_entries(self, size: int, customer_id: str | None = None) -> AsyncIterator[bytes]:
        return self.of(customer_id or HOUSE).log_entries(size, customer_id)

    def export(self, customer_id: str, start: datetime, end: datetime) -> AsyncIterator[bytes]:
        return self.of(customer_id).export(customer_id, start, end)

    async def as_of(self, customer_id: str, at: datetime) -> AsOf:
        return await self.of(customer_id).as_of(customer_id, at)

    # Every ledger has a log of its own: these speak of the house's. A customer's: `of(customer_id)`.
    async def consistency(self, first: int, second: int) -> ConsistencyProof:
        return await self.of(HOUSE).consistency(first, second)

    async def checkpoint(self, size: int | None = None) -> str:
        return await self.of(HOUSE).checkpoint(size)

    async def log_keys(self) -> list[LogKeyView]:
        return await self.of(HOUSE).log_keys()

    async def trial_balance(self, at: datetime) -> list[TrialBalanceRow]:
        sums: dict[tuple[str, str | None], tuple[int, int]] = {}
        for row in _joined(await self._every(lambda shard: shard.trial_balance(at))):
            debit, credit = sums.get((row.account, row.model), (0, 0))
            sums[row.account, row.model] = (debit + row.debit_nanos, credit + row.credit_nanos)
        return [
            TrialBalanceRow(account=account, model=model, debit_nanos=debit, credit_nanos=credit)
            for (account, model), (debit, credit) in sorted(
                sums.items(), key=lambda item: (item[0][0], item[0][1] or "")
            )
        ]

    async def closed_months(self) -> list[ClosedMonth]:
        """Return the months that every ledger has closed."""
        lists = await self._every(lambda shard: shard.closed_months())
        closed = [{month.month: month for month in months} for months in lists]
        everywhere = set.intersection(*map(set, closed))
        return [_closed([months[month] for months in closed]) for month in sorted(everywhere)]

    async def close_month(self, month: date) -> ClosedMonth:
        """Close a month in every ledger. Where one refuses, repeating it later closes the rest."""
        return _closed(await self._every(lambda shard: shard.close_month(month)))

    async def month_totals(self, month: date) -> MonthTotals:
        parts = await self._every(lambda shard: shard.month_totals(month))
        rows = [row for part in parts for row in part.rows]
        rows.sort(
            key=lambda row: (
                row.day,
                row.customer_id,
                row.kind,
                row.debit_account,
                row.credit_account,
                row.model or "",
            )
        )
        closed = [part.closed for part in parts if part.closed is not None]
        return MonthTotals(
            month=month, closed=_closed(closed) if len(closed) == len(parts) else None, rows=rows
        )

    async def month_balances(self, month: date) -> list[MonthBalance]:
        rows = _joined(await self._every(lambda shard: shard.month_balances(month)))
        return sorted(rows, key=lambda row: row.customer_id)

    async def month_lines(self, month: date) -> list[EntryView]:
        entries = _joined(await self._every(lambda shard: shard.month_lines(month)))
        return sorted(entries, key=lambda entry: (entry.recorded_at, entry.customer_id, entry.seq))

    async def check(self) -> CheckReport:
        reports = await self._every(lambda shard: shard.check())
        return CheckReport(
            customers=sum(report.customers for report in reports),
            entries=sum(report.entries for report in reports),
            open_holds=sum(report.open_holds for report in reports),
            problems=_joined([report.problems for report in reports]),
        )

    async def reconciliation(self) -> Reconciliation:
        parts = await self._every(lambda shard: shard.reconciliation())
        checked = [part.checked_at for part in parts if part.checked_at is not None]
        return Reconciliation(
            rounds=min(part.rounds for part in parts),
            checked_at=min(checked) if len(checked) == len(parts) else None,
            problems=_joined([part.problems for part in parts]),
            unsealed_entries=sum(part.unsealed_entries for part in parts),
            unsealed_seconds=max(part.unsealed_seconds for part in parts),
        )

    async def lane_tokens(self, start: datetime, end: datetime) -> list[LaneTokens]:
        sums: dict[str, LaneTokens] = {}
        for row in _joined(await self._every(lambda shard: shard.lane_tokens(start, end))):
            known = sums.setdefault(row.lane, LaneTokens(lane=row.lane, prompt_tokens=0, completion_tokens=0))
            known.prompt_tokens += row.prompt_tokens
            known.completion_tokens += row.completion_tokens
        return [sums[lane] for lane in sorted(sums)]

    async def _every(self, ask: Callable[[LedgerClient], Awaitable[Answer]]) -> list[Answer]:
        """Return every ledger's answer, in order. Raises the first one's error once all have answered."""
        answers = await asyncio.gather(*map(ask, self._shards), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return [answer for answer in answers if not isinstance(answer, BaseException)]


def _joined(lists: Sequence[Sequence[Answer]]) -> list[Answer]:
    return [row for rows in lists for row in rows]


def _closed(parts: Sequence[ClosedMonth]) -> ClosedMonth:
    """Say of several logs what is said of one: their sizes' sum, the hash of their roots, their notes in a row."""
    return ClosedMonth(
        month=parts[0].month,
        tree_size=sum(part.tree_size for part in parts),
        root=hashlib.sha256(b"".join(bytes.fromhex(part.root) for part in parts)).hexdigest(),
        checkpoint="\n".join(part.checkpoint for part in parts),
        closed_at=max(part.closed_at for part in parts),
    )
