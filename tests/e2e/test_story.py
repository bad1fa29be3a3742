"""The story on a real cluster, told in order: install, lanes, buy, call, cap, scrape, kill, upgrade, uninstall."""

import json
import os
import shlex
import time
from typing import Any
from uuid import UUID

import httpx
import pytest
import yaml
from installed import (
    API_HOST,
    CONSOLE_HOST,
    NAMESPACE,
    RELEASE,
    ROOT,
    Entry,
    Timings,
    deploy,
    forwarded,
    get,
    helm,
    kubectl,
    metrics_of,
    pods,
    run,
    secret,
    until,
)
from traffic import Load

from darktree_kit.ids import request_id_of

STANDARD, PREMIUM = "qwen25-14b-awq", "qwen25-32b-awq"
QUESTION = {"messages": [{"role": "user", "content": "Tell me of trees."}]}
CAP = 10_000_000
MOST_CUT = 0.02  # of the streams and answers
pytestmark = pytest.mark.usefixtures("installed")


def ask(client: httpx.Client, key: str, **fields: Any) -> httpx.Response:
    body = {"model": STANDARD, "max_tokens": 20} | QUESTION | fields
    return client.post("/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {key}"})


def darktree(*words: str) -> str:
    """The command line, through a port that leads to billing."""
    with forwarded(f"service/{RELEASE}-billing", 8080) as url:
        command = str(ROOT / ".venv" / "bin" / "darktree")
        return run(command, *words, DARKTREE_ADMIN_URL=url, DARKTREE_ADMIN_TOKEN=secret("admin-token"))


def charged(customer_id: str) -> dict[str, int]:
    """Return what every request was charged, in tokens, by its id, as the ledger has it."""
    tokens: dict[str, int] = {}
    after: list[str] = []
    while True:
        page = json.loads(darktree("ledger", "entries", customer_id, "--limit", "1000", "-o", "json", *after))
        for line in page["data"]:
            if line["kind"] == "usage":
                request_id = request_id_of(UUID(line["hold_id"]))
                assert request_id not in tokens, f"{request_id} was charged twice"
                tokens[request_id] = line["prompt_tokens"] + line["completion_tokens"]
        if page["next"] is None:
            return tokens
        after = ["--after", page["next"]]


def test_everything_runs_restricted_and_is_ready(installed: str, timings: Timings) -> None:
    assert "THIS IS A TRIAL" in installed
    running = get("pods")
    assert all(pod["status"]["phase"] in {"Running", "Succeeded"} for pod in running)
    restarts = {
        pod["metadata"]["name"]: status["restartCount"]
        for pod in running
        for status in pod["status"]["containerStatuses"]
        if "migrate" not in pod["metadata"]["name"]
    }
    timings.say(f"{len(running)} pods, restarts of servers at install: {sum(restarts.values())}")
    assert not sum(restarts.values()), restarts


def test_lanes_are_applied_with_kubectl_and_serve(timings: Timings) -> None:
    standard = yaml.safe_load((ROOT / "examples" / "simulated" / "lane.yaml").read_text())
    premium = json.loads(json.dumps(standard))
    premium["metadata"]["name"] = "simulated-qwen25-32b-awq"
    premium["spec"] |= {
        "tier": "Premium",
        "model": {"source": "hf://Qwen/Qwen2.5-32B-Instruct-AWQ", "servedName": PREMIUM},
    }
    standard["spec"]["replicas"] = 2
    with timings.of("kubectl apply of two lanes, until both are Ready"):
        kubectl("apply", "--filename", "-", stdin=yaml.safe_dump_all([standard, premium]))
        kubectl("wait", "--for=condition=Ready", "inferencelane", "--all", "--timeout=180s")
    assert {lane["status"]["phase"] for lane in get("inferencelane")} == {"Ready"}


