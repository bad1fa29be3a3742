"""`darktree up`: the whole platform on one machine, from an empty folder to a key that works, and down again.

Everything is planned, and whatever can be wrong is found, before anything is started.
"""

import asyncio
import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from darktree_cli import engines, migrations, postgres, processes
from darktree_cli.lanes import LaneError, read_lanes
from darktree_cli.platform import (
    MAX_GATEWAYS,
    PUBLIC_PORT,
    Plan,
    Process,
    Stage,
    Stripe,
    Wanted,
    plan,
    port_names,
)
from darktree_cli.ports import Ports, PortTaken
from darktree_cli.run import Run
from darktree_cli.settings import Settings, inherited_environment
from darktree_cli.state import DEFAULT_NAME, DataDir, Secrets, StateError
from darktree_kit import clock
from darktree_kit.errors import ApiError

DEFAULT_PORT = 8080
LIVE_KEY = re.compile("(sk|rk)_live_")
PLANS_FILE = Path("plans.yaml")
LANES_FOLDER = Path("lanes")

Say = Callable[[str], None]


class LiveKey(Exception):
    """A key for real money."""


_PREVENTED = (
    LiveKey,
    StateError,
    PortTaken,
    LaneError,
    engines.EngineError,
    postgres.PostgresError,
    processes.StartFailed,
    migrations.MigrationFailed,
    ApiError,
)


class Engine(StrEnum):
    """What answers behind the lanes."""

    SIMULATOR = "simulator"
    VLLM = "vllm"


@dataclass(frozen=True)
class Options:
    """What the user asked for."""

    data_dir: Path
    port: int
    console_port: int | None
    gateways: int
    engine: Engine
    fresh: bool
    plans_file: Path
    lanes_folder: Path
    ready_file: Path | None


def up(
    data_dir: Annotated[Path, typer.Option(help="Where everything is kept.")] = Path(DEFAULT_NAME),
    port: Annotated[
        int, typer.Option(min=0, max=65_535, help="The endpoint's port; 0 chooses a free one.")
    ] = (DEFAULT_PORT),
    console_port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65_535, help="The console's port; else the endpoint's plus one, if it is free."
        ),
    ] = None,
    gateways: Annotated[int, typer.Option(min=1, max=MAX_GATEWAYS, help="How many share the endpoint.")] = 1,
    engine: Annotated[Engine, typer.Option(help="What serves the lanes; vllm needs `make vllm`.")] = (
        Engine.SIMULATOR
    ),
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Delete the data directory's contents first.")
    ] = False,
    plans: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Plans, models and prices (YAML).")
    ] = None,
    lanes: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="A folder of InferenceLane documents.")
    ] = None,
    ready_file: Annotated[
        Path | None, typer.Option(help="Write how to reach the platform here (JSON) once it is ready.")
    ] = None,
) -> None:
    """Serve everything on this machine: a database, the services, lanes, and a customer with a key.

    Uses the database that DATABASE_URL names (a URL of someone who may create roles and schemas), else one of its own.
    """
    examples = _examples()
    options = Options(
        data_dir=data_dir,
        port=port,
        console_port=console_port,
        gateways=gateways,
        engine=engine,
        fresh=fresh,
        plans_file=(plans or examples / PLANS_FILE).absolute(),
        lanes_folder=(lanes or examples / LANES_FOLDER).absolute(),
        ready_file=ready_file.absolute() if ready_file else None,
    )
    try:
        serve(options, Settings())
    except _PREVENTED as error:
        typer.echo(f"darktree: {error}", err=True)
        raise typer.Exit(1) from error


def serve(options: Options, settings: Settings) -> None:
    """Run the platform until a signal stops it. Raises one of `_PREVENTED`."""
    _refuse_live_key(settings)
    say, started_at = _progress(), clock.monotonic()
    data = DataDir(options.data_dir)
    with data.claimed(), ExitStack() as stack:
        _end_what_was_left(data, say)
        if options.fresh:
            data.erase()
        if options.ready_file is not None:
            options.ready_file.unlink(missing_ok=True)
        ports = stack.enter_context(Ports())
        planned = _plan(options, settings, data, ports, stack, say)
        asyncio.run(Run(planned, data, options.ready_file, say, started_at).until_stopped())


