"""The billing service: the gateway's look-ups under /internal, the administrator's work under /admin."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI

from darktree_billing import (
    admin,
    backups,
    close_api,
    expiries,
    internal,
    members_api,
    payments_api,
    reconciliation,
    requests_api,
    statement_api,
    webhooks,
)
from darktree_billing.books_key import load_books_key
from darktree_billing.chart import load_chart
from darktree_billing.console import pages
from darktree_billing.console.assets import Assets
from darktree_billing.console.headers import PageHeaders
from darktree_billing.keys import Peppers
from darktree_billing.plans import PlansFile
from darktree_billing.reconciliation import Tolerance
from darktree_billing.selling import selling
from darktree_billing.settings import Settings
from darktree_billing.team import pages as team_pages
from darktree_kit.app import add_routes, create_app
from darktree_kit.auth import Callers
from darktree_kit.db import Database
from darktree_ledger.sharding import connect

DESCRIPTION = "Plans, customers, API keys and caps. Money moves in the ledger; billing asks it to."


def make_app(settings: Settings) -> FastAPI:
    """Return the application. Raises PlansError, BooksKeyError or ChartError when a file cannot be used."""
    plans_file = PlansFile(settings.plans_file)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        database = Database(settings.database_url.get_secret_value(), pool_size=settings.database_pool_size)
        ledger = connect(settings.ledger_url, settings.ledger_token.get_secret_value())
        app.state.database = database
        app.state.ledger = ledger
        # The ledger is no part of this: keys are verified and prices are told while it is away.
        app.state.ready = database.ping
        watching = [
            asyncio.create_task(
                reconciliation.watch(
                    database, ledger, settings.books_file, app.state.tolerance, settings.reconcile_seconds
                )
            ),
            asyncio.create_task(expiries.watch(database, _addresses(settings), settings.expiries_seconds)),
            asyncio.create_task(backups.watch(database)),
        ]
        try:
            async with selling(app, settings, database, ledger):
                yield
        finally:
            for task in watching:
                task.cancel()
            await asyncio.gather(*watching, return_exceptions=True)
            await ledger.close()
            await database.close()

    page_headers = partial(PageHeaders, https=settings.public_url.startswith("https://"))
    app = create_app(
        "billing",
        lifespan=lifespan,
        title="Darktree billing",
        description=DESCRIPTION,
        before=[page_headers, Assets],
    )
    app.state.callers = Callers(
        {
            "gateway": settings.gateway_token.get_secret_value(),
            "admin": settings.admin_token.get_secret_value(),
        }
    )
    app.state.plans_file = plans_file
    app.state.peppers = _peppers(settings)
    load_chart(settings.books_file)  # a mistake in it is told when billing starts, not at the month's end
    app.state.tolerance = Tolerance(
        share=settings.reconcile_share, slack_tokens=settings.reconcile_slack_tokens
    )
    app.state.books_file = settings.books_file
    app.state.seller_name = settings.seller_name
    app.state.public_url = settings.public_url
    app.state.books_key = load_books_key(settings.books_key_file)
    for part in (
        internal,
        admin,
        backups,
        close_api,
        statement_api,
        members_api,
        requests_api,
        payments_api,
        webhooks,
    ):
        add_routes(app, part.router)
    pages.install(app, settings)
    team_pages.install(app)
    return app


def _addresses(settings: Settings) -> list[str]:
    return [settings.public_url, settings.api_url, settings.database_url.get_secret_value()]


def _peppers(settings: Settings) -> Peppers:
    version = settings.key_pepper_version
    secrets = {version: settings.key_pepper.get_secret_value().encode()}
    if settings.key_pepper_previous is not None:
        secrets[version - 1] = settings.key_pepper_previous.get_secret_value().encode()
    if settings.key_pepper_next is not None:
        secrets[version + 1] = settings.key_pepper_next.get_secret_value().encode()
    return Peppers(current=version, secrets=secrets)
