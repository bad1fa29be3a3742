"""`darktree doctor`: what runs, what does not, and what to do about it."""

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from darktree_billing.client import AdminClient
from darktree_cli import doctor_database, doctor_outside, probes
from darktree_cli.connection import DataDirOption, Found, find
from darktree_cli.findings import Finding
from darktree_cli.output import Output, OutputOption, show
from darktree_cli.settings import Settings
from darktree_cli.state import PlatformRecord, ProcessRecord
from darktree_kit.errors import ApiError
from darktree_kit.version import VERSION

# What the gateway's journal calls its files.
JOURNAL_SUFFIX = ".journal.jsonl"
DEAD_LETTER_NAME = "dead-letter.jsonl"


def command(
    addresses: Annotated[
        list[str] | None,
        typer.Option(
            "--address", help="Also look at the certificate of this https address; may be repeated."
        ),
    ] = None,
    kubeconfig: Annotated[str | None, typer.Option(help="Also look at the lanes of this cluster.")] = None,
    context: Annotated[str | None, typer.Option(help="The kubeconfig's context.")] = None,
    output: OutputOption = Output.TABLE,
    data_dir: DataDirOption = None,
) -> None:
    """Look at every part of the running platform; exit code 1 when one of them is not well.

    With DATABASE_URL set (of someone who may act as darktree_owner), or where `darktree up` runs, at the database too.
    """
    settings = Settings()
    found = find(data_dir, settings)
    named = settings.database_url.get_secret_value() if settings.database_url else None
    database_url = found.record.database_url if found.record else named
    findings = asyncio.run(_examine(found, database_url))
    findings += asyncio.run(_examine_outside(found, database_url, addresses or [], kubeconfig, context))
    rows = [(finding.what, "ok" if finding.ok else "NOT OK", finding.detail) for finding in findings]
    advice = "\n".join(f"{finding.what}: {finding.advice}" for finding in findings if finding.advice)
    answer = {
        "ok": all(finding.ok for finding in findings),
        "findings": [asdict(finding) for finding in findings],
    }
    show(output, answer, ("what", "state", "detail"), rows, note=f"\n{advice}" if advice else "")
    if not answer["ok"]:
        raise typer.Exit(1)


async def _examine(found: Found, database_url: str | None) -> list[Finding]:
    local: list[Finding] = []
    if found.record is not None:
        record = found.record
        looked = await asyncio.gather(
            *(_process(name, process) for name, process in record.processes.items())
        )
        local = [_version(record), await _database(record), *looked, *_journal(record)]
    looked_into = await doctor_database.examine(database_url) if database_url else []
    return [*local, *looked_into, *await _administration(found)]


async def _examine_outside(
    found: Found, database_url: str | None, addresses: list[str], kubeconfig: str | None, context: str | None
) -> list[Finding]:
    urls = [found.admin_url, *([database_url] if database_url else []), *addresses]
    certificates = await asyncio.gather(*map(doctor_outside.certificate, urls))
    in_cluster = await doctor_outside.lanes(kubeconfig, context) if kubeconfig or context else []
    return [*(each for each in certificates if each is not None), *in_cluster]


def _version(record: PlatformRecord) -> Finding:
    if record.version == VERSION:
        return Finding("version", True, VERSION)
    advice = "stop the platform with Ctrl-C and start it again"
    return Finding("version", False, f"{record.version} runs, but this is {VERSION}", advice)


async def _database(record: PlatformRecord) -> Finding:
    problem = await probes.problem_of_database(record.database_url)
    if problem is None:
        return Finding("database", True, "answers")
    advice = (
        "an embedded one is started again by itself: see logs/postgres.log; another one is yours to start"
    )
    return Finding("database", False, problem, advice)


async def _process(name: str, process: ProcessRecord) -> Finding:
    if process.url is None:
        return Finding(name, True, f"process {process.pid}")
    health = "/health" if name.startswith("lane-") else "/readyz"
    problem = await probes.problem_of_url(process.url, health)
    if problem is None:
        return Finding(name, True, f"process {process.pid}, {process.url}")
    return Finding(name, False, problem, f"it is started again by itself when it dies; see {process.log}")


def _journal(record: PlatformRecord) -> list[Finding]:
    folder = Path(record.journal_dir)
    waiting = _bytes_in(folder.glob(f"*{JOURNAL_SUFFIX}"))
    advice = "they are settled once the ledger answers: look again in a few seconds" if waiting else ""
    detail = f"{waiting} bytes of charges wait for the ledger" if waiting else "empty"
    findings = [Finding("journal", not waiting, detail, advice)]
    letters = folder / DEAD_LETTER_NAME
    if _bytes_in([letters]):
        findings.append(
            Finding(
                "dead letters",
                False,
                str(letters),
                "the ledger refused these charges for good: read why in the file",
            )
        )
    return findings


def _bytes_in(files: Iterable[Path]) -> int:
    size = 0
    for file in files:
        with suppress(FileNotFoundError):
            size += file.stat().st_size
    return size


async def _administration(found: Found) -> list[Finding]:
    admin = AdminClient(found.admin_url, found.admin_token)
    try:
        status = await admin.status()
        kept = await doctor_outside.backups(admin, wanted=found.record is None)
        paid = await doctor_outside.payments(admin)
    except ApiError as error:
        advice = (
            "check DARKTREE_ADMIN_URL and DARKTREE_ADMIN_TOKEN"
            if found.record is None
            else "see logs/billing.log"
        )
        return [Finding("administration", False, error.message, advice)]
    finally:
        await admin.close()
    counts = f"{status.customers} customers, {status.active_keys} active keys"
    findings = [Finding("administration", True, f"{found.admin_url}, {counts}"), *kept, *paid]
    if found.record is None:
        findings.append(doctor_outside.version(status.version))
    if status.ledger_problem:
        findings.append(
            Finding("ledger, seen by billing", False, status.ledger_problem, "see logs/ledger.log")
        )
    plans_advice = "mend the plans file; the last good one stays in use" if status.plans_problem else ""
    plans = status.plans_problem or f"{status.plans} plans, {status.models} models"
    findings.append(Finding("plans", status.plans_problem is None, plans, plans_advice))
    return findings
