"""Nobody who runs Darktree can change what was recorded: every role tries, on everything that the catalogue knows.

What a role attacks is read from the database, so that a new table or function is attacked by itself. An attack has
failed when the database says that the privilege is missing, and when afterwards not one row, function, trigger or
privilege is another.
"""

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg import Connection, sql

from darktree_ledger.schemas import OPERATIONS, RESULTS

NOBODY = "dt_nobody"
ROLES = ("darktree_ledger", "darktree_sealer", "darktree_billing", NOBODY)
REFUSED = {
    "42501",  # insufficient privilege
    "01007", "01006",  # the warnings that nothing was granted, or revoked
    "55000",  # a view into which nobody can write
}  # fmt: skip

ON_A_TABLE = """
    INSERT INTO ledger.{0} SELECT * FROM ledger.{0}
    INSERT INTO ledger.{0} DEFAULT VALUES
    UPDATE ledger.{0} SET {1} = {1}
    DELETE FROM ledger.{0}
    TRUNCATE ledger.{0}
    TRUNCATE ledger.{0} CASCADE
    MERGE INTO ledger.{0} USING (SELECT) s ON true WHEN MATCHED THEN DELETE
    COPY ledger.{0} FROM STDIN
    COPY ledger.{0} FROM PROGRAM 'echo'
    SELECT 1 FROM ledger.{0} FOR UPDATE
    DO $$ BEGIN LOCK TABLE ledger.{0} IN ACCESS EXCLUSIVE MODE; END $$
    DROP TABLE ledger.{0} CASCADE
    ALTER TABLE ledger.{0} OWNER TO CURRENT_USER
    ALTER TABLE ledger.{0} ADD COLUMN mine integer
    ALTER TABLE ledger.{0} ALTER COLUMN {1} DROP NOT NULL
    ALTER TABLE ledger.{0} RENAME TO mine
    ALTER TABLE ledger.{0} SET SCHEMA public
    ALTER TABLE ledger.{0} SET UNLOGGED
    ALTER TABLE ledger.{0} DISABLE TRIGGER ALL
    ALTER TABLE ledger.{0} DISABLE TRIGGER refuse_change
    ALTER TABLE ledger.{0} ENABLE REPLICA TRIGGER refuse_change
    ALTER TABLE ledger.{0} DISABLE ROW LEVEL SECURITY
    CREATE TRIGGER mine BEFORE INSERT ON ledger.{0} EXECUTE FUNCTION ledger.refuse_change()
    CREATE RULE mine AS ON INSERT TO ledger.{0} DO INSTEAD NOTHING
    CREATE POLICY mine ON ledger.{0} USING (false)
    CREATE INDEX ON ledger.{0} ({1})
    CREATE TABLE public.mine () INHERITS (ledger.{0})
    COMMENT ON TABLE ledger.{0} IS 'mine'
    GRANT ALL ON ledger.{0} TO CURRENT_USER
    REVOKE ALL ON ledger.{0} FROM darktree_owner
"""
ON_A_VIEW = """
    INSERT INTO ledger.{0} SELECT * FROM ledger.{0}
    UPDATE ledger.{0} SET {1} = {1}
    DELETE FROM ledger.{0}
    CREATE OR REPLACE VIEW ledger.{0} AS TABLE ledger.{0}
    ALTER VIEW ledger.{0} OWNER TO CURRENT_USER
    ALTER VIEW ledger.{0} SET (security_invoker = false)
    CREATE RULE mine AS ON INSERT TO ledger.{0} DO INSTEAD NOTHING
    CREATE TRIGGER mine INSTEAD OF INSERT ON ledger.{0} FOR EACH ROW EXECUTE FUNCTION ledger.refuse_change()
    DROP VIEW ledger.{0} CASCADE
"""
ON_A_FUNCTION = """
    ALTER ROUTINE {0} OWNER TO CURRENT_USER
    ALTER ROUTINE {0} SET search_path = pg_temp
    ALTER ROUTINE {0} RENAME TO mine
    ALTER ROUTINE {0} SET SCHEMA public
    DROP ROUTINE {0} CASCADE
    GRANT EXECUTE ON ROUTINE {0} TO CURRENT_USER
"""
ON_THE_REST = """
    SET session_replication_role = replica
    SET ROLE darktree_owner
    SET ROLE darktree_migrator
    SET ROLE postgres
    SET SESSION AUTHORIZATION darktree_owner
    SET SESSION AUTHORIZATION postgres
    GRANT darktree_owner TO CURRENT_USER
    GRANT darktree_migrator TO CURRENT_USER
    GRANT pg_write_server_files TO CURRENT_USER
    ALTER ROLE CURRENT_USER SUPERUSER
    ALTER ROLE CURRENT_USER SET session_replication_role = replica
    ALTER ROLE darktree_owner LOGIN
    ALTER ROLE darktree_migrator PASSWORD 'mine'
    ALTER DATABASE {database} SET session_replication_role = replica
    ALTER DATABASE {database} OWNER TO CURRENT_USER
    ALTER DEFAULT PRIVILEGES FOR ROLE darktree_owner GRANT ALL ON TABLES TO CURRENT_USER
    ALTER SYSTEM SET fsync = off
    CREATE ROLE mine SUPERUSER
    CREATE DATABASE mine
    CREATE SCHEMA mine
    CREATE TABLE public.mine ()
    CREATE FUNCTION public.sha256(bytea) RETURNS bytea LANGUAGE sql AS 'SELECT $1'
    CREATE TABLE ledger.mine ()
    CREATE VIEW ledger.mine AS SELECT 1
    CREATE TYPE ledger.mine AS (x integer)
    CREATE FUNCTION ledger.mine() RETURNS integer LANGUAGE sql AS 'SELECT 1'
    CREATE OPERATOR ledger.|| (FUNCTION = byteacat, LEFTARG = bytea, RIGHTARG = bytea)
    CREATE FUNCTION pg_catalog.mine() RETURNS integer LANGUAGE sql AS 'SELECT 1'
    CREATE OPERATOR pg_catalog.||| (FUNCTION = byteacat, LEFTARG = bytea, RIGHTARG = bytea)
    CREATE CAST (text AS bytea) WITHOUT FUNCTION
    CREATE EVENT TRIGGER mine ON ddl_command_start EXECUTE FUNCTION ledger.refuse_change()
    CREATE PUBLICATION mine FOR ALL TABLES
    CREATE SUBSCRIPTION mine CONNECTION 'host=x' PUBLICATION mine WITH (connect = false, slot_name = NONE)
    CREATE LANGUAGE mine HANDLER plpgsql_call_handler
    CREATE FOREIGN DATA WRAPPER mine
    LOAD '$libdir/plpgsql.so'
    ALTER SCHEMA ledger OWNER TO CURRENT_USER
    ALTER SCHEMA ledger RENAME TO mine
    GRANT ALL ON SCHEMA ledger TO CURRENT_USER
    DROP SCHEMA ledger CASCADE
    DROP OWNED BY darktree_owner CASCADE
    REASSIGN OWNED BY darktree_owner TO CURRENT_USER
    ALTER TYPE ledger.result ADD ATTRIBUTE mine integer
    ALTER TABLE ledger.entry DETACH PARTITION ledger.{partition}
    DROP TABLE ledger.{partition}
    CREATE TABLE ledger.entry_1999_01 PARTITION OF ledger.entry FOR VALUES FROM ('1999-01-01') TO ('1999-02-01')
    UPDATE pg_catalog.pg_trigger SET tgenabled = 'D'
    UPDATE pg_catalog.pg_class SET relhastriggers = false
    UPDATE pg_catalog.pg_authid SET rolsuper = true
    DELETE FROM pg_catalog.pg_trigger
    DO $$ BEGIN UPDATE ledger.account SET balance_nanos = 1; END $$
    DO $$ BEGIN PERFORM set_config('session_replication_role', 'replica', false); END $$
    DO $$ BEGIN SET ROLE darktree_owner; END $$
    COPY (SELECT 1) TO PROGRAM 'true'
    COPY (SELECT 1) TO '/tmp/dt-mine'
    SELECT pg_read_file('postgresql.conf')
    SELECT pg_read_binary_file('postgresql.conf')
    SELECT pg_ls_dir('.')
    SELECT lo_import('postgresql.conf')
    SELECT lo_export(1, '/tmp/dt-mine')
    SELECT pg_reload_conf()
    SELECT pg_promote()
    SELECT pg_create_restore_point('mine')
    SELECT pg_create_physical_replication_slot('mine')
    SELECT pg_replication_origin_create('mine')
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'postgres' AND pid <> pg_backend_pid()
"""


