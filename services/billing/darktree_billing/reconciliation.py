"""The ledger beside what others know: engines their tokens, Stripe its money; and beside itself and its log.

Engines count since they started, so a lane has processed the sum over all starts of its engines. Those sums are kept
once a round; what was added in the last day stands beside what the ledger recorded in the same time.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from darktree_billing import close, metrics
from darktree_billing.accounts import ledger_refusals
from darktree_billing.chart import Chart, load_chart
from darktree_billing.clearing import BUCKETS, Finding
from darktree_billing.errors import NotClosable
from darktree_billing.reconciliation_schemas import (
    EngineReading,
    EngineSeen,
    LaneComparison,
    ReconciliationReport,
    StripeComparison,
    StripeExceptions,
)
from darktree_kit.db import Database
from darktree_ledger.books_schemas import TrialBalanceRow
from darktree_ledger.client import LedgerClient
from darktree_ledger.reports import LaneTokens

RETRY_SECONDS = 60.0
MAX_ENGINES = 1_000

_log = logging.getLogger(__name__)

_KEEP = text(
    """INSERT INTO billing.engine_run AS r
           (lane, endpoint, started_at, prompt_tokens, completion_tokens, base_prompt_tokens, base_completion_tokens)
       SELECT lane, endpoint, started_at, prompt_tokens, completion_tokens,
              CASE WHEN is_old THEN prompt_tokens ELSE 0 END, CASE WHEN is_old THEN completion_tokens ELSE 0 END
       FROM unnest(CAST(:lanes AS text[]), CAST(:endpoints AS text[]), CAST(:starts AS bigint[]),
                   CAST(:prompts AS bigint[]), CAST(:completions AS bigint[]))
            AS x (lane, endpoint, started, prompt_tokens, completion_tokens)
       CROSS JOIN LATERAL (SELECT to_timestamp(started / 1000.0) AS started_at) s
       CROSS JOIN LATERAL (SELECT started_at < clock_timestamp() - interval '1 hour' AS is_old) o
       ORDER BY 1, 2, 3
       ON CONFLICT (lane, endpoint, started_at) DO UPDATE SET
           prompt_tokens = greatest(r.prompt_tokens, excluded.prompt_tokens),
           completion_tokens = greatest(r.completion_tokens, excluded.completion_tokens),
           read_at = clock_timestamp()"""
)
_SUMS = """SELECT lane, sum(prompt_tokens - base_prompt_tokens)::bigint AS prompt_tokens,
                  sum(completion_tokens - base_completion_tokens)::bigint AS completion_tokens
           FROM billing.engine_run GROUP BY lane"""
_MARK = text(
    f"""INSERT INTO billing.lane_reading (lane, read_at, prompt_tokens, completion_tokens)
        SELECT lane, now(), prompt_tokens, completion_tokens FROM ({_SUMS}) s ON CONFLICT DO NOTHING"""  # noqa: S608
)
_FORGET = text("DELETE FROM billing.lane_reading WHERE read_at < now() - interval '8 days'")
# What each lane's engines added since the oldest reading of the last day.
_ADDED = text(
    f"""SELECT s.lane, r.read_at, now() AS until, s.prompt_tokens - r.prompt_tokens AS prompt_tokens,
               s.completion_tokens - r.completion_tokens AS completion_tokens
        FROM ({_SUMS}) s CROSS JOIN LATERAL (
            SELECT * FROM billing.lane_reading x WHERE x.lane = s.lane AND x.read_at >= now() - interval '1 day'
            ORDER BY x.read_at LIMIT 1) r
        ORDER BY s.lane"""  # noqa: S608
)

_ENGINES = text(
    """SELECT DISTINCT ON (lane, endpoint) lane, endpoint, started_at, read_at, prompt_tokens, completion_tokens
        FROM billing.engine_run WHERE read_at >= now() - interval '1 day'
        ORDER BY lane, endpoint, started_at DESC LIMIT :most"""
)


@dataclass(frozen=True)
class Tolerance:
    """What may differ without anything being wrong: answers that were on their way, and how old an entry may be."""

    share: float = 0.02
    slack_tokens: int = 10_000
    seal_seconds: float = 300.0

    def covers(self, engine_tokens: int, ledger_tokens: int) -> bool:
        most = max(engine_tokens, ledger_tokens)
        return abs(engine_tokens - ledger_tokens) <= self.slack_tokens + self.share * most


async def keep_readings(session: AsyncSession, readings: Sequence[EngineReading]) -> None:
    """Keep what engines said. In any order, as often as one likes: the greatest counts."""
    places = {(one.lane, one.endpoint, one.started_unix_milliseconds): one for one in readings}.values()
    await session.execute(
        _KEEP,
        {
            "lanes": [one.lane for one in places],
            "endpoints": [one.endpoint for one in places],
            "starts": [one.started_unix_milliseconds for one in places],
            "prompts": [one.prompt_tokens for one in places],
            "completions": [one.completion_tokens for one in places],
        },
    )


async def mark(session: AsyncSession) -> None:
    """Keep the present sums, to compare with later."""
    await session.execute(_FORGET)
    await session.execute(_MARK)


async def report(
    session: AsyncSession, ledger: LedgerClient, chart: Chart, tolerance: Tolerance
) -> ReconciliationReport:
    """Hold the ledger against everything that it can be held against. Raises Unavailable when it does not answer."""
    lanes = await compare_lanes(session, ledger, tolerance)
    stripe = await _stripe(session, ledger, chart)
    with ledger_refusals():
        itself = await ledger.reconciliation()
    seal_agrees = itself.unsealed_seconds <= tolerance.seal_seconds
    return ReconciliationReport(
        at=(await session.execute(text("SELECT now()"))).scalar_one(),
        agrees=seal_agrees
        and all(lane.agrees for lane in lanes)
        and not (stripe.exceptions or stripe.problem or itself.problems),
        lanes=lanes,
        stripe=stripe,
        ledger=itself,
        seal_agrees=seal_agrees,
    )


async def engines(session: AsyncSession) -> list[EngineSeen]:
    """Return the engines that were heard of in the last day, each as it counts since its newest start."""
    rows = (await session.execute(_ENGINES, {"most": MAX_ENGINES})).all()
    return [EngineSeen.model_validate(row, from_attributes=True) for row in rows]


async def compare_lanes(
    session: AsyncSession, ledger: LedgerClient, tolerance: Tolerance
) -> list[LaneComparison]:
    """Hold what each lane's engines added in the last day against what the ledger recorded in the same time."""
    recorded: dict[datetime, dict[str, LaneTokens]] = {}
    compared = []
    for row in (await session.execute(_ADDED)).all():
        if row.read_at not in recorded:
            with ledger_refusals():
                found = await ledger.lane_tokens(row.read_at, row.until)
            recorded[row.read_at] = {lane.lane: lane for lane in found}
        charged = recorded[row.read_at].get(row.lane)
        prompt_tokens, completion_tokens = (
            (charged.prompt_tokens, charged.completion_tokens) if charged else (0, 0)
        )
        compared.append(
            LaneComparison(
                lane=row.lane,
                since=row.read_at,
                engine_prompt_tokens=row.prompt_tokens,
                engine_completion_tokens=row.completion_tokens,
                ledger_prompt_tokens=prompt_tokens,
                ledger_completion_tokens=completion_tokens,
                agrees=tolerance.covers(row.prompt_tokens, prompt_tokens)
                and tolerance.covers(row.completion_tokens, completion_tokens),
            )
        )
    return compared


