"""Entries verified offline: from their documents alone, without the database and without trusting who wrote them.

Each entry's hash is recomputed from its fields, each must follow the one before in its customer's chain, and balances
and bonus credits must add up. Chunks of lines are checked in processes of their own; what comes back of a chunk are its
leaf hashes and its runs: consecutive entries of one customer, of which only the ends still have to be linked. So memory
is bounded by a few chunks and one small row a customer, however many entries there are.
"""

import gc
import os
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, NamedTuple

import orjson

from darktree_ledger.chain import document_hash, genesis

BLOCK_BYTES = 4_000_000  # of lines that are checked at a time
MAX_PROCESSES = 8
MAX_WAITING_RUNS = (
    100_000  # that came before their predecessor: the log is in order of commits, not of numbers
)
MAX_FAILURES = 1_000  # kept; more are counted
CREDITS = "customer_credits"

# Which accounts an entry of a kind may move money between (debit, credit). Absent: any two.
ACCOUNTS = {
    "grant": {("stripe_clearing", CREDITS), ("bonus_credits", CREDITS)},
    "usage": {(CREDITS, "revenue")},
    "absorbed": {("house_absorbed", "revenue")},
    "adjustment": {("adjustments", CREDITS), (CREDITS, "adjustments")},
    "refund": {(CREDITS, "stripe_clearing"), ("refunds", "stripe_clearing")},
    "dispute": {(CREDITS, "stripe_clearing"), ("disputes", "stripe_clearing")},
    "reinstatement": {("stripe_clearing", account) for account in (CREDITS, "refunds", "disputes")},
}
_PRICED = frozenset({"usage", "absorbed"})


@dataclass(frozen=True)
class Failure:
    """What differs, and in which entry (or in which other part)."""

    what: str
    customer_id: str | None = None
    seq: int | None = None
    entry_id: str | None = None
    line: int | None = None  # of the file

    def __str__(self) -> str:
        place = "" if self.line is None else f"line {self.line}: "
        if self.customer_id is not None:
            entry_id = f" ({self.entry_id})" if self.entry_id else ""
            place += f"customer {self.customer_id}, entry {self.seq}{entry_id}: "
        return place + self.what


@dataclass
class Failures:
    """The first failures, and how many there are."""

    kept: list[Failure] = field(default_factory=list)
    count: int = 0

    def add(self, *failures: Failure) -> None:
        self.count += len(failures)
        self.kept += failures[: MAX_FAILURES - len(self.kept)]


@dataclass(slots=True)
class Run:
    """Consecutive entries of one customer within a chunk.

    `bonus_low` is the least that the bonus credits were, counted from the run's beginning; `bonus_spent` what they were
    (by that count) when a usage also took paid credits, at which they must have been used up.
    """

    customer_id: str
    first_seq: int
    first_id: str | None
    prev_hash: str | None  # None where an entry is missing: nothing is known of it but its number
    balance_before_nanos: int
    last_seq: int = 0
    head: str | None = None
    balance_nanos: int = 0
    bonus_nanos: int = 0
    bonus_low: int = 0
    bonus_spent: int | None = None

    def __reduce__(self) -> tuple[type["Run"], tuple[Any, ...]]:
        """Travel between processes as a tuple: a third of what the default costs."""
        return Run, tuple(getattr(self, name) for name in self.__slots__)


class Span(NamedTuple):
    """Whole lines of a file."""

    offset: int
    length: int
    first_line: int


@dataclass
class Checked:
    """What is known of a chunk of lines."""

    leaves: list[bytes]
    runs: list[Run]
    failures: list[Failure]


@dataclass(frozen=True)
class Standing:
    """Where a customer's chain stands. The head is None after a missing entry."""

    seq: int
    head: str | None
    balance_nanos: int = 0
    bonus_nanos: int = 0


@lru_cache(1_024)
def sign_of(debit_account: str, credit_account: str) -> int:
    """Return 1 where an entry adds to the customer's balance, -1 where it takes from it, else 0."""
    return (credit_account == CREDITS) - (debit_account == CREDITS)


def effect_nanos(entry: Mapping[str, Any]) -> int:
    """Return what an entry changed the customer's balance by."""
    return sign_of(entry["debit_account"], entry["credit_account"]) * int(entry["amount_nanos"])


def bonus_effect_nanos(entry: Mapping[str, Any]) -> int:
    """Return what an entry changed the customer's bonus credits by."""
    return sign_of(entry["debit_account"], entry["credit_account"]) * int(entry["bonus_nanos"])


@lru_cache(1_024)
def _are_accounts_of(kind: str, debit_account: str, credit_account: str) -> bool:
    accounts = (debit_account, credit_account)
    return debit_account != credit_account and accounts in ACCOUNTS.get(kind, (accounts,))


