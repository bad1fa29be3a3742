"""What goes wrong, and when: set at the start or over `POST /faults`, so that a test can break a lane on purpose."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Faults(BaseModel):
    """The faults in force, none by default. An unknown name is refused: a typo must not make a test pass."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    starting: bool = False
    """Every path answers 503, as while `startup_delay_seconds` runs."""
    latency_seconds: float = Field(default=0.0, ge=0.0)
    """Waited before the first byte of a generation."""
    error_status: int = Field(default=0, ge=0, le=599)
    """A status such as 500 or 429 for the next `error_requests` generations; 0 for none."""
    error_requests: int = Field(default=1, ge=0)
    """How many generations `error_status` still answers. It counts down."""
    cut_after_tokens: int | None = Field(default=None, ge=0)
    """The connection breaks after so many tokens of a choice: a stream without an end, or no answer at all."""
    error_after_tokens: int | None = Field(default=None, ge=0)
    """The engine fails after so many tokens: an error event inside the stream, or a 500."""
    stall_after_tokens: int | None = Field(default=None, ge=0)
    """No more bytes after so many tokens, while the connection stays open."""
    usage_missing: bool = False
    """No usage in any answer."""


class FaultBox:
    """The faults of one lane, changed while it serves."""

    def __init__(self, faults: Faults) -> None:
        self.current = faults.model_copy()

    def change(self, changes: dict[str, object]) -> Faults:
        """Set the named faults and keep the others. Raises `pydantic.ValidationError`."""
        self.current = Faults.model_validate(self.current.model_dump() | changes)
        return self.current

    def clear(self) -> Faults:
        self.current = Faults()
        return self.current

    def take_error_status(self) -> int:
        """The status that this request is answered with, 0 for none; one less is left for the next."""
        if not self.current.error_status or not self.current.error_requests:
            return 0
        self.current.error_requests -= 1
        return self.current.error_status