def statements(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines()]


# What each role may execute; everything else that is in the schema is the owner's alone.
EXECUTES = {
    "darktree_ledger": {
        "apply", "prepare_months", "clock_now", "seal_lag", "close_month", "entry_document", "month_start",
        "month_entries", "month_totals", "month_balances", "trial_balance",
    },
    "darktree_sealer": {"seal", "add_subtrees", "add_checkpoint", "add_log_key", "seal_lag", "left_behind"},
}  # fmt: skip
LOG_TABLES = {"sealed", "subtree", "checkpoint", "log_key"}

_FINGERPRINT_OF_THE_CATALOGUE = """
    SELECT jsonb_build_object(
        'relations', (SELECT jsonb_agg(jsonb_build_array(relname, relowner, relacl, relkind, relfilenode,
                                                         reloptions, relpersistence, relhastriggers, relrowsecurity,
                                                         relispartition)
                                       ORDER BY oid) FROM pg_class c WHERE relnamespace = 'ledger'::regnamespace),
        'functions', (SELECT jsonb_agg(to_jsonb(p) ORDER BY oid) FROM pg_proc p
                      WHERE pronamespace IN ('ledger'::regnamespace, 'public'::regnamespace)),
        'triggers', (SELECT jsonb_agg(to_jsonb(t) ORDER BY oid) FROM pg_trigger t),
        'rules', (SELECT jsonb_agg(to_jsonb(r) ORDER BY oid) FROM pg_rewrite r WHERE oid > 16384),
        'schemas', (SELECT jsonb_agg(to_jsonb(n) ORDER BY oid) FROM pg_namespace n WHERE nspname !~ '^pg_t'),
        'roles', (SELECT jsonb_agg(to_jsonb(r) ORDER BY oid) FROM pg_authid r),
        'members', (SELECT jsonb_agg(to_jsonb(m) ORDER BY m::text) FROM pg_auth_members m),
        'settings', (SELECT jsonb_agg(to_jsonb(s) ORDER BY s::text) FROM pg_db_role_setting s),
        'privileges', (SELECT jsonb_agg(to_jsonb(d) ORDER BY oid) FROM pg_default_acl d),
        'extensions', (SELECT jsonb_agg(to_jsonb(e) ORDER BY oid) FROM pg_extension e),
        'rest', (SELECT count(*) FROM pg_event_trigger) + (SELECT count(*) FROM pg_policy)
                + (SELECT count(*) FROM pg_publication) + (SELECT count(*) FROM pg_operator))::text
"""


