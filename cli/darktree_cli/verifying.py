"""What the offline verifiers share on the command line: trusted keys, progress, a verdict in plain words, exit codes.

0: proven. 1: something differs. 2: it cannot be read.
"""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from darktree_cli.output import Output
from darktree_kit.notes import NoteError, Verifier, parse_verifier
from darktree_ledger.checkpoints import Checkpoint
from darktree_ledger.export_file import Progress, Unreadable
from darktree_ledger.verification import Failures

MAX_SHOWN = 20
MAX_NOTE_BYTES = 100_000
DIFFERS, UNREADABLE = 1, 2

KeysOption = Annotated[
    list[str] | None,
    typer.Option("--key", help="A verifier key that you trust (vkey); may be given several times."),
]
CheckpointOption = Annotated[
    Path | None, typer.Option("--checkpoint", help="A checkpoint that you kept: the file of the note.")
]


def trusted(keys: list[str] | None) -> list[Verifier]:
    try:
        return [parse_verifier(key) for key in keys or []]
    except NoteError as error:
        raise typer.BadParameter(str(error), param_hint="--key") from error


def kept_note(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            return file.read(MAX_NOTE_BYTES).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{path}: {error}", param_hint="--checkpoint") from error


def progress() -> Progress | None:
    """Return what draws a line on standard error while it runs; nothing when that is no terminal."""
    if not sys.stderr.isatty():
        return None

    def draw(done: int, total: int) -> None:
        end = "\n" if done >= total else ""
        share = 100 * done // max(total, 1)
        sys.stderr.write(f"\rverifying {done // 1_000_000} of {total // 1_000_000} MB, {share} %{end}")
        sys.stderr.flush()

    return draw


def readable(verify: Callable[[], Any], output: Output) -> Any:
    """Return what a verifier reports; end with 2 when there is nothing to verify."""
    try:
        return verify()
    except Unreadable as error:
        if output is Output.JSON:
            typer.echo(json.dumps({"verdict": "unreadable", "problem": str(error)}, indent=2))
        typer.echo(f"darktree: {error}", err=True)
        raise typer.Exit(UNREADABLE) from error


def verdict(
    output: Output,
    failures: Failures,
    facts: dict[str, Any],
    proves: Sequence[str],
    not_proven: Sequence[str],
) -> None:
    """Print what came out; end with 1 when something differs."""
    if output is Output.JSON:
        answer = {"verdict": "differs" if failures.count else "proven", **facts, "failures": failures.count}
        answer |= {"differs": [_plain(failure) for failure in failures.kept]}
        told = {"proves": [] if failures.count else list(proves), "does_not_prove": list(not_proven)}
        typer.echo(json.dumps(answer | told, indent=2))
    elif failures.count:
        typer.echo(f"NOT PROVEN: {failures.count} things differ.")
        for failure in failures.kept[:MAX_SHOWN]:
            typer.echo(f"  - {failure}")
        if failures.count > MAX_SHOWN:
            typer.echo(f"  and {failures.count - MAX_SHOWN} more")
    else:
        typer.echo("PROVEN.")
        for title, lines in (("This proves:", proves), ("It does not prove:", not_proven)):
            typer.echo(title)
            for line in lines:
                typer.echo(f"  - {line}")
    if failures.count:
        raise typer.Exit(DIFFERS)


def describe(checkpoint: Checkpoint | None) -> dict[str, Any] | None:
    if checkpoint is None:
        return None
    return {"origin": checkpoint.origin, "size": checkpoint.size, "root": checkpoint.root.hex()}


def key_warning(pinned: bool, keys: Sequence[str]) -> str:
    """Return how much the signatures are worth."""
    if pinned:
        return "the signatures are by keys that you trust"
    told = ", ".join(keys) or "none"
    return f"the signatures are by the keys in the file, which nobody vouches for: compare {told} with what you know"


def _plain(failure: Any) -> dict[str, Any]:
    fields = {name: getattr(failure, name) for name in ("what", "customer_id", "seq", "entry_id", "line")}
    return {name: value for name, value in fields.items() if value is not None}
