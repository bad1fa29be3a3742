"""Runs a service's Alembic migrations, which live inside its package, as the database's owner.

Services never migrate: their roles may not. `darktree migrate` (and `darktree up`) does, before they start.

Tables go up step by step. Functions have no state, so they are no steps: what lies in `migrations/functions/` is
applied anew, in order of the files' names and in the same transaction, whenever a schema is brought to its newest
revision.
"""

import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psycopg
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from psycopg import sql
from sqlalchemy import Connection, create_engine, text

from darktree_kit.db import DRIVER_URL, connect_arguments

OWNER_ROLE = "darktree_owner"
MIGRATOR_ROLE = (
    "darktree_migrator"  # may act as the owner, so that whoever made the roles is needed only once
)
LOCK_KEY = 0x64_74_6D_69  # "dtmi": one migration at a time, however many start at once

# Roles belong to the whole cluster, beyond the reach of a database's advisory lock: another database's migration
# may make them at the same moment.
_CREATE_ROLE = """
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}') THEN
        CREATE ROLE {role} NOLOGIN;
    END IF;
EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
END $$
"""
# Whoever migrates need not be a superuser, but must be able to act as the owner. What a database's own owner gives to
# everybody is taken back: a place for temporary tables, and in old databases one in the schema `public`.
_GIVE_TO_OWNER = """
DO $$ BEGIN
    BEGIN
        SET ROLE {owner};
    EXCEPTION WHEN insufficient_privilege THEN
        EXECUTE format('GRANT {owner} TO %I', current_user);
    END;
    RESET ROLE;
    IF NOT pg_has_role('{migrator}', '{owner}', 'MEMBER') THEN
        GRANT {owner} TO {migrator};
    END IF;
    IF (SELECT pg_has_role(datdba, 'USAGE') FROM pg_database WHERE datname = current_database()) THEN
        EXECUTE format('GRANT CREATE ON DATABASE %I TO {owner}', current_database());
        EXECUTE format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC', current_database());
        IF to_regnamespace('public') IS NOT NULL THEN
            REVOKE CREATE ON SCHEMA public FROM PUBLIC;
        END IF;
    END IF;
END $$
"""
_GIVE_SCHEMA = 'ALTER SCHEMA "{schema}" OWNER TO {owner}; REVOKE ALL ON SCHEMA "{schema}" FROM PUBLIC'
_KEEP_FUNCTIONS = "ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON ROUTINES FROM PUBLIC"


def upgrade(url: str, package: str, *, schema: str, revision: str = "head") -> bool:
    """Bring a schema to a revision. `package` holds `migrations/`; `schema` also holds Alembic's version table.

    A schema that a newer version of Darktree has brought further than this one knows is left as it is, and False is
    returned: that is a rollback, and migrations leave what the version before needs.
    """
    engine = create_engine(DRIVER_URL, connect_args=connect_arguments(url))
    try:
        with engine.connect() as connection:
            connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": LOCK_KEY})
            if connection.scalar(text("SELECT to_regnamespace(:schema)"), {"schema": schema}) is None:
                connection.execute(text(f'CREATE SCHEMA "{schema}"'))
            connection.commit()
            config = _config(connection, package, schema, newest=revision == "head")
            try:
                if _is_ahead(connection, config, schema):
                    return False
                command.upgrade(config, revision)
                connection.commit()
            finally:
                connection.rollback()
                connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": LOCK_KEY})
                connection.commit()
    finally:
        engine.dispose()
    return True


def run_env(context: Any) -> None:
    """Be the body of a service's `migrations/env.py`; `context` is `alembic.context`.

    Makes the roles when they are missing: `darktree_owner`, as whom the migrations run and who therefore owns what
    they make; `darktree_migrator`, who may run later ones; and the runtime roles: `darktree_<schema>` and what the
    migrations name in ROLES. They get only what is granted.
    """
    attributes = context.config.attributes
    connection: Connection = attributes["connection"]
    schema: str = attributes["schema"]
    _make_roles(connection, schema, attributes["roles"])
    connection.execute(text(_GIVE_SCHEMA.format(owner=OWNER_ROLE, schema=schema)))
    connection.execute(text(f"SET ROLE {OWNER_ROLE}"))
    connection.execute(text(_KEEP_FUNCTIONS))
    context.configure(connection=connection, version_table_schema=schema)
    with context.begin_transaction():
        context.run_migrations()
        for file in attributes["functions"]:
            connection.exec_driver_sql(file.read_text().replace("%", "%%"))
    connection.execute(text("RESET ROLE"))


def prepare_restore(url: str, package: str, *, schema: str) -> None:
    """Make what a backup of a schema needs of a new database: the roles, and an owner who may make the schema.

    Raises ValueError when the schema is there already.
    """
    engine = create_engine(DRIVER_URL, connect_args=connect_arguments(url))
    try:
        with engine.begin() as connection:
            if connection.scalar(text("SELECT to_regnamespace(:schema)"), {"schema": schema}) is not None:
                raise ValueError(f"the schema {schema} is there already")
            _make_roles(connection, schema, _declared_roles(package))
    finally:
        engine.dispose()


def known_revisions(package: str) -> list[str]:
    """Return the revisions that this version knows of a package's schema, oldest first."""
    folder = Path(importlib.import_module(f"{package}.migrations").__path__[0])
    config = Config()
    config.set_main_option("script_location", str(folder))
    return [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()][::-1]


def allow_login(url: str, role: str, password: str) -> None:
    """Let a role that migrations made log in with this password."""
    with psycopg.connect(autocommit=True, **connect_arguments(url)) as connection:
        statement = sql.SQL("ALTER ROLE {} LOGIN PASSWORD {}")
        connection.execute(statement.format(sql.Identifier(role), sql.Literal(password)))


def _is_ahead(connection: Connection, config: Config, schema: str) -> bool:
    options = {"version_table_schema": schema}
    reached = MigrationContext.configure(connection, opts=options).get_current_revision()
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    return reached is not None and reached not in known


def _make_roles(connection: Connection, schema: str, others: Iterable[str]) -> None:
    for role in (OWNER_ROLE, MIGRATOR_ROLE, f"darktree_{schema}", *others):
        connection.execute(text(_CREATE_ROLE.format(role=role)))
    give = _GIVE_TO_OWNER.format(owner=OWNER_ROLE, migrator=MIGRATOR_ROLE)
    connection.exec_driver_sql(give.replace("%", "%%"))


def _declared_roles(package: str) -> tuple[str, ...]:
    roles: tuple[str, ...] = getattr(importlib.import_module(f"{package}.migrations"), "ROLES", ())
    return roles


def _config(connection: Connection, package: str, schema: str, *, newest: bool) -> Config:
    migrations = importlib.import_module(f"{package}.migrations")
    folder = Path(migrations.__path__[0])
    config = Config()
    config.set_main_option("script_location", str(folder))
    config.attributes["connection"] = connection
    config.attributes["schema"] = schema
    config.attributes["roles"] = _declared_roles(package)
    config.attributes["functions"] = sorted((folder / "functions").glob("*.sql")) if newest else []
    return config
