"""One customer: what they have, what they use, who they are; and what the team may do about it, always with a reason.

Forms that move money carry an id that was made with the page, so that a form sent twice is one grant.
"""

import asyncio
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Path, Query, Request
from pydantic import ValidationError
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.responses import HTMLResponse, Response

from darktree_billing import accounts, customers, freezes, keys, requests
from darktree_billing.admin import After, CustomerIdInPath
from darktree_billing.console import members
from darktree_billing.console.shell import TEAM_HOME, Form, TheForm, TheTeamMember, redirect, render
from darktree_billing.key_format import KEY_ID_PATTERN
from darktree_billing.schemas import MAX_PAGE, AdjustCredits, GrantCredits, SetCap
from darktree_billing.state import TheLedger
from darktree_kit import ids
from darktree_kit.db import Session
from darktree_kit.errors import ApiError, BadRequest
from darktree_kit.money import format_dollars
from darktree_ledger.client import LedgerClient
from darktree_ledger.schemas import MAX_TOKENS

ENTRIES_SHOWN = 10
CHANGES_SHOWN = 8
ENTRIES_A_PAGE = 50
MAX_KEYS_SHOWN = 100
ROOT = TEAM_HOME + "/customers/{customer_id}"

router = APIRouter(include_in_schema=False)


@router.get(ROOT)
async def show(
    customer_id: CustomerIdInPath, request: Request, _: TheTeamMember, session: Session, ledger: TheLedger
) -> HTMLResponse:
    return await _page(request, session, ledger, customer_id)


@router.get(ROOT + "/entries")
async def entries(
    customer_id: CustomerIdInPath,
    request: Request,
    _: TheTeamMember,
    session: Session,
    ledger: TheLedger,
    after: After = None,
    kind: Annotated[
        Literal["", "grant", "usage", "absorbed", "adjustment", "refund", "dispute", "reinstatement"], Query()
    ] = "",
) -> HTMLResponse:
    customer = await customers.show_customer(session, customer_id)
    page = await accounts.entries(ledger, customer_id, ENTRIES_A_PAGE, after, kind or None)
    values = {
        "customer": customer,
        "entries": page.data,
        "next": page.next,
        "kind": kind,
        "first": after is None,
    }
    return render(request, "team/entries.html", values)


@router.post(ROOT + "/grant")
async def grant(
    customer_id: CustomerIdInPath,
    request: Request,
    me: TheTeamMember,
    form: TheForm,
    session: Session,
    ledger: TheLedger,
) -> Response:
    try:
        await customers.find_customer(session, customer_id)
        body = GrantCredits(
            dollars=form.text("dollars", 32), reason=_reason(form), grant_id=_operation_id(form)
        )
        given = await accounts.grant(ledger, customer_id, body, me.email)
    except (ApiError, ValidationError) as error:
        return await _refused(request, session, ledger, customer_id, "grant", form, error)
    told = (
        f"Gave ${format_dollars(given.amount_nanos)}. The balance is ${format_dollars(given.balance_nanos)}."
    )
    return redirect(request, _path(customer_id), told)


@router.post(ROOT + "/adjust")
async def adjust(
    customer_id: CustomerIdInPath,
    request: Request,
    me: TheTeamMember,
    form: TheForm,
    session: Session,
    ledger: TheLedger,
) -> Response:
    try:
        await customers.find_customer(session, customer_id)
        body = AdjustCredits(
            dollars=form.text("dollars", 32), reason=_reason(form), adjustment_id=_operation_id(form)
        )
        done = await accounts.adjust(ledger, customer_id, body, me.email)
    except (ApiError, ValidationError) as error:
        return await _refused(request, session, ledger, customer_id, "adjust", form, error)
    told = f"Corrected. The balance is ${format_dollars(done.balance_nanos)}."
    return redirect(request, _path(customer_id), told)