def test_credits_are_bought(customer: Any, admin: httpx.Client, timings: Timings) -> None:
    from darktree_stripe_simulator.client import StripeStandIn

    balance = f"/admin/customers/{customer.id}/balance"
    before = admin.get(balance).json()["balance_nanos"]
    with timings.of("from the order to the credits"):
        begun = (
            admin.post(f"/admin/customers/{customer.id}/checkouts", json={"plan": "scale"})
            .raise_for_status()
            .json()
        )
        order = admin.get(f"/admin/orders/{begun['order_id']}").json()
        with forwarded(f"service/{RELEASE}-stripe", 8080) as url:
            StripeStandIn(url, f"sk_test_{secret('stand-in-api-key')}", "").pay(order["session_id"])

        def granted() -> bool:
            return bool(admin.get(f"/admin/orders/{begun['order_id']}").json()["granted_at"])

        until(granted, "the order to be granted by its webhook")
    assert admin.get(balance).json()["balance_nanos"] - before == 300 * 10**9


def test_helms_own_test_asks_every_model_and_finds_the_ledgers_lines(timings: Timings) -> None:
    with timings.of("helm test"):
        said = helm("test", RELEASE, "--logs", "--timeout", "3m")
    assert "Phase:          Succeeded" in said or "Succeeded" in said
    for model in (STANDARD, PREMIUM):
        line = next(line for line in said.splitlines() if line.startswith(model))
        assert line.endswith("ok")


@pytest.mark.parametrize("kind", ["httproute", "ingress"])
def test_completions_streams_and_nothing_else_pass_the_way_in(kind: str, entry: Entry, customer: Any) -> None:
    other = {"httproute": "ingress", "ingress": "httproute"}[kind]
    saved = kubectl("get", other, "--output", "json")
    kubectl("delete", other, "--all")
    try:
        _passes(kind, entry, customer)
    finally:
        # As helm itself would, or its next upgrade finds another owner of the fields.
        kubectl("apply", "--server-side", "--field-manager=helm", "--filename", "-", stdin=_applicable(saved))


def _passes(kind: str, entry: Entry, customer: Any) -> None:
    with entry.client(API_HOST) as api, entry.client(CONSOLE_HOST) as console:
        until(lambda: ask(api, customer.key).status_code == 200, f"a completion through the {kind}")
        until(lambda: _settled(console), f"the console and the webhook through the {kind}")
        answer = ask(api, customer.key)
        assert answer.json()["usage"]["completion_tokens"] == 20
        for path in ("/metrics", "/readyz", "/admin/status", "/internal/catalog", "/openapi.json"):
            assert api.get(path).status_code == 404, path
            assert console.get(path).status_code == 404, path
        assert console.post("/webhooks/stripe", content=b"{}").status_code == 400  # no signature
        assert console.get("/v1/models").status_code == 404
        headers = {"Authorization": f"Bearer {customer.key}"}
        body = {"model": STANDARD, "max_tokens": 100, "stream": True} | QUESTION
        times = []
        with api.stream("POST", "/v1/chat/completions", json=body, headers=headers) as stream:
            for line in stream.iter_lines():
                if line.startswith("data: "):
                    times.append(time.monotonic())
        assert line == "data: [DONE]" or not line
        assert len(times) > 50
        assert times[-1] - times[0] > 0.3  # at 100 tokens a second: nobody kept them to the end


def _settled(console: httpx.Client) -> bool:
    """Say whether the controller has made up its mind: what was deleted just before may route on for a moment."""
    return all(
        console.get("/console/sign-in").status_code == 200
        and console.post("/webhooks/stripe", content=b"{}").status_code == 400  # no signature
        for _ in range(30)
    )


def test_the_cap_is_a_hard_stop(entry: Entry, customer: Any, admin: httpx.Client) -> None:
    used = admin.get(f"/admin/customers/{customer.id}/balance").json()["day_tokens"]
    admin.put(f"/admin/customers/{customer.id}/cap", json={"cap_tokens": used + 150}).raise_for_status()
    with entry.client(API_HOST) as api:
        while (answer := ask(api, customer.key, max_tokens=60)).status_code == 200:
            pass
    assert answer.status_code == 429
    assert answer.json()["error"]["code"] == "rate_limit_exceeded"
    assert int(answer.headers["retry-after"]) > 0
    assert answer.headers["x-should-retry"] == "false"
    after = admin.get(f"/admin/customers/{customer.id}/balance").json()
    assert after["day_tokens"] <= used + 150 == after["cap_tokens"]
    admin.put(f"/admin/customers/{customer.id}/cap", json={"cap_tokens": CAP}).raise_for_status()


