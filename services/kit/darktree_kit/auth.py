"""Service tokens: who calls, told by a shared secret and compared in constant time."""

import hashlib
import hmac
from collections.abc import Mapping
from typing import Any

from fastapi import Request

from darktree_kit.errors import Forbidden, Unauthorized


class Callers:
    """The callers a service knows, each with a token of its own, or several while one is being replaced."""

    def __init__(self, tokens: Mapping[str, str]) -> None:
        """`tokens` maps a caller's name to its tokens, with commas between; an empty one admits nobody."""
        self._digests = [
            (name, _digest(token.strip()))
            for name, listed in tokens.items()
            for token in listed.split(",")
            if token.strip()
        ]

    def name_of(self, authorization: str | None) -> str:
        """Return the caller's name. Raises Unauthorized when the header is missing or fits nobody."""
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Unauthorized("A service token is required: Authorization: Bearer <token>.")
        sent = _digest(token.strip())
        # Every token is compared, so that time tells nothing about which one was near.
        matches = [name for name, digest in self._digests if hmac.compare_digest(digest, sent)]
        if not matches:
            raise Unauthorized("The service token is not known here.")
        return matches[0]


def require(*names: str) -> Any:
    """Return a dependency that admits only these callers and gives the caller's name."""

    async def check(request: Request) -> str:  # async: a plain function would run in a thread
        callers: Callers = request.app.state.callers
        name = callers.name_of(request.headers.get("authorization"))
        if name not in names:
            raise Forbidden(f"{name} may not do this.")
        return name

    return check


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
