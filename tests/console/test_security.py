"""The console under attack: every page and form that there is, found by asking the application for its routes.

A new route is attacked by itself; a new parameter in a path fails here until it is told what another's would be.
"""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fastapi import FastAPI
from psycopg import sql
from pydantic import SecretStr

from darktree_billing.app import make_app
from darktree_billing.console.headers import HEADERS, MAX_FORM_BYTES
from darktree_billing.settings import Settings
from darktree_kit.ids import uuid7
from darktree_stripe_simulator.client import StripeStandIn

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TEAM = "ops@darktree.test"
DEADLINE_SECONDS = 20
OUTSIDE = {
    "/console/sign-in",
    "/console/sign-in/{token}",
    "/console/static/{name}",
}  # for whoever is not signed in
NOT_SIGNED_UP = {"/console/welcome", "/console/sign-out"}
UUID = "01930000-0000-7000-8000-000000000001"


def routes(app: FastAPI) -> Iterator[tuple[str, str]]:
    """Return (method, path) of every page."""
    waiting = list(app.routes)
    while waiting:
        route: Any = waiting.pop()
        inner = getattr(route, "original_router", None)
        if inner is not None:
            waiting += inner.routes
        elif route.path.startswith(("/console", "/admin/console")):
            for method in sorted(route.methods - {"HEAD"}):
                yield method, route.path


def _described() -> list[tuple[str, str]]:
    secret = SecretStr("a secret of the tests")
    settings = Settings(
        database_url=SecretStr("postgresql://nobody@nowhere/nothing"),
        ledger_url="http://nowhere",
        ledger_token=secret,
        gateway_token=secret,
        admin_token=secret,
        key_pepper=secret,
        plans_file=EXAMPLES / "plans.yaml",
    )
    return sorted(set(routes(make_app(settings))))


ROUTES = _described()
SIGNED_IN = [(method, path) for method, path in ROUTES if path not in OUTSIDE]
FORMS = [path for method, path in SIGNED_IN if method == "POST"]
PAGES = [path for method, path in SIGNED_IN if method == "GET"]
CUSTOMER_FORMS = [path for path in FORMS if path.startswith("/console")]
TEAM_ROUTES = [(method, path) for method, path in ROUTES if path.startswith("/admin")]


@dataclass
class Scene:
    """A console that sells; a victim who has one of everything; and an attacker with an account of their own."""

    platform: Any
    stripe: StripeStandIn
    url: str
    victim: Any
    attacker: Any
    staff: Any
    victims: dict[str, str]

    def origin(self) -> dict[str, str]:
        return {"Origin": self.url}

    def path(self, route: str) -> str:
        """Return a route's path with the victim's ids in it."""
        return re.sub(r"\{(\w+)\}", lambda found: self.victims[found[1]], route)

    def settle(self) -> None:
        """Wait until every event that has come is handled."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while self.platform.sql("SELECT 1 FROM billing.stripe_event WHERE state = 'waiting' LIMIT 1"):
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def belongings(self) -> dict[str, list[Any]]:
        """Return every row of the victim's, of billing and of the ledger, but for when Stripe was last looked at."""
        self.settle()
        owner = {"billing.customer": "id"}
        with psycopg.connect(self.platform.database.admin_url) as connection:
            tables = connection.execute(
                "SELECT table_schema, table_name FROM information_schema.columns"
                " JOIN information_schema.tables USING (table_schema, table_name)"
                " WHERE column_name = 'customer_id' AND table_type = 'BASE TABLE'"
                " AND table_schema IN ('billing', 'ledger') AND table_name !~ '_[0-9]{4}_[0-9]{2}$'"
            ).fetchall()
            found = {}
            for schema, table in [*tables, ("billing", "customer")]:
                query = sql.SQL(
                    "SELECT (to_jsonb(t) - 'checked_at')::text FROM {} t WHERE {} = %s ORDER BY 1"
                ).format(
                    sql.Identifier(schema, table),
                    sql.Identifier(owner.get(f"{schema}.{table}", "customer_id")),
                )
                found[f"{schema}.{table}"] = connection.execute(
                    query, [self.victims["customer_id"]]
                ).fetchall()
        return found


