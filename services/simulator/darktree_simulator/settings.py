"""What can be set, from the environment (`DARKTREE_SIMULATOR_*`) or the command line."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from darktree_simulator.faults import Faults


class Settings(BaseSettings):
    """Every setting has a name in the environment: `models` is `DARKTREE_SIMULATOR_MODELS`, a JSON list."""

    model_config = SettingsConfigDict(env_prefix="DARKTREE_SIMULATOR_", use_attribute_docstrings=True)

    host: str = "127.0.0.1"
    """The address to listen on."""
    port: int = Field(default=9001, ge=0, le=65535)
    """The port to listen on."""
    models: list[str] = Field(default=["qwen25-14b-awq"], min_length=1)
    """The served names. The first is the one that answers and metrics carry, as in vLLM."""
    tokens_per_second: float = Field(default=0.0, ge=0.0)
    """The speed of each choice of each request; 0 is as fast as possible."""
    context_length: int = Field(default=4096, ge=8)
    """The most tokens of a prompt and its answer together."""
    embedding_dimensions: int = Field(default=0, ge=0)
    """Embed instead of generating, in so many dimensions, as a vLLM with `--runner pooling`; 0 generates."""
    maximum_concurrent_sequences: int = Field(default=256, ge=1)
    """Choices generated at once; further requests wait, as with vLLM's `--max-num-seqs`."""
    startup_delay_seconds: float = Field(default=0.0, ge=0.0)
    """How long after its start the lane answers 503 to everything, like a pod that loads its weights."""
    faults: Faults = Field(default_factory=Faults)
    """The faults in force at the start, a JSON object."""
