"""Billing tells what ends by itself, and where the books stand; both from a running service's metrics."""

import re
import time
from typing import Any

import httpx

WAIT_SECONDS = 30


def gauge(url: str, name: str) -> float | None:
    found = re.search(rf"^{re.escape(name)} (\S+)$", httpx.get(f"{url}/metrics").text, re.MULTILINE)
    return float(found[1]) if found else None


def until(url: str, name: str, value: float) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while (found := gauge(url, name)) != value:
        assert time.monotonic() < deadline, f"{name} is {found}, not {value}"
        time.sleep(0.05)


def test_keys_in_use_that_expire_within_a_week_are_counted(own_platform: Any) -> None:
    http = own_platform.http()
    http.post("/admin/customers", json={"id": "acme", "name": "Acme", "plan": "solo"}).raise_for_status()
    ids = {
        name: http.post("/admin/customers/acme/keys", json={"name": name}).json()["id"]
        for name in ("soon", "later", "unused", "revoked", "expired", "lasting")
    }
    used = "UPDATE billing.api_key SET last_used_day = current_date WHERE name <> 'unused'"
    own_platform.sql(used)
    for name, when in (("soon", 6), ("later", 8), ("unused", 1), ("revoked", 1), ("expired", -1)):
        expires = f"UPDATE billing.api_key SET expires_at = now() + interval '{when} days' WHERE id = %s"
        own_platform.sql(expires, ids[name])
    http.delete(f"/admin/keys/{ids['revoked']}").raise_for_status()
    url = own_platform.serve_billing(expiries_seconds=0.1)
    until(url, "darktree_api_keys_expiring", 1)
    own_platform.sql("UPDATE billing.api_key SET expires_at = NULL WHERE name = 'soon'")
    until(url, "darktree_api_keys_expiring", 0)


def test_the_books_are_told_by_account(own_platform: Any) -> None:
    http = own_platform.http()
    http.post("/admin/customers", json={"id": "acme", "name": "Acme", "plan": "solo"}).raise_for_status()
    given = http.post("/admin/customers/acme/grants", json={"dollars": "50", "reason": "a test"}).json()
    url = own_platform.serve_billing(reconcile_seconds=0.1)
    nanos = given["amount_nanos"]
    until(url, 'darktree_books_credit_nanos{account="customer_credits",model=""}', nanos)
    until(url, 'darktree_books_debit_nanos{account="bonus_credits",model=""}', nanos)
