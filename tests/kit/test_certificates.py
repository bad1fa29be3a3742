"""When a certificate ends, as a real server says: over HTTPS, and Postgres' way of beginning TLS."""

import os
import pwd
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from aiohttp import web
from self_signed import self_signed

from darktree_cli.ports import Ports
from darktree_kit import certificates

ENDS = datetime(2031, 2, 3, 4, 5, 6, tzinfo=UTC)
POSTGRES = Path("/usr/lib/postgresql/15/bin")


@pytest.mark.parametrize("ends", [ENDS, datetime(2020, 1, 1, tzinfo=UTC)], ids=["valid", "ended"])
async def test_a_web_servers_certificate_is_read_whoever_signed_it(tmp_path: Path, ends: datetime) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*self_signed(tmp_path, ends))
    runner = web.AppRunner(web.Application())
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    try:
        url = f"https://127.0.0.1:{runner.addresses[0][1]}/v1"
        assert await certificates.expiry(url) == ends
        assert certificates.target(url) == url.removeprefix("https://").removesuffix("/v1")
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/v1", "postgresql://me@/db?host=/tmp", ""])
async def test_where_there_is_no_tls_there_is_nothing_to_tell(url: str) -> None:
    assert await certificates.expiry(url) is None


@pytest.mark.parametrize("scheme", ["https", "postgresql+psycopg"])
async def test_a_server_that_is_away_is_an_error_of_the_network(scheme: str, port: int) -> None:
    with pytest.raises(OSError, match=r"Connect call failed"):
        await certificates.expiry(f"{scheme}://127.0.0.1:{port}/x")


def test_a_target_has_neither_user_nor_password() -> None:
    assert certificates.target("postgresql://me:secret@db.example/darktree") == "db.example:5432"


@pytest.fixture
def port() -> Iterator[int]:
    """One on which nobody listens, unless the test does."""
    with Ports() as ports:
        yield ports.free()


@contextmanager
def postgres(port: int, tls: bool) -> Iterator[str]:
    """Debian's Postgres on a port of this machine, run by whom it lets run it."""
    with TemporaryDirectory(prefix="dt-") as made:
        home = Path(made)
        files = self_signed(home, ENDS)
        account = pwd.getpwnam("postgres") if os.geteuid() == 0 else None
        if account is not None:
            for path in (home, *files):
                os.chown(path, account.pw_uid, account.pw_gid)

        def run(program: str, *words: str) -> None:
            who = {} if account is None else {"user": account.pw_uid, "group": account.pw_gid}
            command = [str(POSTGRES / program), "-D", str(home / "data"), *words]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=home, **who)  # type: ignore[call-overload]

        run("initdb", "-A", "trust", "-U", "admin", "--no-sync")
        secured = f"-c ssl=on -c ssl_cert_file={files[0]} -c ssl_key_file={files[1]}" if tls else ""
        options = f"-c listen_addresses=127.0.0.1 -k {home} -p {port} {secured}"
        run("pg_ctl", "-w", "-l", str(home / "log"), "-o", options, "start")
        try:
            yield f"postgresql://admin:secret@127.0.0.1:{port}/postgres"
        finally:
            run("pg_ctl", "-w", "-m", "immediate", "stop")


@pytest.mark.skipif(not POSTGRES.is_dir(), reason="apt-get install postgresql-15")
@pytest.mark.parametrize("tls", [True, False], ids=["with TLS", "without"])
async def test_postgres_tells_its_certificate_when_it_has_one(tls: bool, port: int) -> None:
    with postgres(port, tls) as url:
        assert await certificates.expiry(url) == (ENDS if tls else None)
