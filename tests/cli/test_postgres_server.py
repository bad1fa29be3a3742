"""The Postgres that `darktree postgres` serves: whoever reaches it needs the password, which each start sets."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import psycopg
import pytest

from darktree_cli.ports import Ports

START_SECONDS = 60
DARKTREE = Path(sys.executable).with_name("darktree")


@contextmanager
def serving(folder: Path, password: str, processes: list[psutil.Process] | None = None) -> Iterator[str]:
    with Ports() as ports:
        port = ports.free()
        command = [str(DARKTREE), "postgres", "--data-dir", str(folder), "--port", str(port)]
        server = subprocess.Popen(command, env=os.environ | {"DARKTREE_POSTGRES_PASSWORD": password})
        if processes is not None:
            processes.append(psutil.Process(server.pid))
        try:
            yield f"postgresql://postgres:{{}}@127.0.0.1:{port}/postgres"
        finally:
            server.send_signal(signal.SIGINT)
            assert server.wait(START_SECONDS) == 0


def value(url: str, statement: str) -> object:
    """Return a statement's value, from a server that may still be starting."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            with psycopg.connect(url) as connection:
                row = connection.execute(statement).fetchone()
                return row and row[0]
        except psycopg.OperationalError as error:
            refused = "password authentication failed" in str(error)
            if refused or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def test_a_password_is_asked_for_and_changed_by_a_restart_while_the_data_stays() -> None:
    with TemporaryDirectory(prefix="dt-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        with serving(folder, "first's") as url:
            assert value(url.format("first's"), "SELECT current_setting('fsync')") == "on"
            with psycopg.connect(url.format("first's")) as connection:
                connection.execute("CREATE TABLE kept AS SELECT 42 AS n")
            with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
                value(url.format("wrong"), "SELECT 1")
        with serving(folder, "second") as url:
            assert value(url.format("second"), "SELECT n FROM kept") == 42
            with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
                value(url.format("first's"), "SELECT 1")


def test_a_second_server_waits_until_nothing_of_the_first_is_left() -> None:
    with TemporaryDirectory(prefix="dt-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        with ExitStack() as second:
            with serving(folder, "word") as url:
                assert value(url.format("word"), "SELECT 1") == 1
                owner = (folder / "postgres" / "postmaster.pid").read_text().split()[0]
                waiting: list[psutil.Process] = []
                later = second.enter_context(serving(folder, "word", waiting))
                until_it_waits(waiting[0], folder / "lock")
                with pytest.raises(psycopg.OperationalError, match="refused"):
                    psycopg.connect(later.format("word"))
                assert (folder / "postgres" / "postmaster.pid").read_text().split()[0] == owner
                with psycopg.connect(url.format("word")) as connection:
                    connection.execute("CREATE TABLE kept AS SELECT 42 AS n")
            assert value(later.format("word"), "SELECT n FROM kept") == 42


def until_it_waits(process: psutil.Process, lock: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while str(lock) not in {opened.path for opened in process.open_files()}:
        assert time.monotonic() < deadline, "the second server never came to the lock"
        time.sleep(0.1)


def test_migrations_wait_for_a_database_that_still_starts() -> None:
    with TemporaryDirectory(prefix="dt-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        with serving(folder, "word") as url:
            given = os.environ | {"DATABASE_URL": url.format("word")}
            words = [str(DARKTREE), "migrate", "--wait", str(START_SECONDS)]
            done = subprocess.run(words, env=given, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            assert "up to date" in done.stdout
    given = os.environ | {"DATABASE_URL": url.format("word")}
    done = subprocess.run([*words[:2], "--wait", "0.1"], env=given, capture_output=True, text=True)
    assert done.returncode == 1
    assert "does not answer" in done.stderr


def test_without_a_password_nothing_is_served(tmp_path: Path) -> None:
    command = [str(DARKTREE), "postgres", "--data-dir", str(tmp_path)]
    environment = {name: text for name, text in os.environ.items() if name != "DARKTREE_POSTGRES_PASSWORD"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "DARKTREE_POSTGRES_PASSWORD" in done.stderr
    assert not list(tmp_path.iterdir())
