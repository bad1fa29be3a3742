"""What the ledger's process is told."""

from pydantic import SecretStr

from darktree_kit.settings import DatabaseSettings, prefixed


class Settings(DatabaseSettings):
    """Environment variables `DARKTREE_LEDGER_*`; see the README."""

    model_config = prefixed("ledger")

    gateway_token: SecretStr
    billing_token: SecretStr
