"""Runs one lane: `python -m darktree_simulator --port 9001 --model qwen25-14b-awq --tokens-per-second 100`."""

from __future__ import annotations

import argparse
import sys

import uvicorn

from darktree_simulator.app import make_app
from darktree_simulator.settings import Settings

SHUTDOWN_SECONDS = 1


def main(arguments: list[str] | None = None) -> int:
    settings = settings_from(arguments)
    uvicorn.run(
        make_app(settings),
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
        prog="darktree_simulator",
        description="A lane without a GPU: vLLM's HTTP surface with exact token accounting.",
        epilog="Every option can also be set in the environment, as DARKTREE_SIMULATOR_PORT and so on.",
    )
    parser.add_argument("--host", help="address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=int, help="port to listen on (9001)")
    parser.add_argument("--model", action="append", dest="models", help="served name; repeat it for aliases")
    parser.add_argument(
        "--tokens-per-second", type=float, help="speed of each choice; 0 is as fast as possible"
    )
    parser.add_argument(
        "--context-length", type=int, help="tokens of a prompt and its answer together (4096)"
    )
    parser.add_argument(
        "--embedding-dimensions", type=int, help="embed instead of generating, in so many dimensions"
    )
    parser.add_argument("--maximum-concurrent-sequences", type=int, help="choices generated at once (256)")
    parser.add_argument("--startup-delay-seconds", type=float, help="answer 503 for so long after the start")
    given = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    return Settings(**given)


if __name__ == "__main__":
    sys.exit(main())
