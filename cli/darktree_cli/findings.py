"""What `darktree doctor` finds: one thing that was looked at, how it is, and what mends it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `advice` says what to do when it is not well."""

    what: str
    ok: bool
    detail: str
    advice: str = ""


def finding(what: str, problem: str | None, well: str, advice: str) -> Finding:
    """Return a finding that is well unless there is a problem; advice is for problems."""
    return Finding(what, problem is None, problem or well, advice if problem else "")
