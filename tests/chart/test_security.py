"""Nothing has a privilege that it does not need, nothing secret stands in plain text, nothing more is reachable."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from rendered import pod_templates

Object = dict[str, Any]
Render = Callable[..., list[Object]]
COMPONENTS = {
    "gateway",
    "ledger",
    "billing",
    "worker",
    "sealer",
    "operator",
    "postgres",
    "migrate",
    "selftest",
}


MORE: Object = {
    "backup": {"existingClaim": "backups"},
    "tracing": {"endpoint": "http://collector:4318", "header": {"existingSecret": "collector"}},
}


@pytest.fixture(scope="module", params=["nothing", "production", "trial", "more"])
def objects(
    request: pytest.FixtureRequest, render: Render, production: Object, trial: Object
) -> list[Object]:
    return render({"nothing": {}, "production": production, "trial": trial, "more": MORE}[request.param])


def test_every_pod_is_restricted_and_cannot_write_its_root(objects: list[Object]) -> None:
    found = dict(_pods(objects))
    assert COMPONENTS - {"postgres", "worker"} <= set(found)
    for name, pod in found.items():
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["runAsUser"] > 10_000, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod), name
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True, name
            assert context["allowPrivilegeEscalation"] is False, name
            assert context["capabilities"] == {"drop": ["ALL"]}, name
            assert "hostPort" not in json.dumps(container.get("ports", [])), name
        allowed = {"emptyDir", "secret", "configMap", "persistentVolumeClaim"}
        assert all(set(volume) - {"name"} <= allowed for volume in pod["volumes"]), name


def test_every_container_has_requests_a_memory_limit_and_every_server_its_probes(
    objects: list[Object],
) -> None:
    for name, pod in _pods(objects):
        for container in pod["containers"]:
            assert {"cpu", "memory"} <= set(container["resources"]["requests"]), name
            assert "memory" in container["resources"]["limits"], name
            if name not in {"migrate", "selftest", "stripe", "backup"}:
                assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(container), name


def test_only_the_operator_and_the_gateways_can_talk_to_kubernetes(objects: list[Object]) -> None:
    with_token = {name for name, pod in _pods(objects) if pod["automountServiceAccountToken"]}
    assert with_token == {"operator", "gateway"}
    for role in (each for each in objects if each["kind"] in {"Role", "ClusterRole"}):
        assert "*" not in json.dumps(role["rules"])
        if role["metadata"]["name"].endswith("gateway"):
            assert {verb for rule in role["rules"] for verb in rule["verbs"]} == {"list", "watch"}
        secrets = [rule for rule in role["rules"] if "secrets" in rule["resources"]]
        assert all(rule["verbs"] == ["get"] for rule in secrets)


def test_no_secret_stands_outside_a_secret(objects: list[Object]) -> None:
    sensitive = re.compile(r"TOKEN|PASSWORD|PEPPER|API_KEY|WEBHOOK_SECRET|SMTP_URL|S3_SECRET|_HEADER")
    for name, pod in _pods(objects):
        for variable in (each for container in pod["containers"] for each in container["env"]):
            if sensitive.search(variable["name"]):
                value = variable.get("value")
                composed = value is not None and re.fullmatch(
                    r'(\[")?(sk_test|whsec)_\$\([A-Z_]+\)("\])?', value
                )
                assert composed or "secretKeyRef" in variable["valueFrom"], f"{name}: {variable['name']}"
    secrets = [each for each in objects if each["kind"] == "Secret"]
    values = [value for secret in secrets for value in secret["data"].values()]
    others = json.dumps([each for each in objects if each["kind"] != "Secret"])
    assert values
    assert not [value for value in values if value in others]


def test_generated_secrets_are_long_different_and_kept(render: Render) -> None:
    first, second = (
        next(each for each in render(None, *options) if each["metadata"]["name"] == "darktree-secrets")
        for options in ((), ("--no-hooks",))
    )
    assert first["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    values = list(first["data"].values())
    assert len(set(values)) == len(values)
    assert min(map(len, values)) >= 56  # 43 letters and digits: 256 bits
    assert not set(values) & set(second["data"].values())


def test_only_v1_the_console_and_the_webhook_are_reachable(render: Render) -> None:
    hosts = {"api": "api.example", "console": "console.example"}
    values = {"hosts": hosts, "ingress": {"enabled": True}, "httpRoute": {"parentRefs": [{"name": "public"}]}}
    public = {"/v1", "/console", "/webhooks/stripe"}
    for exposed, paths in ((False, public), (True, public | {"/admin/console"})):
        objects = render(values | {"exposeTeam": exposed})
        routes = [each for each in objects if each["kind"] == "HTTPRoute"]
        ingresses = [each for each in objects if each["kind"] == "Ingress"]
        rules = [rule for route in routes for rule in route["spec"]["rules"] if "backendRefs" in rule]
        assert {rule["matches"][0]["path"]["value"] for rule in rules} == paths
        backed = [
            path for each in ingresses for rule in each["spec"]["rules"] for path in rule["http"]["paths"]
        ]
        assert {path["path"] for path in backed} == paths
    services = [each for each in objects if each["kind"] == "Service"]
    assert {service["spec"].get("type", "ClusterIP") for service in services} == {"ClusterIP"}


def test_streams_are_neither_buffered_nor_cut_off_by_time(render: Render) -> None:
    hosts = {"api": "api.example", "console": "console.example"}
    ingress = {"enabled": True, "controller": "nginx"}
    objects = render({"hosts": hosts, "ingress": ingress, "httpRoute": {"parentRefs": [{"name": "public"}]}})
    gateway = [each for each in objects if each["metadata"]["name"] == "darktree-gateway"]
    annotations = next(each for each in gateway if each["kind"] == "Ingress")["metadata"]["annotations"]
    assert annotations["nginx.ingress.kubernetes.io/proxy-buffering"] == "off"
    assert annotations["nginx.ingress.kubernetes.io/proxy-read-timeout"] == "3600"
    rule = next(each for each in gateway if each["kind"] == "HTTPRoute")["spec"]["rules"][0]
    assert rule["timeouts"] == {"request": "0s", "backendRequest": "0s"}


def test_every_pod_of_the_release_has_a_policy_and_the_database_admits_only_who_needs_it(
    render: Render,
) -> None:
    objects = render({"stripe": {"standIn": True}})
    policies = {each["metadata"]["name"]: each["spec"] for each in objects if each["kind"] == "NetworkPolicy"}
    serving = {name for name, _ in _pods(objects)} - {"migrate", "selftest"}
    assert set(policies) == {f"darktree-{name}" for name in serving}
    assert all(policy["policyTypes"] == ["Ingress", "Egress"] for policy in policies.values())
    postgres = policies["darktree-postgres"]
    admitted = {
        peer["podSelector"]["matchLabels"]["app.kubernetes.io/name"]
        for peer in postgres["ingress"][0]["from"]
    }
    assert admitted == {f"darktree-{name}" for name in ("ledger", "sealer", "billing", "worker", "migrate")}
    assert len(postgres["ingress"]) == 1
    assert [rule["ports"][0]["port"] for rule in postgres["egress"]] == [53]
    ledger = policies["darktree-ledger"]["ingress"]
    assert all("from" in rule for rule in ledger)


def test_a_backup_reaches_the_database_and_billing_and_nothing_else_and_nobody_reaches_it(
    render: Render,
) -> None:
    objects = render({"backup": {"existingClaim": "backups"}})
    policies = {each["metadata"]["name"]: each["spec"] for each in objects if each["kind"] == "NetworkPolicy"}
    assert not policies["darktree-backup"]["ingress"]
    ports = [[port["port"] for port in rule["ports"]] for rule in policies["darktree-backup"]["egress"]]
    assert ports == [[53, 53], [5432], [8080]]
    for name in ("postgres", "billing"):
        peers = policies[f"darktree-{name}"]["ingress"][0]["from"]
        assert "darktree-backup" in json.dumps(peers)
    pod = dict(_pods(objects))["backup"]
    (url,) = [each["value"] for each in pod["containers"][0]["env"] if each["name"] == "DATABASE_URL"]
    assert url.startswith("postgresql://darktree_migrator:$(DATABASE_PASSWORD)@")
    assert not [each for each in render() if each["kind"] == "CronJob"], "off by default"


@pytest.mark.parametrize(
    ("endpoint", "port"),
    [("http://collector:4318", 4318), ("https://otel.example/in", 443), ("http://collector", 80)],
)
def test_traces_are_off_and_where_they_go_may_be_reached_by_who_sends_them(
    endpoint: str, port: int, render: Render
) -> None:
    def reached(objects: list[Object]) -> set[str]:
        policies = [each for each in objects if each["kind"] == "NetworkPolicy"]
        wanted = {"ports": [{"port": port, "protocol": "TCP"}]}
        return {each["metadata"]["name"] for each in policies if wanted in each["spec"]["egress"]}

    senders = {"gateway", "ledger", "billing", "worker"}
    off, on = render(), render({"tracing": {"endpoint": endpoint, "share": 0.25}})
    assert "OTLP" not in json.dumps(off)
    assert reached(on) >= {f"darktree-{name}" for name in senders}
    if port != 443:  # which others use as well
        assert reached(on) == {f"darktree-{name}" for name in senders}
        assert not reached(off)
    for name, pod in _pods(on):
        env = {each["name"]: each.get("value") for each in pod["containers"][0]["env"]}
        prefix = "BILLING" if name == "worker" else name.upper()
        assert env.get(f"DARKTREE_{prefix}_OTLP_ENDPOINT") == (endpoint if name in senders else None)
        assert env.get(f"DARKTREE_{prefix}_TRACE_SHARE") == ("0.25" if name in senders else None)


def test_a_gateway_may_finish_what_it_serves_before_it_is_killed(render: Render) -> None:
    for seconds in (60, 900):
        objects = render({"gateway": {"drainSeconds": seconds}})
        pod = dict(_pods(objects))["gateway"]
        container = pod["containers"][0]
        env = {variable["name"]: variable.get("value") for variable in container["env"]}
        assert env["DARKTREE_GATEWAY_SHUTDOWN_SECONDS"] == str(seconds)
        assert (
            pod["terminationGracePeriodSeconds"]
            > container["lifecycle"]["preStop"]["sleep"]["seconds"] + seconds
        )
    journal = next(
        each
        for each in objects
        if each["metadata"]["name"] == "darktree-gateway" and each["kind"] == "StatefulSet"
    )
    assert journal["spec"]["persistentVolumeClaimRetentionPolicy"] == {
        "whenDeleted": "Retain",
        "whenScaled": "Retain",
    }


def _pods(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    for template in pod_templates(objects):
        yield template["spec"]["containers"][0]["name"], template["spec"]
