"""Mail to people: through a mail server, or into a file on one machine. A mail is plain text, and short."""

import asyncio
import os
import smtplib
import ssl
from dataclasses import dataclass
from email.message import EmailMessage
from email.utils import format_datetime, make_msgid
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from darktree_billing.settings import Settings
from darktree_kit import clock
from darktree_kit.errors import Unavailable

SMTP_TIMEOUT_SECONDS = 10.0
MAX_MAIL_FILE_BYTES = 10_000_000  # then it begins anew; the one before stays beside it
SCHEMES = {"smtps": 465, "smtp": 587, "smtp+plain": 25}


class MailError(ValueError):
    """The settings of mail cannot be used."""


class Post(Protocol):
    """Sends mails. Raises Unavailable when one could not be sent."""

    async def send(self, to: str, subject: str, text: str) -> None: ...


def make_post(settings: Settings) -> Post:
    """Return how mail is sent here. Raises MailError."""
    if settings.smtp_url is not None:
        return ServerPost(settings.mail_from, parse_server(settings.smtp_url.get_secret_value()))
    if settings.mail_file is not None:
        return FilePost(settings.mail_from, settings.mail_file)
    return NoPost()


@dataclass(frozen=True)
class NoPost:
    """No mail can be sent, and whoever tries is told which settings are missing."""

    async def send(self, to: str, subject: str, text: str) -> None:  # noqa: ARG002 - what a post takes
        raise Unavailable(
            "No mail can be sent here: set DARKTREE_BILLING_SMTP_URL or DARKTREE_BILLING_MAIL_FILE.",
            code="no_mail",
        )


@dataclass(frozen=True)
class FilePost:
    """Adds mails to a file that only its owner reads, in the form of a mailbox (mbox)."""

    sender: str
    file: Path

    async def send(self, to: str, subject: str, text: str) -> None:
        message = _message(self.sender, to, subject, text)
        try:
            await asyncio.to_thread(self._add, message)
        except OSError as error:
            raise Unavailable(
                f"The mail could not be written: {error.strerror}.", code="mail_failed"
            ) from error

    def _add(self, message: EmailMessage) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        if self.file.exists() and self.file.stat().st_size > MAX_MAIL_FILE_BYTES:
            self.file.replace(self.file.with_name(self.file.name + ".before"))
        line = f"From darktree {clock.utc_now():%a %b %d %H:%M:%S %Y}\n"
        content = message.as_string().replace("\nFrom ", "\n>From ")
        descriptor = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "a", encoding="utf-8") as opened:
            opened.write(f"{line}{content}\n")


@dataclass(frozen=True)
class Server:
    """A mail server, and how its connection is protected."""

    scheme: str
    host: str
    port: int
    user: str
    password: str


@dataclass(frozen=True, repr=False)
class ServerPost:
    """Hands mails to a server (SMTP)."""

    sender: str
    server: Server

    async def send(self, to: str, subject: str, text: str) -> None:
        message = _message(self.sender, to, subject, text)
        try:
            await asyncio.to_thread(self._hand_over, message)
        except (OSError, smtplib.SMTPException) as error:
            # The server's words may repeat the address or the credentials: its kind is enough.
            raise Unavailable(
                f"The mail could not be sent ({type(error).__name__}). Try again in a minute.",
                code="mail_failed",
            ) from None

    def _hand_over(self, message: EmailMessage) -> None:
        server = self.server
        context = ssl.create_default_context()
        if server.scheme == "smtps":
            connection: smtplib.SMTP = smtplib.SMTP_SSL(
                server.host, server.port, timeout=SMTP_TIMEOUT_SECONDS, context=context
            )
        else:
            connection = smtplib.SMTP(server.host, server.port, timeout=SMTP_TIMEOUT_SECONDS)
        with connection:
            if server.scheme == "smtp":
                connection.starttls(context=context)
            if server.user:
                connection.login(server.user, server.password)
            connection.send_message(message)


def parse_server(url: str) -> Server:
    """Return the mail server that a setting names. Raises MailError."""
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES or not parts.hostname:
        raise MailError("DARKTREE_BILLING_SMTP_URL must look like smtps://user:password@host:465")
    return Server(
        scheme=parts.scheme,
        host=parts.hostname,
        port=parts.port or SCHEMES[parts.scheme],
        user=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
    )


def _message(sender: str, to: str, subject: str, text: str) -> EmailMessage:
    message = EmailMessage()
    message["From"] = sender
    message["To"] = to
    message["Subject"] = subject
    message["Date"] = format_datetime(clock.utc_now())
    message["Message-ID"] = make_msgid(domain=sender.rpartition("@")[2])
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(text, cte="8bit")  # so that a link stands whole in the file
    return message
