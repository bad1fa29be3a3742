"""Stripe's way to send nested parameters as a form: `line_items[0][price_data][currency]=usd`."""

import re
from typing import Any
from urllib.parse import parse_qsl

from darktree_stripe_simulator.errors import Refusal

MAX_FIELDS = 1_000
MAX_DEPTH = 8
_KEY = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\])*)")
_PART = re.compile(r"\[([^\[\]]*)\]")


def decode(text: str) -> dict[str, Any]:
    """Return a form's parameters, with hashes as dicts and arrays as lists. Raises Refusal."""
    try:
        fields = parse_qsl(text, keep_blank_values=True, max_num_fields=MAX_FIELDS, errors="strict")
    except ValueError as error:
        raise Refusal(f"Invalid request: {error}", executed=False) from error
    nested: dict[str, Any] = {}
    for key, value in fields:
        _put(nested, _path(key), value, key)
    return {name: _with_lists(value) for name, value in nested.items()}


def _path(key: str) -> list[str]:
    found = _KEY.fullmatch(key)
    if found is None:
        raise Refusal(f"Invalid parameter name: {key}", executed=False)
    path = [found[1], *_PART.findall(found[2])]
    if len(path) > MAX_DEPTH:
        raise Refusal(f"Invalid parameter name: {key}", executed=False)
    return path


def _put(into: dict[str, Any], path: list[str], value: str, key: str) -> None:
    for part in path[:-1]:
        into = into.setdefault(part or str(len(into)), {})
        if not isinstance(into, dict):
            raise Refusal(f"Invalid parameter: {key} is both a value and a hash", executed=False)
    into[path[-1] or str(len(into))] = value


def _with_lists(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    below = {name: _with_lists(item) for name, item in value.items()}
    is_list = bool(below) and all(name.isdigit() for name in below)
    return [below[name] for name in sorted(below, key=int)] if is_list else below
