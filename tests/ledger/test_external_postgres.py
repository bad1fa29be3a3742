"""The ledger on a server of somebody else's, and of an older version: the oldest that it promises to work on."""

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import psycopg
import pytest

from darktree_kit import migrate
from darktree_ledger.schemas import OPERATIONS, RESULTS

OLDEST = 15
PORT = 5432  # of a socket in a folder of its own: nothing listens on TCP


def binaries() -> Path | None:
    """Where the oldest supported Postgres is: as Debian lays it out."""
    folder = Path(f"/usr/lib/postgresql/{OLDEST}/bin")
    return folder if (folder / "initdb").exists() else None


@pytest.fixture(scope="module")
def server_url() -> Iterator[str]:
    """A server started from Debian's own binaries, by an account that may (Postgres refuses root)."""
    folder = binaries()
    if folder is None:
        pytest.skip(f"PostgreSQL {OLDEST} is not installed: apt-get install postgresql-{OLDEST}")
    home = Path(mkdtemp(prefix="dt-"))
    account = _account()
    if account is not None:
        os.chown(home, account.pw_uid, account.pw_gid)

    def run(program: str, *words: str) -> None:
        options = (
            {} if account is None else {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": ()}
        )
        command = [str(folder / program), "-D", str(home / "data"), *words]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=home, **options)  # type: ignore[call-overload]

    run("initdb", "-A", "trust", "-U", "admin")
    run("pg_ctl", "-w", "-l", str(home / "log"), "-o", f"-c listen_addresses= -k {home} -p {PORT}", "start")
    try:
        yield f"postgresql://admin@/postgres?host={home}&port={PORT}"
    finally:
        run("pg_ctl", "-w", "-m", "fast", "stop")
        shutil.rmtree(home)


def _account() -> pwd.struct_passwd | None:
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name: entry for entry in pwd.getpwall()}
    return names.get("postgres") or names["nobody"]


@pytest.fixture(scope="module")
def deployer_url(server_url: str) -> str:
    """Somebody who may create roles and schemas, and is no superuser."""
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute("CREATE ROLE deployer LOGIN CREATEROLE")
        connection.execute("CREATE DATABASE darktree OWNER deployer")
    return server_url.replace("admin@/postgres", "deployer@/darktree")


def test_a_request_is_held_and_charged_on_the_oldest_postgres(deployer_url: str, build: Any) -> None:
    for package, schema in (("darktree_ledger", "ledger"), ("darktree_billing", "billing")):
        migrate.upgrade(deployer_url, package, schema=schema)
    for role in ("darktree_ledger", migrate.MIGRATOR_ROLE):
        migrate.allow_login(deployer_url, role, "unused: the socket is trusted")
    migrator_url = deployer_url.replace("deployer@", f"{migrate.MIGRATOR_ROLE}@")
    migrate.upgrade(migrator_url, "darktree_ledger", schema="ledger")
    placed = build.hold("acme", 10, 500)
    paid = build.settle(placed, 10, 40)
    with psycopg.connect(deployer_url.replace("deployer@", "darktree_ledger@"), autocommit=True) as runtime:
        assert runtime.info.server_version // 10_000 == OLDEST
        runtime.execute("SELECT ledger.prepare_months()")
        results = []
        for operation in (build.open("acme", 100), build.grant("acme", build.dollar), placed, paid):
            body = OPERATIONS.dump_json([operation]).decode()
            row = runtime.execute("SELECT ledger.apply(%s::jsonb)", [body]).fetchone()
            assert row is not None
            results += RESULTS.validate_json(row[0])
        assert [result.outcome for result in results] == ["done"] * 4
        assert (results[2].completion_tokens, results[3].charged_tokens, results[3].day_tokens) == (
            90,
            50,
            50,
        )
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            runtime.execute("DELETE FROM ledger.entry")
