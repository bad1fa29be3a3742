"""The console as a part of billing's application: its routes, what its pages need, and errors as pages."""

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response

from darktree_billing.console import (
    budget,
    buy,
    cap,
    dedicated,
    entries,
    home,
    keys_page,
    people,
    sign_in,
    statements,
    usage,
)
from darktree_billing.console.addresses import team_addresses
from darktree_billing.console.errors import SignInFirst
from darktree_billing.console.headers import is_page
from darktree_billing.console.links import AddressLimit
from darktree_billing.console.mail import make_post
from darktree_billing.console.shell import WELCOME, render, to_sign_in
from darktree_billing.settings import Settings
from darktree_kit import clock
from darktree_kit.app import add_routes
from darktree_kit.errors import ApiError

Handler = Callable[[Request, Any], Awaitable[Response]]


def install(app: FastAPI, settings: Settings) -> None:
    """Add the console to an application. Raises MailError, and AddressError for the team's addresses."""
    app.state.public_url = settings.public_url.rstrip("/")
    app.state.api_url = settings.api_url.rstrip("/")
    app.state.team = team_addresses(settings.team_emails)
    app.state.post = make_post(settings)
    app.state.address_limit = AddressLimit(settings.links_per_address, clock.monotonic)
    for part in (sign_in, home, usage, entries, keys_page, buy, statements, cap, budget, dedicated, people):
        add_routes(app, part.router)
    for kind in (ApiError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, _as_page(app.exception_handlers[kind]))  # type: ignore[arg-type]


def _as_page(answer: Handler) -> Handler:
    """Wrap a handler of errors: a page for people, and what it was for everybody else."""

    async def handler(request: Request, error: Exception) -> Response:
        if not is_page(request.url.path):
            return await answer(request, error)
        if isinstance(error, SignInFirst):
            signed_in = getattr(request.state, "signed_in", None)
            return RedirectResponse(WELCOME, 303) if signed_in else to_sign_in(error.landing)
        return error_page(request, error)

    return handler


def error_page(request: Request, error: Exception) -> Response:
    """Return what a person is told of an error. What is ours to mend is not explained, but can be found by its id."""
    status, message, headers = HTTPStatus.INTERNAL_SERVER_ERROR, "Something went wrong on our side.", {}
    if isinstance(error, ApiError):
        status, headers = HTTPStatus(error.answer_status), error.headers
        message = error.message
    elif isinstance(error, RequestValidationError):
        status, message = HTTPStatus.NOT_FOUND, "There is no such page."
    elif isinstance(error, HTTPException):
        status, headers = HTTPStatus(error.status_code), dict(error.headers or {})
        message = "There is no such page." if status == HTTPStatus.NOT_FOUND else status.phrase
    request.state.flash = None
    values = {"status": status.value, "title": _TITLES.get(status, "That did not work"), "message": message}
    page = render(
        request,
        "error.html",
        values | {"request_id": request.scope["state"].get("request_id", "")},
        status=status,
    )
    page.headers.update({name: value for name, value in headers.items() if name.lower() != "x-should-retry"})
    return page


_TITLES = {
    HTTPStatus.NOT_FOUND: "Not found",
    HTTPStatus.FORBIDDEN: "Not allowed",
    HTTPStatus.TOO_MANY_REQUESTS: "Too many at once",
    HTTPStatus.SERVICE_UNAVAILABLE: "Not available right now",
    HTTPStatus.INTERNAL_SERVER_ERROR: "Something went wrong",
}