def test_every_pod_tells_prometheus_what_it_does() -> None:
    wanted = {
        "gateway": (9090, "darktree_lane_metered_tokens_total"),
        "operator": (9090, "darktree_operator_looks_total"),
        "ledger": (8080, "darktree_ledger_batch_operations"),
        "billing": (8080, "darktree_stripe_webhooks_total"),
        "sealer": (8080, "darktree_sealer_log_entries"),
    }
    for component, (port, name) in wanted.items():
        for pod in pods(component):
            assert name in metrics_of(pod["metadata"]["name"], port), component
    engines = get("pods", "--selector", "app.kubernetes.io/name=darktree-lane")
    assert "vllm:generation_tokens_total" in metrics_of(engines[0]["metadata"]["name"], 8000)


KILLED = {
    "a gateway": f"pod/{RELEASE}-gateway-0",
    "a ledger": "ledger",
    "the sealer": "sealer",
    "the operator": "operator",
    "an engine": "darktree-lane",
    "the database": f"pod/{RELEASE}-postgres-0",
}


def test_pods_killed_under_load_lose_no_usage(entry: Entry, customer: Any, timings: Timings) -> None:
    before = charged(customer.id)
    with Load(f"{entry.url}/v1", API_HOST, customer.key, STANDARD) as load:
        load.wait_for(20)
        for what, target in KILLED.items():
            failed = len(load.failures)
            kubectl("delete", _pod(target), "--grace-period=0", "--force", "--wait=false")
            load.wait_for(15, 180)
            timings.say(_failed_for_good(what, load.failures[failed:]))
            kubectl("wait", "--for=condition=Ready", "pod", "--selector", f"app.kubernetes.io/instance={RELEASE}",
                    "--field-selector=status.phase!=Succeeded", "--timeout=180s")  # fmt: skip
    timings.say(f"  {len(load.answered)} answered, HTTP answers by status {dict(load.attempts)}")
    unseen = _nothing_is_lost(load, before, charged(customer.id))
    timings.say(f"  lines whose answers the kills cut off: {len(unseen)}")


# What runs on a node, as `pkill` finds it: the newest of each.
PROCESSES = {
    "a gateway's process": "-m darktree_gateway",
    "a ledger's process": "-m darktree_ledger$",
    "the sealer's process": "-m darktree_ledger.sealer",
    "billing's process": "-m darktree_billing",
    "the operator's process": "-m darktree_operator",
    "an engine's process": "-m darktree_simulator",
}


def _failed_for_good(what: str, failures: list[str]) -> str:
    return (
        f"killed {what} under load: {len(failures)} requests failed for good {'; '.join(failures)}".rstrip()
    )


@pytest.mark.skipif("E2E_NODE" not in os.environ, reason="E2E_NODE does not say how a command runs on a node")
def test_processes_killed_on_a_node_under_load_lose_no_usage(
    entry: Entry, customer: Any, timings: Timings
) -> None:
    node = shlex.split(os.environ["E2E_NODE"])
    before = charged(customer.id)
    with Load(f"{entry.url}/v1", API_HOST, customer.key, STANDARD) as load:
        load.wait_for(20)
        for what, pattern in PROCESSES.items():
            failed = len(load.failures)
            run(*node, "pkill", "-KILL", "--newest", "--full", "--", pattern)
            load.wait_for(15, 180)
            timings.say(_failed_for_good(what, load.failures[failed:]))
    timings.say(f"  {len(load.answered)} answered, HTTP answers by status {dict(load.attempts)}")
    unseen = _nothing_is_lost(load, before, charged(customer.id))
    timings.say(f"  lines whose answers the kills cut off: {len(unseen)}")


def test_an_upgrade_under_load_fails_nothing_and_loses_nothing(
    entry: Entry, customer: Any, timings: Timings
) -> None:
    engines = _engines()
    before = charged(customer.id)
    with Load(f"{entry.url}/v1", API_HOST, customer.key, STANDARD) as load:
        load.wait_for(20)
        with timings.of("helm upgrade --wait under load"):
            deploy("upgrade", os.environ["E2E_IMAGE"], entry)
        load.wait_for(20)
    timings.say(
        f"  {len(load.answered)} answered, {len(load.failures)} failed, by status {dict(load.attempts)}"
    )
    images = {pod["spec"]["containers"][0]["image"] for name in ("gateway", "ledger") for pod in pods(name)}
    assert images == {os.environ["E2E_IMAGE"]}
    _only_the_way_in_cut(load, _nothing_is_lost(load, before, charged(customer.id)))
    assert _engines() == engines, "an upgrade of the platform replaced engines"


