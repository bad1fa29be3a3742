"""What is tried again at another engine, and what is not: engines that break at every step, on real sockets."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest
import yaml

MODEL = "qwen25-14b-awq"
Behaviour = Callable[[socket.socket], None]


def answer(status: str, body: bytes = b"{}") -> bytes:
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    connection.close()


def reset_after(data: bytes) -> Behaviour:
    def behave(connection: socket.socket) -> None:
        connection.sendall(data)
        reset(connection)

    return behave


def say(data: bytes) -> Behaviour:
    return lambda connection: connection.sendall(data)


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


class Engine:
    """Takes every request whole, counts it, and then behaves as a test wants it to."""

    def __init__(self, behave: Behaviour) -> None:
        self.asked = 0
        self.behave = behave
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            received = b""
            while data := connection.recv(65536):
                received += data
                head, found, body = received.partition(b"\r\n\r\n")
                length = next(
                    (
                        int(line[15:])
                        for line in head.split(b"\r\n")
                        if line.lower().startswith(b"content-length:")
                    ),
                    0,
                )
                if found and len(body) >= length:
                    self.asked += b"POST /v1/" in head
                    self.behave(connection)
                    if connection.fileno() < 0:
                        return
                    received = b""


@pytest.fixture
def lane(platform: Any, tmp_path: Any, make_lane: Any) -> Iterator[Callable[..., Any]]:
    """Serves a gateway whose lane, named as the customer, has these engines; returns a customer's client of it."""
    with ExitStack() as stack:

        def make(*engines: Engine | str, **changes: Any) -> Any:
            urls = []
            for engine in engines:
                if isinstance(engine, Engine):
                    stack.callback(engine.close)
                    urls.append(engine.url)
                else:
                    urls.append(engine)
            file = tmp_path / "lanes.yaml"
            customer = platform.customer()
            file.write_text(yaml.safe_dump(make_lane(customer.id, MODEL, *urls)))
            return platform.client_of(customer.id, platform.another_gateway(lanes_file=file, **changes))

        yield make


@contextmanager
def nowhere() -> Iterator[str]:
    """The address of a port on which nobody listens, and nobody else will."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


ATTEMPTS = (
    24  # that none of so many conversations prefers an engine of two happens once in sixteen million runs
)


def asked_of_both(client: Any, attempts: int = ATTEMPTS) -> list[httpx.Response]:
    """Send requests of different conversations, so that each engine is some's first choice."""
    return [client.complete(f"number {number}", max_tokens=1) for number in range(attempts)]


SAFE = {
    "reset before any byte": reset,
    "503: it is starting": say(answer("503 Service Unavailable")),
    "429: it has no room": say(answer("429 Too Many Requests")),
}


@pytest.mark.parametrize("how", SAFE)
def test_before_the_first_byte_another_engine_is_asked_once(
    platform: Any, lane: Callable[..., Any], how: str
) -> None:
    broken = Engine(SAFE[how])
    client = lane(broken, platform.simulator_url, ejection_failures=100)
    answers = asked_of_both(client)
    assert [each.status_code for each in answers] == [200] * ATTEMPTS
    assert broken.asked > 0
    assert len(client.usage()) == ATTEMPTS
    assert platform.open_holds(client.id) == 0


def test_an_engine_that_refuses_connections_is_passed_over(platform: Any, lane: Callable[..., Any]) -> None:
    with nowhere() as url:
        client = lane(url, platform.simulator_url)
        assert [each.status_code for each in asked_of_both(client)] == [200] * ATTEMPTS
        assert len(client.usage()) == ATTEMPTS


def test_a_count_is_asked_of_another_engine_too_and_that_is_told(
    platform: Any, lane: Callable[..., Any]
) -> None:
    with nowhere() as url:
        client = lane(url, platform.simulator_url)
        body = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}
        counts = [client.client.post("/v1/tokenize", json=body) for _ in range(3)]
        assert [each.status_code for each in counts] == [200] * 3
        told = httpx.get(client.client.base_url.copy_with(path="/metrics")).text
        assert f'darktree_gateway_retries_total{{lane="{client.id}",reason="unreachable"}} 1.0' in told


