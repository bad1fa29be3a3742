"""Runs a service's Alembic migrations, which live inside its package, as the database's owner.

Services never migrate: their roles may not. `darktree migrate` (and `darktree up`) does, before they start.
"""

import importlib
from pathlib import Path

import psycopg
from alembic import command
from alembic.config import Config
from psycopg import sql
from sqlalchemy import Connection, create_engine, text

from darktree_kit.db import driver_url

LOCK_KEY = 0x64_74_6D_69  # "dtmi": one migration at a time, however many start at once


def upgrade(url: str, package: str, *, schema: str, revision: str = "head") -> None:
    """Bring a schema to a revision. `package` holds `migrations/`; `schema` also holds Alembic's version table."""
    engine = create_engine(driver_url(url))
    try:
        with engine.connect() as connection:
            connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": LOCK_KEY})
            connection.execute(text(f'CREATE SCHEMA IF NOT EXISTS "{schema}"'))
            connection.commit()
            try:
                command.upgrade(_config(connection, package, schema), revision)
                connection.commit()
            finally:
                connection.rollback()
                connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": LOCK_KEY})
                connection.commit()
    finally:
        engine.dispose()


def allow_login(url: str, role: str, password: str) -> None:
    """Let a runtime role, which migrations made, log in with this password."""
    with psycopg.connect(url, autocommit=True) as connection:
        statement = sql.SQL("ALTER ROLE {} LOGIN PASSWORD {}")
        connection.execute(statement.format(sql.Identifier(role), sql.Literal(password)))


def _config(connection: Connection, package: str, schema: str) -> Config:
    module = importlib.import_module(package)
    assert module.__file__ is not None
    config = Config()
    config.set_main_option("script_location", str(Path(module.__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    config.attributes["schema"] = schema
    return config