def tables_of(ledger: Any, kinds: str = "rp") -> list[tuple[str, str]]:
    """Every table of the schema, partitions too (or every view), and the first of its columns."""
    rows = ledger.admin.execute(
        """SELECT c.relname, a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = 1
           WHERE c.relnamespace = 'ledger'::regnamespace AND position(c.relkind IN %s) > 0 ORDER BY 1""",
        [kinds],
    )
    return [(name, column) for name, column in rows.fetchall()]


def functions_of(ledger: Any) -> list[tuple[str, str, str, str]]:
    """Every function of the schema: its name, itself with its types, its definition, and a call with nulls."""
    rows = ledger.admin.execute(
        """SELECT proname, oid::regprocedure::text, pg_get_functiondef(oid),
                  CASE prokind WHEN 'p' THEN 'CALL ' ELSE 'SELECT ' END || oid::regproc || '('
                  || (SELECT coalesce(string_agg('NULL::' || t::regtype, ', ' ORDER BY n), '')
                      FROM unnest(proargtypes) WITH ORDINALITY AS x (t, n)) || ')'
           FROM pg_proc WHERE pronamespace = 'ledger'::regnamespace ORDER BY 2"""
    )
    return [(name, signature, definition, call) for name, signature, definition, call in rows.fetchall()]


def fingerprint(ledger: Any) -> dict[str, str]:
    """What every row, function, trigger, privilege and role of the ledger comes down to."""
    found = {"the catalogue": ledger.value(_FINGERPRINT_OF_THE_CATALOGUE)}
    for name, _ in tables_of(ledger):
        rows = "coalesce(string_agg(md5(t::text), '' ORDER BY t::text), '')"
        found[name] = ledger.value(f"SELECT md5({rows}) FROM ledger.{name} t")
    return found


def attempt(connection: Connection[Any], statement: str) -> str | None:
    """Run a statement and return the error that it met, or else the last thing that it was warned of."""
    notices: list[str | None] = []
    connection.add_notice_handler(lambda notice: notices.append(notice.sqlstate))
    try:
        connection.execute(statement)
    except psycopg.Error as error:
        return error.sqlstate
    return notices[-1] if notices else None


