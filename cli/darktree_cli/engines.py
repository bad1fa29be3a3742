"""What answers behind each lane: a simulator, or a real vLLM on a CPU with a tiny model of random weights."""

import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from darktree_cli import platform
from darktree_cli.lanes import Lane
from darktree_cli.platform import Process
from darktree_simulator import tiny_model
from darktree_simulator.vllm_process import vllm_command

MODEL_SECONDS = 300
VLLM_CONTEXT_LENGTH = 4_096  # what a CPU can be asked to keep for each of several lanes
VLLM_FOLDER = ".venv-vllm"


class EngineError(Exception):
    """The engines cannot be started; the message says what to do."""


def simulated(lanes: list[Lane], ports: Mapping[str, int]) -> list[Process]:
    """Return a simulator for each lane."""
    return [platform.simulator(lane, ports[f"lane-{lane.name}"]) for lane in lanes]


def real(
    lanes: list[Lane],
    ports: Mapping[str, int],
    model: Path,
    python: Path | None,
    environment: Mapping[str, str],
) -> list[Process]:
    """Return a vLLM for each lane, having made the model that they serve. Raises EngineError."""
    interpreter = python or Path(__file__).parents[2] / VLLM_FOLDER / "bin" / "python"
    if not interpreter.exists():
        raise EngineError(
            f"There is no vLLM at {interpreter}. Make it with `make vllm` in the repository, or name the Python of "
            "another environment with DARKTREE_VLLM_PYTHON."
        )
    _make_model(interpreter, model, environment)
    processes = []
    for lane in lanes:
        port = ports[f"lane-{lane.name}"]
        command = vllm_command(
            interpreter, model, lane.served_name, port, lane.context_length, pooling=lane.embeds
        )
        processes.append(platform.vllm(lane, port, command.argv, command.env))
    return processes


def within_vllm(lane: Lane) -> Lane:
    """Return the lane as a CPU can serve it: with a shorter context."""
    return replace(lane, context_length=min(lane.context_length, VLLM_CONTEXT_LENGTH))


def _make_model(interpreter: Path, model: Path, environment: Mapping[str, str]) -> None:
    done = model / ".complete"
    if done.exists():
        return
    try:
        subprocess.run(  # noqa: S603 (our own script)
            (str(interpreter), str(tiny_model.__file__), str(model)),
            env=dict(environment),
            check=True,
            capture_output=True,
            text=True,
            timeout=MODEL_SECONDS,
        )
    except (OSError, subprocess.SubprocessError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1]
        raise EngineError(f"The tiny model could not be made: {reason}. Try `make vllm` again.") from error
    done.touch()
