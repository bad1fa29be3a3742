"""Which of a lane's engines serves next: past those that just failed, the one that knows the conversation, if any.

Consistent hashing with bounded load (Mirrokni, Thorup and Zadimoghaddam, 2016): every conversation has its own order of
the engines (rendezvous hashing), and takes the first whose share of the requests under way is not used up. So a
conversation comes back to the engine that has its prefix, an engine that comes or goes moves only its own
conversations, and no engine gets more than a quarter above its share. Without a conversation: the fewest requests.

Pure: no clock and no network of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from darktree_gateway.affinity import number_of

EJECTION_SECONDS = 3.0
MAX_EJECTION_SECONDS = 30.0
OVERLOAD_PERCENT = 125  # of an engine's share, before a conversation goes elsewhere
_ALL_BITS = 2**64 - 1


@dataclass(slots=True)
class Engine:
    """One engine's address and what is known of it."""

    url: str
    outstanding: int = 0
    failures: int = 0
    ejected_until: float = 0.0
    turn: int = 0
    place: int = 0  # a number of its address, for the order in which conversations prefer engines


@dataclass(slots=True)
class Balancer:
    """Every engine that was ever chosen, by address. Times are monotonic seconds."""

    engines: dict[str, Engine] = field(default_factory=dict)
    _turn: int = 0

    def choose(
        self, urls: Sequence[str], now: float, *, but_not: str | None = None, conversation: int | None = None
    ) -> Engine | None:
        """Return the engine to ask, or None when there is none. Ejected ones serve only when there is no other."""
        candidates = [self.engine(url) for url in urls if url != but_not]
        if not candidates:
            return None
        if conversation is not None and len(candidates) > 1:
            well = [engine for engine in candidates if engine.ejected_until <= now]
            if well:
                return _preferred(well, conversation)
        chosen = min(
            candidates, key=lambda engine: (engine.ejected_until > now, engine.outstanding, engine.turn)
        )
        self._turn += 1
        chosen.turn = self._turn  # among equals, the one that waited longest
        return chosen

    def engine(self, url: str) -> Engine:
        engine = self.engines.get(url)
        if engine is None:
            engine = self.engines[url] = Engine(url, place=number_of(url))
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


def _preferred(engines: list[Engine], conversation: int) -> Engine:
    """Return the first engine in the conversation's order that has less than its bounded share; one always has."""
    requests = 1 + sum(engine.outstanding for engine in engines)
    bound = -(-requests * OVERLOAD_PERCENT // (100 * len(engines)))
    return max(
        (engine for engine in engines if engine.outstanding < bound),
        key=lambda engine: _mixed(conversation ^ engine.place),
    )


def _mixed(bits: int) -> int:
    """Return 64 bits that look unrelated to 64 bits: SplitMix64's finalizer."""
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & _ALL_BITS
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & _ALL_BITS
    return bits ^ (bits >> 31)
