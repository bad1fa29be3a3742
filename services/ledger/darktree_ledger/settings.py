"""What the ledger's process is told."""

from pydantic import SecretStr

from darktree_kit.settings import DatabaseSettings, prefixed


class Settings(DatabaseSettings):
    """Environment variables `DARKTREE_LEDGER_*`. An empty token admits nobody."""

    model_config = prefixed("ledger")

    gateway_token: SecretStr
    """Admits gateways: to hold, renew, settle, void and read."""
    billing_token: SecretStr
    """Admits billing: to open accounts, grant, change caps, read and check."""
