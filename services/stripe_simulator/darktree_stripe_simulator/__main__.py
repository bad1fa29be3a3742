"""Runs the stand-in: `python -m darktree_stripe_simulator --port 9004 --webhook-url http://127.0.0.1:9000/webhooks`."""

import argparse
import sys

import uvicorn

from darktree_stripe_simulator.app import make_app
from darktree_stripe_simulator.settings import Settings
from darktree_stripe_simulator.state import StateError

SHUTDOWN_SECONDS = 1


def main(arguments: list[str] | None = None) -> int:
    settings = settings_from(arguments)
    try:
        app = make_app(settings)
    except StateError as error:
        sys.stderr.write(f"darktree_stripe_simulator: {error}\n")
        return 1
    uvicorn.run(
        app,
        host=settings.host,
        port=settings.port,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    return 0


def settings_from(arguments: list[str] | None) -> Settings:
    """The environment's settings, with those of the command line put over them."""
    parser = argparse.ArgumentParser(
        prog="darktree_stripe_simulator",
        description="A stand-in for the parts of Stripe's API that selling bundles needs.",
        epilog="Every option can also be set in the environment, as DARKTREE_STRIPE_SIMULATOR_PORT and so on.",
    )
    parser.add_argument("--host", help="address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=int, help="port to listen on (9004)")
    parser.add_argument("--api-key", help="the secret key that the API takes")
    parser.add_argument("--webhook-url", help="where events are sent; none are without it")
    parser.add_argument(
        "--secret", action="append", dest="webhook_secrets", help="signs events; repeat it for a rotation"
    )
    parser.add_argument(
        "--delivery", choices=["automatic", "manual"], help="manual sends only on /_control/deliver"
    )
    parser.add_argument("--state", help="a file that keeps everything from one run to the next")
    parser.add_argument("--settle-seconds", type=float, help="how long a bank debit takes (5)")
    parser.add_argument("--tax-basis-points", type=int, help="the rate of automatic tax (825)")
    given = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    return Settings(**given)


if __name__ == "__main__":
    sys.exit(main())
