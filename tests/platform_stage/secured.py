"""A Postgres of Debian's that takes nobody without TLS and a password, and the authority that vouches for it."""

import ipaddress
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlencode

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pair import ADMIN, HOST, Server, give_to_the_server, home_of_a_server

PASSWORD = "of-the-administrator"
DAY = timedelta(days=1)


class Authority:
    """Who signs servers' certificates; its own is what clients are told to trust."""

    def __init__(self, name: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        made = self._begin(self._name, self._key).add_extension(
            x509.BasicConstraints(True, None), critical=True
        )
        self.certificate = made.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def vouch_for(self, address: str) -> tuple[bytes, bytes]:
        """Return a certificate of the server at an address, and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a server")])
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
        made = self._begin(name, key).add_extension(names, critical=False).sign(self._key, hashes.SHA256())
        secret = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return made.public_bytes(serialization.Encoding.PEM), secret

    def _begin(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - DAY)
            .not_valid_after(now + 30 * DAY)
        )


class Secured:
    """The running server, and two authorities: the one that signed its certificate, and another."""

    def __init__(self, home: Path) -> None:
        self._server = Server(home, "secured")
        self._home = home
        self.authority = self._write("authority.pem", (signs := Authority("ours")).certificate)
        self.other_authority = self._write("other.pem", Authority("somebody else").certificate)
        certificate, key = signs.vouch_for(HOST)
        self._certificate = self._write("server.pem", certificate)
        self._key = self._write("server.key", key)

    def url(self, authority: Path, login: str = f"{ADMIN}:{PASSWORD}", **parameters: str) -> str:
        """Return a URL, the administrator's: the server must prove that this authority vouches for its address."""
        told = urlencode({"sslmode": "verify-full", "sslrootcert": str(authority)} | parameters)
        return f"postgresql://{login}@{HOST}:{self._server.port}/postgres?{told}"

    def start(self) -> None:
        self._server.make("scram-sha-256", self._write("password", PASSWORD.encode()))
        admitted = (
            f"hostssl all all {HOST}/32 scram-sha-256\n"  # and nobody else: not in plain, not by a socket
        )
        (self._server.data / "pg_hba.conf").write_text(admitted)
        self._server.start("ssl=on", f"ssl_cert_file={self._certificate}", f"ssl_key_file={self._key}")

    def stop(self) -> None:
        self._server.stop()

    def _write(self, name: str, content: bytes) -> Path:
        file = self._home / name
        file.write_bytes(content)
        file.chmod(0o600)
        give_to_the_server(file)
        return file


@contextmanager
def running_with_tls() -> Iterator[Secured]:
    with home_of_a_server() as home:
        server = Secured(home)
        try:
            server.start()
            yield server
        finally:
            server.stop()
