"""A dashboard from its sections, and all of them by the name of their file."""

import itertools
import json

from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as models

from darktree_dashboards import business, gateway, lanes, ledger, operating, spend
from darktree_dashboards.panels import SOURCE, Section

TAG = "darktree"
BOARDS = {
    "spend": ("Spend and caps", spend),
    "gateway": ("Gateway", gateway),
    "lanes": ("Lanes", lanes),
    "ledger": ("Ledger", ledger),
    "operator": ("Operator", operating),
    "business": ("Business", business),
}
ANY = ".*"


def documents() -> dict[str, str]:
    """Return each dashboard's JSON by the name of its file, without an ending."""
    return {
        name: json.dumps(
            _board(name, title, str(module.__doc__), module.sections()).build(),
            cls=JSONEncoder,
            indent=2,
            sort_keys=True,
        )
        + "\n"
        for name, (title, module) in BOARDS.items()
    }


def _board(name: str, title: str, about: str, sections: list[Section]) -> builders.Dashboard:
    board = (
        builders.Dashboard(f"Darktree / {title}")
        .uid(f"darktree-{name}")
        .description(about.strip())
        .tags([TAG])
        .refresh("30s")
        .time("now-6h", "now")
        .timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .readonly()
        .with_variable(builders.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        .link(
            builders.DashboardLink("Darktree")
            .type(models.DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .as_dropdown(True)
            .include_vars(True)
            .keep_time(True)
        )
    )
    panels = [panel for section in sections for panel in section.panels]
    if any(
        "$lane" in str(getattr(target, "expr", ""))
        for panel in panels
        for target in panel.build().targets or ()
    ):
        board.with_variable(_lanes())
    ids = itertools.count(1)
    for section in sections:
        board.with_row(builders.Row(section.title).id(next(ids)))
        for panel in section.panels:
            board.with_panel(panel.id(next(ids)))
    return board


def _lanes() -> builders.QueryVariable:
    every = models.VariableOption(text="All", value="$__all", selected=True)
    return (
        builders.QueryVariable("lane")
        .label("Lane")
        .datasource(SOURCE)
        .query("label_values(darktree_lane_in_flight, lane)")
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .include_all(True)
        .all_value(ANY)
        .multi(True)
        .current(every)
    )
