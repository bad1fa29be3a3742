"""The few kinds of panels that the dashboards are made of, so that all of them look and behave the same."""

from dataclasses import dataclass

from grafana_foundation_sdk.builders import common, prometheus, stat, table, timeseries
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.models import common as choices
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
NUMBER_WIDTH, NUMBER_HEIGHT = 4, 4
LINES_WIDTH, LINES_HEIGHT = 8, 8
GREEN, ORANGE, RED = "green", "orange", "red"

Panel = stat.Panel | timeseries.Panel | table.Panel


@dataclass(frozen=True)
class Query:
    """A question to Prometheus, and how each line of its answer is called: `{{label}}` stands for a label's value."""

    expression: str
    legend: str = ""


@dataclass(frozen=True)
class Section:
    """A row of a dashboard, and its panels."""

    title: str
    panels: list[Panel]


def number(
    title: str,
    about: str,
    expression: str,
    unit: str = "short",
    *,
    warn: float | None = None,
    bad: float | None = None,
) -> stat.Panel:
    """One number, with its past behind it: orange from `warn` on, red from `bad` on."""
    steps = [models.Threshold(value=None, color=GREEN)]
    steps += [
        models.Threshold(value=value, color=color)
        for value, color in ((warn, ORANGE), (bad, RED))
        if value is not None
    ]
    return (
        stat.Panel()
        .title(title)
        .description(about)
        .datasource(SOURCE)
        .unit(unit)
        .span(NUMBER_WIDTH)
        .height(NUMBER_HEIGHT)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .color_mode(
            choices.BigValueColorMode.VALUE if len(steps) == 1 else choices.BigValueColorMode.BACKGROUND
        )
        .graph_mode(choices.BigValueGraphMode.AREA)
        .thresholds(builders.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps))
        .with_target(_target(0, Query(expression)))
    )


def lines(
    title: str,
    about: str,
    *queries: Query,
    unit: str = "short",
    stacked: bool = False,
    limit: float | None = None,
) -> timeseries.Panel:
    """Lines over time from zero up, stacked when they are parts of a whole; `limit` is drawn as one that is red."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(about)
        .datasource(SOURCE)
        .unit(unit)
        .min(0)
        .span(LINES_WIDTH)
        .height(LINES_HEIGHT)
        .fill_opacity(25 if stacked else 5)
        .show_points(choices.VisibilityMode.NEVER)
        .stacking(
            common.StackingConfig().mode(
                choices.StackingMode.NORMAL if stacked else choices.StackingMode.NONE
            )
        )
        .legend(
            common.VizLegendOptions()
            .display_mode(choices.LegendDisplayMode.LIST)
            .placement(choices.LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(common.VizTooltipOptions().mode(choices.TooltipDisplayMode.MULTI))
    )
    if limit is not None:
        steps = [models.Threshold(value=None, color=GREEN), models.Threshold(value=limit, color=RED)]
        panel.thresholds(builders.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps))
        panel.thresholds_style(common.GraphThresholdsStyleConfig().mode(choices.GraphTresholdsStyleMode.LINE))
    for place, query in enumerate(queries):
        panel.with_target(_target(place, query))
    return panel


def rows(title: str, about: str, query: Query, *, columns: list[str]) -> table.Panel:
    """What is now, a row a series: only these labels and the value."""
    hidden = {name: name not in columns for name in ("Time", "__name__", "job", "instance", "part", *columns)}
    return (
        table.Panel()
        .title(title)
        .description(about)
        .datasource(SOURCE)
        .span(2 * LINES_WIDTH)
        .height(LINES_HEIGHT)
        .with_target(_target(0, query).instant().format(PromQueryFormat.TABLE))
        .with_transformation(
            models.DataTransformerConfig(
                id_val="organize",
                options={"excludeByName": {name: True for name, gone in hidden.items() if gone}},
            )
        )
    )


def quantiles(
    metric: str, by: str = "", where: str = "", *, of: tuple[float, ...] = (0.5, 0.95, 0.99)
) -> list[Query]:
    """The usual quantiles of a histogram, each a line."""
    named = f"{{{{{by}}}}} " if by else ""
    return [
        Query(
            f"histogram_quantile({share}, sum by ({', '.join(['le', *([by] if by else [])])})"
            f" (rate({metric}_bucket{{{where}}}[$__rate_interval])))",
            f"{named}p{share * 100:g}",
        )
        for share in of
    ]


def _target(place: int, query: Query) -> prometheus.Dataquery:
    return (
        prometheus.Dataquery()
        .ref_id(chr(ord("A") + place))
        .datasource(SOURCE)
        .expr(query.expression)
        .legend_format(query.legend)
    )
