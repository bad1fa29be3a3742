"""A customer's account in the ledger: opened, granted, capped and read. Billing never moves money itself."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from darktree_billing.errors import ExceedsBalance
from darktree_billing.schemas import (
    MAX_CAP_CHANGES_SHOWN,
    AdjustCredits,
    AdjustmentView,
    CapChange,
    CapView,
    GrantCredits,
    GrantView,
    SetCap,
)
from darktree_kit import ids, money
from darktree_kit.errors import ApiError, BadRequest, Unavailable
from darktree_ledger.client import LedgerClient
from darktree_ledger.errors import OperationConflict
from darktree_ledger.reports import HoldPage
from darktree_ledger.schemas import (
    AccountView,
    Adjust,
    ChangeCap,
    CheckReport,
    EntryPage,
    Grant,
    OpenAccount,
    Operation,
    Post,
    Result,
)

ACTOR = "admin"


async def open_account(ledger: LedgerClient, customer_id: str, cap_tokens: int, actor: str = ACTOR) -> None:
    """Make the customer's account with this cap; one left from an earlier attempt gets this cap too."""
    opened = await _apply(
        ledger,
        OpenAccount(operation_id=ids.uuid7(), customer_id=customer_id, cap_tokens=cap_tokens, actor=actor),
    )
    if opened.cap_tokens != cap_tokens:
        body = SetCap(cap_tokens=cap_tokens, reason="the plan's default")
        await change_cap(ledger, customer_id, body)


async def grant(ledger: LedgerClient, customer_id: str, body: GrantCredits, actor: str = ACTOR) -> GrantView:
    """Give credits. Raises BadRequest for an amount that is none, OperationConflict for a reused id."""
    grant_id = body.grant_id or ids.uuid7()
    operation = Grant(
        operation_id=grant_id,
        customer_id=customer_id,
        amount_nanos=_amount_nanos(body.dollars),
        source="bonus",
        reason=body.reason,
        actor=actor,
    )
    result = await _apply(ledger, operation, names={"amount_nanos": "dollars"})
    assert result.entry_id is not None
    assert result.balance_nanos is not None
    return GrantView(
        grant_id=grant_id,
        customer_id=customer_id,
        entry_id=result.entry_id,
        amount_nanos=operation.amount_nanos,
        balance_nanos=result.balance_nanos,
        replayed=result.replayed,
    )


async def adjust(
    ledger: LedgerClient, customer_id: str, body: AdjustCredits, actor: str = ACTOR
) -> AdjustmentView:
    """Correct a balance, up or down. Raises BadRequest, ExceedsBalance, and OperationConflict for a reused id."""
    adjustment_id = body.adjustment_id or ids.uuid7()
    operation = Adjust(
        operation_id=adjustment_id,
        customer_id=customer_id,
        amount_nanos=_signed_nanos(body.dollars),
        reason=body.reason,
        actor=actor,
    )
    result = await _apply(ledger, operation, names={"amount_nanos": "dollars"})
    assert result.entry_id is not None
    assert result.balance_nanos is not None
    return AdjustmentView(
        adjustment_id=adjustment_id,
        customer_id=customer_id,
        entry_id=result.entry_id,
        amount_nanos=operation.amount_nanos,
        balance_nanos=result.balance_nanos,
        replayed=result.replayed,
    )


async def change_cap(ledger: LedgerClient, customer_id: str, body: SetCap, actor: str = ACTOR) -> None:
    """Set the daily cap. Raises OperationConflict for a reused id."""
    operation = ChangeCap(
        operation_id=body.operation_id or ids.uuid7(),
        customer_id=customer_id,
        cap_tokens=body.cap_tokens,
        reason=body.reason,
        actor=actor,
    )
    await _apply(ledger, operation)


async def post(ledger: LedgerClient, operation: Post) -> None:
    """Book what changes no balance. Raises OperationConflict for a reused id."""
    await _apply(ledger, operation)


async def apply(ledger: LedgerClient, operation: Operation) -> Result:
    """Have the ledger do something. Raises OperationConflict for a reused id, Unavailable when it was not done."""
    return await _apply(ledger, operation)


