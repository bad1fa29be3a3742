"""What goes wrong with the API on demand."""

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_FAULTS = 100


class Fault(BaseModel):
    """The next `times` requests that match do not go well.

    `refused`: answered with `status`, and nothing was done. `failed`: it was done, the answer is `status`, and an
    idempotency key repeats that answer, as Stripe's do. `lost`: it was done, and the connection breaks.
    """

    model_config = ConfigDict(extra="forbid")

    kind: Literal["refused", "failed", "lost"] = "refused"
    status: int = Field(default=500, ge=400, le=599)
    method: str = ""
    path: str = ""  # a regular expression, somewhere in the path
    times: int = Field(default=1, ge=1, le=1_000)


class FaultBox:
    """The faults in force, each used up one request at a time."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []

    def take(self, method: str, path: str) -> Fault | None:
        """Return the fault that this request runs into, and count it."""
        for fault in self.faults:
            if fault.method in {"", method} and re.search(fault.path, path):
                fault.times -= 1
                if not fault.times:
                    self.faults.remove(fault)
                return fault
        return None
