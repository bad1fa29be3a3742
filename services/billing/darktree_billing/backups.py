"""When the database was last backed up: told by whoever did it, kept for alerts and for `darktree doctor`.

Billing makes no backups. What counts is when a backup began: nothing recorded later is in it.
"""

import asyncio
import logging
from datetime import datetime
from typing import Any, ClassVar

from fastapi import APIRouter, Depends
from fastapi.security import HTTPBearer
from sqlalchemy import BigInteger, DateTime, Text, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import Field, SQLModel, col

from darktree_billing import metrics
from darktree_billing.backup_schemas import BackupView, RecordBackup
from darktree_billing.models import SCHEMA
from darktree_kit.auth import require
from darktree_kit.db import Database, Session
from darktree_kit.errors import BadRequest
from darktree_kit.openapi import refusals

EVERY_SECONDS = 60.0

_log = logging.getLogger(__name__)


class BackupRow(SQLModel, table=True):
    """One backup that succeeded."""

    __tablename__: ClassVar[Any] = "backup"
    __table_args__: ClassVar[Any] = {"schema": SCHEMA}

    id: int = Field(default=None, primary_key=True)
    started_at: datetime = Field(sa_type=DateTime(timezone=True))
    finished_at: datetime = Field(
        default=None,
        sa_type=DateTime(timezone=True),
        sa_column_kwargs={"server_default": func.clock_timestamp()},
    )
    made_by: str = Field(sa_type=Text)
    size_bytes: int | None = Field(default=None, sa_type=BigInteger)
    log_entries: int | None = Field(default=None, sa_type=BigInteger)


router = APIRouter(
    prefix="/admin/backups",
    tags=["admin"],
    dependencies=[
        Depends(require("admin")),
        Depends(HTTPBearer(scheme_name="admin", auto_error=False)),  # for the description only
    ],
    responses=refusals(401, 403, 503),
)


@router.post("", status_code=201, responses=refusals(400))
async def record(body: RecordBackup, session: Session) -> BackupView:
    """Record that the database was backed up. Raises BadRequest for a moment that has not come yet."""
    now = await session.scalar(select(func.clock_timestamp()))
    assert now is not None
    if body.started_at is not None and body.started_at > now:
        raise BadRequest("started_at: lies in the future.", param="started_at", code="invalid_value")
    row = BackupRow(**body.model_dump() | {"started_at": body.started_at or now})
    session.add(row)
    await session.flush()
    await session.refresh(row)
    await _show_latest(session)
    return BackupView.model_validate(row, from_attributes=True)


@router.get("/latest")
async def read_latest(session: Session) -> BackupView | None:
    """Tell of the backup that began last; null when none was ever recorded."""
    row = await latest(session)
    return None if row is None else BackupView.model_validate(row, from_attributes=True)


async def latest(session: AsyncSession) -> BackupRow | None:
    return await session.scalar(select(BackupRow).order_by(col(BackupRow.started_at).desc()).limit(1))


async def watch(database: Database) -> None:
    """Keep the gauge for as long as the task lives: any replica tells of a backup that another recorded."""
    while True:
        try:
            async with database.sessions.begin() as session:
                await _show_latest(session)
        except Exception as error:
            _log.warning("the last backup is not known", extra={"error": str(error)[:500]})
        await asyncio.sleep(EVERY_SECONDS)


async def _show_latest(session: AsyncSession) -> None:
    row = await latest(session)
    metrics.BACKED_UP.set(0 if row is None else row.started_at.timestamp())