async def cap(ledger: LedgerClient, customer_id: str) -> CapView:
    """Return the cap, what is used of it, and its latest changes."""
    with ledger_refusals():
        account, changes = await asyncio.gather(ledger.account(customer_id), cap_changes(ledger, customer_id))
    return CapView(
        customer_id=customer_id,
        cap_tokens=account.cap_tokens,
        day_tokens=account.day_tokens,
        day_held_tokens=account.day_held_tokens,
        reset_seconds=account.reset_seconds,
        changes=changes,
    )


async def cap_changes(ledger: LedgerClient, customer_id: str) -> list[CapChange]:
    """Return the latest changes of the cap, newest first. Raises the ledger's refusals."""
    changes = await ledger.cap_changes(customer_id)
    return [
        CapChange(
            cap_tokens=change.cap_tokens,
            previous_cap_tokens=change.previous_cap_tokens,
            reason=change.reason,
            actor=change.actor,
            changed_at=change.changed_at,
        )
        for change in changes[:MAX_CAP_CHANGES_SHOWN]
    ]


async def account(ledger: LedgerClient, customer_id: str) -> AccountView:
    with ledger_refusals():
        return await ledger.account(customer_id)


async def entries(
    ledger: LedgerClient, customer_id: str, limit: int, after: str | None, kind: str | None
) -> EntryPage:
    with ledger_refusals():
        return await ledger.entries(customer_id, limit=limit, after=after, kind=kind)


async def open_holds(
    ledger: LedgerClient, customer_id: str | None, limit: int, after: str | None
) -> HoldPage:
    """Return a page of what running requests hold: everybody's, or one customer's."""
    with ledger_refusals():
        return await ledger.open_holds(customer_id=customer_id, limit=limit, after=after)


async def check(ledger: LedgerClient) -> CheckReport:
    with ledger_refusals():
        return await ledger.check()


async def ledger_problem(ledger: LedgerClient) -> str | None:
    """Return why the ledger is not ready, or None."""
    try:
        await ledger.ready()
    except ApiError as error:
        return error.message
    return None


async def _apply(ledger: LedgerClient, operation: Operation, names: dict[str, str] | None = None) -> Result:
    with ledger_refusals():
        try:
            result = await ledger.apply_or_raise(operation)
        except OperationConflict as conflict:
            # The caller knows the field by the name it has in billing's own body.
            field = (names or {}).get(conflict.param or "", conflict.param)
            raise OperationConflict(
                f"This id was used before with another {field}.", param=field
            ) from conflict
    if result.reason == "failed":
        raise BadRequest(
            "The ledger cannot apply this: a balance would be out of range.", code="out_of_range"
        )
    if result.reason == "balance":
        raise ExceedsBalance(operation.customer_id)
    if result.outcome != "done":
        raise Unavailable(f"The ledger refused the operation: {result.reason}.")
    return result


def _amount_nanos(dollars: str) -> int:
    amount = _signed_nanos(dollars)
    if amount < 0:
        raise BadRequest("dollars: must be more than nothing", param="dollars", code="invalid_value")
    return amount


def _signed_nanos(dollars: str) -> int:
    try:
        amount = money.parse_dollars(dollars)
        if amount == 0:
            raise ValueError("must be more than nothing")
    except ValueError as error:
        raise BadRequest(f"dollars: {error}", param="dollars", code="invalid_value") from error
    return amount


@contextmanager
def ledger_refusals() -> Iterator[None]:
    """Pass on what the ledger refuses about the request; a quarrel with billing is not the caller's fault."""
    try:
        yield
    except ApiError as error:
        if error.answer_status in {401, 403}:
            raise Unavailable(
                "The ledger does not admit billing: DARKTREE_BILLING_LEDGER_TOKEN must be the ledger's "
                "DARKTREE_LEDGER_BILLING_TOKEN."
            ) from error
        if error.answer_status >= 500:
            raise Unavailable(f"The ledger: {error.message}") from error
        raise
