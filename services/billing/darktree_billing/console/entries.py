"""The ledger as a table, and each of its lines with the receipt that proves it, verified in the page."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Annotated, get_args
from urllib.parse import urlencode

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from darktree_billing import accounts, keys
from darktree_billing.console.shell import TheMember, render
from darktree_billing.schemas import MAX_PAGE
from darktree_billing.state import TheLedger, ThePlansFile
from darktree_kit.db import Session
from darktree_kit.errors import NotFound
from darktree_kit.ids import request_id_of
from darktree_ledger.client import LedgerClient
from darktree_ledger.schemas import EntryFilter, EntryView, Kind

PAGE = 50
MAX_SEQ = 10**15
CREDITS = "customer_credits"
KINDS: dict[str, str] = {
    "grant": "Credits",
    "usage": "Usage",
    "absorbed": "Absorbed by us",
    "adjustment": "Correction",
    "refund": "Refund",
    "dispute": "Dispute",
    "reinstatement": "Reinstated",
    "posting": "Booking",
}
OUTCOMES = {"abandoned": "left early", "failed": "failed"}

Seq = Annotated[int, Path(ge=1, le=MAX_SEQ)]
router = APIRouter(include_in_schema=False)


@dataclass(frozen=True)
class Line:
    """An entry as it is told to people. `effect_nanos` is what it did to the balance."""

    entry: EntryView
    what: str
    detail: str
    key: str
    effect_nanos: int

    @property
    def tokens(self) -> int:
        return self.entry.prompt_tokens + self.entry.completion_tokens

    @property
    def request_id(self) -> str | None:
        return request_id_of(self.entry.hold_id) if self.entry.hold_id else None


def line(entry: EntryView, names: Mapping[str, str]) -> Line:
    """Return an entry as it is told, with the names of keys."""
    what = KINDS[entry.kind]
    if entry.kind == "grant":
        what = "Purchase" if entry.debit_account == "stripe_clearing" else "Bonus credits"
    note = OUTCOMES.get(entry.outcome or "")
    detail = " · ".join(filter(None, [entry.model, note])) if entry.model else entry.reason or ""
    key = names.get(entry.key_id, entry.key_id) if entry.key_id else ""
    return Line(entry, what, detail, key, _effect_nanos(entry))


def _effect_nanos(entry: EntryView) -> int:
    if entry.credit_account == CREDITS:
        return entry.amount_nanos
    return -entry.amount_nanos if entry.debit_account == CREDITS else 0


@router.get("/console/ledger")
async def list_entries(
    request: Request,
    me: TheMember,
    session: Session,
    ledger: TheLedger,
    plans_file: ThePlansFile,
    after: Annotated[str, Query(max_length=20)] = "",
    kind: str = "",
    model: Annotated[str, Query(max_length=128)] = "",
    key: Annotated[str, Query(max_length=64)] = "",
    day: Annotated[str, Query(max_length=10)] = "",
) -> HTMLResponse:
    known = (await keys.list_keys(session, me.customer_id, MAX_PAGE, None)).data
    models = [one.id for one in plans_file.current().models]
    chosen = {
        "kind": kind if kind in get_args(Kind) else "",
        "model": model if model.isprintable() else "",
        "key": key if key in {one.id for one in known} else "",
        "day": day if _day(day) else "",
    }
    which = EntryFilter(
        kind=chosen["kind"] or None,
        model=chosen["model"] or None,
        key_id=chosen["key"] or None,
        day=_day(day),
    )
    cursor = after if after.isascii() and after.isdigit() else ""
    with accounts.ledger_refusals():
        page = await ledger.entries(me.customer_id, limit=PAGE, after=cursor or None, which=which)
    query = {name: value for name, value in chosen.items() if value}
    names = {one.id: one.name for one in known}
    values = {
        "lines": [line(entry, names) for entry in page.data],
        "kinds": KINDS,
        "models": sorted({*models, *([chosen["model"]] if chosen["model"] else [])}),
        "keys": known,
        "chosen": chosen,
        "filtered": bool(query),
        "newest": f"/console/ledger?{urlencode(query)}" if cursor else None,
        "older": f"/console/ledger?{urlencode(query | {'after': page.next})}" if page.next else None,
    }
    return render(request, "ledger.html", values)


@router.get("/console/ledger/{seq}")
async def show_entry(
    seq: Seq, request: Request, me: TheMember, session: Session, ledger: TheLedger
) -> HTMLResponse:
    entry = await _entry(ledger, me.customer_id, seq)
    known = (await keys.list_keys(session, me.customer_id, MAX_PAGE, None)).data
    values = {"line": line(entry, {one.id: f"{one.name} …{one.last4}" for one in known})}
    return render(request, "entry.html", values)


@router.get("/console/ledger/{seq}/receipt.json")
async def read_receipt(seq: Seq, me: TheMember, ledger: TheLedger) -> Response:
    """Return an entry's receipt, for the page and for keeping; 202 for some seconds, until the log covers it."""
    with accounts.ledger_refusals():
        receipt = await ledger.receipt(me.customer_id, seq)
    if receipt is None:
        await _entry(ledger, me.customer_id, seq)
        # Nothing is wrong, and a browser would tell of a 404 as of an error.
        soon = {"message": "The log does not cover this entry yet. Look again in a minute."}
        return JSONResponse(soon, 202, {"Retry-After": "2"})
    headers = {"Content-Disposition": f'attachment; filename="receipt-{seq}.json"'}
    return Response(receipt.model_dump_json(indent=2), headers=headers, media_type="application/json")


async def _entry(ledger: LedgerClient, customer_id: str, seq: int) -> EntryView:
    with accounts.ledger_refusals():
        page = await ledger.entries(customer_id, limit=1, after=str(seq + 1))
    if not page.data or page.data[0].seq != seq:
        raise NotFound("There is no such entry.", code="unknown_entry")
    return page.data[0]


def _day(text: str) -> date | None:
    try:
        return date.fromisoformat(text) if text else None
    except ValueError:
        return None
