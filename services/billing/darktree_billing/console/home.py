"""The overview: what is left, what it buys, how long it lasts, and today against the cap."""

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse

from darktree_billing.console.shell import TheMember, render

router = APIRouter(include_in_schema=False)


@router.get("/console")
async def overview(request: Request, _: TheMember) -> HTMLResponse:
    return render(request, "overview.html")
