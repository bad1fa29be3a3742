"""Ids sort by the time they were made, and are written and read back."""

from multiprocessing import get_context
from uuid import UUID

import pytest

from darktree_kit import ids


def test_ids_are_version_7_sort_by_time_and_do_not_repeat() -> None:
    made = [ids.uuid7() for _ in range(1_000)]
    assert {(value.version, value.variant) for value in made} == {(7, "specified in RFC 4122")}
    assert len(set(made)) == len(made)
    milliseconds = [value.int >> 80 for value in made]
    assert milliseconds == sorted(milliseconds)


def test_processes_that_fork_make_no_id_twice() -> None:
    ids.uuid7()  # so that some randomness is at hand
    with get_context("fork").Pool(2) as pool:
        made = [value.int & 2**62 - 1 for part in pool.map(_several, [50, 50], chunksize=1) for value in part]
    made += [value.int & 2**62 - 1 for value in _several(50)]
    assert len(set(made)) == len(made)


def _several(count: int) -> list[UUID]:
    return [ids.uuid7() for _ in range(count)]


def test_a_request_id_is_read_back() -> None:
    value = ids.uuid7()
    assert ids.parse_request_id(ids.request_id_of(value)) == value


@pytest.mark.parametrize("text", ["", "req_", "req_xyz", "hold_" + "0" * 32])
def test_what_is_no_request_id_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"request id|badly formed"):
        ids.parse_request_id(text)
