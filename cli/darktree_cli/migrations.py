"""`darktree migrate`: brings a database's schemas up to date. `darktree up` does the same for its own."""

import time
from collections.abc import Mapping
from typing import Annotated

import typer

from darktree_cli.output import Output, OutputOption, show
from darktree_cli.settings import Settings
from darktree_kit import clock

LOOK_SECONDS = 1.0
SCHEMAS = ("ledger", "billing")
AHEAD = "newer than this version, left as it is"


class MigrationFailed(Exception):
    """The database could not be migrated; the message says why."""


def migrate(database_url: str, passwords: Mapping[str, str]) -> dict[str, str]:
    """Migrate every schema; then let each runtime role that has a password here log in with it.

    Returns in which state each schema is. Raises MigrationFailed.
    """
    import psycopg  # a second together, which no other command shall pay
    from sqlalchemy.exc import SQLAlchemyError

    from darktree_kit.migrate import allow_login, upgrade

    try:
        states = {
            schema: "up to date" if upgrade(database_url, f"darktree_{schema}", schema=schema) else AHEAD
            for schema in SCHEMAS
        }
        for role, password in passwords.items():
            allow_login(database_url, role, password)
    except (SQLAlchemyError, psycopg.Error, ValueError) as error:
        raise MigrationFailed(f"The database could not be migrated: {str(error).splitlines()[0]}") from error
    return states


def passwords(settings: Settings) -> dict[str, str]:
    """Return the passwords that the environment gives to roles."""
    given = {
        "darktree_migrator": settings.migrator_role_password,
        "darktree_ledger": settings.ledger_role_password,
        "darktree_sealer": settings.sealer_role_password,
        "darktree_billing": settings.billing_role_password,
    }
    return {role: secret.get_secret_value() for role, secret in given.items() if secret is not None}


def wait_for(database_url: str, seconds: float) -> None:
    """Return once the database answers. Raises MigrationFailed when it does not within so many seconds."""
    import psycopg

    deadline = clock.monotonic() + seconds
    while True:
        try:
            psycopg.connect(database_url, connect_timeout=5).close()
            return
        except psycopg.Error as error:
            if clock.monotonic() >= deadline:
                raise MigrationFailed(
                    f"The database does not answer: {str(error).splitlines()[0]}"
                ) from error
        time.sleep(LOOK_SECONDS)


def command(
    wait: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="Wait for a database that still starts.")
    ] = 0,
    output: OutputOption = Output.TABLE,
) -> None:
    """Bring the schemas of the database that DATABASE_URL names up to date.

    DATABASE_URL is a URL of someone who may create roles and schemas, or later of the role darktree_migrator; the
    services' own roles may not. When DARKTREE_MIGRATOR_ROLE_PASSWORD, DARKTREE_LEDGER_ROLE_PASSWORD,
    DARKTREE_SEALER_ROLE_PASSWORD or DARKTREE_BILLING_ROLE_PASSWORD is set, that role may log in with it afterwards.
    """
    settings = Settings()
    if settings.database_url is None:
        raise typer.BadParameter("set DATABASE_URL to the database to migrate", param_hint="DATABASE_URL")
    given = passwords(settings)
    database_url = settings.database_url.get_secret_value()
    try:
        if wait:
            wait_for(database_url, wait)
        states = migrate(database_url, given)
    except MigrationFailed as error:
        typer.echo(f"darktree: {error}", err=True)
        raise typer.Exit(1) from error
    answer = {"schemas": list(SCHEMAS), "states": states, "roles_with_login": sorted(given)}
    rows = [(schema, state, f"darktree_{schema}" in given) for schema, state in states.items()]
    show(output, answer, ("schema", "state", "password set"), rows)
