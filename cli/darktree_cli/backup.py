"""`darktree backup` and `darktree restore`: both schemas in one file, and what was lost told when it is put back.

A file is what pg_dump makes in its custom format, of one snapshot. Beside it stands `<file>.json`: when it was begun,
its SHA-256, and the newest checkpoint of the log that is in it, by which a restore can be proven.
"""

import asyncio
import hashlib
import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from darktree_billing.backup_schemas import RecordBackup
from darktree_billing.client import AdminClient
from darktree_cli import migrations, postgres_tools
from darktree_cli.connection import DataDirOption, find
from darktree_cli.output import Output, OutputOption, show_fields
from darktree_cli.settings import Settings
from darktree_cli.state import write_private
from darktree_kit import clock
from darktree_kit.errors import ApiError
from darktree_kit.version import VERSION

OWNER = "darktree_owner"
FORMAT = "darktree-backup-v1"
NAME = "darktree-%Y-%m-%dT%H-%M-%SZ"  # of a backup in a folder: names sort as time does
ABANDONED = timedelta(days=1)
FileArgument = Annotated[Path, typer.Argument(dir_okay=False, help="The backup's file.")]


class BackupError(Exception):
    """A backup could not be made or put back; the message says what to do."""


def backup(
    file: Annotated[
        Path, typer.Argument(help="The backup's file; in a folder, one that is named by the time.")
    ],
    keep: Annotated[
        int | None,
        typer.Option(
            min=1, help="In a folder: once this backup is whole, delete all but the newest so many."
        ),
    ] = None,
    record: Annotated[
        bool, typer.Option(help="Tell billing, so that alerts know when the last backup was.")
    ] = True,
    output: OutputOption = Output.TABLE,
    data_dir: DataDirOption = None,
) -> None:
    """Write the ledger and billing into a file, of one moment, while everything runs.

    Reads the database that DATABASE_URL names (of someone who may act as darktree_owner), else that of the platform
    that runs here. Secrets, keys and anchors are not in it.
    """
    settings = Settings()
    folder = file if file.is_dir() else None
    if keep is not None and folder is None:
        raise typer.BadParameter("is for backups into a folder", param_hint="--keep")
    if folder is not None:
        file = folder / clock.utc_now().strftime(NAME)
    try:
        manifest = _dump(_database_url(settings, data_dir), file)
        if folder is not None and keep is not None:
            _delete_all_but(keep, folder)
    except (BackupError, postgres_tools.ToolFailed) as error:
        raise _ended(error) from error
    if record:
        told = RecordBackup(
            started_at=datetime.fromisoformat(manifest["started_at"]),
            made_by="darktree backup",
            size_bytes=manifest["bytes"],
            log_entries=manifest["log_entries"],
        )
        _record(told, settings, data_dir)
    fields = [
        (name.replace("_", " "), manifest[name]) for name in ("started_at", "bytes", "sha256", "log_entries")
    ]
    show_fields(output, {"file": str(file)} | manifest, [("file", file), *fields])


