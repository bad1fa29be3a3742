"""What is told of a backup."""

from datetime import datetime
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, Field

Count = Annotated[int, Field(strict=True, ge=0, le=2**63 - 1)]


class RecordBackup(BaseModel):
    """A backup that has just succeeded."""

    started_at: AwareDatetime | None = Field(
        None, description="When it began, by the database's clock; without it, now."
    )
    made_by: Annotated[str, Field(min_length=1, max_length=200)] = Field(
        description="What made it, such as `darktree backup` or `pgbackrest`."
    )
    size_bytes: Count | None = None
    log_entries: Count | None = Field(None, description="How many entries of the log it holds at least.")


class BackupView(BaseModel):
    """A backup as it was recorded."""

    started_at: datetime
    finished_at: datetime
    made_by: str
    size_bytes: int | None
    log_entries: int | None