@pytest.mark.parametrize(
    ("how", "status", "code"),
    [(reset, 503, "lane_unavailable"), (say(answer("503 Service Unavailable")), 503, "lane_unavailable")],
)
def test_two_engines_are_asked_and_no_third(
    platform: Any, lane: Callable[..., Any], how: Behaviour, status: int, code: str
) -> None:
    engines = [Engine(how) for _ in range(3)]
    client = lane(*engines, ejection_failures=100)
    refused = client.complete(max_tokens=1)
    assert (refused.status_code, refused.json()["error"]["code"]) == (status, code)
    assert int(refused.headers["retry-after"]) > 0
    assert sum(engine.asked for engine in engines) == 2
    assert client.usage() == []
    assert platform.open_holds(client.id) == 0


UNSAFE = {
    "500": say(answer("500 Internal Server Error")),
    "400": say(answer("400 Bad Request", b'{"error": {"message": "no", "code": 400}}')),
    "a reset after an answer's head": reset_after(HEAD),
    "a reset after a byte of its body": reset_after(HEAD + b"1\r\nd\r\n"),
    "no HTTP": reset_after(b"SSH-2.0-OpenSSH\r\n\r\n"),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("how", UNSAFE)
def test_after_a_byte_or_an_answer_nothing_is_tried_again(
    platform: Any, lane: Callable[..., Any], how: str, stream: bool
) -> None:
    engines = [Engine(UNSAFE[how]) for _ in range(2)]
    client = lane(*engines, ejection_failures=100)
    refused = client.complete(max_tokens=1, stream=stream)
    assert refused.status_code == (400 if how == "400" else 502)
    assert sum(engine.asked for engine in engines) == 1
    assert client.usage() == []
    assert platform.open_holds(client.id) == 0


def test_an_engine_that_closes_kept_connections_has_not_failed(lane: Callable[..., Any]) -> None:
    answered: set[Any] = set()

    def behave(connection: socket.socket) -> None:
        if (peer := connection.getpeername()) in answered:
            reset(connection)
        else:
            answered.add(peer)
            connection.sendall(answer("400 Bad Request", b'{"error": {"message": "no", "code": 400}}'))

    engine = Engine(behave)
    client = lane(engine, ejection_failures=1, ejection_seconds=60)
    assert [each.status_code for each in asked_of_both(client)] == [400] * ATTEMPTS
    assert engine.asked > ATTEMPTS, "some were asked again, on another connection"
    told = httpx.get(client.client.base_url.copy_with(path="/metrics")).text
    assert f'darktree_lane_engines{{lane="{client.id}"' in told, "it is a gateway's metrics"
    assert f'darktree_lane_ejections_total{{lane="{client.id}"' not in told


def test_an_engine_that_fails_is_ejected_probed_and_readmitted(
    platform: Any, lane: Callable[..., Any], eventually: Callable[..., Any]
) -> None:
    engine = Engine(say(answer("500 Internal Server Error")))
    client = lane(
        engine, platform.simulator_url, ejection_failures=2, ejection_seconds=0.3, max_ejection_seconds=0.5
    )
    url = str(client.client.base_url).rstrip("/")

    def engines(state: str) -> float:
        name = f'darktree_lane_engines{{lane="{client.id}",state="{state}"}} '
        lines = httpx.get(f"{url}/metrics").text.splitlines()
        return next((float(line.removeprefix(name)) for line in lines if line.startswith(name)), 0.0)

    statuses = [each.status_code for each in asked_of_both(client)]
    assert statuses.count(502) == engine.asked == 2, "its second failure ejected it"
    assert eventually(lambda: engines("ejected") == 1, "it is seen")
    assert eventually(lambda: engines("ejected") == 1 and engines("serving") == 1, "the other serves")
    engine.behave = reset_after(b"")  # not even its health is answered: no request finds that out
    asked = engine.asked
    assert [each.status_code for each in asked_of_both(client)] == [200] * ATTEMPTS
    assert engine.asked == asked
    engine.behave = say(
        answer("400 Bad Request", b'{"error": {"message": "a refusal is an answer", "code": 400}}')
    )
    eventually(lambda: engines("probed") == 1, "a probe finds it there")

    def readmitted() -> bool:
        asked_of_both(client)
        return engines("serving") == 2

    eventually(readmitted, "its first answer readmits it")
