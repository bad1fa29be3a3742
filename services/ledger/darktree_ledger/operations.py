"""Operations are applied by one database call a batch; this module only carries them there and back.

What may be repeated is repeated: batches that lost a deadlock or their connection, and, one by one, the operations of a
batch of which one cannot be applied at all. Operations that touch an id of an earlier one go in a call of their own.
"""

import logging
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import orjson
import psycopg

from darktree_kit.db import Calls
from darktree_ledger.schemas import OPERATIONS, Operation

MAX_TRIES = 5
_TRY_AGAIN = frozenset({"40001", "40P01"})  # serialization failure, deadlock
_FAULT_OF_THE_OPERATION = ("22", "23", "P0")  # data exception, integrity violation, raised by a function
_log = logging.getLogger(__name__)


async def apply(calls: Calls, operations: Sequence[Operation]) -> bytes:
    """Apply operations in order and return their results as a JSON array, durable when this returns.

    Raises psycopg.Error when the database is away; then nothing of this call is known to be applied.
    """
    repeated = _repeated(operations)
    if not repeated:
        return await _apply_once(calls, operations)
    first = [index for index in range(len(operations)) if index not in repeated]
    results: dict[int, Any] = {}
    for indexes in (first, sorted(repeated)):
        answers = orjson.loads(await apply(calls, [operations[index] for index in indexes]))
        results |= zip(indexes, answers, strict=True)
    return orjson.dumps([results[index] for index in range(len(operations))])


def _repeated(operations: Sequence[Operation]) -> set[int]:
    """Return which operations touch an id that an earlier one touches: the database takes each id once a call."""
    seen: set[UUID] = set()
    repeated: set[int] = set()
    for index, operation in enumerate(operations):
        touched = getattr(operation, "hold_id", None) or getattr(operation, "operation_id", None)
        if touched in seen:
            repeated.add(index)
        elif touched is not None:
            seen.add(touched)
    return repeated


async def _apply_once(calls: Calls, operations: Sequence[Operation]) -> bytes:
    body = OPERATIONS.dump_json(list(operations))
    for attempt in range(1, MAX_TRIES + 1):
        try:
            answer = await calls.value("SELECT ledger.apply($1::jsonb)", body)
            assert answer is not None
            return answer
        except psycopg.Error as error:
            state = error.sqlstate or ""
            # A lost connection leaves open whether the batch was applied; its ids make repeating it safe.
            if (state in _TRY_AGAIN or _connection_lost(error)) and attempt < MAX_TRIES:
                continue
            if not state.startswith(_FAULT_OF_THE_OPERATION):
                raise
            _log.exception("a batch could not be applied", extra={"operations": len(operations)})
            return await _apply_one_by_one(calls, operations)
    raise AssertionError("unreachable")


async def _apply_one_by_one(calls: Calls, operations: Sequence[Operation]) -> bytes:
    if len(operations) == 1:
        return orjson.dumps([{"outcome": "refused", "reason": "failed"}])
    results = [orjson.loads(await _apply_once(calls, [operation]))[0] for operation in operations]
    return orjson.dumps(results)


def _connection_lost(error: psycopg.Error) -> bool:
    return isinstance(error, psycopg.OperationalError) and (error.sqlstate or "57P").startswith(("57P", "08"))
