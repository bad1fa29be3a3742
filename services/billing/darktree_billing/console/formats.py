"""How numbers, money and times are written for people. Money is exact: cents first, the rest of it smaller."""

from datetime import UTC, date, datetime, timedelta

from markupsafe import Markup

from darktree_kit.money import NANOS_PER_CENT, NANOS_PER_DOLLAR, format_dollars

MINUS = "\u2212"
THIN_SPACE = "\u2009"


def dollars(nanos: int) -> str:
    """Return an amount exactly, such as `$1,249.99925` or `−$0.75`."""
    whole, _, decimals = format_dollars(abs(nanos)).partition(".")
    return f"{MINUS if nanos < 0 else ''}${int(whole):,}.{decimals}"


def money(nanos: int) -> Markup:
    """Return an amount exactly, with what is less than a cent set smaller."""
    text = dollars(nanos)
    cents = text.index(".") + 3
    fine = Markup('<span class="fine">{}</span>').format(text[cents:])
    return Markup('<span class="money">{}{}</span>').format(text[:cents], fine)


def signed_money(nanos: int) -> Markup:
    """Return a change of a balance: with a plus when it grew."""
    return Markup("+{}").format(money(nanos)) if nanos > 0 else money(nanos)


def whole_dollars(nanos: int) -> str:
    """Return a price without its cents when it has none: `$50`, `$12.50`."""
    return f"${nanos // NANOS_PER_DOLLAR:,}" if nanos % NANOS_PER_DOLLAR == 0 else dollars(nanos)


def price_per_thousand(nanos_per_token: int) -> str:
    """Return a token's price as people know it: for 1,000 of them."""
    return dollars(nanos_per_token * 1000)


def about(nanos: int) -> str:
    """Return an amount rounded to cents, for what is an estimate anyway."""
    cents = (abs(nanos) + NANOS_PER_CENT // 2) // NANOS_PER_CENT
    return dollars(cents * NANOS_PER_CENT if nanos >= 0 else -cents * NANOS_PER_CENT)


def cents(amount: int) -> str:
    """Return an amount of whole cents, as Stripe tells it."""
    return dollars(amount * NANOS_PER_CENT)


def count(number: int) -> str:
    return f"{number:,}".replace("-", MINUS)


def short_count(number: int) -> str:
    """Return a number in at most four characters and a letter: `66.7k`, `1.2M`. For axes; exact ones stand beside."""
    for size, letter in ((1_000_000_000, "B"), (1_000_000, "M"), (1_000, "k")):
        if number >= size:
            tenths = number * 10 // size
            return (
                f"{tenths // 10}{letter}"
                if tenths % 10 == 0 or tenths >= 1000
                else f"{tenths / 10:.1f}{letter}"
            )
    return str(number)


def percent(part: int, whole: int) -> str:
    """Return a share as whole percent: 0 only for nothing, 100 only for everything."""
    if whole <= 0:
        return "0%"
    share = round(100 * part / whole)
    if 0 < part < whole:
        share = min(max(share, 1), 99)
    return f"{share}%"


def duration(seconds: int) -> str:
    """Return a time to wait: `5 h 12 min`, `12 min`, `40 s`."""
    if seconds < 60:
        return f"{max(seconds, 0)} s"
    hours, minutes = divmod(seconds // 60, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


def day(value: date) -> str:
    return f"{value.day} {value:%b %Y}"


def short_day(value: date) -> str:
    return f"{value.day} {value:%b}"


def instant(value: datetime) -> Markup:
    """Return an instant in UTC, to the second, as an element that says it to machines too."""
    utc = value.astimezone(UTC)
    return Markup('<time datetime="{}">{} {:%b %Y}, {:%H:%M:%S}</time>').format(
        utc.strftime("%Y-%m-%dT%H:%M:%SZ"), utc.day, utc, utc
    )


def day_of(value: datetime) -> Markup:
    """Return the UTC day of an instant."""
    utc = value.astimezone(UTC)
    return Markup('<time datetime="{}">{}</time>').format(utc.strftime("%Y-%m-%dT%H:%M:%SZ"), day(utc.date()))


def days_in_words(span: timedelta) -> str:
    days = span.days
    if days < 1:
        return "less than a day"
    if days == 1:
        return "1 day"
    return f"{days:,} days" if days <= 730 else "more than two years"


def iso_day(text: str) -> str:
    return day(date.fromisoformat(text))


def iso_instant(text: str) -> Markup:
    return instant(datetime.fromisoformat(text))


FILTERS = {
    "iso_day": iso_day,
    "iso_instant": iso_instant,
    "dollars": dollars,
    "money": money,
    "signed_money": signed_money,
    "whole_dollars": whole_dollars,
    "price_per_thousand": price_per_thousand,
    "about": about,
    "cents": cents,
    "count": count,
    "short_count": short_count,
    "duration": duration,
    "day": day,
    "short_day": short_day,
    "instant": instant,
    "day_of": day_of,
    "days_in_words": days_in_words,
}
