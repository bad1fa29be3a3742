"""What runs on one machine, and with which settings: a pure plan, computed whole before anything is started."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from pathlib import Path
from signal import SIGTERM, Signals
from urllib.parse import quote, urlsplit

from darktree_cli.lanes import EMBEDDING_DIMENSIONS, TIERS, Lane, served_lanes
from darktree_cli.state import DataDir, Secrets

HOST = "127.0.0.1"
MAX_GATEWAYS = 64
SERVICE_START_SECONDS = 60.0
VLLM_START_SECONDS = 600.0
STOP_SECONDS = 10.0
GATEWAY_STOP_SECONDS = 40.0  # kit lets running streams finish for 30
LEDGER_ROLE = "darktree_ledger"
SEALER_ROLE = "darktree_sealer"
BILLING_ROLE = "darktree_billing"
PUBLIC_PORT = "public"
WEBHOOK_PATH = "/webhooks/stripe"
TEAM_EMAIL = "team@example.com"


class Stage(IntEnum):
    """The order of stopping, backwards: who needs another is stopped before it."""

    DATABASE = 0
    ENGINE = 1
    STRIPE = 2
    SEALER = 3
    LEDGER = 4
    BILLING = 5
    GATEWAY = 6


@dataclass(frozen=True)
class Process:
    """One process: what to execute, where it says that it is ready, and how it is stopped.

    `env` is decided here; `defaults` are for what the environment does not say.
    """

    name: str
    stage: Stage
    argv: tuple[str, ...]
    env: Mapping[str, str]
    defaults: Mapping[str, str] = field(default_factory=dict)
    url: str | None = None
    health_path: str = "/readyz"
    user: tuple[int, int] | None = None
    stop_signal: Signals = SIGTERM
    kill_signal: Signals = Signals.SIGKILL
    start_seconds: float = SERVICE_START_SECONDS
    stop_seconds: float = STOP_SECONDS


@dataclass(frozen=True)
class Stripe:
    """Whom billing buys through: Stripe itself, or the stand-in, which takes any key that it was told."""

    api_key: str
    webhook_secret: str
    is_real: bool


@dataclass(frozen=True)
class Wanted:
    """What the platform is asked to be."""

    data_dir: DataDir
    secrets: Secrets
    database_url: str
    lanes: list[Lane]
    plans_file: Path
    gateways: int
    vllm: bool
    stripe: Stripe


@dataclass(frozen=True)
class Plan:
    """The processes in the order of starting, and where the platform answers."""

    processes: list[Process]
    base_url: str
    billing_url: str
    stripe_url: str | None
    database_url: str
    demo_model: str
    lanes_document: str

    @property
    def console_url(self) -> str:
        return self.billing_url + "/console"


def port_names(lanes: list[Lane], gateways: int) -> list[str]:
    """Return the names of the ports that a plan needs beside the public one and the console's (billing's)."""
    names = ["ledger", "sealer", "stripe", *(f"lane-{lane.name}" for lane in lanes)]
    return names + [f"gateway-{number}" for number in range(1, gateways + 1)]


def plan(wanted: Wanted, ports: Mapping[str, int], below: list[Process]) -> Plan:
    """Return the platform on top of what lies below it: the database (when it is our own) and the engines."""
    urls = {name: _url(port) for name, port in ports.items()}
    gateways = [_gateway(wanted, number, ports, urls) for number in range(1, wanted.gateways + 1)]
    stand_in = [] if wanted.stripe.is_real else [_stripe(wanted, ports, urls)]
    return Plan(
        processes=[
            *below,
            *stand_in,
            _ledger(wanted, ports),
            _sealer(wanted, ports),
            _billing(wanted, ports, urls),
            *gateways,
        ],
        base_url=urls[PUBLIC_PORT] + "/v1",
        billing_url=urls["billing"],
        stripe_url=None if wanted.stripe.is_real else urls["stripe"],
        database_url=wanted.database_url,
        # A dedicated lane would refuse the demo customer.
        demo_model=min(wanted.lanes, key=lambda lane: TIERS.index(lane.tier)).served_name,
        lanes_document=served_lanes(
            wanted.lanes,
            {lane.name: urls[f"lane-{lane.name}"] for lane in wanted.lanes},
            "VLLM" if wanted.vllm else "Simulator",
        ),
    )


def simulator(lane: Lane, port: int) -> Process:
    """Return the engine that serves a lane without a GPU."""
    options = {
        "--port": port,
        "--model": lane.served_name,
        "--tokens-per-second": lane.tokens_per_second,
        "--context-length": lane.context_length,
        "--embedding-dimensions": EMBEDDING_DIMENSIONS if lane.embeds else 0,
    }
    words = [str(word) for option in options.items() for word in option]
    return _engine(lane, port, (*_python("darktree_simulator"), *words), {}, SERVICE_START_SECONDS)


def vllm(lane: Lane, port: int, argv: list[str], env: Mapping[str, str]) -> Process:
    """Return a lane's real vLLM, started by this command."""
    return _engine(lane, port, tuple(argv), env, VLLM_START_SECONDS)


def as_role(database_url: str, role: str, password: str) -> str:
    """Return the database's URL for a runtime role."""
    parts = urlsplit(database_url)
    server = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"{quote(role, safe='')}:{quote(password, safe='')}@{server}").geturl()


