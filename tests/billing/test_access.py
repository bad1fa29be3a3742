"""Who may do what, and what never leaves: tokens, keys, their digests, the pepper."""

import hmac
import logging
from typing import Any

import httpx
import psycopg
import pytest
from psycopg import sql

from darktree_billing.client import key_digest
from darktree_billing.settings import Settings
from darktree_kit.logs import JsonFormatter

ADMIN_PATHS = [
    ("GET", "/admin/customers"),
    ("POST", "/admin/customers"),
    ("GET", "/admin/customers/x"),
    ("GET", "/admin/customers/x/keys"),
    ("POST", "/admin/customers/x/keys"),
    ("DELETE", "/admin/keys/aaaaaaaaaaaa"),
    ("GET", "/admin/customers/x/members"),
    ("POST", "/admin/customers/x/members"),
    ("DELETE", "/admin/customers/x/members/mem_00000000000000000000000000000000"),
    ("GET", "/admin/customers/x/limits"),
    ("PUT", "/admin/customers/x/limits"),
    ("GET", "/admin/customers/x/cap"),
    ("PUT", "/admin/customers/x/cap"),
    ("POST", "/admin/customers/x/grants"),
    ("GET", "/admin/customers/x/balance"),
    ("GET", "/admin/customers/x/entries"),
    ("POST", "/admin/customers/x/adjustments"),
    ("GET", "/admin/holds"),
    ("GET", "/admin/cap-requests"),
    ("POST", "/admin/cap-requests/capreq_1/decision"),
    ("GET", "/admin/lane-requests"),
    ("GET", "/admin/lane-requests/lanereq_1/manifest.yaml"),
    ("POST", "/admin/lane-requests/lanereq_1/decision"),
    ("GET", "/admin/plans"),
    ("GET", "/admin/customers/x/statements/2026-11.json"),
    ("GET", "/admin/closes"),
    ("POST", "/admin/closes/2026-11"),
    ("GET", "/admin/closes/2026-11/pack.zip"),
    ("GET", "/admin/closes/2026-11/preview.zip"),
    ("POST", "/admin/balance-transactions"),
    ("GET", "/admin/reconciliation"),
    ("GET", "/admin/ledger/export"),
    ("POST", "/admin/ledger/check"),
    ("POST", "/admin/customers/x/checkouts"),
    ("GET", "/admin/customers/x/freeze"),
    ("PUT", "/admin/customers/x/freeze"),
    ("GET", "/admin/orders"),
    ("GET", "/admin/orders/ord_1"),
    ("POST", "/admin/orders/ord_1/check"),
    ("POST", "/admin/orders/ord_1/refunds"),
    ("GET", "/admin/reversals"),
    ("GET", "/admin/disputes/du_1/evidence.zip"),
    ("GET", "/admin/events"),
    ("GET", "/admin/events/evt_1"),
    ("POST", "/admin/events/evt_1/retry"),
    ("POST", "/admin/payments/sweep"),
    ("GET", "/admin/payments/status"),
    ("POST", "/admin/backups"),
    ("GET", "/admin/backups/latest"),
    ("GET", "/admin/status"),
]
INTERNAL_PATHS = [
    ("POST", "/internal/keys/verify"),
    ("GET", "/internal/catalog"),
    ("POST", "/internal/engine-readings"),
]
PARAMETERS = {
    "/customers/x": "/customers/{customer_id}",
    "capreq_1": "{request_id}",
    "lanereq_1": "{request_id}",
    "aaaaaaaaaaaa": "{key_id}",
    "2026-11.json": "{period}.{format}",
    "2026-11": "{month}",
    "ord_1": "{order_id}",
    "du_1": "{dispute_id}",
    "evt_1": "{event_id}",
    "mem_00000000000000000000000000000000": "{member_id}",
}


def test_these_are_all_the_endpoints(http: httpx.Client) -> None:
    described = http.get("/openapi.json").json()["paths"]
    endpoints = {(method.upper(), path) for path, methods in described.items() for method in methods}
    listed = set()
    for method, path in ADMIN_PATHS + INTERNAL_PATHS:
        for value, parameter in PARAMETERS.items():
            path = path.replace(value, parameter)
        listed.add((method, path))
    assert endpoints == listed


@pytest.mark.parametrize(("method", "path"), ADMIN_PATHS + INTERNAL_PATHS)
def test_nobody_enters_without_a_token_or_with_a_wrong_one(platform: Any, method: str, path: str) -> None:
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Basic {platform.admin_token}"},
    ):
        refused = platform.http("").request(method, path, headers=headers)
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"].startswith("Bearer")
        assert refused.json()["error"]["code"] == "invalid_api_key"
        assert refused.headers["x-request-id"]


@pytest.mark.parametrize(("method", "path"), ADMIN_PATHS)
def test_a_gateway_may_not_do_an_administrators_work(platform: Any, method: str, path: str) -> None:
    refused = platform.http(platform.gateway_token).request(method, path)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden")


@pytest.mark.parametrize(("method", "path"), INTERNAL_PATHS)
def test_an_administrator_is_no_gateway(http: httpx.Client, method: str, path: str) -> None:
    refused = http.request(method, path)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden")


