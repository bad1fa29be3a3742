"""Archiving a closed month: its entries go into a file that proves itself, then out of the way of everything that runs.

The file holds the entries' documents, one a line, by customer and number: gzip without a time in it, so the same month
gives the same bytes. It is read back and every hash in it recomputed and compared with the log before the month's table
is detached. Nothing is deleted: the table stays in the database, beside those that are in use.
"""

import gzip
import hashlib
import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, LiteralString

import orjson
import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from darktree_ledger.chain import document_hash

FORMAT = "darktree-archive-v1"
OWNER_ROLE = "darktree_owner"
LOCK_TIMEOUT = "10s"  # detaching waits for whoever reads, and everybody waits for it
ROWS_PER_READ = 5_000
COMPRESSION = 6

_SELECT: LiteralString = """
    SELECT ledger.entry_document(e) FROM ledger.entry e
    WHERE e.recorded_at >= %(start)s AND e.recorded_at < %(end)s ORDER BY e.customer_id, e.seq"""
_SEALED: LiteralString = """
    SELECT s.customer_id, s.seq, s.hash FROM ledger.entry e JOIN ledger.sealed s USING (customer_id, seq)
    WHERE e.recorded_at >= %(start)s AND e.recorded_at < %(end)s ORDER BY s.customer_id, s.seq"""
_CLOSED: LiteralString = """
    SELECT m.tree_size, encode(c.root, 'hex'), c.note
    FROM ledger.closed_month m JOIN ledger.checkpoint c ON c.size = m.tree_size WHERE m.month = %s"""

Connection = psycopg.Connection[TupleRow]


class ArchiveError(Exception):
    """The month cannot be archived; the message says why. Nothing has changed."""


@dataclass(frozen=True)
class Archived:
    """A month that was archived: its file, and what the manifest beside it says."""

    file: Path
    manifest: Path
    entries: int
    customers: int
    sha256: str


def archive(database_url: str, month: date, folder: Path) -> Archived:
    """Write a closed month's entries to a file, verify it, and take the month out of use. Raises ArchiveError.

    `database_url` is of someone who may migrate: the runtime roles can detach nothing.
    """
    file = folder / f"ledger-{month:%Y-%m}.jsonl.gz"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with closing(psycopg.connect(database_url, autocommit=True)) as connection, connection.transaction():
            connection.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(OWNER_ROLE)))
            connection.execute("SET LOCAL timezone = 'UTC'")
            log = _log_of(connection, month)
            span = _take(connection, month)
            _write(connection, span, file)
            said = _verified(connection, span, file)
            connection.execute(
                "SELECT ledger.archive_month(%s, %s, decode(%s, 'hex'))",
                [month, said["entries"], said["sha256"]],
            )
            manifest = folder / f"ledger-{month:%Y-%m}.manifest.json"
            document = {"format": FORMAT, "month": f"{month:%Y-%m}", "file": file.name, **said, "log": log}
            manifest.write_text(json.dumps(document, indent=2) + "\n")
    except (psycopg.Error, OSError) as error:
        raise ArchiveError(f"{month:%Y-%m} was not archived: {str(error).splitlines()[0]}") from error
    return Archived(file, manifest, said["entries"], said["customers"], said["sha256"])


def _take(connection: Connection, month: date) -> dict[str, str]:
    """Let nobody add to the month from here on, and return its span."""
    row = connection.execute(
        """SELECT to_regclass('ledger.entry_' || to_char(%(month)s::date, 'YYYY_MM'))::text,
                  ledger.month_start(%(month)s)::text,
                  ledger.month_start((%(month)s::date + interval '1 month')::date)::text""",
        {"month": month},
    ).fetchone()
    assert row is not None
    if row[0] is None:
        raise ArchiveError(f"{month:%Y-%m} was not archived: it has no table, or is archived already")
    connection.execute("SELECT set_config('lock_timeout', %s, true)", [LOCK_TIMEOUT])
    connection.execute(
        sql.SQL("LOCK TABLE ledger.{} IN SHARE MODE").format(sql.Identifier(f"entry_{month:%Y_%m}"))
    )
    return {"start": row[1], "end": row[2]}


def _write(connection: Connection, span: dict[str, str], file: Path) -> None:
    unfinished = file.with_suffix(".part")
    with (
        unfinished.open("wb") as raw,
        gzip.GzipFile("", "wb", COMPRESSION, raw, mtime=0) as packed,
        connection.cursor("documents") as cursor,
    ):
        cursor.itersize = ROWS_PER_READ
        for (document,) in cursor.execute(_SELECT, span):
            packed.write(document.encode() + b"\n")
    unfinished.rename(file)


def _verified(connection: Connection, span: dict[str, str], file: Path) -> dict[str, Any]:
    """Read the file back, compare every entry with the log, and return what the manifest says of it."""
    ends: list[dict[str, Any]] = []
    entries, customers, before = 0, 0, ""
    with connection.cursor("sealed") as cursor:
        cursor.itersize = ROWS_PER_READ
        cursor.execute(_SEALED, span)
        for document in read(file):
            if document_hash(document, bytes.fromhex(document["prev_hash"])).hex() != document["hash"]:
                raise ArchiveError(f"{_place(document)} of the file is not what its hash says")
            expected = cursor.fetchone()
            found = (document["customer_id"], document["seq"], bytes.fromhex(document["hash"]))
            if expected != found:
                raise ArchiveError(f"{_place(document)} of the file is not in the log")
            entries += 1
            customers += document["customer_id"] != before
            before = document["customer_id"]
            ends = [ends[0] if ends else document, document]
        if cursor.fetchone() is not None:
            raise ArchiveError("the log has entries of the month that the file has not")
    names = ("customer_id", "seq", "recorded_at", "hash")
    first, last = ({name: end[name] for name in names} for end in ends) if ends else (None, None)
    with file.open("rb") as raw:
        sha256 = hashlib.file_digest(raw, "sha256").hexdigest()
    return {
        "bytes": file.stat().st_size,
        "sha256": sha256,
        "entries": entries,
        "customers": customers,
        "first": first,
        "last": last,
    }


def read(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the documents of an archive's file."""
    with gzip.open(file, "rb") as packed:
        for line in packed:
            document: dict[str, Any] = orjson.loads(line)
            yield document


def _log_of(connection: Connection, month: date) -> dict[str, Any]:
    row = connection.execute(_CLOSED, [month]).fetchone()
    if row is None:
        raise ArchiveError(f"{month:%Y-%m} was not archived: it is not closed")
    return {"tree_size": row[0], "root": row[1], "checkpoint": row[2]}


def _place(document: dict[str, Any]) -> str:
    return f"entry {document['seq']} of {document['customer_id']}"
