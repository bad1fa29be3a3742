"""Two Postgres servers of Debian's, one the synchronous standby of the other, which a test can promote."""

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import psutil
import psycopg
from held_ports import free_port

HOST = "127.0.0.1"
VERSION = 15
ADMIN = "admin"
# As a cluster manager would set them; fsync stays on: durability is what is tested.
SETTINGS = ("wal_level=replica", "hot_standby=on", "max_connections=100", "unix_socket_directories=")


def binaries() -> Path | None:
    """Where Debian lays the server out; None where it is not installed."""
    folder = Path(f"/usr/lib/postgresql/{VERSION}/bin")
    return folder if (folder / "initdb").exists() else None


class Server:
    """One server with a folder and a port of its own."""

    def __init__(self, home: Path, name: str) -> None:
        self.data = home / name
        self.port = free_port()
        self._log = home / f"{name}.log"

    @property
    def url(self) -> str:
        return f"postgresql://{ADMIN}@{HOST}:{self.port}/postgres"

    def make(self, authentication: str = "trust", password_file: Path | None = None) -> None:
        """Make what it serves; its administrator has the password of the file, where one is named."""
        words = [] if password_file is None else [f"--pwfile={password_file}"]
        _run(
            "initdb", "-D", str(self.data), "-A", authentication, "-U", ADMIN,
            "-E", "UTF8", "--no-locale", *words,
        )  # fmt: skip

    def start(self, *settings: str) -> None:
        words = [
            f"-c {setting}"
            for setting in (*SETTINGS, *settings, f"port={self.port}", f"listen_addresses={HOST}")
        ]
        _run("pg_ctl", "-D", str(self.data), "-w", "-l", str(self._log), "-o", " ".join(words), "start")

    def kill(self) -> None:
        """kill -9 of the server and everything that it started: the machine is gone."""
        postmaster = psutil.Process(int((self.data / "postmaster.pid").read_text().split()[0]))
        processes = [postmaster, *postmaster.children(recursive=True)]
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=30)

    def promote(self) -> None:
        _run("pg_ctl", "-D", str(self.data), "-w", "promote")

    def stop(self) -> None:
        with suppress(subprocess.CalledProcessError):
            _run("pg_ctl", "-D", str(self.data), "-m", "immediate", "-w", "stop")

    def value(self, query: str) -> Any:
        with psycopg.connect(self.url, autocommit=True, connect_timeout=5) as connection:
            row = connection.execute(query.encode()).fetchone()
            assert row is not None
            return row[0]


class Pair:
    """A primary that acknowledges nothing before its standby has it on disk."""

    def __init__(self, home: Path) -> None:
        self.primary, self.standby = Server(home, "primary"), Server(home, "standby")

    @property
    def url(self) -> str:
        """Both servers; whoever connects looks for the one that takes writes."""
        hosts = ",".join(f"{HOST}:{server.port}" for server in (self.primary, self.standby))
        return f"postgresql://{ADMIN}@{hosts}/postgres?target_session_attrs=read-write"

    def start(self) -> None:
        self.primary.make()
        self.primary.start()
        source = f"host={HOST} port={self.primary.port} user={ADMIN} application_name=standby"
        _run("pg_basebackup", "-D", str(self.standby.data), "-d", source, "-R", "-X", "stream", "-c", "fast")
        # The one that is promoted waits for nobody: with the primary's own setting it would wait for ever.
        self.standby.start("synchronous_standby_names=")
        with psycopg.connect(self.primary.url, autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET synchronous_standby_names = 'standby'")
            connection.execute("SELECT pg_reload_conf()")

    def fail_over(self) -> None:
        """Lose the primary, and promote the standby."""
        self.primary.kill()
        self.standby.promote()


@contextmanager
def running_pair() -> Iterator[Pair]:
    with home_of_a_server() as home:
        pair = Pair(home)
        try:
            pair.start()
            yield pair
        finally:
            for server in (pair.standby, pair.primary):
                server.stop()


@contextmanager
def home_of_a_server() -> Iterator[Path]:
    """Make a folder in which whoever runs servers may write; it is gone afterwards."""
    home = Path(mkdtemp(prefix="dt-"))
    give_to_the_server(home)
    try:
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)


def give_to_the_server(*paths: Path) -> None:
    account = _account()
    if account is not None:
        for path in paths:
            os.chown(path, account.pw_uid, account.pw_gid)


def _run(program: str, *words: str) -> None:
    folder, account = binaries(), _account()
    assert folder is not None
    as_whom: dict[str, Any] = {}
    if account is not None:
        as_whom = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": ()}
    subprocess.run([str(folder / program), *words], check=True, stdout=subprocess.DEVNULL, cwd="/", **as_whom)


def _account() -> pwd.struct_passwd | None:
    """Postgres refuses root: then an account without rights runs it."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name: entry for entry in pwd.getpwall()}
    return names.get("postgres") or names["nobody"]