@pytest.fixture(scope="module")
def scene(
    platform: Any, make_stripe: Callable[..., AbstractContextManager[StripeStandIn]]
) -> Iterator[Scene]:
    with make_stripe() as stripe:
        url = platform.serve_billing(
            stripe_api_key=SecretStr(stripe.key),
            stripe_api_base=stripe.url,
            stripe_webhook_secrets=SecretStr(stripe.webhook_secret),
            stripe_poll_seconds=86_400,
        )
        stripe.send_to(f"{url}/webhooks/stripe")
        victim = platform.sign_up("victim@acme.test", "Victim Ltd", platform.browser(url))
        attacker = platform.sign_up("mallory@evil.test", "Mallory", platform.browser(url))
        staff = platform.sign_in(TEAM, platform.browser(url))
        yield Scene(
            platform, stripe, url, victim, attacker, staff, _one_of_everything(platform, stripe, victim)
        )


def _one_of_everything(platform: Any, stripe: StripeStandIn, victim: Any) -> dict[str, str]:
    """Give the victim a key, an entry, an order, a dispute, requests; return what each is known by in a path."""
    headers = {"Authorization": f"Bearer {platform.settings.admin_token.get_secret_value()}"}
    customer_id = platform.customer_of("victim@acme.test")

    def ask(method: str, path: str, body: Any = None) -> Any:
        answer = victim.request(method, path, json=body, headers=headers)
        assert answer.is_success, answer.text
        return answer.json()

    root = f"/admin/customers/{customer_id}"
    key = ask("POST", f"{root}/keys", {"name": "victim's key"})
    ask("POST", f"{root}/grants", {"dollars": "5", "reason": "victim's grant"})
    order = ask("POST", f"{root}/checkouts", {"plan": "solo"})
    session_id = ask("GET", f"/admin/orders/{order['order_id']}")["session_id"]
    stripe.pay(session_id)
    stripe.deliver()
    charge = ask("POST", f"/admin/orders/{order['order_id']}/check")["charge_id"]
    dispute = stripe.dispute(charge)
    stripe.deliver()
    lane = victim.submit(
        "/console/dedicated", model="qwen25-14b-awq", tokens_per_day="1000", reason="victim's lane"
    )
    assert lane.status_code == 303
    ((lane_id,),) = platform.sql("SELECT id FROM billing.lane_request WHERE customer_id = %s", customer_id)
    ((member_id,),) = platform.sql("SELECT id FROM billing.member WHERE customer_id = %s", customer_id)
    ((event_id,),) = platform.sql("SELECT min(id) FROM billing.stripe_event")
    return {
        "customer_id": customer_id,
        "key_id": key["id"],
        "order_id": order["order_id"],
        "session_id": session_id,
        "dispute_id": dispute["id"],
        "event_id": event_id,
        "request_id": lane_id,
        "member_id": member_id,
        "seq": "1",
        "period": "2026-11",
        "month": "2026-11",
        "format": "csv",
        "token": "x" * 43,
        "name": "console.css",
    }


def test_the_victim_has_what_every_path_names(scene: Scene) -> None:
    named = {name for _, path in ROUTES for name in re.findall(r"\{(\w+)\}", path)}
    assert named <= set(scene.victims), "say in `_one_of_everything` what another customer's would be"
    assert len(PAGES) > 15
    assert len(FORMS) > 8


# Without a session.


@pytest.mark.parametrize(("method", "path"), SIGNED_IN)
def test_without_a_session_every_page_and_form_leads_to_the_sign_in(
    scene: Scene, method: str, path: str
) -> None:
    stranger = scene.platform.browser(scene.url)
    for made_up in ("", "A" * 43, "short", "é" * 43):
        headers = scene.origin() | ({"Cookie": f"darktree={made_up}".encode()} if made_up else {})
        answer = stranger.request(method, scene.path(path), headers=headers)
        assert answer.status_code == 303, answer.text
        assert answer.headers["location"].startswith("/console/sign-in")
        assert not stranger.cookies


# Forged forms.


@pytest.mark.parametrize("path", FORMS)
def test_a_form_without_this_sessions_token_or_from_elsewhere_is_refused(scene: Scene, path: str) -> None:
    person = scene.staff if path.startswith("/admin") else scene.attacker
    own, others, target = person.csrf(), scene.victim.csrf(), scene.path(path)
    before = scene.belongings()
    forged: list[tuple[dict[str, str], dict[str, str]]] = [
        ({}, scene.origin()),
        ({"csrf": ""}, scene.origin()),
        ({"csrf": own[:-1]}, scene.origin()),
        ({"csrf": others}, scene.origin()),
        ({"csrf": own}, {}),
        ({"csrf": own}, {"Origin": "null"}),
        ({"csrf": own}, {"Origin": "https://evil.test"}),
        ({"csrf": own}, {"Origin": scene.url + ".evil.test"}),
        ({"csrf": own}, {"Referer": "https://evil.test" + scene.url}),
    ]
    for fields, headers in forged:
        answer = person.post(target, data=fields, headers=headers)
        assert answer.status_code == 403, (fields, headers, answer.status_code)
    assert scene.belongings() == before


