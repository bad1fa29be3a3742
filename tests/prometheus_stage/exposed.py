"""The metrics that the code has, with their labels, as whoever asks Prometheus knows them."""

import importlib

from prometheus_client import REGISTRY, CollectorRegistry

MODULES = (
    "darktree_kit.metrics",
    "darktree_ledger.metrics",
    "darktree_ledger.sealer_metrics",
    "darktree_billing.metrics",
    "darktree_gateway.metrics",
    "darktree_operator.metrics",
)


def ours() -> dict[str, set[str]]:
    """Return the labels of every metric of the services' and of the operator's, by every name that it has."""
    for module in MODULES:
        importlib.import_module(module)
    found = of(REGISTRY)
    return {name: labels for name, labels in found.items() if name.startswith("darktree_")}


def of(registry: CollectorRegistry) -> dict[str, set[str]]:
    """Return the labels of everything in a registry, by name."""
    return {
        name: set(getattr(collector, "_labelnames", ()))
        for collector, names in registry._collector_to_names.items()
        for name in names
    }