@router.post(ROOT + "/cap")
async def set_cap(
    customer_id: CustomerIdInPath,
    request: Request,
    me: TheTeamMember,
    form: TheForm,
    session: Session,
    ledger: TheLedger,
) -> Response:
    try:
        await freezes.locked_customer(session, customer_id)  # a purchase looks at the cap, and then sets it
        cap_tokens = form.number("cap_tokens", 0, MAX_TOKENS)
        if cap_tokens is None:
            raise BadRequest(f"The cap is a whole number of tokens, 0 to {MAX_TOKENS:,}.")
        body = SetCap(cap_tokens=cap_tokens, reason=_reason(form), operation_id=_operation_id(form))
        await accounts.change_cap(ledger, customer_id, body, me.email)
    except (ApiError, ValidationError) as error:
        return await _refused(request, session, ledger, customer_id, "cap", form, error)
    return redirect(request, _path(customer_id), f"The daily cap is {cap_tokens:,} tokens.")


@router.post(ROOT + "/freeze")
async def freeze(
    customer_id: CustomerIdInPath,
    request: Request,
    me: TheTeamMember,
    form: TheForm,
    session: Session,
    ledger: TheLedger,
) -> Response:
    frozen = form.text("frozen") == "yes"
    try:
        await freezes.set_frozen(session, customer_id, frozen, _reason(form), me.email)
    except ApiError as error:
        return await _refused(request, session, ledger, customer_id, "freeze", form, error)
    told = "Frozen: keys are refused within seconds." if frozen else "No longer frozen: keys work again."
    return redirect(request, _path(customer_id), told)


@router.post(ROOT + "/keys/{key_id}/revoke")
async def revoke(
    customer_id: CustomerIdInPath,
    key_id: Annotated[str, Path(pattern=KEY_ID_PATTERN)],
    request: Request,
    _: TheTeamMember,
    form: TheForm,
    session: Session,
) -> Response:
    del form  # its token has been checked
    revoked = await keys.revoke_key(session, key_id, customer_id)
    return redirect(request, _path(customer_id), f"Revoked {revoked.name} (…{revoked.last4}).")


def _path(customer_id: str) -> str:
    return ROOT.format(customer_id=customer_id)


def _reason(form: Form) -> str:
    reason = form.text("reason")
    if not reason:
        raise BadRequest("Say why: it is kept with what you do.", param="reason")
    return reason


def _operation_id(form: Form) -> UUID:
    try:
        return UUID(form.text("operation_id"))
    except ValueError as error:
        raise BadRequest("The form is not whole: load the page again.") from error


async def _refused(
    request: Request,
    session: AsyncSession,
    ledger: LedgerClient,
    customer_id: str,
    what: str,
    form: Form,
    error: ApiError | ValidationError,
) -> HTMLResponse:
    """Return the customer's page with what was typed and why it was not done."""
    if isinstance(error, ApiError):
        if error.answer_status >= 500 or error.answer_status == 404:
            raise error
        message, status = error.message.removeprefix("dollars: "), error.answer_status
    else:
        message, status = str(error.errors()[0]["msg"]), 400
    typed = {name: form.text(name) for name in ("dollars", "cap_tokens", "reason")}
    return await _page(
        request, session, ledger, customer_id, {"what": what, "message": message, "typed": typed}, status
    )


async def _page(
    request: Request,
    session: AsyncSession,
    ledger: LedgerClient,
    customer_id: str,
    problem: dict[str, Any] | None = None,
    status: int = 200,
) -> HTMLResponse:
    customer = await customers.show_customer(session, customer_id)
    with accounts.ledger_refusals():
        account, recent, changes = await asyncio.gather(
            ledger.account(customer_id),
            ledger.entries(customer_id, limit=ENTRIES_SHOWN),
            accounts.cap_changes(ledger, customer_id),
        )
    values = {
        "customer": customer,
        "account": account,
        "cap_changes": changes[:CHANGES_SHOWN],
        "freeze": await freezes.freeze_view(session, customer_id),
        "keys": (await keys.list_keys(session, customer_id, min(MAX_KEYS_SHOWN, MAX_PAGE), None)).data,
        "members": await members.members_of(session, customer_id),
        "entries": recent.data,
        "more_entries": recent.next is not None,
        "cap_requests": (await requests.list_cap_requests(session, customer_id, "open")).data,
        "operation_id": ids.uuid7(),
        "problem": problem,
    }
    return render(request, "team/customer.html", values, status=status)