def test_a_rollback_under_load_fails_nothing_and_loses_nothing(
    entry: Entry, customer: Any, timings: Timings
) -> None:
    before = charged(customer.id)
    with Load(f"{entry.url}/v1", API_HOST, customer.key, STANDARD) as load:
        load.wait_for(20)
        with timings.of("helm rollback --wait under load"):
            helm("rollback", RELEASE, "--wait", "--timeout", "10m")
        load.wait_for(20)
    timings.say(
        f"  {len(load.answered)} answered, {len(load.failures)} failed, by status {dict(load.attempts)}"
    )
    images = {pod["spec"]["containers"][0]["image"] for name in ("gateway", "ledger") for pod in pods(name)}
    assert images == {os.environ["E2E_PREVIOUS_IMAGE"]}
    _only_the_way_in_cut(load, _nothing_is_lost(load, before, charged(customer.id)))


def test_the_ledger_is_whole_and_proven(tmp_path_factory: pytest.TempPathFactory, timings: Timings) -> None:
    assert json.loads(darktree("ledger", "check", "-o", "json"))["problems"] == []
    said = darktree("ledger", "verify")
    timings.say("darktree ledger verify: " + " ".join(said.split())[:200])


def test_uninstalled_it_leaves_lanes_serving_and_comes_back_with_every_key_and_balance(
    entry: Entry, customer: Any, timings: Timings
) -> None:
    lines = charged(customer.id)
    with timings.of("helm uninstall --wait"):
        helm("uninstall", RELEASE, "--wait", "--timeout", "5m")
    assert not get("deployments", "--selector", f"app.kubernetes.io/instance={RELEASE}")
    assert len(get("inferencelane")) == 2
    for engine in get("pods", "--selector", "app.kubernetes.io/name=darktree-lane"):
        name = engine["metadata"]["name"]
        kubectl("get", "--raw", f"/api/v1/namespaces/{NAMESPACE}/pods/{name}:8000/proxy/health")
    with timings.of("helm install --wait again"):
        deploy("install", os.environ["E2E_IMAGE"], entry)
    with entry.client(API_HOST) as api:
        until(lambda: ask(api, customer.key).status_code == 200, "the old key to work again")
    assert lines.items() < charged(customer.id).items()


def _nothing_is_lost(load: Load, before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    """Every answer has its line, to the token. Returns the lines that no answer was seen for."""
    assert {name: after.get(name) for name in load.answered} == load.answered
    return {
        name: tokens for name, tokens in after.items() if name not in before and name not in load.answered
    }


def _only_the_way_in_cut(load: Load, unseen: dict[str, int]) -> None:
    """Nothing failed but a stream here and there that the proxy before the gateways cut, and each of them has its line.

    A proxy written in Go, as Traefik is, does so on a busy machine, whoever serves the stream, upgrades or none
    (golang/go#40747): its transport may find the request's body closed once the answer has begun. That no gateway cuts
    one by itself is seen without a proxy, in tests/platform.
    """
    assert all(failure.startswith("APIConnectionError") for failure in load.failures), load.failures
    assert load.attempts.keys() == {200}
    assert len(load.failures) == len(unseen) <= MOST_CUT * len(load.answered), (load.failures, unseen)


def _engines() -> set[str]:
    return {
        pod["metadata"]["uid"] for pod in get("pods", "--selector", "app.kubernetes.io/name=darktree-lane")
    }


def _pod(target: str) -> str:
    if target.startswith("pod/"):
        return target
    name = target if target == "darktree-lane" else f"darktree-{target}"
    found = get(
        "pods", "--selector", f"app.kubernetes.io/name={name}", "--field-selector=status.phase=Running"
    )
    return f"pod/{found[0]['metadata']['name']}"


def _applicable(listed: str) -> str:
    """What `kubectl get` said, without what the server adds."""
    document = json.loads(listed)
    for item in document["items"]:
        item.pop("status", None)
        for name in ("resourceVersion", "uid", "creationTimestamp", "generation", "managedFields"):
            item["metadata"].pop(name, None)
    return json.dumps(document)
