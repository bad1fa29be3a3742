"""What is told of one completion: when its phases ended and how it ended. In metrics, in one line of the log, and in a
header for whoever asks for it.

The phases end in the order of PHASES; a request that is refused has fewer. All that this costs while the request is
served is an instant appended to a list.
"""

from itertools import pairwise
from typing import Any

from darktree_gateway import metrics
from darktree_kit.clock import monotonic
from darktree_kit.errors import ApiError

PHASES = ("auth", "bound", "queue", "hold", "upstream", "generate", "settle")
OWN_PHASES = (0, 1, 3, 6)  # what the gateway and the ledger take: not waiting, and not the engine
TIMING_HEADER = "x-darktree-timing"
_WANTS_TIMING = (TIMING_HEADER.encode(), b"1")
_PHASE_SECONDS = tuple(metrics.PHASE_SECONDS.labels(phase) for phase in PHASES)

CLIENT_LEFT_STATUS = 499
CLIENT_LEFT = "client_left"
OK = "ok"


class Record:
    """One completion, from its arrival on."""

    __slots__ = ("_marks", "code", "customer_id", "entry_id", "lane", "limit_headers", "status", "tokens")

    def __init__(self) -> None:
        self._marks = [monotonic()]
        self.status = 500  # until something better is known
        self.code = "internal"
        self.lane = "none"
        self.customer_id: str | None = None
        self.entry_id: str | None = None
        self.tokens = (0, 0)
        self.limit_headers: dict[str, str] = {}  # of the key's limits of requests, where it has any

    def end_phase(self) -> None:
        """The phase that comes next in PHASES has ended now."""
        self._marks.append(monotonic())

    @property
    def arrived(self) -> float:
        return self._marks[0]

    def refused(self, error: ApiError) -> None:
        self.status, self.code = error.answer_status, error.answer_code or error.answer_type

    def left(self) -> None:
        """The client did not wait for its answer."""
        self.status, self.code = CLIENT_LEFT_STATUS, CLIENT_LEFT

    def timing(self) -> str:
        """Return the phases so far as Server-Timing writes them: milliseconds."""
        return ", ".join(f"{phase};dur={seconds * 1000:.3f}" for phase, seconds in self._phases().items())

    def headers(self, request_headers: list[tuple[bytes, bytes]]) -> dict[str, str]:
        """Return what the answer's headers say of it: its key's limits, and the phases so far for whoever asks."""
        if _WANTS_TIMING in request_headers:
            return self.limit_headers | {TIMING_HEADER: self.timing()}
        return self.limit_headers

    def count(self) -> None:
        """Tell the metrics. Once, when the last byte has left."""
        marks = self._marks
        seconds = [end - start for start, end in pairwise(marks)]
        for tally, taken in zip(_PHASE_SECONDS, seconds, strict=False):
            tally.observe(taken)
        lane = metrics.of_lane(self.lane)
        lane.request_seconds.observe(monotonic() - marks[0])
        metrics.of_answer(self.lane, self.status, self.code).inc()
        if len(seconds) > 4:
            lane.first_token_seconds.observe(marks[5] - marks[0])
        if len(seconds) == len(PHASES):
            metrics.OVERHEAD.observe(sum(seconds[place] for place in OWN_PHASES))
            if self.tokens[1] > 1:
                lane.token_seconds.observe(seconds[5] / (self.tokens[1] - 1))

    def fields(self) -> dict[str, Any]:
        """Return what the access log's line has beside what every service's has. No prompt and no answer."""
        return {
            "customer_id": self.customer_id,
            "lane": self.lane,
            "code": self.code,
            "entry_id": self.entry_id,
            "prompt_tokens": self.tokens[0],
            "completion_tokens": self.tokens[1],
            "phases_ms": {phase: round(seconds * 1000, 3) for phase, seconds in self._phases().items()},
        }

    def _phases(self) -> dict[str, float]:
        return {
            phase: end - start for phase, (start, end) in zip(PHASES, pairwise(self._marks), strict=False)
        }
