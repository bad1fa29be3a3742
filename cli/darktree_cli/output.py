"""What a command prints: a table to read, or JSON with the service's own fields for other programs."""

import json
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any

import typer
from pydantic import BaseModel

from darktree_kit.money import format_dollars

Row = Sequence[object]


class Output(StrEnum):
    """How an answer is printed."""

    TABLE = "table"
    JSON = "json"


OutputOption = Annotated[Output, typer.Option("--output", "-o", help="How to print the answer.")]


def show(output: Output, answer: Any, columns: Sequence[str], rows: Sequence[Row], note: str = "") -> None:
    """Print an answer. The table is `rows` under `columns`; JSON is `answer`, with amounts in nano-dollars."""
    if output is Output.JSON:
        typer.echo(json.dumps(_plain(answer), indent=2))
        return
    typer.echo(table(columns, rows) if rows else "(none)")
    if note:
        typer.echo(note)


def show_fields(output: Output, answer: Any, fields: Sequence[Row]) -> None:
    """Print one thing: a line for each field, or JSON."""
    if output is Output.JSON:
        typer.echo(json.dumps(_plain(answer), indent=2))
        return
    width = max(len(str(name)) for name, _ in fields)
    for name, value in fields:
        typer.echo(f"{name!s:<{width}}  {cell(value)}")


def table(columns: Sequence[str], rows: Sequence[Row]) -> str:
    """Return rows in columns that are as wide as they must be; numbers stand at the right."""
    cells = [[cell(value) for value in row] for row in rows]
    widths = [max(len(text) for text in column) for column in zip(columns, *cells, strict=True)]
    right = [all(_is_number(row[place]) for row in rows) for place in range(len(columns))]
    lines = [
        "  ".join(
            text.rjust(width) if at_right else text.ljust(width)
            for text, width, at_right in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in [[name.upper() for name in columns], *cells]
    ]
    return "\n".join(lines)


def cell(value: object) -> str:
    return "-" if value is None or value == "" else str(value)


def dollars(nanos: int) -> str:
    """Return an amount for people, exact."""
    return f"${format_dollars(nanos)}" if nanos >= 0 else f"-${format_dollars(-nanos)}"


def _is_number(value: object) -> bool:
    return isinstance(value, int) or (isinstance(value, str) and value.startswith(("$", "-$")))


def _plain(answer: Any) -> Any:
    return answer.model_dump(mode="json") if isinstance(answer, BaseModel) else answer
