"""The truths about money, checked against the database as it is.

Every projection equals the fold of the entries, every open hold is counted once, and every chain is whole.
"""

from collections.abc import AsyncIterator

from sqlalchemy import RowMapping, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from darktree_ledger import chain
from darktree_ledger.models import Account, Entry, Hold
from darktree_ledger.schemas import CheckReport, Problem

MAX_PROBLEMS = 1_000
ROWS_PER_READ = 2_000

# One row for each projection that differs from what the entries and open holds say; `{only}` names customers.
_DIFFERENCES = {
    "balance_nanos": """
        SELECT a.customer_id, coalesce(b.balance_nanos, 0) + coalesce(f.balance, 0) AS expected,
               a.balance_nanos AS found
        FROM ledger.account a LEFT JOIN (SELECT * FROM ledger.base WHERE {only}) b USING (customer_id) LEFT JOIN (
            SELECT customer_id, sum(CASE WHEN credit_account = 'customer_credits' THEN amount_nanos ELSE 0 END
                                  - CASE WHEN debit_account = 'customer_credits' THEN amount_nanos ELSE 0 END)
                   AS balance
            FROM ledger.entry WHERE {only} GROUP BY 1) f USING (customer_id)
        WHERE {only} AND a.balance_nanos <> coalesce(b.balance_nanos, 0) + coalesce(f.balance, 0)""",
    "bonus_nanos": """
        SELECT a.customer_id, coalesce(b.bonus_nanos, 0) + coalesce(f.bonus, 0) AS expected, a.bonus_nanos AS found
        FROM ledger.account a LEFT JOIN (SELECT * FROM ledger.base WHERE {only}) b USING (customer_id) LEFT JOIN (
            SELECT customer_id, sum(CASE WHEN credit_account = 'customer_credits' THEN bonus_nanos
                                         ELSE -bonus_nanos END) AS bonus
            FROM ledger.entry WHERE {only} GROUP BY 1) f USING (customer_id)
        WHERE {only} AND a.bonus_nanos <> coalesce(b.bonus_nanos, 0) + coalesce(f.bonus, 0)""",
    "held_nanos": """
        SELECT a.customer_id, coalesce(h.amount, 0) AS expected, a.held_nanos AS found
        FROM ledger.account a LEFT JOIN (
            SELECT customer_id, sum(amount_nanos) AS amount FROM ledger.hold
            WHERE state = 'open' AND {only} GROUP BY 1) h USING (customer_id)
        WHERE {only} AND a.held_nanos <> coalesce(h.amount, 0)""",
    "next_expiry": """
        SELECT customer_id, h.first AS expected, a.next_expiry AS found
        FROM ledger.account a JOIN (
            SELECT customer_id, min(expires_at) AS first FROM ledger.hold WHERE state = 'open' AND {only} GROUP BY 1
        ) h USING (customer_id)
        WHERE a.next_expiry IS NULL OR h.first < a.next_expiry""",
    "the day's held tokens": """
        SELECT customer_id, coalesce(h.tokens, 0) AS expected, d.held_tokens AS found
        FROM (SELECT * FROM ledger.day_usage WHERE {only}) d FULL JOIN (
            SELECT customer_id, usage_day AS day, sum(prompt_tokens + completion_tokens) AS tokens
            FROM ledger.hold WHERE state = 'open' AND {only} GROUP BY 1, 2) h USING (customer_id, day)
        WHERE d.held_tokens IS DISTINCT FROM coalesce(h.tokens, 0)""",
    "the day's requests, tokens and amount": """
        SELECT customer_id,
               concat_ws(' ', day, coalesce(e.requests, 0), coalesce(e.prompt, 0), coalesce(e.completion, 0),
                         coalesce(e.amount, 0), coalesce(e.absorbed, 0)) AS expected,
               concat_ws(' ', day, d.requests, d.prompt_tokens, d.completion_tokens, d.amount_nanos,
                         d.absorbed_tokens) AS found
        FROM (SELECT * FROM ledger.day_usage WHERE {only}) d FULL JOIN (
            SELECT customer_id, usage_day AS day, count(DISTINCT hold_id) AS requests,
                   sum(prompt_tokens) FILTER (WHERE kind = 'usage') AS prompt,
                   sum(completion_tokens) FILTER (WHERE kind = 'usage') AS completion,
                   sum(amount_nanos) FILTER (WHERE kind = 'usage') AS amount,
                   sum(prompt_tokens + completion_tokens) FILTER (WHERE kind = 'absorbed') AS absorbed
            FROM ledger.entry WHERE kind IN ('usage', 'absorbed') AND {only} GROUP BY 1, 2) e
            USING (customer_id, day)
        WHERE day > coalesce((SELECT max(last_usage_day) FROM ledger.archived_month), '-infinity')
          AND (d.requests, d.prompt_tokens, d.completion_tokens, d.amount_nanos, d.absorbed_tokens)
              IS DISTINCT FROM (coalesce(e.requests, 0), coalesce(e.prompt, 0), coalesce(e.completion, 0),
                                coalesce(e.amount, 0), coalesce(e.absorbed, 0))""",
    "where the archive ends": """
        SELECT customer_id, encode(s.hash, 'hex') AS expected, encode(b.head, 'hex') AS found
        FROM (SELECT * FROM ledger.base WHERE {only}) b LEFT JOIN ledger.sealed s USING (customer_id, seq)
        WHERE s.hash IS DISTINCT FROM b.head""",
}
_HEADS = """
    SELECT a.customer_id, l.seq || ' ' || encode(l.hash, 'hex') AS expected,
           a.seq || ' ' || encode(a.head, 'hex') AS found
    FROM ledger.account a CROSS JOIN LATERAL (
        SELECT seq, hash FROM ledger.entry e WHERE e.customer_id = a.customer_id ORDER BY seq DESC LIMIT 1) l
    WHERE customer_id = ANY(:customer_ids) AND (a.seq, a.head) IS DISTINCT FROM (l.seq, l.hash)"""
