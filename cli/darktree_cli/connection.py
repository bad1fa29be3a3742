"""Finds the platform that a command is about, and talks to its administration.

In this order: the data directory that was named, the environment, and the nearest `.darktree` from here upwards.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from darktree_billing.client import AdminClient
from darktree_cli.settings import Settings
from darktree_cli.state import DEFAULT_NAME, DataDir, PlatformRecord

Answer = TypeVar("Answer")

DataDirOption = Annotated[
    Path | None, typer.Option("--data-dir", help="The data directory of the platform that is meant.")
]


class NoPlatform(Exception):
    """There is no running platform where the command looked."""


@dataclass(frozen=True)
class Found:
    """Where a platform's administration answers; `record` when it runs on this machine."""

    admin_url: str
    admin_token: str
    record: PlatformRecord | None


def find(data_dir: Path | None, settings: Settings) -> Found:
    """Return the platform that is meant. Raises NoPlatform, saying where it was looked for."""
    if data_dir is None and settings.admin_url is not None:
        token = settings.admin_token.get_secret_value() if settings.admin_token else ""
        return Found(settings.admin_url, token, None)
    data = DataDir(data_dir) if data_dir is not None else _nearest()
    record = data.platform() if data.is_claimed() else None
    if record is None:
        raise NoPlatform(
            f"No platform runs in {data.path}. Start one with `darktree up`, name another with --data-dir, "
            "or set DARKTREE_ADMIN_URL and DARKTREE_ADMIN_TOKEN."
        )
    return Found(record.admin_url, record.admin_token, record)


def administer(data_dir: Path | None, use: Callable[[AdminClient], Awaitable[Answer]]) -> Answer:
    """Return what `use` gives with a client of the platform's administration. Raises NoPlatform and ApiError."""
    found = find(data_dir, Settings())

    async def connected() -> Answer:
        admin = AdminClient(found.admin_url, found.admin_token)
        try:
            return await use(admin)
        finally:
            await admin.close()

    return asyncio.run(connected())


def _nearest() -> DataDir:
    here = Path.cwd()
    for folder in [here, *here.parents]:
        data = DataDir(folder / DEFAULT_NAME)
        if data.is_ours():
            return data
    return DataDir(here / DEFAULT_NAME)
