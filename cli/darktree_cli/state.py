"""The data directory: what outlives a run (secrets, the database, journals), and what tells others about this one.

A marker file says that a directory is ours, so that `--fresh` never deletes anything else; a lock says that a
platform runs in it.
"""

import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel

DEFAULT_NAME = ".darktree"
MARKER_NAME = "darktree-data.json"
LAYOUT_VERSION = 1
SECRET_BYTES = 32
LOG_ORIGIN = "darktree.dev/ledger/local"
BOOKS_KEY_NAME = "darktree.dev/books/local"


class StateError(Exception):
    """The data directory cannot be used; the message says what to do."""


class Secrets(BaseModel):
    """Made once for each data directory and kept."""

    ledger_gateway_token: str
    ledger_billing_token: str
    billing_gateway_token: str
    admin_token: str
    key_pepper: str
    ledger_role_password: str
    sealer_role_password: str
    billing_role_password: str
    stripe_api_key: str
    stripe_webhook_secret: str
    demo_key: str | None = None

    def role_passwords(self) -> dict[str, str]:
        """Return the passwords of the database's runtime roles, by role."""
        return {
            "darktree_ledger": self.ledger_role_password,
            "darktree_sealer": self.sealer_role_password,
            "darktree_billing": self.billing_role_password,
        }


class ProcessRecord(BaseModel):
    """One process of the running platform. `started` (Unix seconds) tells it from another that got its pid later."""

    pid: int
    started: float
    url: str | None
    log: str


class PlatformRecord(BaseModel):
    """What `platform.json` says: how to reach the running platform, and its processes."""

    version: str
    supervisor_pid: int
    base_url: str
    admin_url: str
    admin_token: str
    database_url: str
    lanes_file: str
    journal_dir: str
    processes: dict[str, ProcessRecord]


class DataDir:
    """A directory that belongs to one platform."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().absolute()
        self.postgres = self.path / "postgres"
        self.logs = self.path / "logs"
        self.journal = self.path / "journal"
        self.lanes_file = self.path / "lanes.yaml"
        self.model = self.path / "tiny-model"
        self.anchors = self.path / "anchors"
        self.log_key = self.path / "log-key"
        self.books_key = self.path / "books-key"
        self.stripe = self.path / "stripe.json"
        self.mailbox = self.path / "mailbox"
        self.scraped = self.path / "prometheus.json"
        self._marker = self.path / MARKER_NAME
        self._lock = self.path / "lock"
        self._platform = self.path / "platform.json"
        self._secrets = self.path / "secrets.json"

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold the directory for this process, making it when it is missing. Raises StateError."""
        self._make()
        descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise StateError(
                    f"A platform is already running in {self.path}. Stop it, or choose another --data-dir."
                ) from error
            yield
        finally:
            os.close(descriptor)

    def is_ours(self) -> bool:
        return self._marker.is_file()

    def is_claimed(self) -> bool:
        """Say whether a running platform holds the directory."""
        try:
            descriptor = os.open(self._lock, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(descriptor)
        return False

    def erase(self) -> None:
        """Delete everything in the claimed directory but its marker and lock."""
        for entry in self.path.iterdir():
            if entry in {self._marker, self._lock}:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        self.logs.mkdir(mode=0o700)

    def secrets(self) -> Secrets:
        """Return the directory's secrets, making those that an earlier version did not know."""
        known = json.loads(self._secrets.read_bytes()) if self._secrets.exists() else {}
        missing = set(Secrets.model_fields) - {"demo_key"} - set(known)
        made = Secrets.model_validate(known | {name: secrets.token_urlsafe(SECRET_BYTES) for name in missing})
        if missing:
            self.keep(made)
        return made

    def make_keys(self) -> None:
        """Make the keys that sign the log of this directory's ledger and its books, once."""
        from darktree_kit.notes import (
            make_signer,
            write_signer,
        )  # cryptography, which no other command shall pay

        for file, name in ((self.log_key, LOG_ORIGIN), (self.books_key, BOOKS_KEY_NAME)):
            if not file.exists():
                write_signer(make_signer(f"{name}-{secrets.token_hex(4)}"), file)

    def keep(self, changed: Secrets) -> None:
        write_private(self._secrets, changed.model_dump(mode="json"))

    def platform(self) -> PlatformRecord | None:
        """Return what the platform that runs here, or last ran here, wrote about itself."""
        try:
            return PlatformRecord.model_validate_json(self._platform.read_bytes())
        except (FileNotFoundError, ValueError):
            return None

    def publish(self, record: PlatformRecord) -> None:
        write_private(self._platform, record.model_dump(mode="json"))

    def withdraw(self) -> None:
        self._platform.unlink(missing_ok=True)

    def _make(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not self.is_ours():
                if any(self.path.iterdir()):
                    raise StateError(
                        f"{self.path} holds something else than Darktree's data: choose another --data-dir."
                    )
                write_private(self._marker, {"darktree": "data directory", "layout": LAYOUT_VERSION})
            self.logs.mkdir(exist_ok=True, mode=0o700)
        except OSError as error:
            raise StateError(
                f"{self.path} cannot be used: {error.strerror}. Choose another --data-dir."
            ) from error
        layout = json.loads(self._marker.read_text()).get("layout")
        if layout != LAYOUT_VERSION:
            raise StateError(f"{self.path} was made by another version of Darktree (layout {layout}).")


def write_private(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON that only this user may read, whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.new")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(content, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
