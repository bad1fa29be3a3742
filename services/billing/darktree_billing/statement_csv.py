"""A statement as CSV: one table for a spreadsheet, each row of one section, dollars exact."""

import csv
import io
from collections.abc import Iterator
from typing import Any

from darktree_billing.statement_json import Statement
from darktree_kit.money import format_dollars

COLUMNS = (
    "section", "date", "item", "detail", "model", "key", "requests", "prompt_tokens", "completion_tokens",
    "amount_usd", "bonus_usd",
)  # fmt: skip
# The equation, each with the sign that it has in it: (item, field, field of its bonus part, sign).
EQUATION = (
    ("opening balance", "opening_nanos", "opening_bonus_nanos", 1),
    ("purchases", "purchases_nanos", None, 1),
    ("bonus credits", "bonus_nanos", "bonus_granted_nanos", 1),
    ("usage", "usage_nanos", "bonus_used_nanos", -1),
    ("adjustments", "adjustments_nanos", "bonus_adjusted_nanos", 1),
    ("closing balance", "closing_nanos", "closing_bonus_nanos", 1),
)
_FORMULAS = ("=", "+", "-", "@", "\t", "\r")


def csv_text(statement: Statement, json_sha256: str) -> str:
    """Return the whole table. `json_sha256` says which JSON document has its entries and proves them."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\r\n")
    writer.writeheader()
    for row in _rows(statement.sections, json_sha256):
        writer.writerow({name: _cell(value) for name, value in row.items()})
    return text.getvalue()


def _rows(parts: dict[str, Any], json_sha256: str) -> Iterator[dict[str, Any]]:
    told, customer, totals = parts["statement"], parts["customer"], parts["totals"]
    yield from (
        {"section": "statement", "item": item, "detail": detail}
        for item, detail in (
            ("number", told["number"]),
            ("status", told["status"]),
            ("seller", told["seller"]),
            ("customer", customer["name"]),
            ("customer id", customer["id"]),
            ("plan", customer["plan"]),
            ("from (UTC)", told["start"]),
            ("until before (UTC)", told["end"]),
            ("SHA-256 of the JSON", json_sha256),
        )
    )
    for item, amount, bonus, sign in EQUATION:
        row = {"section": "equation", "item": item, "amount_usd": format_dollars(sign * totals[amount])}
        yield row | {"bonus_usd": format_dollars(sign * totals[bonus]) if bonus else "0.00"}
    for line in parts["activity"]:
        yield {
            "section": "activity",
            "date": line["recorded_at"],
            "item": line["kind"],
            "detail": "; ".join(filter(None, (line["reason"], line["reference"]))),
            "amount_usd": format_dollars(line["effect_nanos"]),
            "bonus_usd": format_dollars(line["bonus_effect_nanos"]),
        }
    names = {key["key_id"]: f"{key['name']} ({key['prefix']}...{key['last4']})" for key in parts["keys"]}
    for section in ("usage_by_day", "usage_by_model", "usage_by_key", "usage", "absorbed"):
        for row in parts[section]:
            yield {
                "section": section.replace("_", " "),
                "date": row.get("day"),
                "item": _prices(row),
                "model": row.get("model"),
                "key": names.get(row.get("key_id"), row.get("key_id")),
                "requests": row["requests"],
                "prompt_tokens": row["prompt_tokens"],
                "completion_tokens": row["completion_tokens"],
                "amount_usd": format_dollars(row["amount_nanos"]),
                "bonus_usd": format_dollars(row["bonus_nanos"]),
            }
    yield from _caps(parts["caps"])


def _caps(caps: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for change in caps["changes"]:
        was = change["previous_cap_tokens"]
        detail = f"{was} to {change['cap_tokens']}" if was is not None else str(change["cap_tokens"])
        yield {
            "section": "cap change",
            "date": change["changed_at"],
            "item": f"{detail} tokens a day",
            "detail": change["reason"],
        }
    for day in caps["days"]:
        said = f"{day['tokens']} of {day['cap_tokens']} tokens"
        refused = f"{day['refused_requests']} requests refused"
        yield {"section": "cap day", "date": day["day"], "item": said, "detail": refused}


def _prices(row: dict[str, Any]) -> str | None:
    if "prompt_price_nanos" not in row:
        return None
    prompt, completion = (row[f"{kind}_price_nanos"] * 1000 for kind in ("prompt", "completion"))
    return f"${format_dollars(prompt)} / ${format_dollars(completion)} per 1,000 tokens"


def _cell(value: Any) -> Any:
    """Return a cell. Text that a spreadsheet would take for a formula is led by an apostrophe."""
    if isinstance(value, str) and value.startswith(_FORMULAS) and not _is_number(value):
        return "'" + value
    return "" if value is None else value


def _is_number(text: str) -> bool:
    return text.removeprefix("-").replace(".", "", 1).isdecimal()
