"""Ports for processes of the tests to listen on, now or later: until the tests end nobody else is given one."""

from darktree_cli.ports import Ports

_ports = Ports()


def free_port() -> int:
    return _ports.free()
