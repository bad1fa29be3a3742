"""pg_dump and pg_restore, of the version that fits a server: from the wheel, Debian's folders, or the PATH."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from darktree_cli.settings import inherited_environment

LAST_LINES = 5


class ToolFailed(Exception):
    """A tool is missing or did not do its work; the message has its last words."""


def run(name: str, server_version: int, url: str, *words: str) -> None:
    """Run a tool on the database that a URL names. Raises ToolFailed.

    Where the database is, and the password, go by the environment: other users can read a command's words.
    """
    from psycopg import pq  # a tenth of a second, which no other command shall pay

    options = pq.Conninfo.parse(url.encode())
    where = {
        option.envvar.decode(): option.val.decode()
        for option in options
        if option.val is not None and option.envvar is not None
    }
    tool = _tool(name, server_version)
    is_local = where.get("PGHOST", "").startswith("/") or where.get("PGSSLMODE") == "disable"
    library = {} if is_local else _library_with_tls(tool)
    ran = subprocess.run(  # noqa: S603 (Postgres' own program)
        [str(tool), "--no-password", *words],
        env={**inherited_environment(services=False), **where, **library},
        capture_output=True,
        text=True,
    )
    if ran.returncode:
        said = "\n".join(ran.stderr.strip().splitlines()[-LAST_LINES:])
        raise ToolFailed(f"{name} ended with exit code {ran.returncode}:\n{said}")


def _tool(name: str, server_version: int) -> Path:
    """Return the oldest tool that is not older than the server: a newer one writes what an older server cannot read."""
    found = {version: path for path in _candidates(name) if (version := _version(path)) >= server_version}
    if not found:
        raise ToolFailed(
            f"There is no {name} for Postgres {server_version} here: install postgresql-client-{server_version}"
        )
    return found[min(found)]


def _library_with_tls(tool: Path) -> dict[str, str]:
    """Have a tool of the wheel's, which was built without TLS, use the driver's libpq, which has it."""
    from darktree_cli.postgres import all_binaries

    if tool.parent not in all_binaries().values():
        return {}
    import psycopg_binary

    libraries = Path(psycopg_binary.__file__).parents[1] / "psycopg_binary.libs"
    found = next(libraries.glob("libpq-*"), None)
    return {} if found is None else {"LD_PRELOAD": str(found)}


def _candidates(name: str) -> Iterator[Path]:
    from darktree_cli.postgres import all_binaries

    folders = [*all_binaries().values(), *Path("/usr/lib/postgresql").glob("*/bin")]
    yield from (folder / name for folder in folders if (folder / name).exists())
    if on_path := shutil.which(name):
        yield Path(on_path)


def _version(path: Path) -> int:
    ran = subprocess.run([str(path), "--version"], capture_output=True, text=True)  # noqa: S603
    match = re.search(r"\) (\d+)", ran.stdout)
    return int(match[1]) if match else 0
