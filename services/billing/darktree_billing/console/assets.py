"""The console's static files: named by their content, so that a browser keeps each for ever and never an old one.

Text is sent compressed where the browser takes that. Everything is read once, when billing starts.
"""

import gzip
import hashlib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import Response

from darktree_kit.errors import NotFound

FOLDER = Path(__file__).parent / "static"
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

router = APIRouter(include_in_schema=False)


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


@router.get(ROOT + "{name}")
async def read_asset(name: str, request: Request) -> Response:
    asset = _assets()[1].get(name)
    if asset is None:
        raise NotFound(f"There is no file {name}.")
    headers = {"Cache-Control": FOR_EVER, "Vary": "Accept-Encoding"}
    if asset.compressed is not None and "gzip" in request.headers.get("accept-encoding", ""):
        headers["Content-Encoding"] = "gzip"
        return Response(asset.compressed, headers=headers, media_type=asset.media_type)
    return Response(asset.content, headers=headers, media_type=asset.media_type)
