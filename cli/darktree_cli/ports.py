"""Ports chosen for one run, and kept from everyone else until it ends.

A port is held by a socket that is bound but does not listen: the kernel then gives the number to nobody who asks for
any free port, while the process that it was chosen for can still listen on it (both set SO_REUSEADDR).
"""

import socket
import sys
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from darktree_cli.platform import HOST


class PortTaken(Exception):
    """Someone else listens on the port that was asked for."""


class Ports:
    """The ports of one run."""

    def __init__(self) -> None:
        self._held = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()

    def free(self) -> int:
        """Return a port that nobody uses."""
        return self._hold(0)

    def exactly(self, port: int, option: str = "--port") -> int:
        """Return this port. Raises PortTaken, naming the option to change it, when it cannot be used."""
        try:
            # Listening for a moment is the only sure way to know that nobody else does.
            with _bound(port) as probe:
                probe.listen(1)
            return self._hold(port)
        except OSError as error:
            raise PortTaken(
                f"Port {port} cannot be used ({error.strerror}): choose another with {option}; 0 takes any free one."
            ) from error

    def _hold(self, port: int) -> int:
        bound = _bound(port)
        number: int = bound.getsockname()[1]
        if sys.platform == "linux":
            self._held.enter_context(bound)
        else:  # elsewhere a bound socket keeps even our own processes out
            bound.close()
        return number


def _bound(port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((HOST, port))
    except OSError:
        made.close()
        raise
    return made