# Other customers.


@pytest.mark.parametrize("path", [path for path in PAGES if path.startswith("/console")])
def test_no_page_shows_another_customers_anything(scene: Scene, path: str) -> None:
    names = [f"{name}={value}" for name, value in scene.victims.items() if name != "name"]
    for query in ("", "?" + "&".join(names)):
        answer = scene.attacker.get(scene.path(path) + query)
        assert answer.status_code < 500
        if answer.status_code in {200, 303}:
            shown = answer.text + answer.headers.get("location", "")
            for secret in ("Victim Ltd", "victim@acme.test", "victim's", "victim&#39;s"):
                assert secret not in shown
            for name in ("key_id", "order_id", "session_id", "member_id", "dispute_id", "request_id"):
                assert scene.victims[name] not in answer.text.replace(query.lstrip("?"), ""), name


@pytest.mark.parametrize("path", CUSTOMER_FORMS)
def test_no_form_changes_another_customers_anything(scene: Scene, path: str) -> None:
    if path == "/console/sign-out":
        pytest.skip("it ends the attacker's own session")
    before = scene.belongings()
    fields = scene.victims | {
        "id": scene.victims["key_id"],
        "customer": scene.victims["customer_id"],
        "member": scene.victims["member_id"],
        "email": "victim@acme.test",
        "plan": "solo",
        "name": "mallory was here",
        "cap_tokens": "1",
        "tokens": "1",
        "reason": "mallory",
        "model": "qwen25-14b-awq",
        "tokens_per_day": "1",
    }
    answer = scene.attacker.submit(scene.path(path), **fields)
    assert answer.status_code < 500, answer.text
    assert scene.belongings() == before
    assert "Victim Ltd" not in answer.text


@pytest.mark.parametrize(("method", "path"), TEAM_ROUTES)
def test_no_customer_is_ever_the_team(scene: Scene, method: str, path: str) -> None:
    before = scene.belongings()
    if method == "POST":
        answer = scene.attacker.submit(scene.path(path), decision="approve", dollars="100", reason="mine")
    else:
        answer = scene.attacker.get(scene.path(path))
    assert answer.status_code == 403
    assert "Victim" not in answer.text
    assert scene.belongings() == before


# Headers, methods, sizes.


def test_every_answer_of_a_page_has_the_headers_that_keep_others_out(scene: Scene) -> None:
    seen = set()
    for person in (scene.victim, scene.staff, scene.platform.browser(scene.url)):
        for method, path in ROUTES:
            answer = person.request(method, scene.path(path))
            seen.add(answer.status_code)
            for name, value in HEADERS.items():
                if not (path.startswith("/console/static") and name == "cache-control"):
                    assert answer.headers.get(name) == value, (method, path, answer.status_code, name)
    assert {200, 303, 403, 404} <= seen
    lost = scene.victim.get("/console/no-such-page")
    assert (lost.status_code, lost.headers["x-frame-options"]) == (404, "DENY")
    policy = HEADERS["content-security-policy"]
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy


def test_no_page_has_a_script_or_a_style_of_its_own(scene: Scene) -> None:
    for person, prefix in ((scene.victim, "/console"), (scene.staff, "/admin/console")):
        for path in (path for path in PAGES if path.startswith(prefix)):
            answer = person.get(scene.path(path))
            if "text/html" not in answer.headers.get("content-type", ""):
                continue
            assert not re.search(r"<style|\sstyle=|\son[a-z]+=|javascript:", answer.text), path
            for script in re.findall(r"<script[^>]*>", answer.text):
                assert 'src="/console/static/' in script, (path, script)


def test_looking_changes_nothing(scene: Scene) -> None:
    scene.victim.page("/console/dedicated")  # whatever was still to be said once
    before = scene.belongings()
    for path in PAGES:
        scene.victim.get(scene.path(path))
    assert scene.belongings() == before