_SETTLEMENTS = """
    SELECT h.customer_id, h.hold_id || ': one usage entry or one absorbed' AS expected,
           count(e.entry_id) || ' entries, state ' || h.state AS found
    FROM ledger.hold h LEFT JOIN ledger.base b USING (customer_id) LEFT JOIN ledger.entry e ON e.hold_id = h.hold_id
    WHERE coalesce(h.entry_seq > b.seq, true)
    GROUP BY h.hold_id
    HAVING (h.state = 'settled') <> (count(e.entry_id) > 0)
        OR count(*) FILTER (WHERE e.kind = 'usage') > 1 OR count(*) FILTER (WHERE e.kind = 'absorbed') > 1"""


async def check(session: AsyncSession) -> CheckReport:
    """Compare every projection with its entries and recompute every chain, in one snapshot of the database."""
    await session.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
    await session.execute(text("SET LOCAL statement_timeout = 0"))
    problems = await _differences(session, None)
    rows = (await session.execute(text(_SETTLEMENTS))).mappings()
    problems += [_problem("settlements of a hold", row) for row in rows.fetchmany(MAX_PROBLEMS)]
    problems += [problem async for problem in _broken_chains(session)]
    return CheckReport(
        customers=await _count(session, Account) - 1,  # without the house
        entries=await _count(session, Entry),
        open_holds=(
            await session.execute(select(func.count()).select_from(Hold).where(col(Hold.state) == "open"))
        ).scalar_one(),
        problems=problems[:MAX_PROBLEMS],
    )


async def check_some(session: AsyncSession, customer_ids: list[str]) -> list[Problem]:
    """Compare some customers' projections with their entries, by indexes alone; hashes are not recomputed."""
    await session.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
    problems = await _differences(session, customer_ids)
    rows = (await session.execute(text(_HEADS), {"customer_ids": customer_ids})).mappings()
    problems += [_problem("the head of the chain", row) for row in rows]
    return problems[:MAX_PROBLEMS]


async def _differences(session: AsyncSession, customer_ids: list[str] | None) -> list[Problem]:
    only = "true" if customer_ids is None else "customer_id = ANY(:customer_ids)"
    problems: list[Problem] = []
    for what, query in _DIFFERENCES.items():
        found = await session.execute(text(query.format(only=only)), {"customer_ids": customer_ids})
        problems += [_problem(what, row) for row in found.mappings().fetchmany(MAX_PROBLEMS)]
    return problems


async def _broken_chains(session: AsyncSession) -> AsyncIterator[Problem]:
    heads = {row.customer_id: row.head for row in await session.scalars(select(Account))}
    bases = await session.execute(text("SELECT customer_id, seq, head, balance_nanos FROM ledger.base"))
    last = {row.customer_id: (row.seq, row.head, row.balance_nanos) for row in bases}
    query = select(Entry).order_by(col(Entry.customer_id), col(Entry.seq))
    async for entry in await session.stream_scalars(query.execution_options(yield_per=ROWS_PER_READ)):
        customer_id = entry.customer_id
        seq, head, balance = last.get(customer_id, (0, chain.genesis(customer_id), 0))
        balance += entry.amount_nanos * (entry.credit_account == "customer_credits")
        balance -= entry.amount_nanos * (entry.debit_account == "customer_credits")
        expected = chain.entry_hash(entry, head)
        if (entry.seq, entry.prev_hash, entry.hash) != (seq + 1, head, expected):
            yield Problem(
                customer_id=customer_id,
                what=f"the chain at entry {entry.seq}",
                expected=f"{seq + 1} {expected.hex()}",
                found=f"{entry.seq} {entry.hash.hex()}",
            )
        if entry.balance_after_nanos != balance:
            yield Problem(
                customer_id=customer_id,
                what=f"the balance after entry {entry.seq}",
                expected=str(balance),
                found=str(entry.balance_after_nanos),
            )
        last[customer_id] = (entry.seq, entry.hash, balance)
        session.expunge(entry)
    for customer_id, head in heads.items():
        expected = last[customer_id][1] if customer_id in last else chain.genesis(customer_id)
        if head != expected:
            yield Problem(
                customer_id=customer_id,
                what="the head of the chain",
                expected=expected.hex(),
                found=head.hex(),
            )


async def _count(session: AsyncSession, model: type[Account] | type[Entry]) -> int:
    return int((await session.execute(select(func.count()).select_from(model))).scalar_one())


def _problem(what: str, row: RowMapping) -> Problem:
    return Problem(
        customer_id=row["customer_id"], what=what, expected=str(row["expected"]), found=str(row["found"])
    )
