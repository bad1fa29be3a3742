"""Which of a lane's engines serves next: the one with the fewest requests under way, past those that just failed.

Pure: no clock and no network of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

EJECTION_SECONDS = 3.0
MAX_EJECTION_SECONDS = 30.0


@dataclass(slots=True)
class Engine:
    """One engine's address and what is known of it."""

    url: str
    outstanding: int = 0
    failures: int = 0
    ejected_until: float = 0.0
    turn: int = 0


@dataclass(slots=True)
class Balancer:
    """Every engine that was ever chosen, by address. Times are monotonic seconds."""

    engines: dict[str, Engine] = field(default_factory=dict)
    _turn: int = 0

    def choose(self, urls: Sequence[str], now: float, *, but_not: str | None = None) -> Engine | None:
        """Return the engine to ask, or None when there is none. Ejected ones serve only when there is no other."""
        candidates = [self.engine(url) for url in urls if url != but_not]
        if not candidates:
            return None
        chosen = min(
            candidates, key=lambda engine: (engine.ejected_until > now, engine.outstanding, engine.turn)
        )
        self._turn += 1
        chosen.turn = self._turn  # among equals, the one that waited longest
        return chosen

    def engine(self, url: str) -> Engine:
        engine = self.engines.get(url)
        if engine is None:
            engine = self.engines[url] = Engine(url)
        return engine

    def failed(self, engine: Engine, now: float) -> None:
        """The engine could not be reached: leave it alone for a while, longer each time."""
        engine.failures += 1
        pause = min(MAX_EJECTION_SECONDS, EJECTION_SECONDS * 2 ** (engine.failures - 1))
        engine.ejected_until = now + pause

    def answered(self, engine: Engine) -> None:
        engine.failures = 0
        engine.ejected_until = 0.0

    def forget_all_but(self, urls: Sequence[str]) -> None:
        """Drop what is known of engines that no lane names any more and that serve nothing."""
        kept = set(urls)
        self.engines = {
            url: engine for url, engine in self.engines.items() if url in kept or engine.outstanding
        }