@pytest.mark.parametrize(("method", "path"), SIGNED_IN)
def test_other_methods_lead_nowhere(scene: Scene, method: str, path: str) -> None:
    allowed = {one for one, other in ROUTES if other == path}
    for wrong in {"PUT", "PATCH", "DELETE", "POST", "OPTIONS"} - allowed:
        answer = scene.victim.request(wrong, scene.path(path), headers=scene.origin())
        assert answer.status_code in {404, 405}, (wrong, path)


def test_a_form_that_is_too_large_or_hides_its_length_is_not_read(scene: Scene) -> None:
    large = scene.attacker.post(
        "/console/dedicated", data={"csrf": "x" * MAX_FORM_BYTES}, headers=scene.origin()
    )
    assert large.status_code == 413
    hidden = scene.attacker.post("/console/dedicated", content=iter([b"csrf=x"]), headers=scene.origin())
    assert hidden.status_code == 411
    many = scene.attacker.post(
        "/console/dedicated",
        content="&".join(f"f{number}=" for number in range(5_000)),
        headers=scene.origin() | {"Content-Type": "application/x-www-form-urlencoded"},
    )
    assert many.status_code in {400, 403}
    odd = scene.attacker.post(
        "/console/dedicated", content=b"\xff\xfe=%ff", headers=scene.origin() | {"Content-Type": "text/plain"}
    )
    assert odd.status_code == 403
    files = scene.attacker.post("/console/dedicated", files={"csrf": ("x", b"y")}, headers=scene.origin())
    assert files.status_code in {400, 403}


def test_a_null_character_is_refused_and_not_a_failure(scene: Scene) -> None:
    answer = scene.attacker.submit("/console/dedicated", reason="a\0b", tokens_per_day="1")
    assert answer.status_code == 400
    assert scene.attacker.get("/admin/console/customers?q=%00").status_code in {403, 404}


def test_ids_in_paths_that_are_none_are_not_found(scene: Scene) -> None:
    for _, path in ROUTES:
        if "{" in path and path not in OUTSIDE:
            person = scene.staff if path.startswith("/admin") else scene.victim
            for wrong in ("..%2f..%2fadmin", "%00", "'%20OR%201=1", "x" * 500, "%F0%9F%92%A9", UUID):
                answer = person.get(re.sub(r"\{\w+\}", wrong, path))
                assert answer.status_code in {404, 405}, (path, wrong, answer.status_code)


# A request of one kind cannot be answered as one of the other.


def test_a_cap_request_and_a_lane_request_are_never_taken_for_each_other(scene: Scene) -> None:
    lane = scene.victims["request_id"]
    assert (
        scene.staff.submit(f"/admin/console/caps/{lane}", decision="approve", cap_tokens="1").status_code
        == 404
    )
    operation = {"operation_id": str(uuid7()), "dollars": "1", "reason": "r"}
    assert scene.staff.submit("/admin/console/customers/_house/grant", **operation).status_code == 404


# Webhooks, with the victim's order in them.


def test_forged_and_replayed_events_change_nothing(scene: Scene) -> None:
    paid = scene.stripe.events("checkout.session.completed")[0]
    stale = scene.stripe.events("checkout.session.completed", signed_seconds_ago=3_600)[0]
    before = scene.belongings()
    stranger = scene.platform.browser(scene.url)

    def deliver(payload: bytes, signature: str | None) -> int:
        headers = {"Content-Type": "application/json"} | (
            {"Stripe-Signature": signature} if signature else {}
        )
        return int(stranger.post("/webhooks/stripe", content=payload, headers=headers).status_code)

    forged = paid.payload.replace(b"5000", b"9000")
    assert forged != paid.payload
    for payload, signature in (
        (paid.payload, None),
        (paid.payload, "t=1,v1=00"),
        (paid.payload, re.sub(r"v1=\w+", "v1=" + "0" * 64, paid.headers["Stripe-Signature"])),
        (forged, paid.headers["Stripe-Signature"]),
        (stale.payload, stale.headers["Stripe-Signature"]),
        (b"", paid.headers["Stripe-Signature"]),
    ):
        assert deliver(payload, signature) == 400
    for _ in range(3):  # a true one, replayed
        assert deliver(paid.payload, paid.headers["Stripe-Signature"]) == 200
    scene.stripe.deliver()
    assert scene.belongings() == before
