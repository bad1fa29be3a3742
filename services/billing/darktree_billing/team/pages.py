"""The team's pages as a part of billing's application. Every page takes `TheTeamMember`; a test walks them all."""

from fastapi import APIRouter, FastAPI
from starlette.responses import RedirectResponse

from darktree_billing.console.shell import TEAM_HOME
from darktree_billing.team import customer, directory, events, holds, home, lanes, orders, wishes
from darktree_kit.app import add_routes

router = APIRouter(include_in_schema=False)


@router.get("/admin")
async def front_door() -> RedirectResponse:
    return RedirectResponse(TEAM_HOME, 303)


def install(app: FastAPI) -> None:
    """Add the team's pages to an application that has the console."""
    add_routes(app, router)
    for part in (home, directory, customer, wishes, holds, orders, events, lanes):
        add_routes(app, part.router)
