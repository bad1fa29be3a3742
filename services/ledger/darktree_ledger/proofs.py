"""The log over HTTP: what anybody may read of it (no customer's data: hashes and signatures), and proofs for services.

Below `/log` lie the checkpoint and the tiles as C2SP's tlog-tiles names them, so that any monitor of such logs can
follow this one. Entries themselves are not published.
"""

import re
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query
from fastapi.responses import PlainTextResponse, Response

from darktree_kit.auth import require
from darktree_kit.db import Session
from darktree_kit.openapi import refusals
from darktree_ledger import log
from darktree_ledger.errors import NotInTheLog
from darktree_ledger.merkle import MAX_SIZE, TILE_WIDTH
from darktree_ledger.receipts import ConsistencyProof, InclusionProof, LogKeyView, Receipt
from darktree_ledger.schemas import CustomerId

MAX_LEVEL = 7  # 256**8 leaves are more than MAX_SIZE
FOR_EVER = {"Cache-Control": "public, max-age=31536000, immutable"}
FOR_NOW = {"Cache-Control": "no-cache"}

_NOTE: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}
_HASHES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
}
_Caller = Annotated[str, Depends(require("gateway", "billing"))]
_CustomerId = Annotated[CustomerId, Query()]
_Seq = Annotated[int, Query(ge=1, le=MAX_SIZE)]
_Size = Annotated[int, Query(ge=1, le=MAX_SIZE)]
public = APIRouter(prefix="/log", tags=["log"], responses=refusals(400, 404, 503))
router = APIRouter(prefix="/v1/proofs", tags=["proofs"], responses=refusals(400, 401, 403, 404, 503))


@public.get("/checkpoint", response_class=Response, responses=_NOTE)
async def read_checkpoint(session: Session) -> Response:
    """Return the newest checkpoint, a signed note."""
    return PlainTextResponse((await log.checkpoint(session))[1], headers=FOR_NOW)


@public.get("/checkpoints/{size}", response_class=Response, responses=_NOTE)
async def read_checkpoint_of_size(
    size: Annotated[int, Path(ge=1, le=MAX_SIZE)], session: Session
) -> Response:
    """Return the checkpoint that covers exactly so many entries."""
    return PlainTextResponse((await log.checkpoint(session, size))[1], headers=FOR_EVER)


@public.get("/tile/{level}/{place:path}", response_class=Response, responses=_HASHES)
async def read_tile(
    level: Annotated[int, Path(ge=0, le=MAX_LEVEL)],
    place: Annotated[str, Path(max_length=64, description="Such as `067`, `x001/x234/067` or `067.p/12`.")],
    session: Session,
) -> Response:
    """Return a tile's hashes, 32 bytes each: 256, or as many as a partial tile's path asks for."""
    index, width = parse_place(place)
    hashes = await log.tile(session, level, index)
    if len(hashes) < width:
        raise NotInTheLog("The log has not grown so far.")
    return Response(b"".join(hashes[:width]), media_type="application/octet-stream", headers=FOR_EVER)


@public.get("/keys")
async def read_keys(session: Session, response: Response) -> list[LogKeyView]:
    """Return the keys that sign the log, oldest first, with their endorsements."""
    response.headers.update(FOR_NOW)
    return await log.keys(session)


@router.get("/inclusion")
async def prove_inclusion(
    customer_id: _CustomerId, seq: _Seq, session: Session, _: _Caller, size: _Size | None = None
) -> InclusionProof:
    """Prove that an entry is in the log of `size` entries, or of the newest checkpoint's."""
    return await log.inclusion(session, customer_id, seq, size)


@router.get("/consistency")
async def prove_consistency(first: _Size, second: _Size, session: Session, _: _Caller) -> ConsistencyProof:
    """Prove that the log of `first` entries is the beginning of the log of `second`."""
    return await log.consistency(session, first, second)


@router.get("/receipt")
async def read_receipt(customer_id: _CustomerId, seq: _Seq, session: Session, _: _Caller) -> Receipt:
    """Return an entry with what proves that the newest checkpoint covers it."""
    return await log.receipt(session, customer_id, seq)


def parse_place(place: str) -> tuple[int, int]:
    """Return a tile's index and width, as the end of its path says them. Raises NotInTheLog."""
    match = re.fullmatch(r"((?:x[0-9]{3}/){0,5}[0-9]{3})(?:\.p/([1-9][0-9]{0,2}))?", place)
    if match is None or match[1].startswith("x000/") or int(match[2] or 1) >= TILE_WIDTH:
        raise NotInTheLog("No tile has this path.")
    return int(re.sub("[x/]", "", match[1])), int(match[2] or TILE_WIDTH)
