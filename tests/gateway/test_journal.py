"""The journal: what was promised to be durable comes back, whatever a crash leaves behind."""

import asyncio
import fcntl
import os
import threading
from collections.abc import Coroutine
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from darktree_gateway.journal import DEAD_LETTER_NAME, Journal, decode_lines, encode_line
from darktree_kit.errors import BadRequest, Unreachable
from darktree_kit.ids import uuid7
from darktree_ledger.schemas import Operation, Result, Settle


def settlement(tokens: int = 3) -> Settle:
    return Settle(
        hold_id=uuid7(), customer_id="ann", entry_id=uuid7(), prompt_tokens=tokens, completion_tokens=tokens
    )


class Ledger:
    """Takes settlements, unless a test says that it is away or does not want one."""

    def __init__(self) -> None:
        self.taken: list[Settle] = []
        self.away = False
        self.refused: set[Settle] = set()
        self.malformed: set[Settle] = set()

    async def apply_batch(self, operations: list[Operation]) -> list[Result]:
        if self.away:
            raise Unreachable("away")
        results = []
        for operation in operations:
            assert isinstance(operation, Settle)
            if operation in self.malformed:
                raise BadRequest("one of them is wrong")
            if operation in self.refused:
                results.append(Result(outcome="refused", reason="unknown_hold"))
                continue
            self.taken.append(operation)
            results.append(Result(outcome="done"))
        return results


def journals(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.journal.jsonl"))


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=8), st.data())
def test_of_a_torn_file_every_whole_line_comes_back_and_nothing_else(
    tokens: list[int], data: st.DataObject
) -> None:
    operations = [settlement(count) for count in tokens]
    lines = [encode_line(operation) for operation in operations]
    content = b"".join(lines)
    cut = data.draw(st.integers(0, len(content)))
    found, strange = decode_lines(content[:cut])
    whole = sum(1 for end in _ends(lines) if end <= cut)
    assert found == operations[:whole]
    assert strange == []


def _ends(lines: list[bytes]) -> list[int]:
    return [sum(len(line) for line in lines[: place + 1]) for place in range(len(lines))]


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_damaged_line_is_never_taken_for_a_settlement(place: int, flip: int) -> None:
    operations = [settlement(count) for count in range(3)]
    content = bytearray(b"".join(map(encode_line, operations)))
    content[place % len(content)] ^= flip
    found, strange = decode_lines(bytes(content))
    assert all(operation in operations for operation in found)
    assert len(found) >= 1
    assert len(found) < 3 or not strange


async def test_what_was_appended_is_replayed_and_the_file_is_gone(tmp_path: Path) -> None:
    kept, ledger = Journal(tmp_path), Ledger()
    assert kept.empty
    operations = [settlement() for _ in range(20)]
    await asyncio.gather(*map(kept.append, operations))
    assert not kept.empty
    (path,) = journals(tmp_path)
    assert decode_lines(path.read_bytes())[0] == operations
    assert path.stat().st_mode & 0o777 == 0o600
    assert await kept.replay(ledger.apply_batch) == 20
    assert ledger.taken == operations
    assert kept.empty
    assert journals(tmp_path) == []
    await kept.close()


async def test_while_the_ledger_is_away_everything_stays(tmp_path: Path) -> None:
    kept, ledger = Journal(tmp_path), Ledger()
    ledger.away = True
    first, second = settlement(), settlement()
    await kept.append(first)
    for _ in range(3):
        with pytest.raises(Unreachable):
            await kept.replay(ledger.apply_batch)
    await kept.append(second)
    assert not kept.empty
    ledger.away = False
    assert await kept.replay(ledger.apply_batch) == 2
    assert ledger.taken == [first, second]
    assert kept.empty
    await kept.close()


async def test_the_journal_of_a_process_that_died_is_adopted_and_that_of_a_living_one_is_not(
    tmp_path: Path,
) -> None:
    living, operation = Journal(tmp_path), settlement()
    await living.append(settlement())
    dead = tmp_path / f"{uuid7().hex}.journal.jsonl"
    dead.write_bytes(encode_line(operation) + encode_line(settlement())[:-5])
    mine, ledger = Journal(tmp_path), Ledger()
    assert await mine.replay(ledger.apply_batch) == 1
    assert ledger.taken == [operation]
    assert len(journals(tmp_path)) == 1
    await living.close()
    assert await mine.replay(ledger.apply_batch) == 1
    assert journals(tmp_path) == []
    await mine.close()


