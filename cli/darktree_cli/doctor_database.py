"""What `darktree doctor` asks the database itself: revisions, clock, durability, connections, rights, and the log."""

from datetime import datetime
from typing import Any

from darktree_cli.findings import Finding, finding
from darktree_cli.migrations import SCHEMAS
from darktree_kit import clock

MAX_SKEW_SECONDS = 2.0
MAX_CONNECTIONS_SHARE = 0.8
MAX_SEAL_LAG_SECONDS = 60.0
ROLES = ("darktree_ledger", "darktree_sealer", "darktree_billing")

_ROLES = """
SELECT rolname AS name,
    rolsuper OR rolcreaterole OR rolcreatedb OR rolbypassrls OR rolreplication AS powerful,
    pg_has_role(rolname, 'darktree_owner', 'MEMBER') AS owns,
    has_table_privilege(rolname, 'ledger.entry', 'INSERT, UPDATE, DELETE, TRUNCATE') AS writes,
    has_function_privilege(rolname, 'ledger.apply(jsonb)', 'EXECUTE') AS applies
FROM pg_roles WHERE rolname = ANY (%s)
"""


async def examine(url: str) -> list[Finding]:
    """Look at a database, as someone who may act as its owner. Whatever cannot be looked at is a finding too."""
    from darktree_kit.db import connect

    try:
        async with await connect(url) as connection:
            looks = (_clock, _durability, _connections, _migrations, _roles, _log)
            return [found for look in looks for found in await look(connection)]
    except Exception as error:
        problem = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        advice = "DATABASE_URL must be of someone who may act as darktree_owner, on a migrated database"
        return [Finding("database, looked into", False, problem, advice)]


async def _clock(connection: Any) -> list[Finding]:
    before = clock.utc_now()
    (there,) = await _row(connection, "SELECT clock_timestamp()")
    return [compare_clocks(before, there, clock.utc_now())]


def compare_clocks(before: datetime, there: datetime, after: datetime) -> Finding:
    """Compare the database's clock with this host's before and after it was asked."""
    half_trip = (after - before) / 2
    skew = (there - (before + half_trip)).total_seconds()
    # It was read at any time in between: up to half of the trip is no skew.
    apart = abs(skew) - half_trip.total_seconds() > MAX_SKEW_SECONDS
    problem = f"the database's clock is {skew:+.1f} s from this host's" if apart else None
    advice = "days, caps and holds go by the database's clock: let both hosts keep time (NTP)"
    return finding("clock", problem, f"{skew:+.3f} s from this host's", advice)


async def _durability(connection: Any) -> list[Finding]:
    names = ("fsync", "full_page_writes", "synchronous_commit", "synchronous_standby_names")
    fsync, pages, commit, standbys = await _row(
        connection, "SELECT " + ", ".join(f"current_setting('{name}')" for name in names)
    )
    off = [name for name, value in (("fsync", fsync), ("full_page_writes", pages)) if value != "on"]
    off += ["synchronous_commit"] if commit in {"off", "local"} and (commit == "off" or standbys) else []
    problem = f"{', '.join(off)} is not on: what was answered can be lost" if off else None
    well = f"on; {'synchronous standby: ' + standbys if standbys else 'no synchronous standby'}"
    return [finding("durability", problem, well, "docs/operations.md, Failover of Postgres")]


async def _connections(connection: Any) -> list[Finding]:
    used, most = await _row(
        connection, "SELECT count(*), current_setting('max_connections')::int FROM pg_stat_activity"
    )
    told = f"{used} of {most}"
    problem = f"{told} are used" if used > MAX_CONNECTIONS_SHARE * most else None
    return [
        finding(
            "connections", problem, told, "raise max_connections, or lower the services' DATABASE_POOL_SIZE"
        )
    ]


async def _migrations(connection: Any) -> list[Finding]:
    from darktree_kit.migrate import known_revisions

    found = []
    for schema in SCHEMAS:
        (reached,) = await _row(connection, f"SELECT version_num FROM {schema}.alembic_version")  # noqa: S608
        known = known_revisions(f"darktree_{schema}")
        behind = reached in known and reached != known[-1]
        problem = f"at {reached}, and this version needs {known[-1]}" if behind else None
        found.append(finding(f"schema {schema}", problem, f"at {reached}", "run `darktree migrate`"))
    return found


async def _roles(connection: Any) -> list[Finding]:
    cursor = await connection.execute(_ROLES, [list(ROLES)])
    rows = {row[0]: row for row in await cursor.fetchall()}
    found = []
    for name in ROLES:
        _, powerful, owns, writes, applies = rows.get(name, (name, False, False, False, False))
        wrong = [
            *(["it is missing"] if name not in rows else []),
            *(["it may do what no service may (an attribute such as SUPERUSER)"] if powerful else []),
            *(["it may act as the owner"] if owns else []),
            *(["it may write entries"] if writes else []),
            *(["it may not move money"] if name in rows and applies is False and name == ROLES[0] else []),
            *(["it may move money"] if applies and name != ROLES[0] else []),
        ]
        advice = "take it back by hand, then `darktree migrate` gives what belongs to it"
        found.append(
            finding(f"role {name}", "; ".join(wrong) or None, "may what it must, and no more", advice)
        )
    return found


async def _log(connection: Any) -> list[Finding]:
    entries, seconds = await _row(connection, "SELECT entries, seconds FROM ledger.seal_lag()")
    size, age = await _row(
        connection,
        "SELECT max(size), extract(epoch FROM now() - max(signed_at))::float8 FROM ledger.checkpoint",
    )
    told = f"{entries} entries wait to be sealed"
    problem = f"{told}, the oldest for {seconds:.0f} s" if seconds > MAX_SEAL_LAG_SECONDS else None
    well = f"{told}; the newest checkpoint has {size or 0}, {age or 0:.0f} s ago"
    return [finding("log", problem, well, "see the sealer's /readyz; docs/runbooks.md, DarktreeSealLag")]


async def _row(connection: Any, query: str) -> Any:
    row = await (await connection.execute(query)).fetchone()
    assert row is not None
    return row
