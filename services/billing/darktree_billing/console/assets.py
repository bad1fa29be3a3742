"""The console's static files: named by their content, so that a browser keeps each for ever and never an old one.

Text is sent compressed where the browser takes that. Everything is read once, when billing starts. A page's first look
asks for several of them at once, so they are answered before the framework, by plain ASGI.
"""

import gzip
import hashlib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from markupsafe import Markup
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

FOLDER = Path(__file__).parent / "static"
ICONS = Path(__file__).parent / "templates" / "icons.svg"
ROOT = "/console/static/"
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}
HASH_CHARACTERS = 10
FOR_EVER = "public, max-age=31536000, immutable"

_IMPORTED = re.compile(r"\"\./([a-z0-9-]+\.(?:js|woff2))\"")
_SYMBOL = re.compile(r'<symbol id="([a-z-]+)" viewBox="0 0 24 24">(.*?)</symbol>')


@dataclass(frozen=True)
class Asset:
    """A file as it is sent."""

    name: str
    media_type: str
    content: bytes
    compressed: bytes | None


@cache
def _assets() -> tuple[dict[str, str], dict[str, Asset]]:
    """Return the hashed name of each file, and what is behind each hashed name."""
    names: dict[str, str] = {}
    assets: dict[str, Asset] = {}

    def add(file: Path) -> str:
        if file.name not in names:
            content = file.read_bytes()
            if file.suffix in {".css", ".js"}:  # they name others, which must be there by their hashed names
                text = _IMPORTED.sub(lambda found: f'"./{add(FOLDER / found[1])}"', content.decode())
                content = text.encode()
            digest = hashlib.sha256(content).hexdigest()[:HASH_CHARACTERS]
            name = f"{file.stem}.{digest}{file.suffix}"
            compressed = None if file.suffix == ".woff2" else gzip.compress(content, mtime=0)
            names[file.name] = name
            assets[name] = Asset(name, MEDIA_TYPES[file.suffix], content, compressed)
        return names[file.name]

    for file in sorted(FOLDER.iterdir()):
        if file.suffix in MEDIA_TYPES:
            add(file)
    return names, assets


def address(name: str) -> str:
    """Return where a static file is, by its plain name. Raises KeyError for one that there is not."""
    return ROOT + _assets()[0][name]


@cache
def icon(name: str) -> Markup:
    """Return a drawing to stand in a page: one file less to wait for. Raises KeyError for one that there is not."""
    shapes = dict(_SYMBOL.findall(ICONS.read_text()))[name]
    size = 'width="18" height="18" viewBox="0 0 24 24"'
    return Markup(f'<svg class="icon" {size} aria-hidden="true">{shapes}</svg>')  # noqa: S704 (our own file)


class Assets:
    """Answers for the files there are, and lets everything else through."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = scope["path"].removeprefix(ROOT) if scope["type"] == "http" else ""
        asset = _assets()[1].get(name)
        if asset is None or scope["method"] not in {"GET", "HEAD"}:
            await self._app(scope, receive, send)
            return
        scope["state"]["route"] = ROOT + "{name}"
        await _answer(asset, Headers(scope=scope).get("accept-encoding", ""))(scope, receive, send)


def _answer(asset: Asset, accepted: str) -> Response:
    headers = {"Cache-Control": FOR_EVER, "Vary": "Accept-Encoding"}
    if asset.compressed is not None and "gzip" in accepted:
        headers["Content-Encoding"] = "gzip"
        return Response(asset.compressed, headers=headers, media_type=asset.media_type)
    return Response(asset.content, headers=headers, media_type=asset.media_type)
