"""One account at Stripe: its objects as the API shows them, what the API does not show, and what is due when.

Everything runs in one event loop and nothing here awaits, so each request sees and leaves a whole account.
"""

import copy
import secrets
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from darktree_stripe_simulator.errors import Refusal, not_found
from darktree_stripe_simulator.settings import VERSION, Settings

Object = dict[str, Any]
Clock = Callable[[], float]

MAX_OBJECTS = 200_000
ID_LENGTH = 24
_ALPHABET = string.ascii_letters + string.digits


@dataclass
class Account:
    """The state of the account. `private` is what belongs to an object and its API does not tell."""

    settings: Settings
    clock: Clock
    objects: dict[str, Object] = field(default_factory=dict)
    private: dict[str, dict[str, Any]] = field(default_factory=dict)
    due: list[dict[str, Any]] = field(default_factory=list)
    answers: dict[str, dict[str, Any]] = field(default_factory=dict)
    deliveries: list[dict[str, Any]] = field(default_factory=list)
    advanced_seconds: int = 0
    # The request that is being executed: events name it.
    request: dict[str, str | None] = field(
        default_factory=lambda: dict[str, str | None](id=None, idempotency_key=None)
    )
    on_event: Callable[[Object], None] = lambda _: None

    def now(self) -> int:
        """Return Unix seconds: the clock's, and what a test has added to them."""
        return int(self.instant())

    def instant(self) -> float:
        return self.clock() + self.advanced_seconds

    def add(self, prefix: str, kind: str, fields: Object, **private: Any) -> Object:
        """Make an object, with its id and instant. Raises Refusal when the account is full."""
        if len(self.objects) >= MAX_OBJECTS:
            raise Refusal(
                f"The stand-in holds {MAX_OBJECTS} objects and no more.", status=500, type="api_error"
            )
        made: Object = {"id": new_id(prefix), "object": kind, "created": self.now(), **fields}
        self.objects[made["id"]] = made
        self.private[made["id"]] = private
        return made

    def find(self, kind: str, id: str, param: str = "id") -> Object:
        found = self.objects.get(id)
        if found is None or found["object"] != kind:
            raise not_found(kind, id, param)
        return found

    def all(self, kind: str) -> Iterator[Object]:
        """Yield the objects of a kind, the newest first."""
        return (found for found in reversed(list(self.objects.values())) if found["object"] == kind)

    def emit(self, type: str, about: Object, previous: Object | None = None) -> Object:
        """Record that something happened, with a copy of the object as it is now."""
        data: Object = {"object": copy.deepcopy(about)}
        if previous is not None:
            data["previous_attributes"] = copy.deepcopy(previous)
        event = self.add(
            "evt",
            "event",
            {
                "api_version": VERSION,
                "data": data,
                "livemode": False,
                "pending_webhooks": 1 if self.settings.webhook_url else 0,
                "request": dict(self.request),
                "type": type,
            },
        )
        self.on_event(event)
        return event

    def change(self, about: Object, **fields: Any) -> Object:
        """Change an object and return what it was before: an event's `previous_attributes`."""
        previous = {name: about[name] for name, value in fields.items() if about[name] != value}
        about.update(fields)
        return previous

    def schedule(self, after_seconds: float, action: str, id: str, **more: Any) -> None:
        self.due.append({"at": self.instant() + after_seconds, "action": action, "id": id, **more})


def new_id(prefix: str, length: int = ID_LENGTH) -> str:
    return f"{prefix}_" + "".join(secrets.choice(_ALPHABET) for _ in range(length))
