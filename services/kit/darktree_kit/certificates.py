"""When a server's certificate ends, asked of the server itself: whoever made it, and whatever terminates TLS.

Nothing is verified: a certificate that nobody trusts, or that has ended, is just what is looked for.
"""

import asyncio
import ssl
import struct
from datetime import datetime
from urllib.parse import SplitResult, urlsplit

from cryptography import x509

TIMEOUT_SECONDS = 10.0
PORTS = {"https": 443, "postgresql": 5432, "postgres": 5432}
_SSL_REQUEST = struct.pack("!ii", 8, 80877103)  # as Postgres' protocol has it, before TLS begins
_ACCEPTED = b"S"


async def expiry(url: str) -> datetime | None:
    """Return until when the certificate behind an https or postgresql URL is valid; None where there is no TLS.

    Raises OSError when the server does not answer; ValueError when it says nothing that can be understood.
    """
    parts = _first(url)
    scheme = parts.scheme.partition("+")[0]
    if scheme not in PORTS or not parts.hostname:
        return None  # a socket's folder, or plain HTTP
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    postgres = scheme != "https"
    async with asyncio.timeout(TIMEOUT_SECONDS):
        reader, writer = await asyncio.open_connection(
            parts.hostname,
            parts.port or PORTS[scheme],
            ssl=None if postgres else context,
            server_hostname=None if postgres else parts.hostname,
        )
        try:
            if postgres:
                writer.write(_SSL_REQUEST)
                await writer.drain()
                if await reader.readexactly(1) != _ACCEPTED:
                    return None
                await writer.start_tls(context, server_hostname=parts.hostname)
            certificate = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        except asyncio.IncompleteReadError as error:
            raise OSError("the connection was closed") from error
        finally:
            writer.transport.abort()
    return x509.load_der_x509_certificate(certificate).not_valid_after_utc


def target(url: str) -> str:
    """Return the host and port of a URL, to name it by: no path, no user, no password."""
    parts = _first(url)
    return f"{parts.hostname}:{parts.port or PORTS.get(parts.scheme.partition('+')[0], 80)}"


def _first(url: str) -> SplitResult:
    """Return a URL's parts; of a database's that names several hosts, with the first."""
    parts = urlsplit(url)
    user, at, hosts = parts.netloc.rpartition("@")
    return parts._replace(netloc=user + at + hosts.partition(",")[0])
