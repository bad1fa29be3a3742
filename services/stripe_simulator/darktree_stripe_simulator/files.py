"""Uploaded files: the evidence of a dispute (`POST /v1/files`, on Stripe's own files host)."""

import base64

from starlette.datastructures import UploadFile
from starlette.requests import Request

from darktree_stripe_simulator.account import Account, Object
from darktree_stripe_simulator.errors import Refusal, invalid_parameter, missing_parameter, unknown_parameters

MAX_FILE_BYTES = 5 * 10**6
TYPES = {
    "application/pdf": "pdf",
    "image/png": "png",
    "image/jpeg": "jpg",
    "text/plain": "txt",
    "text/csv": "csv",
}
PURPOSE = "dispute_evidence"


async def upload(account: Account, request: Request) -> Object:
    """Keep a file. Raises Refusal."""
    async with request.form(max_files=1, max_fields=10, max_part_size=MAX_FILE_BYTES) as form:
        unknown = [name for name in form if name not in {"file", "purpose"}]
        if unknown:
            raise unknown_parameters(unknown)
        file, purpose = form.get("file"), form.get("purpose")
        if not isinstance(file, UploadFile):
            raise missing_parameter("file")
        if purpose != PURPOSE:
            raise invalid_parameter(f"Invalid purpose: must be {PURPOSE}", "purpose")
        content = await file.read()
        if len(content) > MAX_FILE_BYTES:
            raise Refusal("The file is larger than 5 MB.", code="file_too_large", param="file")
        made = account.add(
            "file",
            "file",
            {
                "expires_at": None,
                "filename": file.filename,
                "links": {"object": "list", "data": [], "has_more": False, "url": "/v1/file_links"},
                "purpose": purpose,
                "size": len(content),
                "title": None,
                "type": TYPES.get(file.content_type or "", "pdf"),
                "url": None,
            },
            content=base64.b64encode(content).decode(),
        )
    made["url"] = f"{str(request.base_url).rstrip('/')}/v1/files/{made['id']}/contents"
    return made


def contents(account: Account, id: str) -> bytes:
    """Raises Refusal when there is no such file."""
    return base64.b64decode(account.private[account.find("file", id, "file")["id"]]["content"])