def _plan(
    options: Options, settings: Settings, data: DataDir, ports: Ports, stack: ExitStack, say: Say
) -> Plan:
    """Return what shall run, having made what that needs: ports, a database, a model."""
    vllm = options.engine is Engine.VLLM
    lanes = [engines.within_vllm(lane) if vllm else lane for lane in read_lanes(options.lanes_folder)]
    chosen = {
        PUBLIC_PORT: ports.exactly(options.port) if options.port else ports.free(),
        "billing": _console_port(options, ports),
    }
    chosen |= {name: ports.free() for name in port_names(lanes, options.gateways)}
    environment = inherited_environment(services=False)
    if vllm:
        say("preparing vLLM; it takes about a minute to start")
        answering = engines.real(lanes, chosen, data.model, settings.vllm_python, environment)
    else:
        answering = engines.simulated(lanes, chosen)
    if settings.database_url is not None:
        say("using the database that DATABASE_URL names")
        database: list[Process] = []
        database_url = settings.database_url.get_secret_value()
    else:
        database, database_url = _embedded(data, environment, stack, say)
    data.make_keys()
    secrets = data.secrets()
    wanted = Wanted(
        data_dir=data,
        secrets=secrets,
        database_url=database_url,
        lanes=lanes,
        plans_file=options.plans_file,
        gateways=options.gateways,
        vllm=vllm,
        stripe=_stripe(settings, secrets, say),
    )
    planned = plan(wanted, chosen, [*database, *answering])
    return replace(planned, processes=[_with_environment(process) for process in planned.processes])


def _console_port(options: Options, ports: Ports) -> int:
    """Return the port that was asked for; else the one after the endpoint's, so that a bookmark lasts, or any."""
    if options.console_port:
        return ports.exactly(options.console_port, "--console-port")
    if options.console_port is None and options.port:
        with suppress(PortTaken):
            return ports.exactly(options.port + 1, "--console-port")
    return ports.free()


def _stripe(settings: Settings, secrets: Secrets, say: Say) -> Stripe:
    """Return Stripe itself when there is a test key for it."""
    if settings.stripe_api_key is None:
        key, secret = f"sk_test_{secrets.stripe_api_key}", f"whsec_{secrets.stripe_webhook_secret}"
        return Stripe(key, secret, is_real=False)
    key = settings.stripe_api_key.get_secret_value()
    say("buying through Stripe, with the test key that STRIPE_API_KEY holds")
    given = settings.stripe_webhook_secret
    secret = given.get_secret_value() if given else f"whsec_{secrets.stripe_webhook_secret}"
    return Stripe(key, secret, is_real=True)


def _refuse_live_key(settings: Settings) -> None:
    key = settings.stripe_api_key
    if key is not None and LIVE_KEY.match(key.get_secret_value()):
        raise LiveKey(
            "STRIPE_API_KEY is a live key, and this is no place for money: use a test key (sk_test_...)."
        )


def _embedded(
    data: DataDir, environment: Mapping[str, str], stack: ExitStack, say: Say
) -> tuple[list[Process], str]:
    if not data.postgres.exists():
        say("making a database (once)")
    embedded = postgres.prepare(data.postgres, environment)
    stack.callback(embedded.remove_sockets)
    return [embedded.process()], embedded.url


def _with_environment(process: Process) -> Process:
    inherited = inherited_environment(services=process.stage >= Stage.STRIPE)
    return replace(process, env={**process.defaults, **inherited, **process.env})


def _end_what_was_left(data: DataDir, say: Say) -> None:
    """End what a killed supervisor left running, so that nothing but this run uses the directory."""
    record = data.platform()
    if record is not None:
        processes.end(record.processes, say)
    postgres.end_what_was_left(data.postgres, say)
    data.withdraw()


def _examples() -> Path:
    """Return the folder of examples: beside the code in a repository, inside the package when it is installed."""
    packaged = Path(__file__).parent / "examples"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "examples"


def _progress() -> Say:
    started_at = clock.monotonic()
    return lambda text: typer.echo(f"{clock.monotonic() - started_at:6.1f} s  {text}", err=True)