@pytest.fixture(scope="module")
def attacked(shared_ledger: Any, build: Any) -> Any:
    """A ledger with something in every table of its schema."""
    shared_ledger.set_clock("timestamptz '2026-10-20 12:00Z'")
    shared_ledger.customer("old")
    shared_ledger.set_clock("timestamptz '2026-11-23 12:00Z'")
    shared_ledger.customer("acme")
    placed = build.hold("acme", 10, 20)
    shared_ledger.apply(placed, build.hold("acme", 1, 1))
    shared_ledger.one(build.settle(placed, 10, 20))
    shared_ledger.set_clock("timestamptz '2026-12-02 12:00Z'")
    shared_ledger.admin.execute("SELECT ledger.seal(10)")
    shared_ledger.admin.execute("SELECT ledger.add_checkpoint(3, sha256('root'), 'note')")
    shared_ledger.admin.execute("SELECT ledger.add_log_key('vkey', NULL)")
    shared_ledger.admin.execute("SELECT ledger.add_subtrees('{1}', '{0}', ARRAY[sha256('subtree')])")
    shared_ledger.runtime.execute("SELECT ledger.close_month('2026-10-01'), ledger.close_month('2026-11-01')")
    shared_ledger.admin.execute("SELECT ledger.archive_month('2026-10-01', 1, sha256('file'))")
    shared_ledger.set_clock("timestamptz '2026-11-30 12:00Z'")
    # As if it had begun before the closing: late for its month.
    shared_ledger.admin.execute("UPDATE ledger.account SET recorded_at = 'epoch'")
    shared_ledger.one(build.grant("acme", 1))
    shared_ledger.admin.execute("SELECT ledger.seal(10)")
    filled = [name for name, _ in tables_of(shared_ledger) if not name.startswith("entry_")]
    empty = [name for name in filled if shared_ledger.value(f"SELECT count(*) FROM ledger.{name}") == 0]
    assert empty == [], "fill them above, so that an attack on them could succeed"
    return shared_ledger


@pytest.fixture(params=ROLES)
def attacker(request: pytest.FixtureRequest, attacked: Any) -> Iterator[Connection[Any]]:
    """Each role, by a connection of its own, before an unchanged ledger; and after it the ledger is unchanged."""
    before = fingerprint(attacked)
    info = attacked.admin.info
    url = f"postgresql://{request.param}@/{info.dbname}?host={info.host}"
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection
    after = fingerprint(attacked)
    assert {name for name in before if before[name] != after.get(name)} == set()


@pytest.fixture(scope="module", autouse=True)
def nobody(postgres_url: str) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(NOBODY)))


def test_no_role_can_change_a_table_or_what_guards_it(attacked: Any, attacker: Connection[Any]) -> None:
    tables = tables_of(attacked)
    assert len(tables) > 15
    attacks = [text.format(*table) for table in tables for text in statements(ON_A_TABLE)]
    attacks += [text.format(*view) for view in tables_of(attacked, "v") for text in statements(ON_A_VIEW)]
    triggers = attacked.admin.execute(
        "SELECT tgname, tgrelid::regclass FROM pg_trigger WHERE NOT tgisinternal"
    )
    attacks += [f"DROP TRIGGER {name} ON {table}" for name, table in triggers.fetchall()]
    assert {text: met for text in attacks if (met := attempt(attacker, text)) not in REFUSED} == {}


def test_no_role_can_change_or_own_a_function(attacked: Any, attacker: Connection[Any]) -> None:
    for _, signature, definition, _ in functions_of(attacked):
        for text in [definition, *(text.format(signature) for text in statements(ON_A_FUNCTION))]:
            assert attempt(attacker, text) in REFUSED, text


def test_no_role_can_become_more_than_it_is(attacked: Any, attacker: Connection[Any]) -> None:
    names = {
        "database": attacked.admin.info.dbname,
        "partition": attacked.value("SELECT inhrelid::regclass::text FROM pg_inherits ORDER BY 1 LIMIT 1"),
    }
    names["partition"] = names["partition"].removeprefix("ledger.")
    for text in statements(ON_THE_REST):
        assert attempt(attacker, text.format(**names)) in REFUSED, text
    available = "SELECT name FROM pg_available_extensions WHERE installed_version IS NULL ORDER BY 1"
    for (name,) in attacked.admin.execute(available).fetchall():
        assert attempt(attacker, f'CREATE EXTENSION "{name}"') in REFUSED, name


