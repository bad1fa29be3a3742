"""What is told of one completion: when its phases ended and how it ended. In metrics, in one line of the log, and in a
header for whoever asks for it.

The phases end in the order of PHASES; a request that is refused has fewer. All that this costs while the request is
served is an instant appended to a list.
"""

from itertools import pairwise
from typing import Any

from darktree_gateway import metrics
from darktree_gateway.requests import Ask
from darktree_kit.clock import monotonic
from darktree_kit.errors import ApiError

PHASES = ("auth", "bound", "queue", "hold", "upstream", "generate", "settle")
FIRST_EVENT = 5  # the mark at which the phase `upstream` ended
TIMING_HEADER = "x-darktree-timing"
_WANTS_TIMING = (TIMING_HEADER.encode(), b"1")
_PHASE_SECONDS = tuple(metrics.PHASE_SECONDS.labels(phase) for phase in PHASES)

CLIENT_LEFT_STATUS = 499
CLIENT_LEFT = "client_left"
OK = "ok"


class Record:
    """One completion, from its arrival on."""

    __slots__ = (
        "_marks",
        "ask",
        "code",
        "customer_id",
        "entry_id",
        "lane",
        "limit_headers",
        "status",
        "tokens",
    )

    def __init__(self) -> None:
        self._marks = [monotonic()]
        self.status = 500  # until something better is known
        self.code = "internal"
        self.lane = "none"
        self.ask: Ask | None = None
        self.customer_id: str | None = None
        self.entry_id: str | None = None
        self.tokens = (0, 0)
        self.limit_headers: dict[str, str] = {}  # of the key's limits of requests, where it has any

    def end_phase(self) -> None:
        """The phase that comes next in PHASES has ended now."""
        self._marks.append(monotonic())

    @property
    def marks(self) -> list[float]:
        """When it arrived, and when each phase so far ended, by the monotonic clock."""
        return self._marks

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
        phases = zip(PHASES, pairwise(self._marks), strict=False)
        return ", ".join(f"{phase};dur={(end - start) * 1000:.3f}" for phase, (start, end) in phases)

    def headers(self, request_headers: list[tuple[bytes, bytes]]) -> dict[str, str]:
        """Return what the answer's headers say of it: its key's limits, and the phases so far for whoever asks."""
        if _WANTS_TIMING in request_headers:
            return self.limit_headers | {TIMING_HEADER: self.timing()}
        return self.limit_headers

    def count(self) -> None:
        """Tell the metrics. Once, when the last byte has left."""
        marks = self._marks
        for tally, start, end in zip(_PHASE_SECONDS, marks, marks[1:], strict=False):
            tally.observe(end - start)
        lane = metrics.of_lane(self.lane)
        lane.request_seconds.observe(monotonic() - marks[0])
        metrics.of_answer(self.lane, self.status, self.code).inc()
        if len(marks) > FIRST_EVENT:
            lane.first_token_seconds.observe(marks[FIRST_EVENT] - marks[0])
        if len(marks) > len(PHASES):
            arrived, _, bounded, placed, held, first, last, settled = marks
            metrics.OVERHEAD.observe(bounded - arrived + held - placed + settled - last)
            if self.tokens[1] > 1:
                lane.token_seconds.observe((last - first) / (self.tokens[1] - 1))

    def fields(self) -> dict[str, Any]:
        """Return what the access log's line has beside what every service's has. No prompt and no answer."""
        return {
            "customer_id": self.customer_id,
            "lane": self.lane,
            "code": self.code,
            "entry_id": self.entry_id,
            "prompt_tokens": self.tokens[0],
            "completion_tokens": self.tokens[1],
            "phases_ms": {
                phase: round((end - start) * 1000, 3)
                for phase, start, end in zip(PHASES, self._marks, self._marks[1:], strict=False)
            },
        }
