"""What the operator's process is told."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings

from darktree_kit.settings import prefixed


class Settings(BaseSettings):
    """Environment variables `DARKTREE_OPERATOR_<FIELD>`."""

    model_config = prefixed("operator")

    config_file: Path | None = Field(
        None,
        description="Images, accelerators and peers of this cluster; without it only simulated engines run.",
    )
    namespace: str = Field("", description="The only namespace with lanes; empty for all.")
    identity: str = Field(
        "", description="Who holds the lease; the host's name and a random part without it."
    )
    lease_namespace: str = Field(
        "", description="Where the lease is kept that one of several operators holds; empty for no lease."
    )
    lease_name: str = Field("darktree-operator", description="The lease's name.")
    gateway_urls: str = Field("", description="The gateways' private addresses, with commas between.")
    gateway_service: str = Field(
        "", description="The gateways' Service as namespace/name:port; each of its addresses is asked."
    )
    gateway_seconds: float = Field(
        2.0, gt=0, description="How often the gateways are asked for the lanes' load."
    )
    resync_seconds: float = Field(
        300.0, gt=0, description="How often each lane is looked at without a change."
    )
    stale_seconds: float = Field(
        300.0, gt=0, description="A lane that waits for longer than this fails the liveness probe."
    )
    liveness_url: str = Field(
        "",
        description="Where `python -m darktree_operator` answers probes, such as http://0.0.0.0:8080/healthz.",
    )
    metrics_port: int = Field(0, description="The port of the operator's metrics; 0 for none.")
    log_level: str = Field("INFO", description="DEBUG, INFO, WARNING or ERROR.")
