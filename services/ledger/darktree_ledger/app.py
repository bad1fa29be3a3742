"""The ledger's HTTP surface: a batch of operations in, balances and entries out. Nobody else moves money."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import date
from functools import partial
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, FastAPI, Path, Query
from sqlalchemy import text

from darktree_kit.app import add_routes, create_app
from darktree_kit.auth import Callers, require
from darktree_kit.db import Calls, Database, Session
from darktree_kit.openapi import refusals
from darktree_ledger import (
    accounts,
    batches,
    books_api,
    invariants,
    log_entries,
    operations,
    proofs,
    reconciliation,
    usage,
)
from darktree_ledger.batches import Batches
from darktree_ledger.reconciliation import Patrol
from darktree_ledger.reports import HoldPage, RecentDays
from darktree_ledger.schemas import (
    CUSTOMER_ID_PATTERN,
    MAX_PAGE,
    AccountId,
    AccountView,
    CapChangeView,
    CheckReport,
    DayView,
    EntryFilter,
    EntryPage,
    EntryView,
    Kind,
    Name,
    Show,
)
from darktree_ledger.settings import Settings
from darktree_ledger.standing import Standing

PREPARE_MONTHS_INTERVAL_SECONDS = 24 * 3600.0
REAP_INTERVAL_SECONDS = 15.0
READING_CONNECTIONS = 4
MAX_REAPED_CUSTOMERS = 500

_log = logging.getLogger(__name__)
_Caller = Annotated[str, Depends(require("gateway", "billing"))]
_CustomerId = Annotated[AccountId, Path()]
router = APIRouter(prefix="/v1", responses=refusals(400, 401, 403, 404, 413, 503))


def make_app(settings: Settings) -> FastAPI:
    """Return the ledger's application."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        url = settings.database_url.get_secret_value()
        database = Database(url, pool_size=READING_CONNECTIONS)
        calls = Calls(url, pool_size=settings.database_pool_size)
        app.state.database, app.state.calls = database, calls
        app.state.ready = database.ping
        app.state.patrol = patrol = Patrol(database)
        standing = Standing(database, settings.database_limit_bytes)
        chores = [
            asyncio.create_task(_repeat(partial(prepare_months, calls), PREPARE_MONTHS_INTERVAL_SECONDS)),
            asyncio.create_task(_repeat(partial(release_expired, database, calls), REAP_INTERVAL_SECONDS)),
            asyncio.create_task(_repeat(patrol.step, settings.patrol_seconds)),
            asyncio.create_task(_repeat(standing.step, settings.standing_seconds)),
        ]
        yield
        for chore in chores:
            chore.cancel()
        await asyncio.gather(*chores, return_exceptions=True)
        await calls.close()
        await database.close()

    app = create_app(
        "ledger",
        lifespan=lifespan,
        title="Darktree ledger",
        description=__doc__ or "",
        before=[Batches],
    )
    app.state.callers = Callers(
        {
            "gateway": settings.gateway_token.get_secret_value(),
            "billing": settings.billing_token.get_secret_value(),
        }
    )
    add_routes(app, router, books_api.router, usage.router, proofs.public, proofs.router)
    add_routes(app, reconciliation.router, log_entries.router)
    batches.describe(app)
    return app


@router.get("/accounts/{customer_id}")
async def read_account(customer_id: _CustomerId, session: Session, _: _Caller) -> AccountView:
    return await accounts.account(session, customer_id)


@router.get("/accounts/{customer_id}/recent")
async def read_recent(
    customer_id: _CustomerId,
    session: Session,
    _: _Caller,
    days: Annotated[int, Query(ge=1, le=accounts.MAX_DAYS, description="How many, today included.")] = 30,
) -> RecentDays:
    return await accounts.recent(session, customer_id, days)


@router.get("/accounts/{customer_id}/entries")
async def read_entries(
    customer_id: _CustomerId,
    session: Session,
    _: _Caller,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100,
    after: Annotated[str | None, Query(max_length=64)] = None,
    kind: Kind | None = None,
    model: Annotated[Name | None, Query(description="Only this model's.")] = None,
    key_id: Annotated[Name | None, Query(description="Only this key's.")] = None,
    day: Annotated[date | None, Query(description="Only what was recorded on this UTC day.")] = None,
) -> EntryPage:
    which = EntryFilter(kind=kind, model=model, key_id=key_id, day=day)
    return await accounts.entries(session, customer_id, limit=limit, after=after, which=which)


@router.get("/accounts/{customer_id}/holds/{hold_id}/entries")
async def read_entries_of_hold(
    customer_id: _CustomerId, hold_id: UUID, session: Session, _: _Caller
) -> list[EntryView]:
    return await accounts.entries_of_hold(session, customer_id, hold_id)


@router.get("/holds", summary="List what running requests hold")
async def read_open_holds(
    session: Session,
    _: Annotated[str, Depends(require("billing"))],
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100,
    after: Annotated[str | None, Query(max_length=128, pattern=r"^[!-~]+$")] = None,
    customer_id: Annotated[str | None, Query(pattern=CUSTOMER_ID_PATTERN)] = None,
) -> HoldPage:
    return await accounts.open_holds(session, customer_id=customer_id, limit=limit, after=after)


@router.get("/accounts/{customer_id}/days")
async def read_days(
    customer_id: _CustomerId, session: Session, _: _Caller, first: date, last: date
) -> list[DayView]:
    return await accounts.days(session, customer_id, first, last)


@router.get("/accounts/{customer_id}/cap-changes")
async def read_cap_changes(
    customer_id: _CustomerId,
    session: Session,
    _: _Caller,
    after: Annotated[UUID | None, Query(description="`operation_id` of the last of the page before.")] = None,
) -> list[CapChangeView]:
    return list(await accounts.cap_changes(session, customer_id, after))


@router.post("/check", summary="Compare every projection with its entries and recompute every chain")
async def check(session: Session, _: Annotated[str, Depends(require("billing"))]) -> CheckReport:
    return await invariants.check(session)


async def _repeat(chore: Callable[[], Awaitable[None]], seconds: float) -> None:
    while True:
        try:
            await chore()
            pause = seconds
        except Exception as error:
            _log.warning("a chore failed", extra={"chore": str(chore), "error": str(error)[:500]})
            pause = min(seconds, REAP_INTERVAL_SECONDS)
        await asyncio.sleep(pause)


async def prepare_months(calls: Calls) -> None:
    """Make the partitions of the coming months."""
    await calls.value("SELECT ledger.prepare_months()")


async def release_expired(database: Database, calls: Calls) -> None:
    """Release expired holds of customers who send nothing; everybody else's are released by their next operation."""
    async with database.sessions.begin() as session:
        rows = await session.scalars(
            text(
                "SELECT DISTINCT customer_id FROM ledger.hold"
                " WHERE state = 'open' AND expires_at <= ledger.clock_now() LIMIT :many"
            ),
            {"many": MAX_REAPED_CUSTOMERS},
        )
        customer_ids = rows.all()
    if customer_ids:
        await operations.apply(calls, [Show(customer_id=customer_id) for customer_id in customer_ids])
