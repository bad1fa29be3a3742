"""What running requests have reserved now."""

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import HTMLResponse

from darktree_billing import accounts
from darktree_billing.admin import After
from darktree_billing.console.shell import TEAM_HOME, TheTeamMember, render
from darktree_billing.state import TheLedger
from darktree_kit.ids import request_id_of
from darktree_ledger.schemas import CUSTOMER_ID_PATTERN

PAGE = 100

OfCustomer = Annotated[str, Query(pattern=rf"^$|{CUSTOMER_ID_PATTERN}")]

router = APIRouter(include_in_schema=False)


@router.get(TEAM_HOME + "/holds")
async def list_holds(
    request: Request, _: TheTeamMember, ledger: TheLedger, customer_id: OfCustomer = "", after: After = None
) -> HTMLResponse:
    page = await accounts.open_holds(ledger, customer_id or None, PAGE, after)
    rows = [(hold, request_id_of(hold.hold_id)) for hold in page.data]
    values = {"rows": rows, "next": page.next, "first": after is None, "customer_id": customer_id}
    return render(request, "team/holds.html", values)