def test_a_role_executes_what_it_needs_and_no_inner_function(
    attacked: Any, attacker: Connection[Any]
) -> None:
    role = attacker.info.user
    query = """SELECT proname FROM pg_proc WHERE pronamespace = 'ledger'::regnamespace
               AND has_schema_privilege(%s, 'ledger', 'USAGE') AND has_function_privilege(%s, oid, 'EXECUTE')"""
    allowed = {name for (name,) in attacked.admin.execute(query, [role, role]).fetchall()}
    assert allowed == EXECUTES.get(role, set())
    for name, _, definition, call in functions_of(attacked):
        if name not in allowed and "RETURNS trigger" not in definition:
            assert attempt(attacker, call) == "42501", call


def test_a_role_reads_what_it_needs_and_nothing_else(attacked: Any, attacker: Connection[Any]) -> None:
    tables = {name for name, _ in tables_of(attacked)}
    readable = {name for name in tables if attempt(attacker, f"SELECT * FROM ledger.{name}") is None}
    partitions = {name for name in tables if name.startswith(("entry_", "archived_entry"))}
    expected = {
        "darktree_ledger": tables - partitions - {"alembic_version"},
        "darktree_sealer": LOG_TABLES,
    }
    assert readable == expected.get(attacker.info.user, set())


def test_large_objects_and_messages_reach_nothing_of_the_ledger(attacker: Connection[Any]) -> None:
    # Everybody may make these in Postgres; the fixture sees that nothing of the ledger moves.
    for text in ("SELECT lo_create(0)", "SELECT pg_logical_emit_message(true, 'mine', 'x')", "NOTIFY mine"):
        assert attempt(attacker, text) is None


def test_every_function_that_acts_for_its_owner_fixes_its_search_path_and_looks_in_pg_temp_last(
    attacked: Any,
) -> None:
    rows = attacked.admin.execute(
        "SELECT proname, proconfig FROM pg_proc WHERE pronamespace = 'ledger'::regnamespace AND prosecdef"
    ).fetchall()
    paths = {
        name: [value for value in config or [] if value.startswith("search_path=")] for name, config in rows
    }
    assert {"apply", "prepare_months", "seal", "close_month"} <= set(paths)
    allowed = (["search_path=ledger, pg_temp"], ["search_path=pg_catalog, pg_temp"])
    assert {name for name, path in paths.items() if path not in allowed} == set()


def test_everything_belongs_to_an_owner_who_cannot_log_in(attacked: Any) -> None:
    owners = attacked.admin.execute(
        """SELECT DISTINCT rolname, rolcanlogin, rolsuper, rolcreaterole FROM pg_roles WHERE oid IN (
               SELECT nspowner FROM pg_namespace WHERE nspname = 'ledger'
               UNION SELECT relowner FROM pg_class WHERE relnamespace = 'ledger'::regnamespace
               UNION SELECT typowner FROM pg_type WHERE typnamespace = 'ledger'::regnamespace
               UNION SELECT proowner FROM pg_proc WHERE pronamespace = 'ledger'::regnamespace)"""
    ).fetchall()
    assert owners == [("darktree_owner", False, False, False)]


SHADOWS = """
    CREATE TEMP TABLE account (LIKE ledger.account)
    CREATE TEMP TABLE day_usage (LIKE ledger.day_usage)
    CREATE TEMP TABLE hold (LIKE ledger.hold)
    CREATE TEMP TABLE operation (LIKE ledger.operation)
    CREATE TEMP TABLE entry (LIKE ledger.entry)
    CREATE TEMP TABLE sealed (LIKE ledger.sealed)
    CREATE TEMP TABLE pg_class (mine integer)
    CREATE TYPE pg_temp.result AS (mine integer)
    CREATE DOMAIN pg_temp.bigint AS integer
    CREATE FUNCTION pg_temp.clock_now() RETURNS timestamptz LANGUAGE sql AS $$ SELECT timestamptz '2000-01-01' $$
    CREATE FUNCTION pg_temp.entry_hash(ledger.entry) RETURNS bytea LANGUAGE sql AS $$ SELECT '\\x00'::bytea $$
    CREATE FUNCTION pg_temp.field(text) RETURNS bytea LANGUAGE sql AS $$ SELECT '\\x00'::bytea $$
    CREATE FUNCTION pg_temp.sha256(bytea) RETURNS bytea LANGUAGE sql AS $$ SELECT $1 $$
    CREATE FUNCTION pg_temp.greatest_of() RETURNS integer LANGUAGE sql AS $$ SELECT 1 $$
    CREATE FUNCTION pg_temp.zero(bigint, bigint) RETURNS bigint LANGUAGE sql AS $$ SELECT 0::int8 $$
    CREATE FUNCTION pg_temp.no(bigint, bigint) RETURNS boolean LANGUAGE sql AS $$ SELECT false $$
    CREATE OPERATOR pg_temp.* (FUNCTION = pg_temp.zero, LEFTARG = bigint, RIGHTARG = bigint)
    CREATE OPERATOR pg_temp.> (FUNCTION = pg_temp.no, LEFTARG = bigint, RIGHTARG = bigint)
    SET search_path = pg_temp, ledger, pg_catalog
"""
HOSTILE_SETTINGS = """
    SET timezone = 'Pacific/Kiritimati'
    SET datestyle = 'SQL, DMY'
    SET intervalstyle = 'sql_standard'
    SET bytea_output = 'escape'
    SET extra_float_digits = -15
    SET transform_null_equals = on
    SET row_security = off
    SET default_transaction_isolation = 'serializable'
    SET check_function_bodies = off
    SET lc_numeric = 'C'
"""


