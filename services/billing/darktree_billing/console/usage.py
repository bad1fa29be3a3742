"""Usage by day, model and key: a chart, and the same numbers as tables."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import HTMLResponse

from darktree_billing import accounts, keys
from darktree_billing.console.charts import Series, bars, folded
from darktree_billing.console.shell import TheMember, render
from darktree_billing.schemas import MAX_PAGE
from darktree_billing.state import TheLedger, ThePlansFile
from darktree_kit.db import Session
from darktree_ledger.reports import UsageRow

RANGES = (7, 30, 90)

router = APIRouter(include_in_schema=False)


@dataclass
class Sum:
    """What some rows of usage add up to."""

    name: str
    id: str = ""
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    amount_nanos: int = 0

    def add(self, row: UsageRow) -> None:
        self.requests += row.requests
        self.prompt_tokens += row.prompt_tokens
        self.completion_tokens += row.completion_tokens
        self.amount_nanos += row.amount_nanos

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@router.get("/console/usage")
async def read_usage(
    request: Request,
    me: TheMember,
    session: Session,
    ledger: TheLedger,
    plans_file: ThePlansFile,
    days: Annotated[int, Query(ge=1, le=90)] = 30,
    by: Literal["model", "key"] = "model",
) -> HTMLResponse:
    with accounts.ledger_refusals():
        recent = await ledger.recent(me.customer_id, days)
        account = recent.account
        shown = [account.day - timedelta(days=days - 1 - place) for place in range(days)]
        rows = await ledger.usage(me.customer_id, shown[0], shown[-1])
    refused = {row.day: row.refused_requests for row in recent.days}
    models = {model.id: model.display_name for model in plans_file.current().models}
    known = (await keys.list_keys(session, me.customer_id, MAX_PAGE, None)).data
    names = {key.id: f"{key.name} …{key.last4}" for key in known}
    series = folded(_series(rows, by, models if by == "model" else names))
    values = {
        "days": days,
        "by": by,
        "ranges": RANGES,
        "series": series,
        "chart": bars(
            shown,
            series,
            unit="tokens",
            title=f"Tokens a day by {by}, {days} days",
            limit=account.cap_tokens,
            limit_name="daily cap now",
        ),
        "total": _sums(rows, lambda _: "", {}).get("", Sum("")),
        "refused": sum(refused.values()),
        "by_model": _ordered(_sums(rows, lambda row: row.model, models)),
        "by_key": _ordered(_sums(rows, lambda row: row.key_id, names)),
        "by_day": [
            (day, found.get(day.isoformat(), Sum("")), refused.get(day, 0))
            for found in [_sums(rows, lambda row: row.day.isoformat(), {})]
            for day in reversed(shown)
            if day.isoformat() in found or refused.get(day)
        ],
    }
    return render(request, "usage.html", values)


def _sums(rows: list[UsageRow], key: Callable[[UsageRow], str], names: Mapping[str, str]) -> dict[str, Sum]:
    sums: dict[str, Sum] = {}
    for row in rows:
        place = key(row)
        sums.setdefault(place, Sum(names.get(place, place), place)).add(row)
    return sums


def _ordered(sums: dict[str, Sum]) -> list[Sum]:
    return sorted(sums.values(), key=lambda one: (-one.amount_nanos, -one.tokens, one.name))


def _series(rows: list[UsageRow], by: str, names: Mapping[str, str]) -> list[Series]:
    found: dict[str, dict[date, int]] = {}
    for row in rows:
        place = row.model if by == "model" else row.key_id
        values = found.setdefault(place, {})
        values[row.day] = values.get(row.day, 0) + row.prompt_tokens + row.completion_tokens
    return [Series(names.get(place, place), values) for place, values in found.items()]
