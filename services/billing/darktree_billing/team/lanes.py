"""The lanes as billing sees them: what engines counted beside what the ledger recorded."""

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse

from darktree_billing import reconciliation
from darktree_billing.close_api import TheChart
from darktree_billing.console.shell import TEAM_HOME, TheTeamMember, render
from darktree_billing.state import TheLedger
from darktree_kit.db import Session

router = APIRouter(include_in_schema=False)


@router.get(TEAM_HOME + "/lanes")
async def list_lanes(request: Request, _: TheTeamMember, session: Session, ledger: TheLedger) -> HTMLResponse:
    values = {
        "engines": await reconciliation.engines(session),
        "lanes": await reconciliation.compare_lanes(session, ledger, request.app.state.tolerance),
    }
    return render(request, "team/lanes.html", values)


@router.get(TEAM_HOME + "/reconciliation")
async def reconcile(
    request: Request, _: TheTeamMember, session: Session, ledger: TheLedger, chart: TheChart
) -> HTMLResponse:
    report = await reconciliation.report(session, ledger, chart, request.app.state.tolerance)
    return render(request, "team/reconciliation.html", {"report": report})
