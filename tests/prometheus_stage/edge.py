"""Whatever stands before the API and has its certificate, as billing finds it at the API's address."""

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

from aiohttp import web
from self_signed import self_signed

LONG = timedelta(days=90)


class Edge:
    """Serves nothing, with a certificate that ends when a test wants."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._runner = web.AppRunner(web.Application())
        self.serve_one_that_ends_in(LONG)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self._runner.addresses[0][1]}/v1"

    @property
    def target(self) -> str:
        """What metrics call it."""
        return urlsplit(self.url).netloc

    def serve_one_that_ends_in(self, rest: timedelta) -> None:
        ends = datetime.now(UTC).replace(microsecond=0) + rest
        self._context.load_cert_chain(*self_signed(self._folder, ends))

    async def open(self) -> None:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._context).start()

    async def close(self) -> None:
        await self._runner.cleanup()
