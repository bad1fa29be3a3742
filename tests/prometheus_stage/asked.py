"""What the chart's dashboards ask, as Grafana would ask it of one Prometheus, a short time after everything began."""

import json
import re
from pathlib import Path
from typing import Any

DASHBOARDS = Path(__file__).parents[2] / "charts" / "darktree" / "dashboards"
BOARDS = sorted(path.stem for path in DASHBOARDS.glob("*.json"))
OPERATORS = re.compile(r"darktree_(operator_|lane_(condition|gpus|replicas|cold_start_seconds)\b)")
SHORT = "15s"  # in place of what Grafana makes of the time between scrapes
# What a query says where nothing has happened yet, so that its panel shows a zero and not that it knows nothing.
OTHERWISE = re.compile(r" or (vector\(0\)|0 \* sum by \(lane\) \(darktree_lane_in_flight\{[^}]*\}\))")


def questions(board: str, *, of_the_operator: bool = False) -> list[tuple[str, str]]:
    """Return (panel, query) of everything that a dashboard asks of the services, or of the operator; of every lane."""
    document: dict[str, Any] = json.loads((DASHBOARDS / f"{board}.json").read_text())
    found = []
    for panel in document["panels"]:
        for target in panel.get("targets", ()):
            query = target["expr"].replace("$__rate_interval", SHORT).replace("$lane", ".*")
            if bool(OPERATORS.search(query)) == of_the_operator:
                found.append((panel["title"], query))
    return found


def of_what_happened(query: str) -> str:
    """Return a query without its zero for what has not happened: it has data only from the metric that it is about.

    What is taken off that (a second zero) need not have happened.
    """
    return OTHERWISE.sub("", query, count=1)
