"""What somebody else changed in an object of a lane: the paths, of the fields that the operator says, that differ.

An object as the API server keeps it has more fields than were said, and may write a value otherwise (`1024Mi`, `1Gi`).
So what is said is never compared with what is kept: two states of what is kept are, at the places that are said.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from darktree_operator.lane import Object

MAX_PATHS = 8
_KEYS = ("mountPath", "containerPort", "name", "topologyKey", "type", "uid", "port")
_ABSENT = "<absent>"


def projection(said: Any, kept: Any) -> Any:
    """Return what an object holds at the places that are said, and nothing else."""
    if isinstance(said, Mapping):
        if not isinstance(kept, Mapping):
            return _ABSENT if kept is None and said else kept
        return {
            name: projection(value, kept.get(name))
            for name, value in said.items()
            if value not in (None, {}, [])
        }
    if isinstance(said, list) and isinstance(kept, list):
        key = _key(said)
        if key is not None and all(isinstance(each, Mapping) for each in kept):
            by_key = {each.get(key): each for each in kept}
            return {str(each[key]): projection(each, by_key.get(each[key])) for each in said}
    return _ABSENT if kept is None else kept


def differences(before: Any, after: Any, path: str = "") -> list[str]:
    """Return the paths at which two projections differ, at most MAX_PATHS of them."""
    found: list[str] = []
    for each in _differences(before, after, path):
        if len(found) == MAX_PATHS:
            return [*found, "..."]
        found.append(each)
    return found


def writers(kept: Object, manager: str) -> list[str]:
    """Return who else wrote an object, newest first."""
    fields: Sequence[Object] = kept["metadata"].get("managedFields") or ()
    others = [
        each for each in fields if each.get("manager") != manager and each.get("subresource") != "status"
    ]
    newest = sorted(others, key=lambda each: str(each.get("time") or ""), reverse=True)
    return [str(each.get("manager")) for each in newest][:MAX_PATHS]


def _differences(before: Any, after: Any, path: str) -> Iterator[str]:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for name in sorted({*before, *after}, key=str):
            yield from _differences(
                before.get(name, _ABSENT), after.get(name, _ABSENT), f"{path}.{name}" if path else str(name)
            )
    elif before != after:
        yield path


def _key(said: list[Any]) -> str | None:
    for key in _KEYS:
        if said and all(isinstance(each, Mapping) and key in each for each in said):
            values = [each[key] for each in said]
            if len(set(values)) == len(values):
                return key
    return None
