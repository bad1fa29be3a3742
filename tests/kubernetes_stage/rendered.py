"""The pods that rendered objects make, whatever kind of object makes them."""

from collections.abc import Iterator
from typing import Any

Object = dict[str, Any]


def pod_templates(objects: list[Object]) -> Iterator[Object]:
    """Yield what each object says of its pods: their metadata and spec."""
    for each in objects:
        spec = each.get("spec", {})
        if each["kind"] == "Pod":
            yield each
        elif each["kind"] == "CronJob":
            yield spec["jobTemplate"]["spec"]["template"]
        elif "template" in spec:
            yield spec["template"]
