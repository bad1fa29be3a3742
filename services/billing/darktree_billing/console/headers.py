"""What every page of a browser's is sent with, and the most that a form may send: plain ASGI before the framework."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from darktree_kit.app import answer
from darktree_kit.errors import ApiError, TooLarge

PAGES = ("/console", "/admin/console")
MAX_FORM_BYTES = 64_000

CONTENT_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "font-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "content-security-policy": CONTENT_POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "referrer-policy": "same-origin",  # with no-referrer, browsers would send `Origin: null` with our own forms
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "cache-control": "no-store",
}
HTTPS_ONLY = ("strict-transport-security", "max-age=63072000; includeSubDomains")


def is_page(path: str) -> bool:
    """Say whether a path is a person's page and not an API."""
    return any(path == root or path.startswith(root + "/") for root in PAGES)


class PageHeaders:
    """Adds the headers to every answer below `PAGES`, errors too, and refuses forms that are too large."""

    def __init__(self, app: ASGIApp, *, https: bool) -> None:
        headers = HEADERS | ({HTTPS_ONLY[0]: HTTPS_ONLY[1]} if https else {})
        self._headers = [(name.encode(), value.encode()) for name, value in headers.items()]
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not is_page(scope["path"]):
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                sent = {name.lower() for name, _ in message["headers"]}
                added = [(name, value) for name, value in self._headers if name not in sent]
                message["headers"] = [*message["headers"], *added]
            await send(message)

        refusal = _refusal(scope)
        if refusal is not None:
            await answer(refusal, send_with_headers)
            return
        await self._app(scope, receive, send_with_headers)


def _refusal(scope: Scope) -> ApiError | None:
    if scope["method"] in {"GET", "HEAD"}:
        return None
    headers = dict(scope["headers"])
    if b"transfer-encoding" in headers:  # browsers say how long a form is
        return ApiError("Say the length of the body.", status=411, type="invalid_request_error")
    length = headers.get(b"content-length", b"0")
    if not length.isdigit() or int(length) > MAX_FORM_BYTES:
        return TooLarge(f"A form may have {MAX_FORM_BYTES:,} bytes.")
    return None
