"""One admitted request: its generation, its settlement and its answer.

A client that leaves ends its generation at once and pays for what was generated until then. Nothing is charged for an
answer of which nothing was delivered because the engine failed.
"""

from collections.abc import Callable
from functools import cache

from starlette.types import Receive, Scope, Send

from darktree_gateway import metrics, requests
from darktree_gateway.admission import Admitted, Headers, limit_headers
from darktree_gateway.answers import answer_to, failing
from darktree_gateway.errors import EngineError, MeteringUnavailable
from darktree_gateway.keep_alive import KeepAlive
from darktree_gateway.lanes import Lane
from darktree_gateway.metering import Meter, Metering, Outcome
from darktree_gateway.record import CLIENT_LEFT_STATUS, OK, Record
from darktree_gateway.requests import Ask
from darktree_gateway.upstream import Generation, Upstream
from darktree_gateway.watch import ClientLeft, Watch, WhenLeft
from darktree_kit.errors import ApiError
from darktree_ledger.schemas import Result

_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class Exchange:
    """One admitted request: its generation, its settlement and its answer."""

    def __init__(
        self,
        metering: Metering,
        upstream: Upstream,
        ask: Ask,
        lane: Lane,
        admitted: Admitted,
        cache_salt: str | None,
        record: Record,
        keep_alive_seconds: float,
    ) -> None:
        self._metering = metering
        self._upstream = upstream
        self._ask = ask
        self._lane = lane
        self._admitted = admitted
        self._cache_salt = cache_salt
        self._record = record
        self._keep_alive_seconds = keep_alive_seconds if ask.stream else 0
        self._meter = Meter(ask.answers_per_prompt)
        self._answer = answer_to(ask, self._meter)
        self._started = False
        self._generation: Generation | None = None

    async def run(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve and settle. Raises the ApiError of a request that failed before anything of it was sent."""
        self._send = send
        self._asked_headers: list[tuple[bytes, bytes]] = scope["headers"]
        self._when_left: WhenLeft | None = scope["state"].get("when_left")
        self._say: Callable[[bytes], bool] = scope["state"].get("say", _never)
        try:
            await self._run(scope["state"]["request_id"], receive)
        finally:
            self._abort()

    async def _run(self, request_id: str, receive: Receive) -> None:
        try:
            with Watch(receive, self._when_left) as watch:
                self._admitted.held.stop = watch.stop
                await self._generate(request_id)
        except ClientLeft:
            self._abort()
            self._record.left()
            await self._settle_what_was("abandoned")
            if not self._started:
                await self._send({"type": "http.response.start", "status": CLIENT_LEFT_STATUS, "headers": []})
            return
        except ApiError as error:
            self._abort()
            await self._fail(error)
            return
        except BaseException:  # this process is going away, or the gateway is wrong: nothing is left held
            await self._settle_what_left()
            raise
        self._record.end_phase()
        try:
            result = await self._settle("completed")
        except MeteringUnavailable as error:
            # Neither the ledger nor the disk has it: the end must not leave. It is kept in memory and tried again.
            await self._end_with(error)
            return
        self._record.end_phase()
        self._record.status, self._record.code = 200, OK
        await self._end(result)

    async def _generate(self, request_id: str) -> None:
        body = requests.encode(self._ask, self._admitted.max_tokens, self._cache_salt)
        self._generation = await self._upstream.generate(self._lane, self._ask, body, request_id)
        await self._relay(self._generation)
        if self._answer.error is not None:
            raise self._answer.error
        if not self._answer.complete:
            raise EngineError

    def _abort(self) -> None:
        """Let go of the engine. Once it has said everything, its connection is kept for another request."""
        if self._generation is not None:
            self._generation.close()
            self._generation = None

    async def _relay(self, generation: Generation) -> None:
        """Pass on what the engine says. Nothing is waited for while the client keeps up."""
        answer = self._answer
        unsaid: list[bytes] = []  # what the client has to be waited for, one part at most

        def take(data: bytes) -> bool:
            if out := answer.feed(data):
                alive.sent()
                if not self._say(out):
                    unsaid.append(out)
            return not (unsaid or answer.done or answer.error is not None)

        with KeepAlive(self._keep_alive_seconds, self._send_part) as alive:
            first = True
            while data := await generation.read():
                if first:
                    self._record.end_phase()
                    first = False
                if take(data):
                    await generation.pass_on(take)
                if unsaid:
                    await self._send_part(unsaid.pop())
                if answer.done or answer.error is not None:
                    return

    async def _send_part(self, part: bytes) -> None:
        await self._start(self._admitted.account)
        await self._send({"type": "http.response.body", "body": part, "more_body": True})

    async def _fail(self, error: ApiError) -> None:
        if isinstance(error, EngineError):
            metrics.UPSTREAM_ERRORS.labels(self._lane.name, "generation").inc()
        account = await self._settle_what_left()
        await self._end_with(error, account)

    async def _end_with(self, error: ApiError, account: Result | None = None) -> None:
        if not self._started:
            error.headers |= self._headers(account or self._admitted.account, charged=False)
            raise error
        self._record.refused(error)
        self._record.status = 200  # as it was when it began
        await self._send({"type": "http.response.body", "body": failing(self._answer, error)})

    async def _settle_what_left(self) -> Result | None:
        """Charge what was delivered; a plain answer is delivered whole or not at all."""
        if self._started:
            return await self._settle_what_was("failed")
        return await self._metering.void(self._admitted.held)

    async def _settle_what_was(self, outcome: Outcome) -> Result | None:
        if not self._meter.seen:
            return await self._metering.void(self._admitted.held)
        try:
            return await self._settle(outcome)
        except MeteringUnavailable:
            return None  # it is kept, and tried again

    async def _settle(self, outcome: Outcome) -> Result | None:
        meter = self._meter
        return await self._metering.settle(
            self._admitted.held, meter.prompt_tokens, meter.completion_tokens, outcome
        )

    async def _start(self, account: Result) -> None:
        if self._started:
            return
        self._started = True
        headers = _encoded(self._headers(account, charged=True))
        await self._send(
            {"type": "http.response.start", "status": 200, "headers": [*_STREAM_HEADERS, *headers]}
        )

    async def _end(self, result: Result | None) -> None:
        content = self._answer.ending()
        account = result or self._admitted.account
        if self._ask.stream:
            await self._start(account)
        else:
            headers = _encoded(self._headers(account, charged=True))
            length = (b"content-length", str(len(content)).encode())
            headers = [(b"content-type", b"application/json"), length, *headers]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._send({"type": "http.response.body", "body": content})

    def _headers(self, account: Result, *, charged: bool) -> Headers:
        headers = limit_headers(account) | {"x-darktree-lane": _printable(self._lane.name)}
        if charged:
            headers["x-darktree-entry-id"] = self._record.entry_id or ""
        if self._ask.max_tokens != self._admitted.max_tokens:
            headers["x-darktree-max-tokens"] = str(self._admitted.max_tokens)
        if self._admitted.clamped:
            headers["x-darktree-clamped-max-tokens"] = str(self._admitted.max_tokens)
        return headers | self._record.headers(self._asked_headers)


def _never(_: bytes) -> bool:
    """What says nothing at once: a server that is not ours."""
    return False


def _encoded(headers: Headers) -> list[tuple[bytes, bytes]]:
    return [(name.encode("ascii"), value.encode("ascii")) for name, value in headers.items()]


@cache
def _printable(text: str) -> str:
    """Return a lane's name as a header may have it."""
    return "".join(character if " " <= character <= "~" else "?" for character in text)
