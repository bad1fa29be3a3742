"""The account in a file, so that what was bought yesterday can be refunded today."""

import os
from pathlib import Path

import orjson

from darktree_stripe_simulator.account import Account

LAYOUT = 1
_KEPT = ("objects", "private", "due", "answers", "deliveries", "advanced_seconds")


class StateError(Exception):
    """The file is not one of ours; the message says what to do."""


def load(account: Account, path: Path) -> None:
    """Take over what a file has; nothing, when there is none. Raises StateError."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return
    try:
        document = orjson.loads(content)
        if document["layout"] != LAYOUT:
            raise StateError(f"{path} was written by another version: move it away.")
        for name in _KEPT:
            setattr(account, name, document[name])
    except (ValueError, KeyError, TypeError) as error:
        raise StateError(f"{path} holds no state of the stand-in: move it away.") from error


def save(account: Account, path: Path) -> None:
    """Write the file whole or not at all."""
    document = {"layout": LAYOUT} | {name: getattr(account, name) for name in _KEPT}
    beside = path.with_name(f".{path.name}.new")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(orjson.dumps(document))
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