def restore(
    file: FileArgument,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="The newest checkpoint that was kept (an anchor's `latest`): says how much is missing."
        ),
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Put a backup into the database that DATABASE_URL names, which must have neither schema, and migrate it.

    DATABASE_URL is of someone who may create roles and schemas. Roles get passwords as `darktree migrate` says.
    """
    settings = Settings()
    if settings.database_url is None:
        raise typer.BadParameter("set DATABASE_URL to the new database", param_hint="DATABASE_URL")
    url = settings.database_url.get_secret_value()
    kept = _size_of(checkpoint)
    try:
        manifest = _read_manifest(file)
        _load(url, file)
        migrations.migrate(url, migrations.passwords(settings))
        found = _log_standing(url)
    except (BackupError, postgres_tools.ToolFailed, migrations.MigrationFailed) as error:
        raise _ended(error) from error
    answer: dict[str, Any] = {
        "made_at": manifest["started_at"],
        "entries": found["entries"],
        "log_entries": found["log_entries"],
        "last_entry_at": found["last_entry_at"],
        "log_entries_missing": None if kept is None else max(0, kept - found["log_entries"]),
    }
    show_fields(output, answer, [(name.replace("_", " "), value) for name, value in answer.items()])
    if answer["log_entries_missing"]:
        typer.echo(
            f"\nThe log had {kept} entries when that checkpoint was signed: what came after {found['log_entries']} is "
            "lost, and the sealer will refuse to go on. docs/operations.md says how to go on, provably.",
            err=True,
        )


def _dump(url: str, file: Path) -> dict[str, Any]:
    standing = _log_standing(url)
    beside = file.with_name(f".{file.name}.part")
    schemas = [f"--schema={schema}" for schema in migrations.SCHEMAS]
    words = ["--format=custom", f"--role={OWNER}", *schemas, f"--file={beside}"]
    try:
        beside.touch(mode=0o600)
        postgres_tools.run("pg_dump", standing["server_version"], url, *words)
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            **standing,
            "bytes": beside.stat().st_size,
            "sha256": _sha256(beside),
        }
        beside.replace(file)
    except OSError as error:
        raise BackupError(f"{file}: {error.strerror}") from error
    finally:
        beside.unlink(missing_ok=True)
    write_private(_manifest(file), manifest)
    return manifest


def _delete_all_but(newest: int, folder: Path) -> None:
    """Delete older backups that were named here, and what one that was killed left behind."""
    abandoned = (clock.utc_now() - ABANDONED).timestamp()
    try:
        for part in folder.glob(".darktree-*Z.part"):
            if part.stat().st_mtime < abandoned:
                part.unlink()
        for old in sorted(folder.glob("darktree-*Z"))[:-newest]:
            if _manifest(old).exists():
                old.unlink()
                _manifest(old).unlink()
    except OSError as error:
        raise BackupError(f"{folder}: older backups cannot be deleted: {error.strerror}") from error


def _load(url: str, file: Path) -> None:
    import psycopg
    from sqlalchemy.exc import SQLAlchemyError

    from darktree_kit.db import connect_arguments
    from darktree_kit.migrate import prepare_restore

    try:
        with psycopg.connect(connect_timeout=5, **connect_arguments(url)) as connection:
            version = connection.info.server_version // 10_000
        for schema in migrations.SCHEMAS:
            prepare_restore(url, f"darktree_{schema}", schema=schema)
    except ValueError as error:
        raise BackupError(f"{error}: restore into a new database") from error
    except (psycopg.Error, SQLAlchemyError) as error:
        raise BackupError(f"The database cannot be used: {str(error).splitlines()[0]}") from error
    words = ["--single-transaction", "--no-owner", f"--role={OWNER}", "--dbname=", str(file)]
    postgres_tools.run("pg_restore", version, url, *words)


def _log_standing(url: str) -> dict[str, Any]:
    """Return what is in a database's log now, which a dump that begins later cannot lack. Raises BackupError."""
    import psycopg
    from psycopg.rows import dict_row

    from darktree_kit.db import connect_arguments

    query = """
        SELECT now() AS started_at,
            (SELECT coalesce(max(position) + 1, 0) FROM ledger.sealed) AS log_entries,
            (SELECT coalesce(sum(seq), 0)::bigint FROM ledger.account) AS entries,
            (SELECT max(recorded_at) FROM ledger.entry) AS last_entry_at,
            (SELECT note FROM ledger.checkpoint ORDER BY size DESC LIMIT 1) AS checkpoint
    """
    try:
        with psycopg.connect(connect_timeout=5, row_factory=dict_row, **connect_arguments(url)) as connection:
            connection.execute(f"SET ROLE {OWNER}")
            row = connection.execute(query).fetchone()
            assert row is not None
            row["server_version"] = connection.info.server_version // 10_000
    except psycopg.Error as error:
        raise BackupError(f"The database cannot be read: {str(error).splitlines()[0]}") from error
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in row.items()}


def _read_manifest(file: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads(_manifest(file).read_text())
        digest = _sha256(file)
    except (OSError, ValueError) as error:
        raise BackupError(f"{file} cannot be read with its {_manifest(file).name}: {error}") from error
    if manifest.get("format") != FORMAT or manifest.get("sha256") != digest:
        raise BackupError(
            f"{file} is not the file that {_manifest(file).name} describes: its SHA-256 is {digest}"
        )
    return manifest


def _record(told: RecordBackup, settings: Settings, data_dir: Path | None) -> None:
    async def tell() -> None:
        found = find(data_dir, settings)
        admin = AdminClient(found.admin_url, found.admin_token)
        try:
            await admin.record_backup(told)
        finally:
            await admin.close()

    try:
        asyncio.run(tell())
    except ApiError as error:
        reason = (
            f"The backup is whole, but billing was not told, so alerts do not know of it: {error.message}"
        )
        raise _ended(BackupError(f"{reason}. (--no-record)")) from error


def _database_url(settings: Settings, data_dir: Path | None) -> str:
    if settings.database_url is not None:
        return settings.database_url.get_secret_value()
    record = find(data_dir, settings).record
    if record is None:
        raise BackupError(
            "Set DATABASE_URL: the platform's administration does not tell where its database is."
        )
    return record.database_url


def _size_of(checkpoint: Path | None) -> int | None:
    if checkpoint is None:
        return None
    from darktree_ledger.checkpoints import parse_checkpoint

    try:
        return parse_checkpoint(checkpoint.read_text().partition("\n\n")[0] + "\n").size
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"{checkpoint}: {error}", param_hint="--checkpoint") from error


def _manifest(file: Path) -> Path:
    return file.with_name(file.name + ".json")


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _ended(error: Exception) -> typer.Exit:
    typer.echo(f"darktree: {error}", err=True)
    return typer.Exit(1)
