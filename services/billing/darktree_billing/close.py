"""The month's close: the ledger fixes what belongs to a month, billing makes its books of that, signs and keeps them.

The pack is kept as it was handed out, with what it was configured with: neither another chart of accounts nor a new
release changes an old month. Closing again makes the books anew from the ledger and tells whether they are still the
same, byte for byte.
"""

import json
from dataclasses import replace

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from darktree_billing.accounts import ledger_refusals
from darktree_billing.balance import booked, lock_books, newest_closed
from darktree_billing.books_key import required
from darktree_billing.chart import Chart, ChartError
from darktree_billing.clearing import Clearing
from darktree_billing.close_books import Books, BooksDoNotTie, Carried, Facts, make_books
from darktree_billing.close_pdf import summary_pdf
from darktree_billing.close_schemas import CloseList, CloseResult, CloseView
from darktree_billing.close_sheets import sheets
from darktree_billing.errors import NotClosable, NotClosed
from darktree_billing.models import BookedMonth, Customer
from darktree_billing.months import Month
from darktree_billing.pack import MANIFEST, make_manifest, make_pack, sha256, unpack
from darktree_kit import clock
from darktree_kit.notes import Signer
from darktree_ledger.books_schemas import ClosedMonth, MonthBalance, MonthTotal
from darktree_ledger.client import LedgerClient
from darktree_ledger.schemas import EntryView

MAX_MONTHS_AHEAD = 36  # that a preview looks through for months that should have been closed


async def close_month(
    session: AsyncSession, ledger: LedgerClient, signer: Signer | None, chart: Chart, month: Month
) -> CloseResult:
    """Close a month, or look whether a closed one can still be made as it was. Raises NotClosable saying why not."""
    key = required(signer)
    await lock_books(session)
    if (kept := await session.get(BookedMonth, str(month))) is not None:
        return _result(kept, is_new=False, differs=await _differing(session, ledger, kept, month))
    with ledger_refusals():
        known = set(await session.scalars(select(col(BookedMonth.month))))
        for earlier in [str(Month.of_day(closed.month)) for closed in await ledger.closed_months()]:
            if earlier < str(month) and earlier not in known:
                raise NotClosable(f"{month} cannot be closed: close {earlier} first.", param="month")
        closed = await ledger.close_month(month.first_day)
    books = await _books(session, ledger, month, chart, closed)
    files = {**sheets(books), "summary.pdf": summary_pdf(books)}
    manifest = _manifest(books, files, key)
    kept = BookedMonth(
        month=str(month),
        config={
            "chart": chart.model_dump(mode="json", by_alias=True),
            "names": books.facts.names,
            "exceptions": len(books.clearing.findings),
        },
        carried=books.carried.document(),
        manifest_sha256=sha256(manifest),
        pack=make_pack(str(month), files, manifest, key),
    )
    session.add(kept)
    await session.flush()
    await session.refresh(kept, ["closed_at"])
    return _result(kept, is_new=True, differs=[])


async def preview(session: AsyncSession, ledger: LedgerClient, chart: Chart, month: Month) -> bytes:
    """Return the pack of an open month as far as it has come, unsigned. Raises NotClosable when it cannot be told."""
    if await session.get(BookedMonth, str(month)) is not None:
        raise NotClosable(f"{month} is closed: its pack is final.", param="month")
    await _refuse_gaps(session, ledger, month)
    books = await _books(session, ledger, month, chart, None)
    files = {**sheets(books), "summary.pdf": summary_pdf(books)}
    return make_pack(str(month), files, _manifest(books, files, None), None)


async def open_clearing(session: AsyncSession, ledger: LedgerClient, chart: Chart) -> tuple[Month, Clearing]:
    """Return the first open month's reconciliation with Stripe as far as it has come. Raises NotClosable."""
    last = await newest_closed(session)
    month = min(last.next, Month.of(clock.utc_now())) if last else Month.of(clock.utc_now())
    await _refuse_gaps(session, ledger, month)
    return month, (await _books(session, ledger, month, chart, None)).clearing


async def closes(session: AsyncSession, signer: Signer | None) -> CloseList:
    """Return the closed months, newest first."""
    # Not the packs themselves: only how large they are.
    rows = await session.execute(
        select(
            col(BookedMonth.month),
            col(BookedMonth.manifest_sha256),
            col(BookedMonth.config),
            func.octet_length(col(BookedMonth.pack)),
            col(BookedMonth.closed_at),
        ).order_by(col(BookedMonth.month).desc())
    )
    data = [
        CloseView(
            month=month,
            manifest_sha256=manifest,
            pack_bytes=pack_bytes,
            exceptions=config["exceptions"],
            closed_at=at,
        )
        for month, manifest, config, pack_bytes, at in rows
    ]
    return CloseList(data=data, books_key=str(signer.verifier) if signer else None)


async def pack(session: AsyncSession, month: Month) -> bytes:
    """Return a closed month's pack. Raises NotClosed."""
    kept = await session.get(BookedMonth, str(month))
    if kept is None:
        raise NotClosed(month)
    return kept.pack


