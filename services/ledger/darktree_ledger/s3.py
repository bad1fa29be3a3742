"""How a request to an S3-compatible object store is signed: AWS Signature Version 4, header form. Pure.

See https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html; the examples there are in the tests.
"""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from urllib.parse import quote, unquote, urlsplit

_ALGORITHM = "AWS4-HMAC-SHA256"


@dataclass(frozen=True)
class Credentials:
    """An access key, and the region that it is used in."""

    access_key: str
    secret_key: str = field(repr=False)
    region: str

    def headers(
        self, method: str, url: str, body: bytes, at: datetime, extra: Mapping[str, str] | None = None
    ) -> dict[str, str]:
        """Return what a request is to be sent with: `extra`, the date, the body's hash, and the signature."""
        parts = urlsplit(url)
        content_hash = hashlib.sha256(body).hexdigest()
        stamp = f"{at:%Y%m%dT%H%M%SZ}"
        sent = dict(extra or {}) | {"x-amz-content-sha256": content_hash, "x-amz-date": stamp}
        signed = {name.lower(): value.strip() for name, value in (sent | {"host": parts.netloc}).items()}
        names = ";".join(sorted(signed))
        canonical = [method, quote(unquote(parts.path) or "/"), parts.query]
        canonical += [*(f"{name}:{signed[name]}" for name in sorted(signed)), "", names, content_hash]
        scope = f"{at:%Y%m%d}/{self.region}/s3/aws4_request"
        to_sign = [_ALGORITHM, stamp, scope, hashlib.sha256("\n".join(canonical).encode()).hexdigest()]
        key = f"AWS4{self.secret_key}".encode()
        for part in (*scope.split("/"), "\n".join(to_sign)):
            key = hmac.digest(key, part.encode(), "sha256")
        credential = f"Credential={self.access_key}/{scope},SignedHeaders={names},Signature={key.hex()}"
        return sent | {"Authorization": f"{_ALGORITHM} {credential}"}
