"""Signing in by a mailed link, and what a session is."""

from typing import Any


def test_a_stranger_signs_up_with_nothing_but_an_address(platform: Any) -> None:
    person = platform.sign_up("ada@acme.test", "Acme Ltd")
    page = person.page("/console")
    assert "Overview" in page
    assert "ada@acme.test" in page
    assert "Acme Ltd" in page