async def _differing(
    session: AsyncSession, ledger: LedgerClient, kept: BookedMonth, month: Month
) -> list[str]:
    """Return the files that would not come out as they were handed out."""
    with ledger_refusals():
        closed = await ledger.close_month(month.first_day)
    chart = Chart.model_validate(kept.config["chart"])
    books = await _books(session, ledger, month, chart, closed, kept.config["names"])
    listed = json.loads(unpack(kept.pack)[MANIFEST])["files"]
    files = {**sheets(books), "summary.pdf": summary_pdf(books)}
    hashes = {name: sha256(content) for name, content in files.items()}
    return sorted(
        name
        for name in hashes.keys() | listed.keys()
        if hashes.get(name) != listed.get(name, {}).get("sha256")
    )


async def _books(
    session: AsyncSession,
    ledger: LedgerClient,
    month: Month,
    chart: Chart,
    closed: ClosedMonth | None,
    names: dict[str, str] | None = None,
) -> Books:
    """Return a month's books, from the ledger and from what the month before left."""
    query = select(col(BookedMonth.month), col(BookedMonth.carried)).where(
        col(BookedMonth.month) < str(month)
    )
    before = (await session.execute(query.order_by(col(BookedMonth.month).desc()).limit(1))).first()
    stripe = await booked(session, month, Month.parse(before.month) if before else None)
    with ledger_refusals():
        lines = await ledger.month_lines(month.first_day)
        totals = (await ledger.month_totals(month.first_day)).rows
        balances = await ledger.month_balances(month.first_day)
    facts = Facts(
        month=month,
        chart=chart,
        closed=closed,
        totals=totals,
        lines=lines,
        balances=balances,
        names=names if names is not None else await _names(session, balances),
        stripe=stripe,
        carried=Carried.parse(before.carried) if before else Carried.nothing(),
    )
    try:
        return make_books(facts if closed else _at_one_instant(facts))
    except (BooksDoNotTie, ChartError) as error:
        raise NotClosable(f"The books of {month} cannot be made: {error}.") from error


async def _refuse_gaps(session: AsyncSession, ledger: LedgerClient, month: Month) -> None:
    """Raise NotClosable when an earlier month is open: what it holds would be missing from the openings."""
    last = await newest_closed(session)
    with ledger_refusals():
        if last is None:
            is_missing = bool(await ledger.trial_balance(month.start))
            raised = f"close the months before {month} first"
        else:
            between = []
            while (last := last.next) < month:
                between.append(last)
                if len(between) > MAX_MONTHS_AHEAD:
                    raise NotClosable(f"{month} is too far from the newest closed month.", param="month")
            open_ = [gap for gap in between if (await ledger.month_totals(gap.first_day)).rows]
            is_missing, raised = bool(open_), f"close {', '.join(map(str, open_))} first"
    if is_missing:
        raise NotClosable(f"{month} cannot be told yet: {raised}.", param="month")


def _at_one_instant(facts: Facts) -> Facts:
    """Make one picture of an open month, whose lines, totals and balances were asked for one after the other."""
    totals = [row for row in facts.totals if row.kind in ("usage", "absorbed")]
    totals += [_total(line, facts.month) for line in facts.lines]
    moved = {row.customer_id: [row.opening_nanos, row.opening_bonus_nanos] for row in facts.balances}
    for row in totals:
        sign = (row.credit_account == "customer_credits") - (row.debit_account == "customer_credits")
        sums = moved.setdefault(row.customer_id, [0, 0])
        sums[0] += sign * row.amount_nanos
        sums[1] += sign * row.bonus_nanos
    opening = {row.customer_id: row for row in facts.balances}
    balances = [
        MonthBalance(
            customer_id=customer_id,
            opening_nanos=opening[customer_id].opening_nanos if customer_id in opening else 0,
            opening_bonus_nanos=opening[customer_id].opening_bonus_nanos if customer_id in opening else 0,
            closing_nanos=closing,
            closing_bonus_nanos=bonus,
        )
        for customer_id, (closing, bonus) in moved.items()
    ]
    return replace(facts, totals=totals, balances=balances)


def _total(line: EntryView, month: Month) -> MonthTotal:
    fields = line.model_dump(include=set(MonthTotal.model_fields))
    return MonthTotal(month=month.first_day, day=line.recorded_at.date(), entries=1, **fields)


async def _names(session: AsyncSession, balances: list[MonthBalance]) -> dict[str, str]:
    wanted = {row.customer_id for row in balances}
    rows = await session.execute(select(col(Customer.id), col(Customer.name)).order_by(col(Customer.id)))
    return {customer_id: name for customer_id, name in rows if customer_id in wanted}


def _manifest(books: Books, files: dict[str, bytes], signer: Signer | None) -> bytes:
    closed = books.facts.closed
    return make_manifest(
        str(books.facts.month),
        files,
        signer,
        company=books.facts.chart.company,
        ledger={"tree_size": closed.tree_size, "root": closed.root} if closed else None,
        exceptions=len(books.clearing.findings),
    )


def _result(kept: BookedMonth, *, is_new: bool, differs: list[str]) -> CloseResult:
    return CloseResult(
        month=kept.month,
        manifest_sha256=kept.manifest_sha256,
        pack_bytes=len(kept.pack),
        exceptions=kept.config["exceptions"],
        closed_at=kept.closed_at,
        is_new=is_new,
        differs=differs,
    )
