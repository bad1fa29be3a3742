"""What every page of the console stands in: who looks at it, the frame around it, and forms that are really theirs.

A page is an endpoint that takes `TheMember` (or `TheTeamMember`), and `TheForm` when it changes something, and returns
`render(...)` or `redirect(...)`. Templates escape everything; there is no script and no style but our own files.
"""

import hmac
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, urlsplit

from fastapi import Depends, Request
from jinja2 import ChoiceLoader, Environment, FileSystemLoader, PrefixLoader, StrictUndefined
from starlette.datastructures import FormData
from starlette.responses import HTMLResponse, RedirectResponse, Response

from darktree_billing.console import assets, formats, sessions
from darktree_billing.console.errors import ForgedForm, SignInFirst, TeamOnly
from darktree_billing.console.sessions import Cookie, SignedIn
from darktree_kit.db import Session
from darktree_kit.errors import BadRequest

SIGN_IN = "/console/sign-in"
WELCOME = "/console/welcome"
CUSTOMER_HOME = "/console"
TEAM_HOME = "/admin/console"
CSRF_FIELD = "csrf"
MAX_FIELDS = 50
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})

_PACKAGE = Path(__file__).parents[1]
_PLAIN_PATH = re.compile(r"(/[A-Za-z0-9_.-]+)+")  # which no browser reads as another