def problem_of(entry: Mapping[str, Any]) -> str | None:
    """Return what is wrong with an entry by itself, its hash aside, or None."""
    kind, amount, bonus = entry["kind"], entry["amount_nanos"], entry["bonus_nanos"]
    debit, credit = entry["debit_account"], entry["credit_account"]
    if not _are_accounts_of(kind, debit, credit):
        return f"a {kind} does not move money from {debit} to {credit}"
    if not 0 <= bonus <= amount:
        return f"an amount of {amount} nano-dollars with {bonus} of bonus credits"
    if kind in _PRICED:
        charge = (
            entry["prompt_tokens"] * entry["prompt_price_nanos"]
            + entry["completion_tokens"] * entry["completion_price_nanos"]
        )
        if amount != charge:
            return f"its tokens and prices make {charge} nano-dollars, it says {amount}"
    elif kind == "grant" and entry["version"] > 1 and bonus != (amount if debit == "bonus_credits" else 0):
        return f"a grant from {debit} with {bonus} of {amount} nano-dollars as bonus credits"
    return None


def check_lines(lines: Iterable[bytes], first_line: int = 1) -> Checked:
    """Check a chunk of lines: entry documents, or `{"leaf", "customer_id", "seq", "entry"}` as the log has them."""
    checked = Checked([], [], [])
    open_runs: dict[str, Run] = {}
    for number, line in enumerate(lines, first_line):
        try:
            item = orjson.loads(line.rstrip(b",\n"))
            leaf = item.get("leaf")
            entry = item["entry"] if leaf is not None else item
            if entry is None:
                run = Run(item["customer_id"], item["seq"], None, None, 0, last_seq=item["seq"])
                checked.failures.append(
                    Failure(
                        "is missing, though the log has sealed it",
                        run.customer_id,
                        run.first_seq,
                        line=number,
                    )
                )
                checked.leaves.append(bytes.fromhex(leaf))
            else:
                checked.leaves.append(_check_entry(entry, leaf, checked.failures, number))
                run = _extended(open_runs.get(entry["customer_id"]), entry, checked.failures)
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError, struct.error) as error:
            what = f"holds no entry that can be read: {type(error).__name__}: {error}"
            checked.failures.append(Failure(what, line=number))
            checked.leaves.append(b"")
            continue
        if open_runs.get(run.customer_id) is not run:
            open_runs[run.customer_id] = run
            checked.runs.append(run)
    return checked


def _check_entry(entry: Mapping[str, Any], leaf: str | None, failures: list[Failure], line: int) -> bytes:
    """Return the hash that the entry's fields give, and note what is wrong with the entry by itself."""
    recomputed = document_hash(entry, bytes.fromhex(entry["prev_hash"]))
    found = recomputed.hex()
    if found != entry["hash"]:
        failures.append(
            _failure(entry, line, "its fields do not give its hash: a field, prev_hash or hash was altered")
        )
    if leaf is not None and leaf != found:
        failures.append(_failure(entry, line, "it is not what was sealed in the log at its position"))
    if (problem := problem_of(entry)) is not None:
        failures.append(_failure(entry, line, problem))
    return recomputed


def _extended(run: Run | None, entry: Mapping[str, Any], failures: list[Failure]) -> Run:
    """Return the run that ends with this entry: the same one where the entry follows it, else a new one."""
    seq, balance, prev = entry["seq"], entry["balance_after_nanos"], entry["prev_hash"]
    sign = sign_of(entry["debit_account"], entry["credit_account"])
    before = balance - sign * entry["amount_nanos"]
    if run is None or seq != run.last_seq + 1 or run.head is None:
        run = Run(entry["customer_id"], seq, entry["entry_id"], prev, before)
    elif prev != run.head or before != run.balance_nanos:
        for what in _link_problems(prev, run.head, before, run.balance_nanos):
            failures.append(_failure(entry, None, what))
    run.last_seq, run.head, run.balance_nanos = seq, entry["hash"], balance
    bonus = entry["bonus_nanos"]
    if bonus:
        run.bonus_nanos += sign * bonus
        run.bonus_low = min(run.bonus_low, run.bonus_nanos)
    if entry["kind"] == "usage" and bonus < entry["amount_nanos"]:
        if run.bonus_spent not in (None, run.bonus_nanos):
            failures.append(_failure(entry, None, "paid credits were used before bonus credits"))
        run.bonus_spent = run.bonus_nanos
    return run


def _link_problems(prev: str, head: str, before_nanos: int, balance_nanos: int) -> list[str]:
    problems = []
    if prev != head:
        problems.append(f"prev_hash is {prev}, and the entry before it has the hash {head}")
    if before_nanos != balance_nanos:
        problems.append(
            f"balance_after_nanos tells of a balance of {before_nanos} before it, and it was {balance_nanos}"
        )
    return problems