async def watch(
    database: Database,
    ledger: LedgerClient,
    books_file: Path | None,
    tolerance: Tolerance,
    every_seconds: float,
) -> None:
    """Reconcile and set the gauges, for as long as the task lives."""
    while True:
        try:
            async with database.sessions.begin() as session:
                told = await report(session, ledger, load_chart(books_file), tolerance)
                await mark(session)
            _tell(told)
            _tell_books(await ledger.trial_balance(told.at))
            pause = every_seconds
        except Exception as error:
            _log.warning("the ledger could not be reconciled", extra={"error": str(error)[:500]})
            pause = min(every_seconds, RETRY_SECONDS)
        await asyncio.sleep(pause)


async def _stripe(session: AsyncSession, ledger: LedgerClient, chart: Chart) -> StripeComparison:
    try:
        month, clearing = await close.open_clearing(session, ledger, chart)
    except NotClosable as error:
        return StripeComparison(month=None, problem=error.message, exceptions=[])
    found: dict[str, list[Finding]] = defaultdict(list)
    for finding in clearing.findings:
        found[finding.bucket].append(finding)
    exceptions = [
        StripeExceptions(
            bucket=bucket,
            count=len(found[bucket]),
            difference_nanos=sum(finding.difference_nanos for finding in found[bucket]),
        )
        for bucket in BUCKETS
        if bucket in found
    ]
    return StripeComparison(month=str(month), problem=None, exceptions=exceptions)


def _tell_books(rows: Sequence[TrialBalanceRow]) -> None:
    for row in rows:
        metrics.BOOKS_DEBIT.labels(row.account, row.model or "").set(row.debit_nanos)
        metrics.BOOKS_CREDIT.labels(row.account, row.model or "").set(row.credit_nanos)


def _tell(told: ReconciliationReport) -> None:
    metrics.RECONCILED.set(told.at.timestamp())
    for gauge in (metrics.LANE_ENGINE_TOKENS, metrics.LANE_LEDGER_TOKENS):
        gauge.clear()
    for lane in told.lanes:
        metrics.LANE_ENGINE_TOKENS.labels(lane.lane, "prompt").set(lane.engine_prompt_tokens)
        metrics.LANE_ENGINE_TOKENS.labels(lane.lane, "completion").set(lane.engine_completion_tokens)
        metrics.LANE_LEDGER_TOKENS.labels(lane.lane, "prompt").set(lane.ledger_prompt_tokens)
        metrics.LANE_LEDGER_TOKENS.labels(lane.lane, "completion").set(lane.ledger_completion_tokens)
    metrics.STRIPE_UNKNOWN.set(told.stripe.problem is not None)
    found = {row.bucket: row for row in told.stripe.exceptions}
    for bucket in BUCKETS:
        row = found.get(bucket)
        metrics.STRIPE_EXCEPTIONS.labels(bucket).set(row.count if row else 0)
        metrics.STRIPE_DIFFERENCE.labels(bucket).set(row.difference_nanos if row else 0)
