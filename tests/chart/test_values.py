"""Mistakes in values are refused with what is wrong, and every setting that the chart gives is one that exists."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from rendered import pod_templates

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "darktree"
Object = dict[str, Any]
Render = Callable[..., list[Object]]

REFUSED: list[tuple[Object, str]] = [
    ({"gatway": {}}, "gatway"),
    ({"gateway": {"replica": 2}}, "replica"),
    ({"gateway": {"replicas": 0}}, "/gateway/replicas"),
    ({"gateway": {"replicas": "two"}}, "/gateway/replicas"),
    ({"gateway": {"drainSeconds": 0}}, "/gateway/drainSeconds"),
    ({"gateway": {"settings": {"hold_ttl": 1}}}, "hold_ttl"),
    ({"gateway": {"journal": {"size": "big"}}}, "/gateway/journal/size"),
    ({"gateway": {"service": {"type": "ExternalName"}}}, "/gateway/service/type"),
    ({"image": {"digest": "sha256:short"}}, "/image/digest"),
    ({"image": {"pullPolicy": "Sometimes"}}, "/image/pullPolicy"),
    ({"database": {"url": "postgresql://user:secret@db/x"}}, "/database/url"),
    ({"database": {"url": "mysql://db/x"}}, "/database/url"),
    ({"database": {"url": "postgresql://db/x"}}, "/database/owner/existingSecret"),
    ({"secrets": {"adminToken": "in plain text"}}, "adminToken"),
    ({"stripe": {"apiKey": "sk_live_x"}}, "apiKey"),
    ({"stripe": {"standIn": True, "existingSecret": "stripe"}}, "/stripe/existingSecret"),
    ({"hosts": {"api": "https://api.example"}}, "/hosts/api"),
    ({"ingress": {"enabled": True}}, "/hosts/api"),
    ({"httpRoute": {"parentRefs": [{"name": "x"}]}, "hosts": {"api": "a.example"}}, "/hosts/console"),
    ({"httpRoute": {"parentRefs": [{"namespace": "x"}]}}, "/httpRoute/parentRefs/0"),
    ({"lanes": {"namespace": "Lanes"}}, "/lanes/namespace"),
    ({"sealer": {"anchors": ["file:///anchors"]}}, "/sealer/anchors/0"),
    ({"teamEmails": ["nobody"]}, "/teamEmails/0"),
    ({"backup": {"schedule": "every night"}}, "/backup/schedule"),
    ({"backup": {"keep": 0}}, "/backup/keep"),
    ({"tracing": {"endpoint": "collector:4318"}}, "/tracing/endpoint"),
    ({"tracing": {"endpoint": "http://user:secret@collector:4318"}}, "/tracing/endpoint"),
    ({"tracing": {"share": 2}}, "/tracing/share"),
    ({"database": {"limitGiB": "40Gi"}}, "/database/limitGiB"),
    ({"networkPolicy": {"ingressFrom": [{}]}}, "/networkPolicy/ingressFrom/0"),
]


@pytest.mark.parametrize(("values", "named"), REFUSED, ids=[named for _, named in REFUSED])
def test_a_mistake_in_the_values_is_refused_and_named(values: Object, named: str, render: Render) -> None:
    with pytest.raises(Exception, match=re.escape(named)):
        render(values)


def test_every_value_has_a_place_in_the_schema_and_a_default() -> None:
    import json

    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert set(schema["properties"]) == set(values)
    for name, part in schema["properties"].items():
        if isinstance(values[name], dict) and "properties" in part:
            assert set(part["properties"]) == set(values[name]), name


def test_every_variable_that_the_chart_sets_is_a_setting_that_exists(
    render: Render, production: Object, trial: Object
) -> None:
    known = set(
        re.findall(r"^\| `([A-Z0-9_]+)` \|", (ROOT / "docs" / "reference.md").read_text(), re.MULTILINE)
    )
    helpers = {"DATABASE_PASSWORD", "STAND_IN_API_KEY", "STAND_IN_WEBHOOK_SECRET"}
    more = {"backup": {"existingClaim": "backups"}, "database": {"limitGiB": 40}}
    more["tracing"] = {"endpoint": "http://c:4318", "header": {"existingSecret": "c"}}
    for values in ({}, production, trial, more):
        for container in _containers(render(values)):
            names = [variable["name"] for variable in container["env"]]
            assert set(names) - helpers <= known
            assert len(set(names)) == len(names)


def test_free_settings_reach_their_own_process_as_text(render: Render) -> None:
    values = {"gateway": {"settings": {"HOLD_TTL_SECONDS": 90, "SEPARATE_PREFIX_CACHES": False}}}
    settings = {"DARKTREE_GATEWAY_HOLD_TTL_SECONDS": "90", "DARKTREE_GATEWAY_SEPARATE_PREFIX_CACHES": "false"}
    for container in _containers(render(values)):
        given = {variable["name"]: variable.get("value") for variable in container["env"]}
        assert (settings.items() <= given.items()) is (container["name"] == "gateway")


def test_services_log_in_as_their_own_roles_and_to_a_real_database_over_tls_that_is_checked(
    render: Render, production: Object
) -> None:
    for values, external in (({}, False), (production, True)):
        urls = {
            container["name"]: variable["value"]
            for container in _containers(render(values))
            for variable in container["env"]
            if variable["name"].endswith("DATABASE_URL") and "value" in variable
        }
        for name, role in (
            ("ledger", "ledger"),
            ("sealer", "sealer"),
            ("billing", "billing"),
            ("worker", "billing"),
        ):
            assert urls[name].startswith(f"postgresql://darktree_{role}:$(DATABASE_PASSWORD)@")
            assert ("sslmode=verify-full" in urls[name]) is external
            assert urls[name].endswith("&sslrootcert=/etc/darktree/postgres/ca.crt") is external


@pytest.mark.parametrize(
    ("values", "limit"),
    [
        ({}, 10 * 2**30),
        ({"database": {"bundled": {"storage": {"size": "500M"}}}}, None),
        ({"database": {"limitGiB": 2048}}, 2048 * 2**30),
        ({"database": {"url": "postgresql://db.example/x", "owner": {"existingSecret": "owner"}}}, None),
    ],
    ids=["the trial's volume", "a volume in other words", "a number", "one's own, unsaid"],
)
def test_the_ledger_knows_how_large_its_database_may_become(
    values: Object, limit: int | None, render: Render
) -> None:
    ledger = next(each for each in _containers(render(values)) if each["name"] == "ledger")
    given = [
        each["value"] for each in ledger["env"] if each["name"] == "DARKTREE_LEDGER_DATABASE_LIMIT_BYTES"
    ]
    assert given == ([] if limit is None else [str(limit)])


def test_migrations_come_before_an_upgrade_and_beside_the_first_install(render: Render) -> None:
    def job(*options: str) -> Object:
        return next(each for each in render(None, *options) if each["kind"] == "Job")

    assert "annotations" not in job()["metadata"]
    assert job("--is-upgrade")["metadata"]["annotations"]["helm.sh/hook"] == "pre-upgrade"


def test_the_operators_role_is_the_one_that_its_tests_apply(render: Render) -> None:
    rules = yaml.safe_load((CHART / "files" / "operator-role.yaml").read_text())["rules"]
    for namespace, kind in (("", "Role"), ("*", "ClusterRole"), ("lanes", "Role")):
        roles = [each for each in render({"lanes": {"namespace": namespace}}) if each["kind"] == kind]
        assert rules in [role["rules"] for role in roles]


def test_the_operator_gets_the_values_configuration_and_the_image_of_simulated_lanes(
    render: Render, production: Object
) -> None:
    from darktree_operator.config import parse_config

    for values in ({}, production):
        maps = {each["metadata"]["name"]: each for each in render(values) if each["kind"] == "ConfigMap"}
        config = parse_config(maps["darktree-operator"]["data"]["operator.yaml"])
        simulator = config.images["Simulator"]
        assert simulator.by_version[simulator.default_version].endswith("darktree:0.1.0")
        assert config.gateways[0].pod_labels["app.kubernetes.io/instance"] == "darktree"
    assert config.images["VLLM"].default_version == "0.32.0"


def test_rules_and_dashboards_that_lie_in_the_chart_are_installed_whole(render: Render) -> None:
    wanted = {
        "podMonitor": {"enabled": True},
        "prometheusRule": {"enabled": True},
        "dashboards": {"enabled": True},
    }
    objects = render({"monitoring": wanted})
    rule = next(each for each in objects if each["kind"] == "PrometheusRule")
    groups = [
        group
        for file in sorted(CHART.glob("rules/*.yaml"))
        for group in yaml.safe_load(file.read_text())["groups"]
    ]
    assert rule["spec"]["groups"] == groups
    for file in CHART.glob("dashboards/*.json"):
        kept = next(each for each in objects if file.name in each.get("data", {}))
        assert kept["data"][file.name].strip() == file.read_text().strip()
        assert kept["metadata"]["labels"]["grafana_dashboard"] == "1"


def _containers(objects: list[Object]) -> list[Object]:
    return [container for template in pod_templates(objects) for container in template["spec"]["containers"]]
