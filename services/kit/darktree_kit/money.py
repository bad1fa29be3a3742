"""Money is an integer of nano-dollars; dollars exist only at the edges.

A price is nano-dollars a token, so a charge is one exact multiplication and nothing is ever rounded:
$0.75 for 1,000 tokens is 750,000 nano-dollars a token.
"""

import re

NANOS_PER_DOLLAR = 1_000_000_000
NANOS_PER_CENT = 10_000_000
MAX_AMOUNT_NANOS = 2**62  # about $4.6 billion; sums of two stay inside Postgres' BIGINT

_DOLLARS = re.compile(
    r"(?P<sign>-?)\$?"
    r"(?P<dollars>[0-9]{1,12}|[0-9]{1,3}(?:,[0-9]{3}){1,3}|)"
    r"(?:\.(?P<decimals>[0-9]{0,64}))?"
)


def parse_dollars(text: str) -> int:
    """Return nano-dollars of a decimal number of dollars, exactly.

    Raises ValueError when the text is no number, has more than nine decimals, or is out of range.
    """
    match = _DOLLARS.fullmatch(text.strip())
    if match is None or not (match["dollars"] or match["decimals"]):
        raise ValueError(f"{text!r} is not an amount of dollars, such as 50 or 12.50")
    decimals = (match["decimals"] or "").rstrip("0")
    if len(decimals) > 9:
        raise ValueError(f"{text!r} has more than nine decimals")
    # Integers all the way: Decimal would round to 28 digits and overflow at 1e999999.
    whole = int(match["dollars"].replace(",", "") or "0") * NANOS_PER_DOLLAR + int(decimals.ljust(9, "0"))
    if match["sign"]:
        whole = -whole
    if abs(whole) > MAX_AMOUNT_NANOS:
        raise ValueError(f"{text!r} is out of range")
    return whole


def format_dollars(nanos: int) -> str:
    """Return dollars as a plain decimal, exact, with at least two decimals: `49.99925`."""
    sign = "-" if nanos < 0 else ""
    dollars, rest = divmod(abs(nanos), NANOS_PER_DOLLAR)
    decimals = f"{rest:09d}".rstrip("0").ljust(2, "0")
    return f"{sign}{dollars}.{decimals}"


def price_per_thousand(dollars: str) -> int:
    """Return nano-dollars a token of a price in dollars for 1,000 tokens. Raises ValueError if inexact."""
    nanos = parse_dollars(dollars)
    if nanos < 0 or nanos % 1000:
        raise ValueError(f"{dollars!r} for 1,000 tokens is not a whole number of nano-dollars a token")
    return nanos // 1000


def charge_nanos(
    prompt_tokens: int, completion_tokens: int, prompt_price_nanos: int, completion_price_nanos: int
) -> int:
    """Return what so many tokens cost at these prices (nano-dollars a token)."""
    return prompt_tokens * prompt_price_nanos + completion_tokens * completion_price_nanos
