"""A bad day between the operator and the API server: slow answers, broken watches, forgotten versions."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web

_PASSED = ("Authorization", "Content-Type", "Accept")


@dataclass(slots=True)
class BadNetwork:
    """A proxy over plain HTTP. What is asked is counted by method and by whether it is a watch."""

    upstream: str
    url: str = ""
    delay_seconds: float = 0.0
    expire_watches: bool = False
    """Whether a new watch is told 410: the version that it goes on from is no longer known."""
    away: bool = False
    """Whether every request is cut off."""
    asked: Counter[str] = field(default_factory=Counter)
    expired: int = 0
    _watches: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def watches(self) -> int:
        return len(self._watches)

    def drop_watches(self) -> None:
        """Break off every watch in the middle."""
        for task in list(self._watches):
            task.cancel()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        watching = request.query.get("watch") == "true"
        self.asked["watch" if watching else request.method] += 1
        if self.away:
            assert request.transport is not None
            request.transport.close()
            return web.Response()
        await asyncio.sleep(self.delay_seconds)
        if watching and self.expire_watches:
            self.expired += 1
            gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
            return web.json_response(gone, status=410)
        session: aiohttp.ClientSession = request.app[_SESSION]
        headers = {name: request.headers[name] for name in _PASSED if name in request.headers}
        body = await request.read()
        async with session.request(
            request.method, self.upstream + request.path_qs, data=body or None, headers=headers, ssl=False
        ) as answer:
            if not watching:
                content = await answer.read()
                return web.Response(
                    status=answer.status, body=content, content_type=answer.content_type or None
                )
            response = web.StreamResponse(status=answer.status)
            await response.prepare(request)
            relay = asyncio.create_task(_relay(answer, response))
            self._watches.add(relay)
            try:
                await asyncio.wait({relay})
            finally:
                relay.cancel()
                self._watches.discard(relay)
                if request.transport is not None and relay.cancelled():
                    request.transport.close()
            return response


_SESSION: web.AppKey[aiohttp.ClientSession] = web.AppKey("session", aiohttp.ClientSession)


@asynccontextmanager
async def between(upstream: str) -> AsyncIterator[BadNetwork]:
    """Serve one on a free port."""
    network = BadNetwork(upstream)
    app = web.Application(client_max_size=16 * 1024 * 1024)
    app.router.add_route("*", "/{path:.*}", network.handle)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        app[_SESSION] = session
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        network.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield network
        finally:
            network.drop_watches()
            await runner.cleanup()


async def _relay(answer: aiohttp.ClientResponse, response: web.StreamResponse) -> None:
    try:
        async for piece in answer.content.iter_any():
            await response.write(piece)
    except (aiohttp.ClientError, ConnectionError):
        return
