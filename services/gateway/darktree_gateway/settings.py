"""What the gateway's process is told."""

from pathlib import Path

from pydantic import Field, SecretStr

from darktree_kit.settings import TracedSettings, prefixed


class Settings(TracedSettings):
    """Environment variables `DARKTREE_GATEWAY_<FIELD>`."""

    model_config = prefixed("gateway")

    shared_port: bool = Field(
        False, description="Let several gateways listen on the public port (SO_REUSEPORT)."
    )
    private_port: int = Field(
        0, description="A second port, for probes and metrics only; 0 serves them publicly."
    )
    ledger_url: str
    """Where the ledger answers; several, with commas between, share the customers (docs/scale.md)."""
    ledger_token: SecretStr
    """Sent to the ledger: its token for gateways."""
    billing_url: str
    """Where billing answers."""
    billing_token: SecretStr
    """Sent to billing: its token for gateways."""
    lanes_file: Path | None = Field(
        None,
        description="InferenceLane documents, read again when the file changes; without it the cluster's.",
    )
    lanes_namespace: str = Field("", description="The namespace of a cluster's lanes; empty for all.")
    kubeconfig: str | None = Field(
        None,
        description="A kubeconfig for a cluster's lanes; without it the pod's account, or the usual one.",
    )
    journal_dir: Path = Field(description="Where settlements wait, fsynced, while the ledger is away.")
    engine_token: SecretStr = Field(SecretStr(""), description="Sent to engines as a bearer token, when set.")
    separate_prefix_caches: bool = Field(
        True, description="Salt the engine's prefix cache by customer: nobody can time another's prompts."
    )
    gateways: int = Field(
        1,
        ge=1,
        le=1000,
        description="How many gateways share the lanes: each serves its part of their places.",
    )
    requests_per_engine: int = Field(
        256,
        ge=0,
        description="Requests that an engine is given at once, where its lane says no maxNumSeqs; 0 without a limit.",
    )
    queue_length: int = Field(
        1000, ge=0, description="Requests of one lane that wait for a place; further ones get 503."
    )
    queue_seconds: float = Field(10.0, gt=0, description="How long a request waits for a place.")
    ejection_failures: int = Field(
        3,
        ge=1,
        description="So many failures in a row eject an engine; one that cannot be reached goes at once.",
    )
    ejection_seconds: float = Field(
        3.0, gt=0, description="How long an ejected engine is left alone; twice as long each time."
    )
    max_ejection_seconds: float = Field(60.0, gt=0, description="The longest of these pauses.")
    max_ejected_percent: int = Field(
        50, ge=0, le=100, description="Of a lane's engines; one may always be ejected."
    )
    access_log: bool = Field(
        True, description="Log one line for every completion; without it, only for those that fail."
    )
    in_flight_wait_seconds: float = Field(
        2.0, ge=0, description="How long a request waits for head-room that the customer's own requests hold."
    )
    hold_ttl_seconds: int = Field(60, ge=3, le=3600, description="A hold's life between renewals.")
    engine_idle_seconds: float = Field(300.0, gt=0, description="An engine silent for so long has failed.")
    keep_alive_seconds: float = Field(
        15.0,
        ge=0,
        description="A stream silent for so long is sent a comment, which clients ignore; 0 never.",
    )
    request_seconds: float = Field(3600.0, gt=0, description="The longest that one request may run.")
    leaving_seconds: float = Field(
        3.0,
        ge=0,
        le=300,
        description="How long the process, told to stop, still takes new requests, while it is not ready and asks its "
        "clients to close their connections.",
    )
    shutdown_seconds: int = Field(
        30, ge=1, le=3600, description="How long running answers may go on once the process is told to stop."
    )
    key_seconds: float = Field(
        5.0, ge=0, le=10, description="How long a good key is believed without asking."
    )
    unknown_key_seconds: float = Field(2.0, ge=0, le=10, description="How long an unknown key stays unknown.")
    catalog_seconds: float = Field(5.0, gt=0, description="How often prices are read again.")
    lanes_seconds: float = Field(1.0, gt=0, description="How often the lanes' file is looked at.")
    journal_replay_seconds: float = Field(
        0.5, gt=0, description="How often a journal that is not empty is replayed."
    )
    engine_metrics_interval_seconds: float = Field(
        5.0, ge=0, description="How often the engines' own token counters are read; 0 never."
    )
