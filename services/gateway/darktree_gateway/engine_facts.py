"""What engines say of themselves, asked once for each of their starts and shown in the gateway's own metrics.

The operator reads it there: engines answer gateways and Prometheus, nobody else.
"""

import re

from darktree_gateway import metrics
from darktree_gateway.upstream import Upstream

MAX_WORD_CHARACTERS = 63

_CACHE = re.compile(r"^vllm:cache_config_info\{([^\n]*)\} ", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\\n]|\\.)*)"')

Place = tuple[str, str]
"""A lane and the address of one of its engines."""
Words = tuple[str, str, str, str]
"""Version, longest context, tokens of the cache, longest contexts at once; empty where an engine does not say."""


class EngineFacts:
    """Keeps the gateway's gauge of what each engine is."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._starts: dict[Place, float | None] = {}
        self._shown: dict[Place, Words] = {}

    async def learn(self, place: Place, exposition: str, started: float | None) -> None:
        """Ask an engine what it is, unless this start of it has said so."""
        if place in self._shown and self._starts.get(place) == started:
            return
        version, context = await self._upstream.describe(place[1])
        if not version:
            return  # asked again with the next reading
        words = (version[:MAX_WORD_CHARACTERS], str(context or ""), *cache_of(exposition))
        self.forget(place)
        metrics.ENGINE_INFO.labels(*place, *words).set(1)
        self._starts[place], self._shown[place] = started, words

    def forget(self, place: Place) -> None:
        """Show an engine no more."""
        self._starts.pop(place, None)
        words = self._shown.pop(place, None)
        if words is not None:
            metrics.ENGINE_INFO.remove(*place, *words)

    def forget_all_but(self, places: set[Place]) -> None:
        for place in set(self._shown) - places:
            self.forget(place)


def cache_of(exposition: str) -> tuple[str, str]:
    """Return how many tokens an engine's cache holds, and how many of the longest contexts, as vLLM's metrics say."""
    found = _CACHE.search(exposition)
    said = dict(_LABEL.findall(found[1])) if found else {}
    tokens = _whole(said.get("kv_cache_size_tokens"))
    blocks, size = _whole(said.get("num_gpu_blocks")), _whole(said.get("block_size"))
    if not tokens and blocks and size:
        tokens = str(int(blocks) * int(size))
    at_once = said.get("kv_cache_max_concurrency", "")
    try:
        return tokens, f"{float(at_once):.2f}"
    except ValueError:
        return tokens, ""


def _whole(text: str | None) -> str:
    return text if text is not None and text.isdecimal() else ""
