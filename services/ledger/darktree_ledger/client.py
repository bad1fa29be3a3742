"""How other services use the ledger.

`LedgerClient.apply` takes one operation at a time and sends many at once: whatever is waiting while a batch is in
flight goes with the next one. The ledger applies a batch in one database call and one commit, so throughput comes
from batching while every operation stays exact and durable before its caller goes on. One batch at a time: a second in
flight would only make both smaller, and halved the rate when it was tried (docs/benchmarks.md).
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextvars import Context
from datetime import date, datetime
from uuid import UUID

import orjson

from darktree_kit import tracing
from darktree_kit.channel import Channel
from darktree_kit.errors import ApiError, Unreachable
from darktree_kit.http import InternalClient
from darktree_ledger.books_schemas import AsOf, ClosedMonth, MonthBalance, MonthTotals, TrialBalanceRow
from darktree_ledger.errors import NotInTheLog, OperationConflict, UnknownCustomer
from darktree_ledger.receipts import ConsistencyProof, InclusionProof, LogKeyView, Receipt
from darktree_ledger.reports import HoldPage, LaneTokens, RecentDays, Reconciliation, UsageRow
from darktree_ledger.schemas import (
    MAX_OPERATIONS_PER_BATCH,
    RESULTS,
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

MAX_WAITING_OPERATIONS = 20_000
CHECK_TIMEOUT_SECONDS = 600.0


class LedgerClient:
    """A caller of the ledger. Errors: see `apply`; reads raise the ledger's own refusals."""

    def __init__(self, base_url: str, token: str) -> None:
        self._http = InternalClient(base_url, token, service="ledger")
        self._batches = Channel(base_url, token, service="ledger")
        self._slow_http = InternalClient(base_url, token, service="ledger", timeout=CHECK_TIMEOUT_SECONDS)
        self._waiting: deque[tuple[Operation, asyncio.Future[Result]]] = deque()
        self._sender: asyncio.Task[None] | None = None
        self._trace: dict[
            str, str
        ] = {}  # of the request that waits and came last: a batch can be told of one only

    async def close(self) -> None:
        """Send what is waiting, then close the connections."""
        if self._sender is not None:
            await self._sender
        await self._batches.close()
        await self._http.close()
        await self._slow_http.close()

    @property
    def shards(self) -> "tuple[LedgerClient, ...]":
        """Every ledger behind this client; sharding.py has one for several."""
        return (self,)

    def of(self, customer_id: str) -> "LedgerClient":  # noqa: ARG002 - of several, the id decides
        """Return the ledger that keeps this customer."""
        return self

    async def apply(self, operation: Operation) -> Result:
        """Apply one operation and return its result, whatever its outcome.

        Raises Unreachable when no answer came: it may or may not have taken effect, and may be repeated as it is.
        """
        if len(self._waiting) >= MAX_WAITING_OPERATIONS:
            raise Unreachable("too many operations are waiting for the ledger")
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((operation, future))
        if tracing.tracer is not None:
            self._trace = tracing.headers()
        if self._sender is None or self._sender.done():
            # In a context of its own: a batch belongs to no single request.
            self._sender = asyncio.create_task(self._send_all(), context=Context())
        return await future

    async def apply_or_raise(self, operation: Operation) -> Result:
        """As `apply`, but a conflict is raised as OperationConflict and an unknown customer as UnknownCustomer."""
        result = await self.apply(operation)
        if result.outcome == "conflict":
            field = result.field or "operation"
            raise OperationConflict(f"This id was used before with another {field}.", param=field)
        if result.reason == "unknown_customer":
            raise UnknownCustomer(operation.customer_id)
        return result

    async def apply_batch(self, operations: list[Operation]) -> list[Result]:
        """Apply operations in this order, in one call."""
        # Their fields are flat and in JSON's types, so orjson writes them as pydantic would, in a sixth of the time.
        body = orjson.dumps([operation.__dict__ for operation in operations])
        trace, self._trace = self._trace, {}
        return RESULTS.validate_json(await self._batches.post("/v1/operations", body, trace))

    async def ready(self) -> None:
        """Raise Unreachable unless the ledger answers and reaches its database."""
        await self._http.call("GET", "/readyz")

    async def account(self, customer_id: str) -> AccountView:
        return AccountView.model_validate_json(await self._http.call("GET", f"/v1/accounts/{customer_id}"))

    async def recent(self, customer_id: str, days: int) -> RecentDays:
        """Return how a customer stands, and the latest so many days, today's included."""
        path, params = f"/v1/accounts/{customer_id}/recent", {"days": str(days)}
        return RecentDays.model_validate_json(await self._http.call("GET", path, params=params))

    async def entries(
        self,
        customer_id: str,
        *,
        limit: int = 100,
        after: str | None = None,
        kind: str | None = None,
        which: EntryFilter | None = None,
    ) -> EntryPage:
        """Return one page of entries, newest first; `after` is the `next` of the page before."""
        params = (
            {"limit": str(limit)} | ({"after": after} if after else {}) | ({"kind": kind} if kind else {})
        )
        params |= which.model_dump(mode="json", exclude_none=True) if which else {}
        path = f"/v1/accounts/{customer_id}/entries"
        return EntryPage.model_validate_json(await self._http.call("GET", path, params=params))

    async def entry_of_hold(self, customer_id: str, hold_id: UUID) -> list[EntryView]:
        """Return the entries that settled one hold (a usage, an absorbed part, or both); empty when there is none."""
        path = f"/v1/accounts/{customer_id}/holds/{hold_id}/entries"
        return [EntryView.model_validate(row) for row in orjson.loads(await self._http.call("GET", path))]

    async def open_holds(
        self, *, customer_id: str | None = None, limit: int = 100, after: str | None = None
    ) -> HoldPage:
        """Return one page of what running requests hold, by customer and age; `after` is `next` of the page before."""
        params = {"limit": str(limit), "after": after, "customer_id": customer_id}
        told = {name: value for name, value in params.items() if value is not None}
        return HoldPage.model_validate_json(await self._http.call("GET", "/v1/holds", params=told))

    async def days(self, customer_id: str, first: date, last: date) -> list[DayView]:
        path = f"/v1/accounts/{customer_id}/days"
        content = await self._http.call("GET", path, params={"first": str(first), "last": str(last)})
        return [DayView.model_validate(row) for row in orjson.loads(content)]

    async def usage(self, customer_id: str, first: date, last: date) -> list[UsageRow]:
        """Return what was charged on each UTC day, by model and key; slower than `days`: it sums entries."""
        path = f"/v1/accounts/{customer_id}/usage"
        content = await self._http.call("GET", path, params={"first": str(first), "last": str(last)})
        return [UsageRow.model_validate(row) for row in orjson.loads(content)]

    async def cap_changes(self, customer_id: str, after: UUID | None = None) -> list[CapChangeView]:
        """Return a page of changes, newest first; `after` is the id of the last of the page before."""
        path, params = f"/v1/accounts/{customer_id}/cap-changes", {"after": str(after)} if after else {}
        content = await self._http.call("GET", path, params=params)
        return [CapChangeView.model_validate(row) for row in orjson.loads(content)]

    async def receipt(self, customer_id: str, seq: int) -> Receipt | None:
        """Return an entry with its proof under the newest checkpoint; None while no checkpoint covers it."""
        params = {"customer_id": customer_id, "seq": str(seq)}
        try:
            content = await self._http.call("GET", "/v1/proofs/receipt", params=params)
        except ApiError as error:
            if error.answer_code == NotInTheLog.code:
                return None
            raise
        return Receipt.model_validate_json(content)

    async def inclusion(self, customer_id: str, seq: int, size: int | None = None) -> InclusionProof:
        """Return what proves an entry's place in the log of `size` entries, or of the newest checkpoint's."""
        params = {"customer_id": customer_id, "seq": str(seq)} | ({"size": str(size)} if size else {})
        return InclusionProof.model_validate_json(
            await self._http.call("GET", "/v1/proofs/inclusion", params=params)
        )

    async def consistency(self, first: int, second: int) -> ConsistencyProof:
        """Return what proves that the log of `first` entries is the beginning of the log of `second`."""
        params = {"first": str(first), "second": str(second)}
        return ConsistencyProof.model_validate_json(
            await self._http.call("GET", "/v1/proofs/consistency", params=params)
        )

    async def checkpoint(self, size: int | None = None) -> str:
        """Return the newest checkpoint, or the one of this size: a signed note."""
        path = "/log/checkpoint" if size is None else f"/log/checkpoints/{size}"
        return (await self._http.call("GET", path)).decode()

    def log_entries(self, size: int, customer_id: str | None = None) -> AsyncIterator[bytes]:
        """Stream the first `size` entries of the log, or one customer's of them, as JSON lines in any pieces."""
        params = {"size": str(size)} | ({"customer_id": customer_id} if customer_id else {})
        return self._http.stream("/v1/log/entries", params=params)

    async def log_keys(self) -> list[LogKeyView]:
        """Return the keys that sign the log, oldest first."""
        content = await self._http.call("GET", "/log/keys")
        return [LogKeyView.model_validate(row) for row in orjson.loads(content)]

    def export(self, customer_id: str, start: datetime, end: datetime) -> AsyncIterator[bytes]:
        """Stream a customer's entries recorded in [start, end), oldest first, as JSON lines in any pieces."""
        params = {"start": start.isoformat(), "end": end.isoformat()}
        return self._http.stream(f"/v1/accounts/{customer_id}/export", params=params)

    async def as_of(self, customer_id: str, at: datetime) -> AsOf:
        path = f"/v1/accounts/{customer_id}/as-of"
        return AsOf.model_validate_json(await self._http.call("GET", path, params={"at": at.isoformat()}))

    async def trial_balance(self, at: datetime) -> list[TrialBalanceRow]:
        content = await self._slow_http.call("GET", "/v1/trial-balance", params={"at": at.isoformat()})
        return [TrialBalanceRow.model_validate(row) for row in orjson.loads(content)]

    async def closed_months(self) -> list[ClosedMonth]:
        return [
            ClosedMonth.model_validate(row)
            for row in orjson.loads(await self._http.call("GET", "/v1/months"))
        ]

    async def close_month(self, month: date) -> ClosedMonth:
        """Close a month, or return it as it was closed. Raises the ledger's 409 while it cannot be closed."""
        path = f"/v1/months/{month:%Y-%m}/close"
        return ClosedMonth.model_validate_json(await self._slow_http.call("POST", path))

    async def month_totals(self, month: date) -> MonthTotals:
        path = f"/v1/months/{month:%Y-%m}/totals"
        return MonthTotals.model_validate_json(await self._slow_http.call("GET", path))

    async def month_balances(self, month: date) -> list[MonthBalance]:
        content = await self._slow_http.call("GET", f"/v1/months/{month:%Y-%m}/balances")
        return [MonthBalance.model_validate(row) for row in orjson.loads(content)]

    async def month_lines(self, month: date) -> list[EntryView]:
        """Return a month's entries that are no usage, oldest first."""
        content = await self._slow_http.call("GET", f"/v1/months/{month:%Y-%m}/lines")
        return [EntryView.model_validate_json(line) for line in content.splitlines()]

    async def check(self) -> CheckReport:
        """Compare every projection with its entries and recompute every chain; slow: it reads everything."""
        return CheckReport.model_validate_json(await self._slow_http.call("POST", "/v1/check"))

    async def reconciliation(self) -> Reconciliation:
        """Return what rounds over the customers found, and how far sealing is behind."""
        return Reconciliation.model_validate_json(await self._http.call("GET", "/v1/reconciliation"))

    async def lane_tokens(self, start: datetime, end: datetime) -> list[LaneTokens]:
        """Return what was recorded in [start, end), by lane."""
        params = {"start": start.isoformat(), "end": end.isoformat()}
        content = await self._slow_http.call("GET", "/v1/lane-tokens", params=params)
        return [LaneTokens.model_validate(row) for row in orjson.loads(content)]

    async def _send_all(self) -> None:
        while self._waiting:
            size = min(len(self._waiting), MAX_OPERATIONS_PER_BATCH)
            batch = [self._waiting.popleft() for _ in range(size)]
            try:
                results = await self.apply_batch([operation for operation, _ in batch])
            except Exception as error:
                failure = (
                    error if isinstance(error, ApiError) else Unreachable(f"the ledger's answer: {error}")
                )
                for _, future in batch:
                    if not future.done():
                        future.set_exception(failure)
                continue
            for (_, future), result in zip(batch, results, strict=True):
                if not future.done():
                    future.set_result(result)
