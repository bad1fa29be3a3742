"""docs/logs.md names every field that a line of a log can have, and no other; and no field is made for a prompt."""

import ast
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

from darktree_gateway.record import Record
from darktree_kit.logs import JsonFormatter

ROOT = Path(__file__).resolve().parent.parent
CODE = sorted(path for part in ("services", "operator") for path in (ROOT / part).rglob("*.py"))
OF_EVERY_LINE = {"ts", "level", "service", "logger", "message", "request_id", "exception"}
OF_A_REQUEST = {"method", "route", "status", "duration_ms"}
LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}
FORBIDDEN = re.compile(
    r"prompt(?!_tokens)|messages|content|answer|body|token$|password|authorization", re.IGNORECASE
)


def fields_of(path: Path) -> Iterator[tuple[int, str]]:
    """Return every name that a file gives to `extra=`, with its line."""
    tree = ast.parse(path.read_text(), filename=str(path))
    dictionaries = {
        target.id: node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if not (
            isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LEVELS
        ):
            continue
        for keyword in node.keywords:
            if keyword.arg != "extra":
                continue
            value = keyword.value
            given = dictionaries.get(value.id) if isinstance(value, ast.Name) else value
            assert isinstance(given, ast.Dict), (
                f"{path}:{node.lineno}: write the fields out, or in a dictionary beside"
            )
            for key in given.keys:
                assert isinstance(key, ast.Constant), f"{path}:{node.lineno}: a field's name is written out"
                yield node.lineno, str(key.value)


def fields_in_code() -> set[str]:
    found = {name for path in CODE for _, name in fields_of(path)}
    return found | OF_EVERY_LINE | OF_A_REQUEST | set(Record().fields())


def test_the_document_names_every_field_and_no_other() -> None:
    text = (ROOT / "docs" / "logs.md").read_text()
    documented = {
        name
        for row in re.findall(r"^\| (`[^|]*`) \|", text, re.MULTILINE)
        for name in re.findall(r"`([^`]+)`", row)
    }
    assert documented == fields_in_code()


def test_no_field_is_made_for_what_customers_write_or_for_secrets() -> None:
    assert [name for name in fields_in_code() if FORBIDDEN.search(name)] == []


def test_a_line_has_the_fields_of_every_line() -> None:
    formatter = JsonFormatter("test")
    assert OF_EVERY_LINE - {"request_id", "exception"} <= set(_line(formatter))


def _line(formatter: JsonFormatter) -> dict[str, object]:
    record = logging.LogRecord("darktree", logging.INFO, "", 0, "a message", None, None)
    line: dict[str, object] = json.loads(formatter.format(record))
    return line
