"""A real cluster, the chart in it, and a customer: what the story is told with. Without a cluster it is skipped."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest
from installed import NAMESPACE, RELEASE, Entry, Timings, deploy, forwarded, helm, kubectl, run, secret

ABSENT = "no cluster: run `make e2e` (docs/install.md says what it needs)"
RESTRICTED = "pod-security.kubernetes.io/enforce=restricted"


@dataclass
class Customer:
    """Who buys, and the key that was made for them."""

    id: str
    key: str


@pytest.fixture(scope="session")
def timings() -> Iterator[Timings]:
    measured = Timings()
    yield measured
    print("\n" + "\n".join(measured.lines))


@pytest.fixture(scope="session")
def entry() -> Entry:
    """How the cluster is reached from outside."""
    url = os.environ.get("E2E_ENTRY", "")
    if not url:
        pytest.skip("E2E_ENTRY names no controller for Gateways and Ingresses")
    return Entry(url, os.environ["E2E_GATEWAY"], os.environ.get("E2E_INGRESS_CLASS", ""))


@pytest.fixture(scope="session")
def namespace() -> Iterator[str]:
    """A namespace that admits restricted pods only; it is gone afterwards, unless E2E_KEEP says otherwise."""
    if "E2E_IMAGE" not in os.environ:
        pytest.skip(ABSENT)
    if not run("kubectl", "get", "namespace", NAMESPACE, "--ignore-not-found"):
        run("kubectl", "create", "namespace", NAMESPACE)
    kubectl("label", "namespace", NAMESPACE, RESTRICTED, "--overwrite")
    yield NAMESPACE
    if "E2E_KEEP" not in os.environ:
        run("kubectl", "delete", "namespace", NAMESPACE, "--wait=false")


@pytest.fixture(scope="session")
def installed(namespace: str, entry: Entry, timings: Timings) -> str:
    """The release, as the version before: everything ready. Returns what helm said. One that was kept is used again."""
    if RELEASE in helm("list", "--short"):
        return helm("status", RELEASE)
    with timings.of("helm install --wait"):
        return deploy("install", os.environ["E2E_PREVIOUS_IMAGE"], entry)


@pytest.fixture
def admin(installed: str) -> Iterator[httpx.Client]:
    """Billing's administration, which is not reachable from outside."""
    with forwarded(f"service/{RELEASE}-billing", 8080) as url, administering(url) as client:
        yield client


def administering(url: str) -> httpx.Client:
    headers = {"Authorization": f"Bearer {secret('admin-token')}"}
    return httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False)


@pytest.fixture(scope="session")
def customer(installed: str) -> Customer:
    """A customer without a cent, with a key."""
    with forwarded(f"service/{RELEASE}-billing", 8080) as url, administering(url) as client:
        client.post(
            "/admin/customers", json={"id": "acme", "name": "Acme", "plan": "scale"}
        ).raise_for_status()
        made = client.post("/admin/customers/acme/keys", json={"name": "e2e"})
        made.raise_for_status()
        return Customer("acme", made.json()["key"])
