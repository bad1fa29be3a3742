"""What a customer's entries add up to: the equation of a statement, and usage by day, model and key.

Pure, and the only place where a statement's numbers come from: whoever makes a statement folds the entries with it, and
whoever verifies one folds them again.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from darktree_ledger.verification import bonus_effect_nanos, effect_nanos

Entry = Mapping[str, Any]
Row = dict[str, Any]

# How a line that is no usage is called, by kind and (of a grant) where it came from.
_GRANTS = {"stripe_clearing": "purchase", "bonus_credits": "bonus"}
_COUNTS = ("requests", "prompt_tokens", "completion_tokens", "amount_nanos", "bonus_nanos")
_Key = tuple[Any, ...]


class Totals:
    """The fold of a period's entries over where the customer stood before them."""

    def __init__(self, balance_nanos: int, bonus_nanos: int, seq: int, head: str) -> None:
        self._opening_nanos, self._opening_bonus_nanos = balance_nanos, bonus_nanos
        self.seq, self.head = seq, head
        self.activity: list[Row] = []
        self._usage: dict[_Key, list[int]] = {}
        self._absorbed: dict[_Key, list[int]] = {}

    def add(self, entry: Entry) -> None:
        """Add the next entry, oldest first."""
        self.seq, self.head = entry["seq"], entry["hash"]
        kind = entry["kind"]
        if kind == "usage" or kind == "absorbed":
            table = self._usage if kind == "usage" else self._absorbed
            place = (entry["usage_day"], entry["model"], entry["key_id"], entry["prompt_price_nanos"],
                     entry["completion_price_nanos"])  # fmt: skip
            counts = table.get(place)
            if counts is None:
                counts = table[place] = [0, 0, 0, 0, 0]
            counts[0] += 1
            counts[1] += entry["prompt_tokens"]
            counts[2] += entry["completion_tokens"]
            counts[3] += entry["amount_nanos"]
            counts[4] += entry["bonus_nanos"]
            return
        self.activity.append(
            {
                "seq": entry["seq"],
                "recorded_at": entry["recorded_at"],
                "kind": _GRANTS.get(entry["debit_account"], kind) if kind == "grant" else kind,
                "amount_nanos": entry["amount_nanos"],
                "effect_nanos": effect_nanos(entry),
                "bonus_effect_nanos": bonus_effect_nanos(entry),
                "reason": entry["reason"],
                "reference": entry["reference"],
            }
        )

    def sections(self) -> dict[str, Any]:
        """Return every part of a statement that follows from the entries."""
        usage, absorbed = _rows(self._usage), _rows(self._absorbed)
        return {
            "totals": self._equation(usage, absorbed),
            "usage_by_day": grouped(usage, "day"),
            "usage_by_model": grouped(usage, "model", "prompt_price_nanos", "completion_price_nanos"),
            "usage_by_key": grouped(usage, "key_id"),
            "usage": usage,
            "absorbed": grouped(absorbed, "day", "model"),
            "activity": self.activity,
        }

    def _equation(self, usage: list[Row], absorbed: list[Row]) -> Row:
        moved: dict[str, list[int]] = {"purchase": [0, 0], "bonus": [0, 0], "adjustment": [0, 0]}
        for line in self.activity:
            sums = moved.get(line["kind"], moved["adjustment"])
            sums[0] += line["effect_nanos"]
            sums[1] += line["bonus_effect_nanos"]
        purchases, bonus, adjustments = moved["purchase"], moved["bonus"], moved["adjustment"]
        opening, opening_bonus = self._opening_nanos, self._opening_bonus_nanos
        used, lost = total(usage), total(absorbed)
        return {
            "opening_nanos": opening,
            "purchases_nanos": purchases[0],
            "bonus_nanos": bonus[0],
            "usage_nanos": used["amount_nanos"],
            "adjustments_nanos": adjustments[0],
            "closing_nanos": opening + purchases[0] + bonus[0] - used["amount_nanos"] + adjustments[0],
            "opening_bonus_nanos": opening_bonus,
            "bonus_granted_nanos": bonus[1],
            "bonus_used_nanos": used["bonus_nanos"],
            "bonus_adjusted_nanos": purchases[1] + adjustments[1],
            "closing_bonus_nanos": opening_bonus
            + bonus[1]
            + purchases[1]
            + adjustments[1]
            - used["bonus_nanos"],
            "requests": used["requests"],
            "prompt_tokens": used["prompt_tokens"],
            "completion_tokens": used["completion_tokens"],
            "absorbed_requests": lost["requests"],
            "absorbed_tokens": lost["prompt_tokens"] + lost["completion_tokens"],
            "absorbed_nanos": lost["amount_nanos"],
        }


def grouped(rows: Iterable[Row], *names: str) -> list[Row]:
    """Return rows summed by these fields, in their order."""
    sums: dict[_Key, Row] = {}
    for row in rows:
        place = tuple(row[name] for name in names)
        into = sums.setdefault(place, {name: row[name] for name in names} | dict.fromkeys(_COUNTS, 0))
        for name in _COUNTS:
            into[name] += row[name]
    return [sums[place] for place in sorted(sums, key=_order)]


def total(rows: Iterable[Row]) -> Row:
    """Return the sums of rows."""
    return next(iter(grouped(rows)), dict.fromkeys(_COUNTS, 0))


def _rows(table: Mapping[_Key, list[int]]) -> list[Row]:
    names = ("day", "model", "key_id", "prompt_price_nanos", "completion_price_nanos", *_COUNTS)
    return [dict(zip(names, (*place, *table[place]), strict=True)) for place in sorted(table, key=_order)]


def _order(place: _Key) -> list[tuple[bool, Any]]:
    return [(value is not None, value) for value in place]
