"""The ledger held against itself and told to others: rounds over every projection, tokens by lane, how far sealing is.

`check` reads everything. A patrol reads what one slice of the customers has, by indexes alone, then the next slice, and
round again: its cost is bounded however large the ledger is. It recomputes no hash: that is the verifier's work.
"""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from pydantic import AwareDatetime
from sqlalchemy import text

from darktree_kit import clock
from darktree_kit.auth import require
from darktree_kit.db import Database, Session
from darktree_kit.openapi import refusals
from darktree_ledger import invariants, metrics
from darktree_ledger.reports import LaneTokens, Reconciliation
from darktree_ledger.schemas import Problem

MAX_CUSTOMERS = 1_000
MAX_ENTRIES = 250_000

# The next customers in order of their ids: the first, however much it has, and others while there is room.
_NEXT = text(
    """SELECT customer_id, customer_id = (SELECT max(customer_id) FROM ledger.account) AS is_last FROM (
           SELECT customer_id, row_number() OVER w AS place, sum(seq) OVER w AS entries
           FROM (SELECT customer_id, seq FROM ledger.account WHERE customer_id > :after
                 ORDER BY customer_id LIMIT :customers) a
           WINDOW w AS (ORDER BY customer_id)) b
       WHERE place = 1 OR entries <= :entries ORDER BY customer_id"""
)
_LAG = text("SELECT entries, seconds FROM ledger.seal_lag()")
_MONTHS_AHEAD = text(
    """SELECT count(*) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
       WHERE i.inhparent = 'ledger.entry'::regclass
         AND c.relname > 'entry_' || to_char(ledger.clock_now() AT TIME ZONE 'UTC', 'YYYY_MM')"""
)
_LANE_TOKENS = text(
    """SELECT lane, sum(prompt_tokens)::bigint AS prompt_tokens, sum(completion_tokens)::bigint AS completion_tokens
       FROM ledger.entry
       WHERE kind IN ('usage', 'absorbed') AND recorded_at >= :start AND recorded_at < :end
       GROUP BY lane ORDER BY lane"""
)

_Instant = Annotated[AwareDatetime, Query(description="RFC 3339, with its offset.")]
router = APIRouter(
    prefix="/v1",
    tags=["reconciliation"],
    dependencies=[Depends(require("billing"))],
    responses=refusals(400, 401, 403, 503),
)


class Patrol:
    """One process' rounds over the customers."""

    def __init__(
        self, database: Database, *, max_customers: int = MAX_CUSTOMERS, max_entries: int = MAX_ENTRIES
    ) -> None:
        self._database = database
        self._limits = {"customers": max_customers, "entries": max_entries}
        self._after = ""
        self._found: list[Problem] = []  # in this round
        self._before: list[Problem] = []  # in the round before
        self.rounds = 0
        self.checked_at: datetime | None = None

    async def step(self) -> None:
        """Check the next slice, and whether there are tables for the months to come."""
        async with self._database.sessions.begin() as session:
            ahead = (await session.execute(_MONTHS_AHEAD)).scalar_one()
            slice_ = (await session.execute(_NEXT, {"after": self._after} | self._limits)).all()
        metrics.MONTHS_AHEAD.set(ahead)
        async with self._database.sessions.begin() as session:
            found = await invariants.check_some(session, [row.customer_id for row in slice_])
        self._found += found[: invariants.MAX_PROBLEMS - len(self._found)]
        self._after = slice_[-1].customer_id
        if slice_[-1].is_last:
            self._after, self._before, self._found = "", self._found, []
            self.rounds += 1
        self.checked_at = clock.utc_now()
        metrics.PROJECTION_PROBLEMS.set(len(self.problems))
        metrics.PROJECTION_CHECKED.set(self.checked_at.timestamp())

    @property
    def problems(self) -> list[Problem]:
        """What this round has found, and what the one before did."""
        known = {(problem.customer_id, problem.what) for problem in self._found}
        earlier = [problem for problem in self._before if (problem.customer_id, problem.what) not in known]
        return [*self._found, *earlier]


@router.get("/reconciliation")
async def read_reconciliation(request: Request, session: Session) -> Reconciliation:
    """Tell what the rounds over the customers found, and how far sealing is behind."""
    patrol: Patrol = request.app.state.patrol
    lag = (await session.execute(_LAG)).one()
    return Reconciliation(
        rounds=patrol.rounds,
        checked_at=patrol.checked_at,
        problems=patrol.problems,
        unsealed_entries=lag.entries,
        unsealed_seconds=lag.seconds,
    )


@router.get("/lane-tokens")
async def read_lane_tokens(start: _Instant, end: _Instant, session: Session) -> list[LaneTokens]:
    """Tell what was recorded from `start` until before `end`, by lane: charged and absorbed together."""
    rows = (await session.execute(_LANE_TOKENS, {"start": start, "end": end})).mappings()
    return [LaneTokens.model_validate(dict(row)) for row in rows]
