"""A ledger's export verified offline: a file that holds the log's entries, a signed checkpoint, and what ties them.

JSON lines. The first says `format`, `customer_id` (null for the whole log), the `checkpoint`, and the `keys`.
Then each entry, in the log's order (of one customer, in the chain's), as
`{"position", "leaf", "customer_id", "seq", "entry"}`. The last line has the number of `entries`, for one customer
the `proofs`, and the SHA-256 of everything before it.

With the whole log the root itself is recomputed, now and at the size of any earlier checkpoint that its reader kept: so
whatever was altered, deleted, inserted, moved or cut off since then is found. With one customer's entries the newest is
proven to be in the log, and through the chain all before it are.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from darktree_kit.notes import NoteError, Verifier, parse_verifier
from darktree_ledger.checkpoints import Checkpoint, Continuation, continuations, open_checkpoint, trusted_keys
from darktree_ledger.merkle import Edge, verify_consistency, verify_inclusion
from darktree_ledger.receipts import LogKeyView
from darktree_ledger.verification import Chains, Failure, Failures, Span, checked_spans, spans_of

FORMAT = "darktree-ledger-export-v1"
MAX_END_BYTES = 2_000_000  # of the first and of the last line
PARALLEL_FROM_BYTES = 20_000_000  # below it, starting processes costs more than they save

NOT_PROVEN = (
    "that a token count was right when it was recorded, or that a request was answered well",
    "anything about entries that were recorded after the checkpoint",
)
Progress = Callable[[int, int], None]  # bytes read, bytes in all


class Unreadable(ValueError):
    """A file is not what it would have to be to be verified at all."""


@dataclass
class Report:
    """What came out of a verification. `pinned`: the keys were the reader's own, and not the file's word."""

    customer_id: str | None = None
    entries: int = 0
    customers: int = 0
    checkpoint: Checkpoint | None = None
    earlier: Checkpoint | None = None
    earlier_entries: int = 0  # how many of the entries were in the log of the earlier checkpoint
    pinned: bool = False
    signed_by: list[str] = field(default_factory=list)
    continued: list[Continuation] = field(
        default_factory=list
    )  # logs that ended and go on in this one, oldest first
    failures: Failures = field(default_factory=Failures)


def verify(
    path: Path, keys: Sequence[Verifier], kept: str | None = None, progress: Progress | None = None
) -> Report:
    """Verify an export. `keys` are trusted; without any, those in the file are, which the report then says.

    `kept` is a checkpoint that the reader kept. Raises Unreadable.
    """
    return _Verification(path, keys, kept, progress).run()


class _Verification:
    def __init__(
        self, path: Path, keys: Sequence[Verifier], kept: str | None, progress: Progress | None
    ) -> None:
        self._path, self._progress = path, progress
        self._file = ends_of(path)
        self._sha256 = hashlib.sha256()
        try:
            self._customer_id: str | None = self._file.header["customer_id"]
            self._proofs: dict[str, Any] = self._file.trailer.get("proofs") or {}
            self.report = Report(customer_id=self._customer_id)
            self._open_checkpoints(keys, self._file.header["checkpoint"], self._file.header["keys"], kept)
            self._tree = _Tree(self.report.earlier, self._proofs)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise Unreadable(
                f"the first or last line of {path.name} is not an export's: {error!r}"
            ) from error

    def run(self) -> Report:
        report, failures = self.report, self.report.failures
        chains, tree = Chains(failures), self._tree
        parallel = self._file.end > PARALLEL_FROM_BYTES
        for checked in checked_spans(self._path, self._spans(), parallel=parallel):
            failures.add(*checked.failures)
            report.entries += len(checked.leaves)
            tree.append(checked.leaves)
            for run in checked.runs:
                chains.link(run)
        chains.finish()
        report.customers = len(chains.standings)
        try:
            if report.checkpoint is not None and self._customer_id is None:
                self._compare_roots(tree, report.checkpoint)
            elif report.checkpoint is not None:
                self._check_proofs(tree, report.checkpoint, chains)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            failures.add(
                Failure(f"the proofs of the last line have not the form that they must have: {error!r}")
            )
        self._check_bytes()
        return report

    def _open_checkpoints(
        self, keys: Sequence[Verifier], note: str, published: list[dict[str, Any]], kept: str | None
    ) -> None:
        report = self.report
        views = [LogKeyView.model_validate(key) for key in published]
        report.pinned = bool(keys)
        verifiers = trusted_keys(keys or [parse_verifier(key.vkey) for key in views], views)
        try:
            report.checkpoint = open_checkpoint(note, verifiers)
            report.signed_by = [str(verifier) for verifier in verifiers]
            report.continued = continuations(verifiers, views)
        except NoteError as error:
            report.failures.add(Failure(f"the checkpoint: {error}"))
        if kept is not None:
            try:
                report.earlier = self._continued(open_checkpoint(kept, verifiers))
            except NoteError as error:
                report.failures.add(Failure(f"the checkpoint that you kept: {error}"))

    def _continued(self, kept: Checkpoint) -> Checkpoint:
        """Return a kept checkpoint as one of the log that continues its log, as far as it does."""
        for link in self.report.continued:
            if kept.origin != link.ended.origin:
                continue
            if kept.size > link.common.size:
                what = (
                    f"the log {kept.origin} ended, and {link.verifier.name} continues its first {link.common.size} "
                    f"entries: of the {kept.size} that you kept a checkpoint of, the last "
                    f"{kept.size - link.common.size} are lost, as those who signed it say"
                )
                self.report.failures.add(Failure(what))
            kept = Checkpoint(link.verifier.name, kept.size, kept.root)
        return kept

    def _compare_roots(self, tree: "_Tree", checkpoint: Checkpoint) -> None:
        failures, earlier = self.report.failures, self.report.earlier
        if tree.edge.size != checkpoint.size:
            what = (
                f"the file has {tree.edge.size} entries, and the checkpoint was signed over {checkpoint.size}"
            )
            failures.add(Failure(what))
        elif tree.edge.root() != checkpoint.root:
            failures.add(
                Failure(
                    "the entries in this order do not give the checkpoint's root: one was altered or moved"
                )
            )
        if earlier is None:
            return
        if earlier.origin != checkpoint.origin:
            failures.add(Failure(f"the checkpoint that you kept is of another log: {earlier.origin}"))
        elif tree.edge.size < earlier.size:
            what = f"the log had {earlier.size} entries when you kept its checkpoint: it was cut off"
            failures.add(Failure(what))
        elif tree.earlier_root != earlier.root:
            what = f"the first {earlier.size} entries are not those of the checkpoint that you kept"
            failures.add(Failure(f"{what}: history was rewritten"))
        self.report.earlier_entries = earlier.size

    def _check_proofs(self, tree: "_Tree", checkpoint: Checkpoint, chains: Chains) -> None:
        report, failures = self.report, self.report.failures
        for customer_id in chains.standings.keys() - {self._customer_id}:
            failures.add(Failure(f"the file is to hold only {self._customer_id}, and has {customer_id} too"))
        if not report.entries:
            return
        newest = self._proofs.get("inclusion")
        if newest is None or newest["seq"] != report.entries or not tree.proves(newest, checkpoint):
            what = "is not proven to be in the log of the checkpoint"
            failures.add(Failure(what, self._customer_id, report.entries))
        if (earlier := report.earlier) is None:
            return
        proof = [bytes.fromhex(value) for value in self._proofs.get("consistency") or []]
        if not verify_consistency(earlier.size, checkpoint.size, proof, earlier.root, checkpoint.root):
            failures.add(
                Failure("the checkpoint is not proven to continue the one that you kept: export with it")
            )
        older = self._proofs.get("earlier")
        if older is None:
            return
        report.earlier_entries = older["seq"]
        if not tree.proves(older, earlier):
            what = "was not in the log of the checkpoint that you kept: history was rewritten"
            failures.add(Failure(what, self._customer_id, older["seq"]))

    def _check_bytes(self) -> None:
        trailer, failures = self._file.trailer, self.report.failures
        if trailer.get("entries") != self.report.entries:
            what = f"the last line tells of {trailer.get('entries')} entries, and the file has {self.report.entries}"
            failures.add(Failure(what))
        self._sha256.update(orjson.dumps({name: trailer[name] for name in trailer if name != "sha256"}))
        if trailer.get("sha256") != self._sha256.hexdigest() and not failures.count:
            failures.add(Failure("the file's bytes were altered: nothing that it says is different"))

    def _spans(self) -> Iterator[Span]:
        """Say where the lines in between are, and take their SHA-256 on the way."""
        with self._path.open("rb") as file:
            self._sha256.update(file.read(self._file.start))
        for span in spans_of(self._path, self._file.start, self._file.end, 2, self._sha256.update):
            yield span
            if self._progress is not None:
                self._progress(span.offset + span.length, self._file.end)


class _Tree:
    """What is kept of the leaves: a growing tree's edge, its root at an earlier size, those of proofs."""

    def __init__(self, earlier: Checkpoint | None, proofs: dict[str, Any]) -> None:
        self.edge = Edge()
        self.earlier_root: bytes | None = None
        self._earlier_size = -1 if earlier is None else earlier.size
        self._wanted = {int(proof["seq"]) for proof in proofs.values() if isinstance(proof, dict)}
        self._leaves: dict[int, bytes] = {}

    def append(self, leaves: list[bytes]) -> None:
        before = self.edge.size
        for seq in self._wanted:
            if before < seq <= before + len(leaves):
                self._leaves[seq] = leaves[seq - before - 1]
        rest = self._earlier_size - before
        if 0 <= rest <= len(leaves):
            self.edge.append(leaves[:rest])
            self.earlier_root, leaves = self.edge.root(), leaves[rest:]
        self.edge.append(leaves)

    def proves(self, proof: dict[str, Any], checkpoint: Checkpoint) -> bool:
        """Say whether a proof shows that entry `seq` of the file is in a checkpoint's log."""
        path = [bytes.fromhex(value) for value in proof["proof"]]
        leaf = self._leaves.get(proof["seq"], b"")
        return verify_inclusion(leaf, proof["leaf_index"], checkpoint.size, path, checkpoint.root)


@dataclass(frozen=True)
class _Ends:
    """A file's first and last line, and where those between them begin and end."""

    header: dict[str, Any]
    start: int
    trailer: dict[str, Any]
    end: int


def ends_of(path: Path) -> _Ends:
    """Return a file's ends. Raises Unreadable when it cannot be opened or is no export."""
    try:
        with path.open("rb") as file:
            first = file.readline(MAX_END_BYTES)
            size = file.seek(0, 2)
            file.seek(max(len(first), size - MAX_END_BYTES))
            last = file.read().rstrip(b"\n").rpartition(b"\n")[2]
        header, trailer = orjson.loads(first), orjson.loads(last)
    except OSError as error:
        raise Unreadable(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise Unreadable(f"{path} has no first and last line of an export: {error}") from error
    if not isinstance(header, dict) or not isinstance(trailer, dict) or header.get("format") != FORMAT:
        raise Unreadable(f"{path} does not begin with {FORMAT}")
    return _Ends(header, len(first), trailer, size - len(last) - 1)
