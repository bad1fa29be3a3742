"""What can be set, from the environment (`DARKTREE_STRIPE_SIMULATOR_*`) or the command line."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

VERSION = "2026-10-28.endive"


class Settings(BaseSettings):
    """Every setting has a name in the environment: `port` is `DARKTREE_STRIPE_SIMULATOR_PORT`."""

    model_config = SettingsConfigDict(env_prefix="DARKTREE_STRIPE_SIMULATOR_", use_attribute_docstrings=True)

    host: str = "127.0.0.1"
    """The address to listen on."""
    port: int = Field(default=9004, ge=0, le=65535)
    """The port to listen on."""
    api_key: str = "sk_test_stand_in"
    """The secret key that the API takes."""
    webhook_url: str = ""
    """Where events are sent; empty sends none."""
    webhook_secrets: list[str] = Field(default=["whsec_stand_in"], min_length=1, max_length=8)
    """What events are signed with: each signs, as during a rotation."""
    delivery: str = Field(default="automatic", pattern="^(automatic|manual)$")
    """`manual` sends events only when `/_control/deliver` asks for it."""
    state: Path | None = None
    """A file that keeps everything from one run to the next; without it everything is in memory."""
    settle_seconds: float | None = Field(default=5.0, ge=0)
    """How long a bank debit takes to succeed or fail; `null` waits for `/_control`."""
    tax_basis_points: int = Field(default=825, ge=0, le=10_000)
    """The rate of automatic tax, in hundredths of a percent."""
    available_after_seconds: int = Field(default=2 * 86_400, ge=0)
    """How long a payment is pending before it is part of the available balance."""
    retry_seconds: list[float] = Field(default=[5.0, 60.0, 600.0], max_length=16)
    """The pauses before an event is sent again that was not answered with 2xx."""
