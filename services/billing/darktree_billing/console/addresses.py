"""E-mail addresses as people type them, and the one form in which each is stored and written to."""

import re

MAX_EMAIL_CHARACTERS = 128  # as the name of who did something in the ledger

# What browsers accept in <input type="email"> (HTML, "valid e-mail address"): ASCII only, so that no two addresses
# look alike and differ, and nothing that could break out of a mail's header.
_EMAIL = re.compile(
    r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
    r"(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*"
)


class AddressError(ValueError):
    """A setting that lists addresses has something else in it."""


def normal_email(text: str) -> str | None:
    """Return an address in lower case, or None when it is none."""
    trimmed = text.strip()
    if len(trimmed) > MAX_EMAIL_CHARACTERS or not _EMAIL.fullmatch(trimmed):
        return None
    return trimmed.lower()


def team_addresses(setting: str) -> frozenset[str]:
    """Return the platform team's addresses as a setting lists them. Raises AddressError naming one that is none."""
    found = set()
    for part in filter(None, map(str.strip, setting.split(","))):
        email = normal_email(part)
        if email is None:
            raise AddressError(f"DARKTREE_BILLING_TEAM_EMAILS: {part!r} is not an e-mail address")
        found.add(email)
    return frozenset(found)
