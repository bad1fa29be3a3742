"""Writes docs/reference.md: every setting and every metric, from the code that has them. Run by `make reference`."""

import importlib
from pathlib import Path

from prometheus_client import REGISTRY
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

from darktree_cli.settings import Settings as CommandLineSettings

# Each process by its name, with the package and the class that say its settings.
PROCESSES = {
    "ledger": ("darktree_ledger", "Settings"),
    "sealer": ("darktree_ledger", "SealerSettings"),
    "billing": ("darktree_billing", "Settings"),
    "gateway": ("darktree_gateway", "Settings"),
    "operator": ("darktree_operator", "Settings"),
    "simulator": ("darktree_simulator", "Settings"),
    "stripe simulator": ("darktree_stripe_simulator", "Settings"),
}
METRICS = (
    "darktree_kit.metrics",
    "darktree_ledger.metrics",
    "darktree_ledger.sealer_metrics",
    "darktree_billing.metrics",
    "darktree_gateway.metrics",
    "darktree_operator.metrics",
)
PATH = Path(__file__).resolve().parent.parent / "docs" / "reference.md"

_HEAD = """# Reference

Written by `make reference` from the code; a test fails when it is not current.

## Settings

Each is an environment variable, read once when the process starts. Tokens, peppers and database URLs are secrets: give
them by reference where the platform has secrets.
"""


def reference() -> str:
    """Return the whole document."""
    parts = [_HEAD]
    for process, (package, class_name) in PROCESSES.items():
        settings: type[BaseSettings] = getattr(importlib.import_module(f"{package}.settings"), class_name)
        prefix = settings.model_config["env_prefix"]
        parts.append(f"### {process}\n")
        parts.append(
            _settings({f"{prefix}{name.upper()}": field for name, field in settings.model_fields.items()})
        )
    parts.append("### Command line\n")
    fields = CommandLineSettings.model_fields.values()
    parts.append(_settings({str(field.validation_alias): field for field in fields}))
    parts += ["## Metrics\n", _metrics()]
    return "\n".join(parts)


def _settings(fields: dict[str, FieldInfo]) -> str:
    lines = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in sorted(fields.items(), key=lambda item: not item[1].is_required()):
        assert field.description, f"{name} needs a description"
        lines.append(f"| `{name}` | {_default(field)} | {field.description} |")
    return "\n".join(lines) + "\n"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True, validated_data={})
    plain = isinstance(default, str | int | float | list)
    return f"`{default}`" if plain else "none"


def _metrics() -> str:
    for module in METRICS:
        importlib.import_module(module)
    lines = ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
    collectors = {
        name: collector for collector, names in REGISTRY._collector_to_names.items() for name in names
    }
    for metric in sorted(REGISTRY.collect(), key=lambda metric: metric.name):
        if metric.name.startswith("darktree_"):
            name = metric.name + ("_total" if metric.type == "counter" else "")
            labels = ", ".join(f"`{label}`" for label in getattr(collectors[metric.name], "_labelnames", ()))
            lines.append(f"| `{name}` | {metric.type} | {labels} | {metric.documentation} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PATH.write_text(reference())
