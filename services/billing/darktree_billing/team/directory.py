"""The customers, found by what a person remembers of them: an id, a name, somebody's address."""

from typing import Annotated

from fastapi import APIRouter, Query, Request
from sqlalchemy import or_, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col
from starlette.responses import HTMLResponse

from darktree_billing.admin import After
from darktree_billing.console.models import Member
from darktree_billing.console.shell import TEAM_HOME, TheTeamMember, render
from darktree_billing.models import Customer
from darktree_kit.db import Session

PAGE = 50
MAX_SEARCH_CHARACTERS = 100

Search = Annotated[str, Query(max_length=MAX_SEARCH_CHARACTERS, pattern=r"^[^\x00]*$")]

router = APIRouter(include_in_schema=False)


@router.get(TEAM_HOME + "/customers")
async def list_customers(
    request: Request, _: TheTeamMember, session: Session, q: Search = "", after: After = None
) -> HTMLResponse:
    found, following = await find_customers(session, q.strip(), after)
    values = {"customers": found, "next": following, "q": q.strip(), "first": after is None}
    return render(request, "team/customers.html", values)


async def find_customers(
    session: AsyncSession, text: str, after: str | None
) -> tuple[list[Customer], str | None]:
    """Return a page of the customers whose id, name or address contains a text, by id, and the next page's cursor."""
    query = select(Customer).order_by(col(Customer.id)).limit(PAGE + 1)
    if text:
        of_members = select(col(Member.customer_id)).where(
            col(Member.email).icontains(text, autoescape=True), col(Member.customer_id).is_not(None)
        )
        query = query.where(
            or_(
                *(
                    column.icontains(text, autoescape=True)
                    for column in (col(Customer.id), col(Customer.name), col(Customer.email))
                ),
                col(Customer.id).in_(of_members),
            )
        )
    if after is not None:
        query = query.where(col(Customer.id) > after)
    rows = list((await session.scalars(query)).all())
    return rows[:PAGE], rows[PAGE - 1].id if len(rows) > PAGE else None
