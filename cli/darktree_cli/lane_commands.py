"""`darktree lanes`: the objects that lanes become, what applying them would change, and how those of a cluster do."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, NoReturn, TypeVar

import typer

from darktree_cli.lane_board import COLUMNS, remarks, rows
from darktree_cli.lane_cluster import observe, read_lanes
from darktree_cli.lane_forecast import (
    Forecast,
    LaneFileError,
    every_object,
    forecast,
    manifests,
    read_documents,
)
from darktree_cli.output import Output, OutputOption, show
from darktree_kit.clock import utc_now
from darktree_kit.cluster import Cluster, ClusterError
from darktree_operator.config import InvalidConfig, OperatorConfig, read_config
from darktree_operator.lane import InvalidLane, Object
from darktree_operator.plan import Plan
from darktree_operator.spare import free_gpus

EXIT_REFUSED = 1
EXIT_NO_CLUSTER = 3
Answer = TypeVar("Answer")

app = typer.Typer(no_args_is_help=True, help="Show what lanes become in a cluster, and how they do there.")

FileOption = Annotated[Path, typer.Option("--file", "-f", help="A file of InferenceLanes.")]
ConfigOption = Annotated[Path, typer.Option("--config", help="The operator's configuration.")]
NamespaceOption = Annotated[str | None, typer.Option("--namespace", "-n", help="The lanes' namespace.")]
KubeconfigOption = Annotated[str | None, typer.Option(help="How to reach the cluster; else as kubectl does.")]
ContextOption = Annotated[str | None, typer.Option(help="The kubeconfig's context.")]


@app.command("render")
def render(file: FileOption, config: ConfigOption, namespace: NamespaceOption = None) -> None:
    """Print the exact objects that lanes become. Nothing is asked of a cluster."""
    objects: list[Object] = []
    refused = False
    for document in _documents(file, namespace):
        made = every_object(document, _config(config), utc_now())
        refused |= _tell(document, made)
        objects += made.objects
    if objects:
        typer.echo(manifests(objects), nl=False)
    if refused:
        raise typer.Exit(EXIT_REFUSED)


@app.command("plan")
def plan_(
    file: FileOption,
    config: ConfigOption,
    namespace: NamespaceOption = None,
    kubeconfig: KubeconfigOption = None,
    context: ContextOption = None,
) -> None:
    """Say what applying lanes would change in a cluster, in GPUs and downtime too. Nothing is changed."""
    known, documents = _config(config), _documents(file, namespace)

    async def look(cluster: Cluster) -> list[Forecast]:
        found = []
        for document in documents:
            observed = await observe(cluster, document, known, utc_now())
            spare = forecast(observed).plan.spare
            if spare is not None:
                free = await free_gpus(cluster, spare.accelerator, spare.gpus)
                observed = replace(observed, free_gpus=free)
            found.append(forecast(observed))
        return found

    refused = False
    for document, found in zip(documents, _ask(kubeconfig, context, look), strict=True):
        refused |= _tell(document, found.plan)
        typer.echo("\n".join(_lines(found)))
    if refused:
        raise typer.Exit(EXIT_REFUSED)


@app.command("status")
def status(
    names: Annotated[list[str] | None, typer.Argument(help="Lanes; all unless some are named.")] = None,
    namespace: NamespaceOption = None,
    output: OutputOption = Output.TABLE,
    kubeconfig: KubeconfigOption = None,
    context: ContextOption = None,
) -> None:
    """Show what serves, what comes next, and what keeps it from coming."""
    lanes = _ask(kubeconfig, context, lambda cluster: read_lanes(cluster, namespace))
    missing = set(names or ()) - {lane["metadata"]["name"] for lane in lanes}
    if missing:
        _end(f"there is no lane {', '.join(sorted(missing))}", EXIT_REFUSED)
    chosen = [lane for lane in lanes if not names or lane["metadata"]["name"] in names]
    show(output, chosen, COLUMNS, rows(chosen), note="\n".join(remarks(chosen)))


def _lines(found: Forecast) -> list[str]:
    lines = [f"lane {found.lane}"]
    lines += [
        f"  {change.verb} {change.kind} {change.name}"
        + (f": {', '.join(change.paths)}" if change.paths else "")
        for change in found.changes
    ]
    if not found.changes:
        lines.append("  nothing changes")
    rollout = found.plan.rollout
    if rollout is not None and rollout.state in {"Deferred", "RolledBack"}:
        until = f" (until {rollout.until:%Y-%m-%d %H:%M} UTC)" if rollout.until else ""
        lines.append(f"  revision {rollout.target} waits: {rollout.reason}, {rollout.message}{until}")
    if found.plan.waiting_for_model:
        lines.append("  the model is fetched first; no GPU is taken before it is there")
    lines.append(f"  pods: {'replaced' if found.replaces_pods else 'not replaced'}")
    lines.append(f"  GPUs: {found.gpus_now} now, {found.gpus_then} then")
    lines.append(f"  downtime: {found.downtime}")
    return lines


def _tell(document: Object, made: Plan) -> bool:
    """Print what is wrong or tight, and return whether the lane is refused."""
    name = document["metadata"].get("name", "?")
    for note in made.notes:
        typer.echo(f"darktree: {name}: note: {note}", err=True)
    for refusal in made.refusals:
        typer.echo(f"darktree: {name}: {refusal.field}: {refusal.message} ({refusal.reason})", err=True)
    return bool(made.refusals)


def _documents(file: Path, namespace: str | None) -> list[Object]:
    try:
        return read_documents(file, namespace)
    except LaneFileError as error:
        raise typer.BadParameter(str(error)) from error


def _config(path: Path) -> OperatorConfig:
    try:
        return read_config(path)
    except InvalidConfig as error:
        raise typer.BadParameter(str(error)) from error


def _ask(
    kubeconfig: str | None, context: str | None, question: Callable[[Cluster], Awaitable[Answer]]
) -> Answer:
    async def ask() -> Answer:
        cluster = Cluster(kubeconfig, context)
        try:
            return await question(cluster)
        finally:
            await cluster.close()

    try:
        return asyncio.run(ask())
    except InvalidLane as error:
        _end(f"{error.field}: {error.message}", EXIT_REFUSED)
    except ClusterError as error:
        _end(str(error), EXIT_REFUSED if error.status else EXIT_NO_CLUSTER)


def _end(message: str, code: int) -> NoReturn:
    typer.echo(f"darktree: {message}", err=True)
    raise typer.Exit(code)