def _environment() -> Environment:
    own = FileSystemLoader(_PACKAGE / "console" / "templates")
    team = FileSystemLoader(_PACKAGE / "team" / "templates")  # as "team/page.html"
    made = Environment(
        loader=ChoiceLoader([own, PrefixLoader({"team": team})]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(formats.FILTERS)
    made.globals.update(static=assets.address, icon=assets.icon, percent=formats.percent)
    return made


_TEMPLATES = _environment()


# Pages.


def render(
    request: Request, template: str, values: Mapping[str, Any] | None = None, *, status: int = 200
) -> HTMLResponse:
    """Return a page. Every template also sees `me` (SignedIn or None), `csrf`, `flash`, `path` and `seller`."""
    me: SignedIn | None = getattr(request.state, "signed_in", None)
    context = {
        "me": me,
        "csrf": me.csrf if me else "",
        "flash": getattr(request.state, "flash", None),
        "path": request.url.path,
        "seller": request.app.state.seller_name,
    }
    return HTMLResponse(_TEMPLATES.get_template(template).render(context | dict(values or {})), status)


def redirect(request: Request, path: str, flash: str | None = None) -> RedirectResponse:
    """Answer a form: go to a page of ours, which says `flash` once."""
    assert path.startswith("/")
    assert not path.startswith("//")
    if flash is not None:
        me: SignedIn = request.state.signed_in
        me.session.flash = flash[: sessions.MAX_FLASH_CHARACTERS]
    return RedirectResponse(path, 303)


def local_path(text: str | None) -> str | None:
    """Return a path that is a page of ours, or None: nobody is led elsewhere."""
    if not text or not text.isascii() or not text.isprintable() or "\\" in text or len(text) > 500:
        return None
    parts = urlsplit(text)
    if not _PLAIN_PATH.fullmatch(parts.path) or ".." in parts.path:
        return None
    inside = parts.path in {CUSTOMER_HOME, TEAM_HOME} or parts.path.startswith(
        (f"{CUSTOMER_HOME}/", f"{TEAM_HOME}/")
    )
    return text if inside and not parts.scheme and not parts.netloc and text.startswith("/") else None


# Who is looking.


def cookie_of(request: Request) -> Cookie:
    return Cookie(https=request.app.state.public_url.startswith("https://"))


async def _signed_in(request: Request, session: Session) -> SignedIn | None:
    token = cookie_of(request).token(request.cookies)
    found = await sessions.find(session, token, request.app.state.team) if token else None
    request.state.signed_in = found
    if found is not None and request.method == "GET" and found.session.flash is not None:
        request.state.flash, found.session.flash = found.session.flash, None
    return found


async def _someone(request: Request, found: Annotated[SignedIn | None, Depends(_signed_in)]) -> SignedIn:
    if found is None:
        raise SignInFirst(_landing(request))
    request.scope["state"].setdefault("log_fields", {})["member_id"] = found.member_id
    return found


async def _member(request: Request, found: Annotated[SignedIn, Depends(_someone)]) -> SignedIn:
    if found.customer_id_or_none is None:
        raise SignInFirst(_landing(request))
    return found


async def _team_member(found: Annotated[SignedIn, Depends(_someone)]) -> SignedIn:
    if not found.is_team:
        raise TeamOnly
    return found


def _landing(request: Request) -> str:
    query = f"?{request.url.query}" if request.url.query else ""
    return request.url.path + query if request.method == "GET" else ""


MaybeSignedIn = Annotated[SignedIn | None, Depends(_signed_in)]
TheSignedIn = Annotated[SignedIn, Depends(_someone)]
"""Anybody with a session, signed up or not."""
TheMember = Annotated[SignedIn, Depends(_member)]
"""A customer's member; `customer_id` is the only customer that the page may touch."""
TheTeamMember = Annotated[SignedIn, Depends(_team_member)]
"""One of the platform team: DARKTREE_BILLING_TEAM_EMAILS."""


# Forms.


class Form:
    """The fields of a form, as text."""

    def __init__(self, fields: Mapping[str, str]) -> None:
        self._fields = fields

    def text(self, name: str, most: int = 500) -> str:
        """Return a field without surrounding space; empty when it is missing. Raises BadRequest when it is too long."""
        value = self._fields.get(name, "").strip()
        if len(value) > most or "\0" in value:
            raise BadRequest(f"{name}: at most {most} characters.", param=name, code="invalid_value")
        return value

    def number(self, name: str, least: int = 0, most: int = 2**53) -> int | None:
        """Return a whole number, with or without thousands separators; None when it is none or out of range."""
        digits = self.text(name, 32).replace(",", "").replace("\u202f", "").replace(" ", "")
        if not (digits.isascii() and digits.isdigit()):
            return None
        value = int(digits)
        return value if least <= value <= most else None


async def read_form(request: Request) -> Form:
    """Return the fields of a form that came from a page of ours, whoever sent it."""
    if not _is_own_origin(request):
        raise ForgedForm
    fields: FormData = await request.form(max_files=0, max_fields=MAX_FIELDS)
    return Form({name: value for name, value in fields.items() if isinstance(value, str)})


async def _checked_form(request: Request, me: Annotated[SignedIn, Depends(_someone)]) -> Form:
    form = await read_form(request)
    if not hmac.compare_digest(form.text(CSRF_FIELD).encode(), me.csrf.encode()):
        raise ForgedForm
    return form


TheForm = Annotated[Form, Depends(_checked_form)]
"""The form of a POST, with this session's token, sent by a page of ours. Every POST takes it."""


def _is_own_origin(request: Request) -> bool:
    """Say whether a page of this host sent the form. Browsers say so with every POST; what does not is no browser."""
    origin = request.headers.get("origin") or request.headers.get("referer")
    if not origin:
        return False
    sent = urlsplit(origin)
    public = urlsplit(request.app.state.public_url)
    own = {(public.scheme, public.netloc)} if public.netloc else set()
    if not public.netloc or request.url.hostname in LOOPBACK:
        own.add((request.url.scheme, request.url.netloc))
    return (sent.scheme, sent.netloc) in own


def public_address(request: Request, path: str) -> str:
    """Return a page's whole address, for mails. Raises BadRequest when none is known.

    Never from what a request says of its host, which anybody can make up, unless that leads to this very machine.
    """
    if request.app.state.public_url:
        return str(request.app.state.public_url) + path
    if request.url.hostname not in LOOPBACK:
        raise BadRequest(
            "DARKTREE_BILLING_PUBLIC_URL is not set: no link can be mailed.", code="no_public_url"
        )
    return f"{request.url.scheme}://{request.url.netloc}{path}"


def to_sign_in(landing: str) -> Response:
    """Lead to the sign-in page, and back to where someone wanted to go."""
    landing = local_path(landing) or ""
    query = f"?next={quote(landing, safe='/')}" if landing and landing != CUSTOMER_HOME else ""
    return RedirectResponse(SIGN_IN + query, 303)
