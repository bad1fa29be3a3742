"""The team's overview: what waits for a person, and whether anything is wrong."""

from dataclasses import dataclass

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse

from darktree_billing import accounts, customers, payment_health, requests
from darktree_billing.console.shell import TEAM_HOME, TheTeamMember, render
from darktree_billing.selling import MaybeShop
from darktree_billing.state import TheLedger, ThePlansFile
from darktree_kit.db import Session

MAX_SHOWN = 5


@dataclass(frozen=True)
class Waiting:
    """A number that somebody should look at, and where."""

    label: str
    count: int
    href: str
    text: str


router = APIRouter(include_in_schema=False)


@router.get(TEAM_HOME)
async def overview(
    request: Request,
    _: TheTeamMember,
    session: Session,
    ledger: TheLedger,
    plans_file: ThePlansFile,
    shop: MaybeShop,
) -> HTMLResponse:
    plans_file.current()  # looks at the file, so that a broken one is told at once
    count = await customers.count_customers(session)
    payments = await payment_health.status(session, buying=shop is not None)
    caps, lanes = await requests.count_open(session)
    values = {
        "waiting_cards": [
            Waiting("Cap requests", caps, f"{TEAM_HOME}/caps?state=open", "Answer them"),
            Waiting("Lane requests", lanes, f"{TEAM_HOME}/dedicated?state=open", "Answer them"),
            Waiting(
                "Events given up", payments.events_dead, f"{TEAM_HOME}/events?state=dead", "Try them again"
            ),
            Waiting("Orders to review", payments.orders["review"], f"{TEAM_HOME}/orders", "Look at them"),
            Waiting("Customers", count, f"{TEAM_HOME}/customers", "Find one"),
        ],
        "cap_requests": (await requests.list_cap_requests(session, state="open", limit=MAX_SHOWN)).data,
        "lane_requests": (await requests.list_lane_requests(session, state="open", limit=MAX_SHOWN)).data,
        "payments": payments,
        "ledger_problem": await accounts.ledger_problem(ledger),
        "plans_problem": plans_file.problem,
    }
    return render(request, "team/home.html", values)
