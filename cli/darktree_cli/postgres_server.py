"""`darktree postgres`: the embedded Postgres for other pods, with a password: for trials on a cluster.

One instance on one volume: it has no replica, nobody backs it up, and it was built without TLS. What serves customers
wants a Postgres that is run as one (docs/install.md).
"""

import fcntl
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from darktree_cli import postgres
from darktree_cli.settings import Settings, inherited_environment

DEFAULT_PORT = 5432
# Trust is for this user alone, over the socket in a folder that nobody else may enter.
ACCESS_RULES = "local all all trust\nhost all all all scram-sha-256\n"
ACCESS_FILE = "pg_hba.conf"
LOCK_FILE = "lock"


def command(
    data_dir: Annotated[Path, typer.Option(file_okay=False, help="Where the database is kept.")],
    port: Annotated[int, typer.Option(min=1, max=65_535)] = DEFAULT_PORT,
) -> None:
    """Serve the embedded Postgres on every address; DARKTREE_POSTGRES_PASSWORD is its superuser's."""
    settings = Settings()
    if settings.postgres_password is None:
        raise typer.BadParameter("set DARKTREE_POSTGRES_PASSWORD", param_hint="DARKTREE_POSTGRES_PASSWORD")
    environment = inherited_environment(services=False)
    _claim(data_dir.absolute())
    try:
        embedded = postgres.prepare(data_dir.absolute() / postgres.NAME, environment)
        _set_password(embedded, settings.postgres_password.get_secret_value(), environment)
    except (postgres.PostgresError, subprocess.SubprocessError) as error:
        typer.echo(f"darktree: {error}", err=True)
        raise typer.Exit(1) from error
    access = data_dir.absolute() / ACCESS_FILE
    access.write_text(ACCESS_RULES)
    reached_by = {"listen_addresses": "*", "port": str(port), "hba_file": str(access)}
    # The last of an option counts. Executed, not started: signals of whoever stops this process are Postgres' own.
    options = [word for name, value in reached_by.items() for word in ("-c", f"{name}={value}")]
    if embedded.user is not None:  # this is root, which Postgres refuses
        os.setgroups([])
        os.setgid(embedded.user[1])
        os.setuid(embedded.user[0])
    argv = [*embedded.process().argv, *options]
    os.execve(argv[0], argv, dict(environment))  # noqa: S606 (the wheel's own program)


def _claim(folder: Path) -> None:
    """Wait until nobody else uses the folder, and keep it as long as any process of the server lives.

    Postgres' own lock is a number of a process, which says nothing in another container: a pod that was deleted by
    force goes on for a while beside its successor, and two servers on one folder lose what either has committed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.set_inheritable(lock, True)


def _set_password(embedded: postgres.Embedded, password: str, environment: Mapping[str, str]) -> None:
    """Set it at each start, without a server that anybody could reach meanwhile: changing it is one restart."""
    quoted = password.replace("'", "''")
    postgres.alone(embedded.data, f"ALTER ROLE {postgres.SUPERUSER} PASSWORD '{quoted}'", environment)
