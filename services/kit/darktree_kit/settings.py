"""Settings come from the environment, once, when a process starts; nothing reads it anywhere else.

Each service has one subclass with its own prefix. Secrets are `SecretStr`, so that printing settings cannot show them.
"""

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


def prefixed(service: str) -> SettingsConfigDict:
    """Return the configuration of a service's settings: environment variables `DARKTREE_<SERVICE>_<FIELD>`."""
    return SettingsConfigDict(
        env_prefix=f"DARKTREE_{service.upper()}_",
        extra="ignore",
        frozen=True,
        use_attribute_docstrings=True,  # the text below a field is what docs/reference.md says of it
        hide_input_in_errors=True,  # the input of "field required" is every other setting, secrets and all
    )


class ServiceSettings(BaseSettings):
    """What every service's process is told."""

    model_config = SettingsConfigDict(use_attribute_docstrings=True)

    host: str = "127.0.0.1"
    """The address to listen on."""
    port: int = 0
    """The port to listen on; 0 takes a free one."""
    log_level: str = "INFO"
    """DEBUG, INFO, WARNING or ERROR."""


class TracedSettings(ServiceSettings):
    """What a service is told whose requests can be traced."""

    otlp_endpoint: str = Field("", pattern=r"^(https?://\S+)?$")
    """Where traces go: a collector of OpenTelemetry's that takes OTLP over HTTP, such as `http://collector:4318`."""
    otlp_header: SecretStr = SecretStr("")
    """A header for the collector, such as `Authorization: Bearer ...`."""
    trace_share: float = Field(1.0, ge=0, le=1)
    """Which share of the requests is traced."""


class DatabaseSettings(TracedSettings):
    """What a service with a schema in Postgres is told beside that."""

    database_url: SecretStr
    """Postgres, logging in as the service's own role."""
    database_pool_size: int = 8
    """The most connections to Postgres."""