async def test_what_the_ledger_refuses_for_good_is_put_where_a_person_finds_it(tmp_path: Path) -> None:
    kept, ledger = Journal(tmp_path), Ledger()
    operations = [settlement() for _ in range(3)]
    ledger.refused.add(operations[1])
    for operation in operations:
        await kept.append(operation)
    assert await kept.replay(ledger.apply_batch) == 2
    (line,) = (tmp_path / DEAD_LETTER_NAME).read_bytes().splitlines()
    letter = orjson.loads(line)
    assert letter["reason"] == "unknown_hold"
    assert Settle.model_validate_json(letter["line"]) == operations[1]
    assert kept.empty
    await kept.close()


async def test_one_settlement_that_is_wrong_does_not_keep_the_others(tmp_path: Path) -> None:
    kept, ledger = Journal(tmp_path), Ledger()
    operations = [settlement() for _ in range(3)]
    ledger.malformed.add(operations[0])
    for operation in operations:
        await kept.append(operation)
    assert await kept.replay(ledger.apply_batch) == 2
    assert set(ledger.taken) >= set(operations[1:])
    assert kept.empty
    await kept.close()


async def test_the_journal_is_bounded(tmp_path: Path) -> None:
    kept = Journal(tmp_path, max_bytes=1_000)
    results = [await _outcome(kept.append(settlement())) for _ in range(10)]
    assert results[0] is None
    assert "full" in str(results[-1])
    assert kept.size_bytes <= 1_000
    await kept.close()


async def _outcome(work: Coroutine[Any, Any, None]) -> OSError | None:
    try:
        await work
    except OSError as error:
        return error
    return None


async def test_appending_survives_its_request_being_cancelled(tmp_path: Path) -> None:
    kept, ledger = Journal(tmp_path), Ledger()
    task = asyncio.create_task(kept.append(settlement()))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await kept.append(settlement())
    assert await kept.replay(ledger.apply_batch) == 2
    await kept.close()


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from(["append", "replay", "away", "back", "crash"]), max_size=25))
def test_through_any_history_no_settlement_is_lost(history: list[str]) -> None:
    async def live(folder: Path) -> None:
        kept, ledger = Journal(folder), Ledger()
        promised: list[Settle] = []
        for step in history:
            if step == "append":
                operation = settlement()
                await kept.append(operation)
                promised.append(operation)
            elif step == "replay":
                await asyncio.gather(kept.replay(ledger.apply_batch), return_exceptions=True)
            elif step == "crash":
                await kept.close()  # the kernel lets go of the locks; nothing else happens
                kept = Journal(folder)
            else:
                ledger.away = step == "away"
        ledger.away = False
        await kept.replay(ledger.apply_batch)
        await kept.close()
        assert set(ledger.taken) == set(promised)
        assert journals(folder) == []

    with TemporaryDirectory() as folder:
        asyncio.run(live(Path(folder)))


def test_a_locked_file_is_left_to_its_owner(tmp_path: Path) -> None:
    path = tmp_path / f"{uuid7().hex}.journal.jsonl"
    path.write_bytes(encode_line(settlement()))
    descriptor = os.open(path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)

    async def replay() -> int:
        kept = Journal(tmp_path)
        replayed = await kept.replay(Ledger().apply_batch)
        await kept.close()
        return replayed

    assert asyncio.run(replay()) == 0
    os.close(descriptor)
    assert asyncio.run(replay()) == 1


async def test_a_journal_that_is_just_being_made_is_not_taken_for_one_of_a_process_that_died(
    tmp_path: Path,
) -> None:
    ledger, ended = Ledger(), threading.Event()

    async def look_for_journals_of_the_dead() -> None:
        another = Journal(tmp_path)
        while not ended.is_set():
            await another.replay(ledger.apply_batch)
        await another.close()

    looking = threading.Thread(target=asyncio.run, args=(look_for_journals_of_the_dead(),))
    looking.start()
    kept, promised = Journal(tmp_path), [settlement() for _ in range(200)]
    try:
        for operation in promised:
            await kept.append(operation)
            await kept.replay(ledger.apply_batch)
        await kept.close()
    finally:
        ended.set()
        looking.join()
    assert set(promised) == set(ledger.taken)
