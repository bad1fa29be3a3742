"""What the environment tells the command line; nothing else in this package reads it."""

import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

_OWN = frozenset(
    {
        "DATABASE_URL",
        "DARKTREE_ADMIN_URL",
        "DARKTREE_ADMIN_TOKEN",
        "STRIPE_API_KEY",
        "STRIPE_WEBHOOK_SECRET",
    }
)


class Settings(BaseSettings):
    """The variables that the command line knows. An empty one counts as unset."""

    model_config = SettingsConfigDict(
        extra="ignore",
        frozen=True,
        env_ignore_empty=True,
        populate_by_name=True,
        use_attribute_docstrings=True,
    )

    database_url: SecretStr | None = Field(None, validation_alias="DATABASE_URL")
    """Postgres, as someone who may create roles and schemas. When unset, `darktree up` brings its own."""
    admin_url: str | None = Field(None, validation_alias="DARKTREE_ADMIN_URL")
    """Where the platform is administered, when it does not run here."""
    admin_token: SecretStr | None = Field(None, validation_alias="DARKTREE_ADMIN_TOKEN")
    """The administrator's token for it."""
    vllm_python: Path | None = Field(None, validation_alias="DARKTREE_VLLM_PYTHON")
    """The Python of another environment with vLLM, for `darktree up --engine vllm`."""
    stripe_api_key: SecretStr | None = Field(None, validation_alias="STRIPE_API_KEY")
    """A test key of Stripe's: `darktree up` then buys through Stripe itself instead of its own stand-in."""
    stripe_webhook_secret: SecretStr | None = Field(None, validation_alias="STRIPE_WEBHOOK_SECRET")
    """What `stripe listen` prints; without it, payments are found by asking Stripe."""
    postgres_password: SecretStr | None = Field(None, validation_alias="DARKTREE_POSTGRES_PASSWORD")
    """The superuser's password of the Postgres that `darktree postgres` serves."""
    migrator_role_password: SecretStr | None = Field(None, validation_alias="DARKTREE_MIGRATOR_ROLE_PASSWORD")
    """`darktree migrate` lets the role `darktree_migrator` log in with it, to run later migrations."""
    ledger_role_password: SecretStr | None = Field(None, validation_alias="DARKTREE_LEDGER_ROLE_PASSWORD")
    """`darktree migrate` lets the role `darktree_ledger` log in with it."""
    sealer_role_password: SecretStr | None = Field(None, validation_alias="DARKTREE_SEALER_ROLE_PASSWORD")
    """`darktree migrate` lets the role `darktree_sealer` log in with it."""
    billing_role_password: SecretStr | None = Field(None, validation_alias="DARKTREE_BILLING_ROLE_PASSWORD")
    """`darktree migrate` lets the role `darktree_billing` log in with it."""


def inherited_environment(*, services: bool) -> Mapping[str, str]:
    """Return what a child process inherits: everything but what only the command line may know.

    Services also get `DARKTREE_*`, so that any of their settings can be tuned from outside; engines get none.
    """
    return {
        name: value
        for name, value in os.environ.items()
        if name not in _OWN and (services or not name.startswith("DARKTREE_"))
    }
