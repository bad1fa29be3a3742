"""What traces have of one completion: its phases as spans below the request's, told when it is over.

The engine's span has OpenTelemetry's names for generative AI (https://opentelemetry.io/docs/specs/semconv/gen-ai/),
numbers and names only: never a prompt, an answer, a stop word or a tool.
"""

from typing import Any

from darktree_gateway.record import OK, PHASES, Record
from darktree_gateway.requests import Ask
from darktree_kit import clock, tracing

PROVIDER = "darktree"
_ENGINE = PHASES.index("upstream")
_GENERATED = PHASES.index("generate")
_OPERATIONS = {"chat": "chat", "completions": "text_completion", "embeddings": "embeddings"}
_NUMBERS = {
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "seed": "gen_ai.request.seed",
    "n": "gen_ai.request.choice.count",
    "max_tokens": "gen_ai.request.max_tokens",
}


def tell(record: Record) -> None:
    """Tell of a completion that is over. Only where tracing is on."""
    ask = record.ask
    shift = clock.unix_nanoseconds() - int(clock.monotonic() * 1e9)
    marks = [shift + int(mark * 1e9) for mark in record.marks]
    for place, phase in enumerate(PHASES[: len(marks) - 1]):
        if place not in {_ENGINE, _GENERATED}:
            tracing.tell(f"darktree {phase}", marks[place], marks[place + 1], {"darktree.lane": record.lane})
    if ask is None or record.entry_id is None:
        return
    failed = {} if record.code == OK else {"error.type": record.code}
    first = {"gen_ai.first_token": marks[_ENGINE + 1]} if len(marks) > _ENGINE + 1 else {}
    ended = marks[_GENERATED + 1] if len(marks) > _GENERATED + 1 else shift + int(clock.monotonic() * 1e9)
    attributes = _attributes(record, ask) | failed
    name = f"{attributes['gen_ai.operation.name']} {ask.model}"
    tracing.tell(name, marks[_ENGINE], ended, attributes, client=True, events=first, failed=bool(failed))


def _attributes(record: Record, ask: Ask) -> dict[str, Any]:
    numbers = {name: ask.body.get(field) for field, name in _NUMBERS.items()}
    return {
        "gen_ai.operation.name": _OPERATIONS.get(ask.endpoint, ask.endpoint),
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": ask.model,
        "gen_ai.response.model": ask.model,
        "gen_ai.usage.input_tokens": record.tokens[0],
        "gen_ai.usage.output_tokens": record.tokens[1],
        "darktree.customer_id": record.customer_id or "",
        "darktree.entry_id": record.entry_id or "",
        "darktree.lane": record.lane,
        "darktree.stream": ask.stream,
    } | {name: value for name, value in numbers.items() if isinstance(value, int | float)}