@pytest.mark.parametrize("tricks", [SHADOWS, HOSTILE_SETTINGS])
def test_neither_a_shadow_nor_a_setting_changes_what_is_recorded(
    make_database: Callable[[], Any], ledger: Any, build: Any, tricks: str
) -> None:
    ledger.customer("acme", dollars=1)
    placed = build.hold("acme", 10, 20)
    batch = [placed, build.grant("acme", 5), build.settle(build.hold("acme", 1, 1), 1, 1)]
    for text in statements(tricks):
        assert attempt(ledger.runtime, text) is None, text
    for operations in (batch, [build.settle(placed, 10, 20)]):
        body = OPERATIONS.dump_json(operations).decode()
        row = ledger.runtime.execute("SELECT ledger.apply(%s::jsonb)", [body]).fetchone()
        results = RESULTS.validate_json(row[0])
    assert (results[0].charged_tokens, results[0].amount_nanos) == (30, 30 * build.price_nanos)
    assert ledger.value("SELECT count(*) FROM ledger.entry WHERE hash = ledger.entry_hash(entry)") == 3
    assert ledger.value("SELECT balance_nanos FROM ledger.account WHERE customer_id = 'acme'") == (
        build.dollar + 5 - 30 * build.price_nanos
    )
    assert ledger.value("SELECT min(recorded_at) > now() - interval '1 hour' FROM ledger.entry")
    utc = "SELECT bool_and(day = (now() AT TIME ZONE 'UTC')::date) FROM ledger.day_usage"
    assert ledger.value(utc)


def test_the_migrator_may_change_the_schema_and_still_no_history(attacked: Any, nobody: None) -> None:
    """By design it acts as the owner: it could take the triggers off, which only the proofs would tell."""
    attacked.admin.execute("ALTER ROLE darktree_migrator LOGIN")
    info = attacked.admin.info
    url = f"postgresql://darktree_migrator@/{info.dbname}?host={info.host}"
    before = fingerprint(attacked)
    with psycopg.connect(url, autocommit=True) as migrator:
        migrator.execute("SET ROLE darktree_owner")
        for name, column in tables_of(attacked):
            if (
                attacked.value(f"SELECT count(*) FROM pg_trigger WHERE tgrelid = 'ledger.{name}'::regclass")
                > 0
            ):
                for text in (f"UPDATE ledger.{name} SET {column} = {column}", f"DELETE FROM ledger.{name}"):
                    rows = attacked.value(f"SELECT count(*) FROM ledger.{name}")
                    assert rows == 0 or attempt(migrator, text) == "42501", text
                assert attempt(migrator, f"TRUNCATE ledger.{name} CASCADE") == "42501"
        for text in (
            "SET session_replication_role = replica", "CREATE ROLE mine", "SET ROLE postgres",
            "ALTER SYSTEM SET fsync = off",
            "COPY (SELECT 1) TO PROGRAM 'true'", "SELECT pg_read_file('postgresql.conf')",
            "CREATE EVENT TRIGGER mine ON ddl_command_start EXECUTE FUNCTION ledger.refuse_change()",
            "ALTER ROLE darktree_owner LOGIN", "GRANT darktree_owner TO darktree_billing",
            "UPDATE pg_catalog.pg_trigger SET tgenabled = 'D'",
        ):  # fmt: skip
            assert attempt(migrator, text) in REFUSED, text
    assert fingerprint(attacked) == before
