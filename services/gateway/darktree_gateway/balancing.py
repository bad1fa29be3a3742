"""Which of a lane's engines serves next: of those that are well, the one that knows the conversation, if any.

Consistent hashing with bounded load (Mirrokni, Thorup and Zadimoghaddam, 2016): every conversation has its own order of
the engines (rendezvous hashing), and takes the first whose share of the requests under way is not used up. So a
conversation comes back to the engine that has its prefix, an engine that comes or goes moves only its own
conversations, and no engine gets more than a quarter above its share. Without a conversation: the fewest requests.

An engine that fails is ejected: at once when it cannot be reached, else after some failures in a row. It gets nothing
until a probe finds it there; then one request at a time, and the first that is answered readmits it.

    serving -- failures --> ejected -- its pause is over and a probe passes --> probed -- one answer --> serving
                               ^------------------- a failure, and a longer pause ---'

Pure: no clock and no network of its own.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from darktree_gateway.affinity import number_of

OVERLOAD_PERCENT = 125  # of an engine's share, before a conversation goes elsewhere
MAX_DOUBLINGS = 16
_ALL_BITS = 2**64 - 1


class State(Enum):
    """What an engine may be asked."""

    SERVING = "serving"
    EJECTED = "ejected"
    PROBED = "probed"


_SERVING = State.SERVING
_PROBED = State.PROBED


@dataclass(frozen=True, slots=True)
class Patience:
    """When an engine is left alone, and for how long."""

    failures: int = 3
    """So many in a row, of an engine that can be reached."""
    seconds: float = 3.0
    """The first pause; each further one is twice as long."""
    max_seconds: float = 60.0
    max_ejected_percent: int = 50
    """Of a lane's engines; one may always be."""


@dataclass(slots=True)
class Engine:
    """One engine's address and what is known of it."""

    url: str
    outstanding: int = 0
    failures: int = 0  # since the last answer
    state: State = State.SERVING
    ejections: int = 0  # since it last served
    ejected_until: float = 0.0
    turn: int = 0
    place: int = 0  # a number of its address, for the order in which conversations prefer engines


@dataclass(slots=True)
class Balancer:
    """Every engine that was ever chosen, by address. Times are monotonic seconds."""

    patience: Patience = field(default_factory=Patience)
    engines: dict[str, Engine] = field(default_factory=dict)
    _turn: int = 0

    def choose(
        self, urls: Sequence[str], *, but_not: str | None = None, conversation: int | None = None
    ) -> Engine | None:
        """Return the engine to ask, or None when there is none. Ejected ones serve only when there is no other."""
        candidates = [self.engine(url) for url in urls if url != but_not]
        if not candidates:
            return None
        if len(candidates) == 1:
            return candidates[0]
        well = [
            engine
            for engine in candidates
            if engine.state is _SERVING or (engine.state is _PROBED and not engine.outstanding)
        ]
        if conversation is not None and len(well) > 1:
            return _preferred(well, conversation)
        chosen = min(well or candidates, key=lambda engine: (engine.outstanding, engine.turn))
        self._turn += 1
        chosen.turn = self._turn  # among equals, the one that waited longest
        return chosen

    def engine(self, url: str) -> Engine:
        engine = self.engines.get(url)
        if engine is None:
            engine = self.engines[url] = Engine(url, place=number_of(url))
        return engine

    def state(self, url: str) -> State:
        engine = self.engines.get(url)
        return _SERVING if engine is None else engine.state

    def failed(self, engine: Engine, urls: Sequence[str], now: float, *, reached: bool = True) -> bool:
        """The engine, one of these of its lane, did not do what it was asked. Return whether it is ejected for that."""
        engine.failures += 1
        if engine.state is State.EJECTED:
            return False
        if reached and engine.state is _SERVING and engine.failures < self.patience.failures:
            return False
        others = sum(self.state(url) is not _SERVING for url in urls if url != engine.url)
        if others and (others + 1) * 100 > self.patience.max_ejected_percent * len(urls):
            return False
        self.eject(engine, now)
        return True

    def eject(self, engine: Engine, now: float) -> None:
        """Leave an engine alone for a while, twice as long each time."""
        pause = self.patience.seconds * 2.0 ** min(engine.ejections, MAX_DOUBLINGS)
        engine.state = State.EJECTED
        engine.ejections += 1
        engine.ejected_until = now + min(pause, self.patience.max_seconds)

    def answered(self, engine: Engine) -> None:
        """The engine did what it was asked."""
        engine.failures = 0
        engine.ejections = 0
        engine.state = _SERVING

    def due(self, urls: Iterable[str], now: float) -> list[Engine]:
        """Return those of these engines whose pause is over: it is time to look whether they are there."""
        known = (self.engines[url] for url in urls if url in self.engines)
        return [engine for engine in known if engine.state is State.EJECTED and engine.ejected_until <= now]

    def readmit(self, engine: Engine) -> None:
        """A probe found the engine: it may have one request at a time."""
        if engine.state is State.EJECTED:
            engine.state = _PROBED

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