def test_other_paths_and_methods_and_bodies_that_are_no_json_are_refused_in_the_same_shape(
    http: httpx.Client,
) -> None:
    unknown = http.get("/admin/nothing")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "unknown_url")
    wrong = http.delete("/admin/customers")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")
    broken = http.post("/admin/customers", content=b"{", headers={"Content-Type": "application/json"})
    assert (broken.status_code, broken.json()["error"]["type"]) == (400, "invalid_request_error")


def test_neither_the_database_nor_the_log_ever_holds_a_key_or_its_digest(
    own_platform: Any, caplog: pytest.LogCaptureFixture
) -> None:
    formatter = JsonFormatter("billing")
    with caplog.at_level(logging.DEBUG):
        http, gateway = own_platform.http(), own_platform.http(own_platform.gateway_token)
        http.post("/admin/customers", json={"id": "secretive", "name": "S", "plan": "solo"})
        made = http.post("/admin/customers/secretive/keys", json={}).json()
        digest = key_digest(made["key"])
        body = {"key_id": made["id"], "key_sha256": digest}
        assert gateway.post("/internal/keys/verify", json=body).status_code == 200
        gateway.post("/internal/keys/verify", json=body | {"more": made["key"]})
        own_platform.sql("ALTER TABLE billing.api_key RENAME TO away")
        assert http.post("/admin/customers/secretive/keys", json={}).status_code == 500
        assert gateway.post("/internal/keys/verify", json=body).status_code == 500
        own_platform.sql("ALTER TABLE billing.away RENAME TO api_key")
    lines = "\n".join(formatter.format(record) for record in caplog.records if record.name != "httpx")
    assert "unhandled error" in lines
    pepper = own_platform.settings.key_pepper.get_secret_value()
    stored = hmac.digest(pepper.encode(), bytes.fromhex(digest), "sha256").hex()
    secret = made["key"].rpartition("_")[2]
    for forbidden in (secret, digest, stored, pepper, own_platform.admin_token, own_platform.gateway_token):
        assert forbidden not in lines
    dump = _everything_in(own_platform)
    assert stored in dump  # the dump does show what is stored
    for forbidden in (secret, digest, pepper):
        assert forbidden not in dump


def test_settings_do_not_print_their_secrets(platform: Any) -> None:
    settings: Settings = platform.settings
    for secret in (settings.key_pepper, settings.admin_token, settings.ledger_token, settings.gateway_token):
        assert secret.get_secret_value() not in repr(settings)
        assert secret.get_secret_value() not in settings.model_dump_json()


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM billing.customer",
        "DELETE FROM billing.api_key",
        "TRUNCATE billing.api_key",
        "DROP TABLE billing.api_key",
        "ALTER TABLE billing.customer ADD COLUMN more text",
        "ALTER TABLE billing.api_key DISABLE TRIGGER ALL",
        "CREATE TABLE billing.more (id int)",
        "CREATE INDEX ON billing.customer (name)",
        "CREATE FUNCTION billing.more() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "UPDATE billing.alembic_version SET version_num = '0001'",
        "SELECT * FROM billing.alembic_version",
        "SELECT * FROM ledger.entry",
        "SELECT * FROM ledger.account",
        "SELECT ledger.apply('[]')",
        "SET ROLE darktree_owner",
        "SET ROLE darktree_ledger",
        "CREATE SCHEMA more",
        "CREATE TABLE public.more (id int)",
    ],
)
def test_the_services_role_may_not(platform: Any, statement: str) -> None:
    with psycopg.connect(platform.database.url_as("darktree_billing"), autocommit=True) as connection:
        assert connection.execute("SELECT count(*) FROM billing.customer").fetchone() is not None
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(statement.encode())


def test_every_table_belongs_to_the_owner_who_cannot_log_in(platform: Any) -> None:
    owners = platform.sql("SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'billing'")
    assert owners == [("darktree_owner",)]
    assert platform.sql("SELECT rolcanlogin, rolsuper FROM pg_roles WHERE rolname = 'darktree_owner'") == [
        (False, False)
    ]
    with psycopg.connect(platform.database.url_as("darktree_billing"), autocommit=True) as connection:
        connection.execute(
            "GRANT ALL ON billing.customer TO PUBLIC"
        )  # Postgres only warns that it granted nothing
    granted = platform.sql(
        "SELECT DISTINCT grantee, privilege_type FROM information_schema.role_table_grants"
        " WHERE table_schema = 'billing' AND grantee <> 'darktree_owner' AND table_name <> ALL(%s) ORDER BY 2",
        ["lane_reading", "member", "sign_in_link", "console_session", "stripe_event"],
    )  # old readings of engines, who may sign in, and events of Stripe long handled: all that billing forgets
    assert granted == [("darktree_billing", verb) for verb in ("INSERT", "SELECT", "UPDATE")]


def _everything_in(platform: Any) -> str:
    """Return every value of every table of this database, as text."""
    tables = platform.sql(
        "SELECT schemaname, tablename FROM pg_tables WHERE schemaname IN ('billing', 'ledger', 'public')"
    )
    with psycopg.connect(platform.database.admin_url) as connection:
        return "\n".join(
            str(row)
            for schema, table in tables
            for row in connection.execute(
                sql.SQL("SELECT t::text FROM {} t").format(sql.Identifier(schema, table))
            )
        )
