"""The doctor finds what is broken in a running installation, names it alone, and says what mends it."""

import json
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from darktree_cli.doctor_database import compare_clocks

Running = Any  # what conftest.py makes, which cannot be imported
Findings = dict[str, dict[str, Any]]
EXAMINE_SECONDS = 90
LOOKED_AT = {
    "administration",
    "backup",
    "billing's version",
    "clock",
    "connections",
    "durability",
    "log",
    "payments",
    "plans",
    "role darktree_billing",
    "role darktree_ledger",
    "role darktree_sealer",
    "schema billing",
    "schema ledger",
}


@pytest.fixture
def examine(
    platform: Running, darktree: Callable[..., Any], eventually: Callable[..., Any], tmp_path: Path
) -> Callable[..., Findings]:
    """Runs the doctor as from another machine until these alone are not well, as a busy machine may not be at once;
    returns what it found."""

    def run(*words: str, not_well: Sequence[str] = ()) -> Findings:
        def findings() -> Findings | None:
            ran = darktree(
                *("doctor", "--output", "json", *words),
                cwd=tmp_path,
                DARKTREE_ADMIN_URL=platform.ready["admin_url"],
                DARKTREE_ADMIN_TOKEN=platform.ready["admin_token"],
                DATABASE_URL=platform.ready["database_url"],
            )
            assert ran.stdout, ran.stderr
            found = {found["what"]: found for found in json.loads(ran.stdout)["findings"]}
            wrong = [what for what in found if not found[what]["ok"]]
            assert ran.returncode == bool(wrong)
            return found if wrong == [*not_well] else None

        found: Findings = eventually(findings, f"not well: {not_well}", EXAMINE_SECONDS)
        return found

    return run


@pytest.fixture(autouse=True)
def _backed_up(platform: Running) -> None:
    headers = {"Authorization": f"Bearer {platform.ready['admin_token']}"}
    url = platform.ready["admin_url"] + "/admin/backups"
    assert httpx.post(url, json={"made_by": "a test"}, headers=headers).status_code == 201


def test_a_whole_installation_is_well_and_every_part_was_looked_at(examine: Callable[..., Any]) -> None:
    assert set(examine()) == LOOKED_AT


@pytest.mark.parametrize(
    ("broken", "mended", "what", "detail"),
    [
        (
            "GRANT INSERT ON ledger.entry TO darktree_billing",
            "REVOKE INSERT ON ledger.entry FROM darktree_billing",
            "role darktree_billing",
            "may write entries",
        ),
        ("ALTER ROLE darktree_sealer CREATEROLE", "ALTER ROLE darktree_sealer NOCREATEROLE", "role darktree_sealer",
         "SUPERUSER"),
        (
            "GRANT darktree_owner TO darktree_ledger",
            "REVOKE darktree_owner FROM darktree_ledger",
            "role darktree_ledger",
            "act as the owner",
        ),
        (
            "UPDATE billing.alembic_version SET version_num = '0001'",
            "UPDATE billing.alembic_version SET version_num = '{billing}'",
            "schema billing",
            "at 0001",
        ),
        (
            "UPDATE billing.backup SET started_at = started_at - interval '3 days'",
            "UPDATE billing.backup SET started_at = started_at + interval '3 days'",
            "backup",
            "72.0 h ago",
        ),
    ],
)  # fmt: skip
def test_each_fault_is_found_alone_with_advice(
    platform: Running, examine: Callable[..., Any], broken: str, mended: str, what: str, detail: str
) -> None:
    with psycopg.connect(platform.ready["database_url"], autocommit=True) as connection:
        row = connection.execute("SELECT version_num FROM billing.alembic_version").fetchone()
        assert row is not None
        connection.execute(broken.encode())
        try:
            findings = examine(not_well=[what])
        finally:
            connection.execute(mended.replace("{billing}", row[0]).encode())
    assert detail in findings[what]["detail"]
    assert findings[what]["advice"]


@pytest.mark.parametrize(("there", "ok"), [(-2.1, False), (-1.9, True), (11.9, True), (12.1, False)])
def test_only_what_asking_the_time_does_not_explain_is_a_wrong_clock(there: float, ok: bool) -> None:
    asked = datetime.now(UTC)
    answered, told = (asked + timedelta(seconds=seconds) for seconds in (10, there))
    assert compare_clocks(asked, told, answered).ok is ok


def test_a_certificate_that_ends_soon_is_told(examine: Callable[..., Any], tmp_path: Path) -> None:
    with serving_tls(tmp_path, days=3) as soon, serving_tls(tmp_path, days=90) as later:
        what = f"certificate of {soon.removeprefix('https://')}"
        found = examine("--address", soon, not_well=[what])[what]
        assert (found["detail"], found["advice"]) == ("good for 3 days", "renew it")
        assert examine("--address", later).keys() > LOOKED_AT


def test_a_database_that_may_not_be_looked_into_is_a_finding(
    platform: Running, darktree: Callable[..., Any], tmp_path: Path
) -> None:
    ran = darktree(
        "doctor",
        cwd=tmp_path,
        DARKTREE_ADMIN_URL=platform.ready["admin_url"],
        DARKTREE_ADMIN_TOKEN=platform.ready["admin_token"],
        DATABASE_URL="postgresql://nobody@127.0.0.1:9/nowhere",
    )
    assert ran.returncode == 1
    assert "database, looked into" in ran.stdout
    assert "Traceback" not in ran.stderr


@contextmanager
def serving_tls(folder: Path, days: int) -> Iterator[str]:
    """An https server whose certificate is good for so many days."""
    key, now = Ed25519PrivateKey.generate(), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "darktree.test")])
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=days, hours=1))
        .sign(key, None)
    )
    file = folder / f"{days}.pem"
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file.write_bytes(private + signed.public_bytes(Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"https://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