def _engine(
    lane: Lane, port: int, argv: tuple[str, ...], env: Mapping[str, str], start_seconds: float
) -> Process:
    return Process(
        name=f"lane-{lane.name}",
        stage=Stage.ENGINE,
        argv=argv,
        env=env,
        url=_url(port),
        health_path="/health",
        start_seconds=start_seconds,
    )


def _ledger(wanted: Wanted, ports: Mapping[str, int]) -> Process:
    secrets = wanted.secrets
    settings = {
        "DATABASE_URL": as_role(wanted.database_url, LEDGER_ROLE, secrets.ledger_role_password),
        "GATEWAY_TOKEN": secrets.ledger_gateway_token,
        "BILLING_TOKEN": secrets.ledger_billing_token,
    }
    return _service("ledger", Stage.LEDGER, ports["ledger"], settings)


def _sealer(wanted: Wanted, ports: Mapping[str, int]) -> Process:
    settings = {
        "DATABASE_URL": as_role(wanted.database_url, SEALER_ROLE, wanted.secrets.sealer_role_password),
        "KEY_FILES": str(wanted.data_dir.log_key),
        "ANCHORS": wanted.data_dir.anchors.as_uri(),
    }
    sealer = _service("sealer", Stage.SEALER, ports["sealer"], settings)
    # Nobody waits for it: what keeps it from sealing is for `darktree doctor` to tell.
    return replace(sealer, argv=_python("darktree_ledger.sealer"), health_path="/healthz")


def _billing(wanted: Wanted, ports: Mapping[str, int], urls: Mapping[str, str]) -> Process:
    secrets = wanted.secrets
    settings = {
        "DATABASE_URL": as_role(wanted.database_url, BILLING_ROLE, secrets.billing_role_password),
        "LEDGER_URL": urls["ledger"],
        "LEDGER_TOKEN": secrets.ledger_billing_token,
        "GATEWAY_TOKEN": secrets.billing_gateway_token,
        "ADMIN_TOKEN": secrets.admin_token,
        "KEY_PEPPER": secrets.key_pepper,
        "PLANS_FILE": str(wanted.plans_file),
        "BOOKS_KEY_FILE": str(wanted.data_dir.books_key),
        "STRIPE_API_KEY": wanted.stripe.api_key,
        "STRIPE_API_BASE": "" if wanted.stripe.is_real else urls["stripe"],
        "STRIPE_WEBHOOK_SECRETS": wanted.stripe.webhook_secret,
    }
    defaults = {
        "PUBLIC_URL": urls["billing"],
        "API_URL": urls[PUBLIC_PORT] + "/v1",
        "TEAM_EMAILS": TEAM_EMAIL,
        "MAIL_FILE": str(wanted.data_dir.mailbox),
    }
    billing = _service("billing", Stage.BILLING, ports["billing"], settings)
    return replace(billing, defaults={f"DARKTREE_BILLING_{name}": value for name, value in defaults.items()})


def _stripe(wanted: Wanted, ports: Mapping[str, int], urls: Mapping[str, str]) -> Process:
    settings = {
        "API_KEY": wanted.stripe.api_key,
        "WEBHOOK_SECRETS": json.dumps([wanted.stripe.webhook_secret]),
        "WEBHOOK_URL": urls["billing"] + WEBHOOK_PATH,
        "STATE": str(wanted.data_dir.stripe),
    }
    stand_in = _service("stripe_simulator", Stage.STRIPE, ports["stripe"], settings)
    return replace(stand_in, name="stripe")


def _gateway(wanted: Wanted, number: int, ports: Mapping[str, int], urls: Mapping[str, str]) -> Process:
    name = f"gateway-{number}"
    settings = {
        "SHARED_PORT": "true",
        "PRIVATE_PORT": str(ports[name]),
        "GATEWAYS": str(wanted.gateways),
        "LEAVING_SECONDS": "0",  # whoever stops a platform on one machine stops all of it
        "LEDGER_URL": urls["ledger"],
        "LEDGER_TOKEN": wanted.secrets.ledger_gateway_token,
        "BILLING_URL": urls["billing"],
        "BILLING_TOKEN": wanted.secrets.billing_gateway_token,
        "LANES_FILE": str(wanted.data_dir.lanes_file),
        # Shared: whichever gateway lives settles what one that died left in it.
        "JOURNAL_DIR": str(wanted.data_dir.journal),
    }
    gateway = _service("gateway", Stage.GATEWAY, ports[PUBLIC_PORT], settings)
    return replace(gateway, name=name, url=urls[name], stop_seconds=GATEWAY_STOP_SECONDS)


def _service(name: str, stage: Stage, port: int, settings: Mapping[str, str]) -> Process:
    prefix = f"DARKTREE_{name.upper()}_"
    env = {prefix + key: value for key, value in {"HOST": HOST, "PORT": str(port), **settings}.items()}
    return Process(name=name, stage=stage, argv=_python(f"darktree_{name}"), env=env, url=_url(port))


def _python(module: str) -> tuple[str, ...]:
    return (sys.executable, "-m", module)


def _url(port: int) -> str:
    return f"http://{HOST}:{port}"
