"""Mail: into a file that only its owner reads, or through a real server, and what is told when that fails."""

import stat
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.handlers import Message
from aiosmtpd.smtp import AuthResult, LoginPassword

from darktree_billing.console.mail import FilePost, MailError, NoPost, Server, ServerPost, parse_server
from darktree_cli.ports import Ports
from darktree_kit.errors import Unavailable

USER, PASSWORD = "darktree", "a secret: with @ and /"


class Kept(Message):
    """Keeps what it is sent."""

    def __init__(self) -> None:
        super().__init__(EmailMessage)
        self.mails: list[Any] = []

    def handle_message(self, message: Any) -> None:
        self.mails.append(message)


def _known(_server: Any, _session: Any, _envelope: Any, _mechanism: str, data: LoginPassword) -> AuthResult:
    return AuthResult(success=(data.login, data.password) == (USER.encode(), PASSWORD.encode()))


@pytest.fixture
def server() -> Iterator[tuple[Kept, int]]:
    kept = Kept()
    with Ports() as ports:
        port = ports.free()
        controller = Controller(
            kept,
            hostname="127.0.0.1",
            port=port,
            authenticator=_known,
            auth_require_tls=False,
            auth_required=True,
        )
        controller.start()
        yield kept, port
        controller.stop()


async def test_a_mail_goes_into_a_file_of_its_own_form(tmp_path: Path) -> None:
    post = FilePost("darktree@localhost", tmp_path / "box" / "mail")
    await post.send("ada@acme.test", "Sign in", "A line.\nFrom somebody else.\nhttps://x.test/" + "a" * 90)
    await post.send("grace@acme.test", "Sign in", "Another.")
    text = post.file.read_text()
    assert text.count("\nFrom darktree") + text.startswith("From darktree") == 2
    assert "\n>From somebody" in text
    assert "https://x.test/" + "a" * 90 in text, "a link is never broken over lines"
    assert stat.S_IMODE(post.file.stat().st_mode) == 0o600


@pytest.mark.filterwarnings("ignore:Requiring AUTH")
async def test_a_mail_goes_through_a_server_with_a_password(server: tuple[Kept, int]) -> None:
    kept, port = server
    url = f"smtp+plain://{USER}:a%20secret%3A%20with%20%40%20and%20%2F@127.0.0.1:{port}"
    await ServerPost("darktree@localhost", parse_server(url)).send(
        "ada@acme.test", "Sign in to Darktree", "Hello."
    )
    (mail,) = kept.mails
    assert (mail["To"], mail["From"], mail["Subject"]) == (
        "ada@acme.test",
        "darktree@localhost",
        "Sign in to Darktree",
    )
    assert mail["Auto-Submitted"] == "auto-generated"


@pytest.mark.filterwarnings("ignore:Requiring AUTH")
@pytest.mark.parametrize(
    "start", ["smtp+plain://", "smtp://darktree:wrong-password@", "smtps://darktree:wrong-password@"]
)
async def test_what_the_server_refuses_is_told_without_its_secrets(
    server: tuple[Kept, int], start: str
) -> None:
    kept, port = server
    post = ServerPost("darktree@localhost", parse_server(f"{start}127.0.0.1:{port}"))
    with pytest.raises(Unavailable) as failed:
        await post.send("ada@acme.test", "Sign in", "Hello.")
    assert "wrong-password" not in failed.value.message
    assert kept.mails == [], f"{start} must not send without its protection"


async def test_without_settings_it_says_which_are_missing() -> None:
    with pytest.raises(Unavailable, match="DARKTREE_BILLING_SMTP_URL"):
        await NoPost().send("ada@acme.test", "Sign in", "Hello.")


def test_the_servers_address_is_read_and_a_wrong_one_refused() -> None:
    assert parse_server("smtps://a:b%40c@mail.test") == Server("smtps", "mail.test", 465, "a", "b@c")
    assert parse_server("smtp://mail.test:2525").port == 2525
    with pytest.raises(MailError):
        parse_server("http://mail.test")
