"""Reads a YAML file's content into a schema; a mistake is told with its place and what to do."""

from collections.abc import Hashable
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

MAX_FILE_BYTES = 1_000_000

Document = TypeVar("Document", bound=BaseModel)


def parse_document(content: bytes, schema: type[Document], name: str) -> Document:
    """Return what a file's content says. Raises ValueError naming the first mistakes."""
    if len(content) > MAX_FILE_BYTES:
        raise ValueError(f"{name}: larger than {MAX_FILE_BYTES} bytes")
    try:
        document = yaml.load(content, _Loader)  # noqa: S506 (a SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{name}: this is not YAML: {error}") from error
    try:
        return schema.model_validate(document)
    except ValidationError as error:
        mistakes = "; ".join(_mistake(dict(detail)) for detail in error.errors()[:5])
        raise ValueError(f"{name}: {mistakes}") from error


class _Loader(yaml.SafeLoader):
    """YAML that refuses to write one key twice, where the plain loader quietly takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = key_node.value
            if isinstance(key, str) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key!r} is written twice", key_node.start_mark
                )
            seen.add(key if isinstance(key, str) else id(key_node))
        return super().construct_mapping(node, deep)


def _mistake(detail: dict[str, Any]) -> str:
    place = ".".join(str(part) for part in detail["loc"])
    what = {
        "extra_forbidden": "there is no such field; remove it or mend its name",
        "missing": "this field is required; add it",
        "multiple_of": "a plan's price must be a whole number of cents",
    }.get(detail["type"], detail["msg"].removeprefix("Value error, "))
    return f"{place}: {what}" if place else what