def _failure(entry: Mapping[str, Any], line: int | None, what: str) -> Failure:
    return Failure(what, entry["customer_id"], entry["seq"], entry["entry_id"], line)


class Chains:
    """Every customer's chain, linked run by run."""

    def __init__(self, failures: Failures, opening: Mapping[str, Standing] | None = None) -> None:
        self.standings: dict[str, Standing] = dict(opening or {})
        self._failures = failures
        self._waiting: dict[str, dict[int, Run]] = {}
        self._waiting_count = 0

    def link(self, run: Run) -> None:
        """Put a run behind what is known of its customer, or let it wait for what is missing in between."""
        standing = self._standing(run.customer_id)
        if run.first_seq <= standing.seq:
            self._fail(run, f"its number was there before: entry {standing.seq} is the newest")
            return
        if run.first_seq > standing.seq + 1 and self._waiting_count < MAX_WAITING_RUNS:
            waiting = self._waiting.setdefault(run.customer_id, {})
            if run.first_seq in waiting:
                self._fail(run, "its number is there twice")
            else:
                waiting[run.first_seq] = run
                self._waiting_count += 1
            return
        self._append(run, standing)
        waiting = self._waiting.get(run.customer_id, {})
        while (following := waiting.pop(self.standings[run.customer_id].seq + 1, None)) is not None:
            self._waiting_count -= 1
            self._append(following, self.standings[run.customer_id])

    def finish(self) -> None:
        """Say what is missing between runs."""
        for customer_id, waiting in sorted(self._waiting.items()):
            for _, run in sorted(waiting.items()):
                self._append(run, self._standing(customer_id))
        self._waiting.clear()

    def _standing(self, customer_id: str) -> Standing:
        known = self.standings.get(customer_id)
        return known if known is not None else Standing(0, genesis(customer_id).hex())

    def _append(self, run: Run, standing: Standing) -> None:
        if run.first_seq != standing.seq + 1:
            if run.first_seq <= standing.seq:
                self._fail(run, "its number is there twice")
                return
            missing = f"{standing.seq + 1} to {run.first_seq - 1}"
            self._fail(run, f"entries {missing} before it are missing")
        elif standing.head is not None and run.prev_hash is not None:
            found = _link_problems(
                run.prev_hash, standing.head, run.balance_before_nanos, standing.balance_nanos
            )
            for what in found:
                self._fail(run, what)
            if standing.bonus_nanos + run.bonus_low < 0:
                self._fail(run, "from it on more bonus credits are used than there were")
            if run.bonus_spent is not None and standing.bonus_nanos + run.bonus_spent != 0:
                self._fail(run, "from it on paid credits were used before bonus credits")
        self.standings[run.customer_id] = Standing(
            run.last_seq, run.head, run.balance_nanos, standing.bonus_nanos + run.bonus_nanos
        )

    def _fail(self, run: Run, what: str) -> None:
        self._failures.add(Failure(what, run.customer_id, run.first_seq, run.first_id))


def checked_spans(path: Path, spans: Iterable[Span], *, parallel: bool) -> Iterator[Checked]:
    """Check the lines in spans of a file, in order; when `parallel`, in processes that read the file themselves."""
    if not parallel:
        yield from (check_span(path, span) for span in spans)
        return
    processes = min(MAX_PROCESSES, len(os.sched_getaffinity(0)))
    # Checking makes no cycles, and looking for them would be a third of the work.
    with ProcessPoolExecutor(processes, initializer=gc.disable) as pool:
        running: deque[Future[Checked]] = deque()
        for span in spans:
            running.append(pool.submit(check_span, path, span))
            if len(running) > 2 * processes:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


def check_span(path: Path, span: Span) -> Checked:
    with path.open("rb") as file:
        return check_lines(lines_of(file, span), span.first_line)


def lines_of(file: IO[bytes], span: Span) -> Iterator[bytes]:
    """Read a span's lines one by one: memory that is used again costs no page faults."""
    file.seek(span.offset)
    rest = span.length
    while rest > 0:
        line = file.readline(rest)
        rest -= len(line) or rest
        yield line


def spans_of(
    path: Path, start: int, end: int, first_line: int, read: Callable[[memoryview], object]
) -> Iterator[Span]:
    """Cut a part of a file into spans of whole lines, and give each to `read` as it is."""
    buffer, number = bytearray(BLOCK_BYTES), first_line
    with path.open("rb", buffering=0) as file:
        while start < end:
            file.seek(start)
            length = file.readinto(memoryview(buffer)[: end - start]) or 0
            if start + length < end:
                length = buffer.rfind(b"\n", 0, length) + 1 or length
            if not length:
                return  # the file has become shorter
            read(memoryview(buffer)[:length])
            yield Span(start, length, number)
            number += buffer.count(b"\n", 0, length)
            start += length
