"""Ports that are chosen for one run are kept for it."""

import socket

import pytest

from darktree_cli.ports import Ports, PortTaken
from darktree_kit.server import listen


def test_a_chosen_port_can_be_listened_on_while_it_is_kept_and_shared_by_gateways() -> None:
    with Ports() as ports:
        port = ports.free()
        with listen("127.0.0.1", port, shared=True), listen("127.0.0.1", port, shared=True):
            pass
        with listen("127.0.0.1", port):
            pass


def test_a_kept_port_is_given_to_nobody_else() -> None:
    with Ports() as ports:
        kept = {ports.free() for _ in range(200)}
        assert len(kept) == 200
        with Ports() as others:
            assert not kept & {others.free() for _ in range(500)}


def test_a_port_that_is_listened_on_is_refused_by_its_number() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, Ports() as ports:
        port = taken.getsockname()[1]
        with pytest.raises(PortTaken, match=f"Port {port} cannot be used.*--port"):
            ports.exactly(port)


def test_a_port_that_gateways_share_is_taken_too() -> None:
    with listen("127.0.0.1", 0, shared=True) as taken, Ports() as ports, pytest.raises(PortTaken):
        ports.exactly(taken.getsockname()[1])
