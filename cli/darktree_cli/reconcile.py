"""`darktree reconcile`: the ledger beside engines, Stripe, its own projection and its log, in one report."""

from collections.abc import Iterator

import typer

from darktree_billing.reconciliation_schemas import ReconciliationReport
from darktree_cli.connection import DataDirOption, administer
from darktree_cli.output import Output, OutputOption, Row, dollars, show

UNKNOWN = "unknown"


def command(output: OutputOption = Output.TABLE, data_dir: DataDirOption = None) -> None:
    """Hold the ledger against everything that it can be held against; exit code 1 when something does not agree."""
    report = administer(data_dir, lambda admin: admin.reconciliation())
    rows = list(_rows(report))
    note = (
        "\nAll that could be compared agrees."
        if report.agrees
        else "\nSomething does not agree: see docs/runbooks.md."
    )
    if unknown := [str(what) for what, state, _ in rows if state == UNKNOWN]:
        note += f" Not compared yet: {', '.join(unknown)}."
    show(output, report, ("what", "state", "detail"), rows, note)
    if not report.agrees:
        raise typer.Exit(1)


def _rows(report: ReconciliationReport) -> Iterator[Row]:
    for lane in report.lanes:
        detail = (
            f"since {lane.since:%Y-%m-%d %H:%M}, prompt + completion tokens: engines "
            f"{lane.engine_prompt_tokens} + {lane.engine_completion_tokens}, ledger "
            f"{lane.ledger_prompt_tokens} + {lane.ledger_completion_tokens}"
        )
        yield f"lane {lane.lane}", _state(lane.agrees), detail
    if not report.lanes:
        yield "lanes", UNKNOWN, "no engine was read an hour ago or earlier"
    stripe = report.stripe
    for row in stripe.exceptions:
        difference = f"{row.count} open, the ledger has {dollars(row.difference_nanos)} more"
        yield f"Stripe: {row.bucket}", _state(False), difference
    if not stripe.exceptions:
        detail = stripe.problem or f"no open exceptions in {stripe.month}"
        yield "Stripe", _state(stripe.problem is None), detail
    ledger = report.ledger
    checked = (
        f"last slice {ledger.checked_at:%Y-%m-%d %H:%M:%S}, {ledger.rounds} whole rounds"
        if ledger.checked_at
        else "not yet"
    )
    for problem in ledger.problems:
        found = f"{problem.what}: expected {problem.expected}, found {problem.found}"
        yield f"projection of {problem.customer_id}", _state(False), found
    if not ledger.problems:
        yield "projection", _state(True) if ledger.checked_at else UNKNOWN, checked
    lag = f"{ledger.unsealed_entries} entries, the oldest {ledger.unsealed_seconds:.0f} s old"
    yield "not in the log yet", _state(report.seal_agrees), lag


def _state(agrees: bool) -> str:
    return "agrees" if agrees else "DIFFERS"
