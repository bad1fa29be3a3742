"""A Postgres of one's own over TLS that is checked: all works, and a server that cannot prove itself gets nothing."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import psycopg
import pytest
from pair import VERSION, binaries
from secured import Secured, running_with_tls

Platform = Any  # what tests/platform/conftest.py makes, which cannot be imported
Send = Callable[..., Coroutine[Any, Any, Any]]

DARKTREE = str(Path(sys.executable).with_name("darktree"))
NOT_TRUSTED = "certificate verify failed"
CHAT = {
    "model": "qwen25-14b-awq",
    "messages": [{"role": "user", "content": "Count the leaves"}],
    "max_tokens": 8,
}

pytestmark = pytest.mark.skipif(
    binaries() is None, reason=f"no Postgres with TLS: apt-get install postgresql-{VERSION}"
)


@pytest.fixture(scope="module")
def postgres() -> Iterator[Secured]:
    with running_with_tls() as running:
        yield running


@pytest.fixture(scope="module")
def platform(postgres: Secured, started: Any) -> Iterator[Platform]:
    with started({"fast": 2000}, gateways=1, DATABASE_URL=postgres.url(postgres.authority)) as running:
        yield running


def darktree(*words: str, url: str, code: int = 0, **given: str) -> str:
    """Run a command on the database that a URL names; return what it said."""
    env = os.environ | {"DATABASE_URL": url} | given
    ran = subprocess.run([DARKTREE, *words], env=env, capture_output=True, text=True, timeout=120)
    assert ran.returncode == code, ran.stdout + ran.stderr
    return ran.stdout if code == 0 else ran.stderr


def test_it_admits_nobody_without_tls(postgres: Secured) -> None:
    with pytest.raises(psycopg.OperationalError, match="no encryption"):
        psycopg.connect(postgres.url(postgres.authority, sslmode="disable"))


def test_every_service_works_over_tls_and_charges(platform: Platform, send: Send) -> None:
    customer = platform.customer(cap_tokens=1_000)

    async def ask() -> Any:
        async with aiohttp.ClientSession() as session:
            return await send(session, platform.base_url, customer, CHAT)

    answer = asyncio.run(ask())
    assert answer.whole
    assert platform.charged(answer) == [("usage", *answer.usage)]
    sessions = platform.sql(
        "SELECT usename, bool_and(ssl) AS ssl, min(version) AS oldest"
        " FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)"
        " WHERE starts_with(usename::text, 'darktree_') GROUP BY usename ORDER BY usename"
    )
    assert [(row["usename"], row["ssl"]) for row in sessions] == [
        ("darktree_billing", True),
        ("darktree_ledger", True),
        ("darktree_sealer", True),
    ]
    assert {row["oldest"] for row in sessions} == {"TLSv1.3"}
    platform.must_add_up([customer], [answer])


def test_a_backup_is_made_over_tls_by_the_role_that_migrates(
    platform: Platform, postgres: Secured, tmp_path: Path
) -> None:
    """As the chart's job makes it, with whatever pg_dump there is."""
    url = postgres.url(postgres.authority)
    darktree("migrate", url=url, DARKTREE_MIGRATOR_ROLE_PASSWORD="of-the-migrator")
    login = "darktree_migrator:of-the-migrator"
    words = ("backup", str(tmp_path / "made"), "--data-dir", str(platform.data_dir), "--output", "json")
    made = json.loads(darktree(*words, url=postgres.url(postgres.authority, login)))
    assert made["entries"] >= 1
    refused = darktree(*words, url=postgres.url(postgres.other_authority, login), code=1)
    assert NOT_TRUSTED in refused


def test_a_server_that_another_authority_vouches_for_is_refused_and_the_message_says_why(
    postgres: Secured, tmp_path: Path
) -> None:
    url = postgres.url(postgres.other_authority)
    migrated = darktree("migrate", url=url, code=1)
    words = ("up", "--data-dir", str(tmp_path / "data"), "--port", "0")
    served = darktree(*words, url=url, code=1)
    for said in (migrated, served):
        assert NOT_TRUSTED in said
        assert "Traceback" not in said
        assert "of-the-administrator" not in said, "the password"


def test_a_server_that_is_called_by_another_name_than_its_certificate_says_is_refused(
    postgres: Secured,
) -> None:
    url = postgres.url(postgres.authority).replace("@127.0.0.1:", "@localhost:")
    said = darktree("migrate", url=url, code=1)
    assert "does not match host name" in said
