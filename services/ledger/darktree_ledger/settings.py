"""What the ledger's processes are told: the service's, and the sealer's."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import NoDecode

from darktree_kit.settings import DatabaseSettings, ServiceSettings, prefixed


class Settings(DatabaseSettings):
    """Environment variables `DARKTREE_LEDGER_*`. An empty token admits nobody; of several, with commas, each does."""

    model_config = prefixed("ledger")

    gateway_token: SecretStr
    """Admits gateways: to hold, renew, settle, void and read. New and old, a comma between, while it is replaced."""
    billing_token: SecretStr
    """Admits billing: to open accounts, grant, change caps, read and check. New and old, as above."""
    patrol_seconds: float = Field(3600.0, gt=0)
    """The pause between two slices of the projection that are compared with their entries."""
    standing_seconds: float = Field(15.0, gt=0)
    """The pause between two readings of how the ledger and its Postgres stand, for metrics."""
    database_limit_bytes: int | None = Field(None, gt=0)
    """How large the database may become: its volume, say. An alert comes before it does."""


class SealerSettings(ServiceSettings):
    """Environment variables `DARKTREE_SEALER_*`. Only the sealer may read the key files."""

    model_config = prefixed("sealer")

    database_url: SecretStr
    """Postgres, logging in as `darktree_sealer`."""
    key_files: Annotated[list[Path], NoDecode]
    """Files of signer keys, oldest first, with commas between. Each checkpoint is signed with all of them."""
    anchors: Annotated[list[str], NoDecode] = Field([])
    """Where checkpoints are also kept, with commas between: `file:///folder`, or `https://...` that takes PUT."""
    anchor_header: SecretStr = SecretStr("")
    """A header for PUTs to anchors, such as `Authorization: Bearer ...`."""
    s3_access_key: str = ""
    """When set, what goes to `https://` anchors is signed with it as S3 wants (Signature Version 4)."""
    s3_secret_key: SecretStr = SecretStr("")
    """The secret of the access key."""
    s3_region: str = "us-east-1"
    """The region that the access key is used in."""
    seal_seconds: float = Field(1.0, gt=0)
    """The pause between two rounds of sealing."""
    checkpoint_seconds: float = Field(10.0, gt=0)
    """The least time between two checkpoints; there is none while nothing is recorded."""

    @field_validator("key_files", "anchors", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return (
            [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
        )
