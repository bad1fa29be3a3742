"""How the ledger stands as a whole: sums over everybody, and its Postgres, as gauges; never a customer's name.

Each reading looks at every account's row once, at today's row of those who were active, and at no entry. Ledgers that
share a database tell the same of it: a dashboard takes the greatest by `database`, and sums those.
"""

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import RowMapping, text

from darktree_kit.db import Database
from darktree_ledger import metrics

DORMANT_DAYS = 90
# A hold that expired is counted so much later, when the transaction that says so has surely ended.
SETTLED_AFTER = timedelta(seconds=5)

_IDENTITY = text(
    "SELECT current_database() || '@' || system_identifier AS name, ledger.clock_now() AS now FROM pg_control_system()"
)
_ACCOUNTS = text(
    """SELECT count(*) FILTER (WHERE customer_id <> '_house') AS customers,
              coalesce(sum(balance_nanos - bonus_nanos), 0)::bigint AS paid_nanos,
              coalesce(sum(bonus_nanos), 0)::bigint AS bonus_nanos,
              coalesce(sum(held_nanos), 0)::bigint AS held_nanos,
              coalesce(sum(balance_nanos - bonus_nanos) FILTER (
                  WHERE today < (ledger.clock_now() AT TIME ZONE 'UTC')::date - CAST(:days AS integer)), 0)::bigint
                  AS dormant_nanos,
              count(*) FILTER (WHERE balance_nanos = 0 AND seq > 0 AND customer_id <> '_house') AS without_credit,
              count(*) FILTER (WHERE balance_nanos < 0 OR held_nanos > balance_nanos) AS past_balance
       FROM ledger.account"""
)
# A cap that was lowered during the day may be below what was used before: the highest cap of the day is the limit.
_TODAY = text(
    """WITH day AS MATERIALIZED (
           SELECT d.*, d.prompt_tokens + d.completion_tokens AS tokens,
                  CASE WHEN d.prompt_tokens + d.completion_tokens > d.cap_tokens THEN (
                      SELECT max(greatest(c.cap_tokens, c.previous_cap_tokens)) FROM ledger.cap_change c
                      WHERE c.customer_id = d.customer_id AND c.changed_at >= d.day::timestamp AT TIME ZONE 'UTC')
                  END AS higher_cap_tokens
           FROM ledger.account a JOIN ledger.day_usage d ON d.customer_id = a.customer_id AND d.day = a.today
           WHERE a.today = (ledger.clock_now() AT TIME ZONE 'UTC')::date
             AND d.requests + d.refused_requests + d.held_tokens > 0)
       SELECT coalesce(sum(requests), 0)::bigint AS requests, coalesce(sum(refused_requests), 0)::bigint AS refused,
              coalesce(sum(prompt_tokens), 0)::bigint AS prompt_tokens,
              coalesce(sum(completion_tokens), 0)::bigint AS completion_tokens,
              coalesce(sum(absorbed_tokens), 0)::bigint AS absorbed_tokens,
              coalesce(sum(amount_nanos), 0)::bigint AS charged_nanos,
              coalesce(sum(cap_tokens), 0)::bigint AS cap_tokens,
              count(*) FILTER (WHERE tokens < cap_tokens * 0.5) AS below_half,
              count(*) FILTER (WHERE tokens >= cap_tokens * 0.5 AND tokens < cap_tokens * 0.8) AS above_half,
              count(*) FILTER (WHERE tokens >= cap_tokens * 0.8 AND tokens < cap_tokens) AS near_cap,
              count(*) FILTER (WHERE tokens >= cap_tokens) AS at_cap,
              count(*) FILTER (WHERE tokens > greatest(cap_tokens, higher_cap_tokens)) AS past_cap
       FROM day"""
)
_HOLDS = text(
    """SELECT count(*) FILTER (WHERE expires_at > ledger.clock_now()) AS running,
              count(*) FILTER (WHERE expires_at <= ledger.clock_now()) AS expired
       FROM ledger.hold WHERE state = 'open'"""
)
_EXPIRED = text(
    """SELECT count(*) FROM ledger.hold
       WHERE state = 'expired' AND resolved_at > :after AND resolved_at <= :until"""
)
_POSTGRES = text(
    """SELECT (SELECT sum(numbackends) FROM pg_stat_database)::integer AS connections,
              current_setting('max_connections')::integer - current_setting('superuser_reserved_connections')::integer
                  AS most_connections,
              pg_database_size(current_database()) AS size_bytes"""
)


class Standing:
    """Reads how everything stands and sets the gauges."""

    def __init__(self, database: Database, limit_bytes: int | None = None) -> None:
        self._database = database
        self._limit_bytes = limit_bytes
        self._counted_until: datetime | None = None

    async def step(self) -> None:
        """Read once."""
        async with self._database.sessions.begin() as session:
            await session.execute(text("SET TRANSACTION READ ONLY"))
            name, now = (await session.execute(_IDENTITY)).one()
            accounts, today, holds, postgres = [
                (await session.execute(query, values)).mappings().one()
                for query, values in (
                    (_ACCOUNTS, {"days": DORMANT_DAYS}),
                    (_TODAY, {}),
                    (_HOLDS, {}),
                    (_POSTGRES, {}),
                )
            ]
            until = now - SETTLED_AFTER
            since = {"after": self._counted_until or until, "until": until}
            expired = (await session.execute(_EXPIRED, since)).scalar_one()
        self._counted_until = until
        metrics.HOLDS_EXPIRED.labels(name).inc(expired)
        _tell(name, accounts, today, holds)
        metrics.CONNECTIONS.labels(name).set(postgres["connections"])
        metrics.MOST_CONNECTIONS.labels(name).set(postgres["most_connections"])
        metrics.SIZE_BYTES.labels(name).set(postgres["size_bytes"])
        if self._limit_bytes is not None:
            metrics.LIMIT_BYTES.labels(name).set(self._limit_bytes)


def _tell(name: str, accounts: RowMapping, today: RowMapping, holds: RowMapping) -> None:
    told: dict[Any, dict[str, int]] = {
        metrics.BALANCE: {"paid": accounts["paid_nanos"], "bonus": accounts["bonus_nanos"]},
        metrics.BREACHES: {"balance": accounts["past_balance"], "cap": today["past_cap"]},
        metrics.TODAY_TOKENS: {
            "prompt": today["prompt_tokens"],
            "completion": today["completion_tokens"],
            "absorbed": today["absorbed_tokens"],
        },
        metrics.TODAY_REQUESTS: {"charged": today["requests"], "refused": today["refused"]},
        metrics.TODAY_CUSTOMERS: {
            use: today[use] for use in ("below_half", "above_half", "near_cap", "at_cap")
        },
        metrics.OPEN_HOLDS: {"running": holds["running"], "expired": holds["expired"]},
    }
    for gauge, values in told.items():
        for label, value in values.items():
            gauge.labels(name, label).set(value)
    metrics.CUSTOMERS.labels(name).set(accounts["customers"])
    metrics.WITHOUT_CREDIT.labels(name).set(accounts["without_credit"])
    metrics.HELD.labels(name).set(accounts["held_nanos"])
    metrics.DORMANT.labels(name).set(accounts["dormant_nanos"])
    metrics.TODAY_CHARGED.labels(name).set(today["charged_nanos"])
    metrics.TODAY_CAPS.labels(name).set(today["cap_tokens"])
