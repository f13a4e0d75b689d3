"""What the login of the settings finds in its own session."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import psycopg

from celery_results.doctor.findings import Finding, could_not_check, error, info, warning
from celery_results.doctor.servers.postgresql.state import STANDBY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery_results.doctor.subject import Subject

    Connection = psycopg.Connection[Any]

TOO_POWERFUL = warning(
    "CRB529",
    "The login of the settings may do more than Celery needs",
    "Give it CONNECT, USAGE of the schema, SELECT, INSERT, UPDATE, DELETE on Celery's two tables and "
    "USAGE of "
    "their sequences, nothing else, and let another role own the tables: who steals this password rules "
    "them.",
)
ZONE = error(
    "CRB530",
    "Completion times are stored in another zone than UTC",
    "Add `options=-c timezone=UTC` to the URL, or ALTER ROLE ... SET timezone = 'UTC': the clean-up "
    "compares with UTC "
    "and deletes too early, or too late.",
)
ASYNCHRONOUS = warning(
    "CRB531",
    "A crash of the server loses acknowledged results",
    'Set synchronous_commit = on for the login (postgresql_durability: "on"), unless losing up to 0.6 s '
    "of results is "
    "what you chose.",
)
CHOSEN_ASYNCHRONOUS = info(
    "CRB532",
    "A crash of the server loses acknowledged results, as was chosen",
    'Nothing, unless you want none lost: postgresql_durability: "on".',
)
NO_TIMEOUTS = warning(
    "CRB533",
    "A session that hangs holds up others for ever",
    "ALTER ROLE ... SET statement_timeout, lock_timeout and idle_in_transaction_session_timeout for the "
    "login.",
)
PICKLED = error(
    "CRB534",
    "Stored results are pickles",
    "Whoever wrote them runs code in every reader that uses Celery's own class: delete them "
    "(docs/postgresql.md), then "
    "find out who may write.",
)
NO_TABLES = error(
    "CRB535",
    "Celery's tables are not there, or the login may not read them",
    "Run site.yml for the server again: it makes the tables and keeps the rights.",
)
NOT_UTF8 = warning(
    "CRB536",
    "The database is not UTF-8",
    "Create it again with ENCODING 'UTF8' TEMPLATE template0: names, tracebacks and exceptions hold any "
    "character.",
)

_SAMPLE_ROWS: Final = 1000
_TIMEOUTS: Final = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
_UTC: Final = frozenset({"UTC", "Etc/UTC", "GMT", "Etc/GMT", "Etc/UCT", "UCT", "Zulu", "Etc/Zulu"})
_POWERS: Final = """
SELECT r.rolsuper AS "be superuser", r.rolcreaterole AS "create roles", r.rolcreatedb AS "create databases",
       r.rolbypassrls AS "bypass row security",
       has_database_privilege(current_database(), 'CREATE') AS "create schemas",
       has_schema_privilege('public', 'CREATE') AS "create tables",
       coalesce((SELECT bool_or(pg_has_role(c.relowner, 'MEMBER')) FROM pg_class c
          WHERE c.oid IN (to_regclass('celery_taskmeta'), to_regclass('celery_tasksetmeta'))), false)
         AS "change or drop Celery's tables",
       pg_has_role('pg_read_server_files', 'MEMBER') AS "read the server's files",
       pg_has_role('pg_execute_server_program', 'MEMBER') AS "run programs on the server",
       pg_has_role('pg_read_all_data', 'MEMBER') AS "read every table"
  FROM pg_roles r WHERE r.rolname = current_user
"""


def check(connection: Connection, subject: Subject) -> Iterator[Finding]:
    """Judge rights, settings of the session, and a sample of the results."""
    yield from _powers(connection)
    yield from _settings(connection, subject)
    yield from _rows(connection)


def _powers(connection: Connection) -> Iterator[Finding]:
    cursor = connection.execute(_POWERS)
    row, names = cursor.fetchone(), [column.name for column in cursor.description or ()]
    may = [name for name, value in zip(names, row or (), strict=False) if value]
    if may:
        yield TOO_POWERFUL.finding(f"it may {', '.join(may)}")


def _settings(connection: Connection, subject: Subject) -> Iterator[Finding]:
    names = ["TimeZone", "synchronous_commit", "server_encoding", "default_transaction_read_only", *_TIMEOUTS]
    query = "SELECT name, setting FROM pg_settings WHERE name = ANY(%s)"
    found: dict[str, str] = dict(connection.execute(query, (names,)).fetchall())
    if found["default_transaction_read_only"] == "on":
        yield STANDBY.finding("default_transaction_read_only = on for this login")
    if found["TimeZone"] not in _UTC:
        yield ZONE.finding(f"the session's TimeZone is {found['TimeZone']}")
    if found["synchronous_commit"] == "off":
        # The role's contract carries the choice; '"off"' as JSON writes it.
        chosen = '"synchronous_commit": "off"' in subject.environ.get("CELERYCONFIG_RESULT_OPTIONS", "")
        yield (CHOSEN_ASYNCHRONOUS if chosen else ASYNCHRONOUS).finding("synchronous_commit = off")
    without = [name for name in _TIMEOUTS if found[name] == "0"]
    if without:
        yield NO_TIMEOUTS.finding(f"0, that is none: {', '.join(without)}")
    if found["server_encoding"] != "UTF8":
        yield NOT_UTF8.finding(f"server_encoding is {found['server_encoding']}")


def _rows(connection: Connection) -> Iterator[Finding]:
    query = (
        "SELECT count(*) FILTER (WHERE length(result) > 0 AND get_byte(result, 0) = 128), count(*)"
        " FROM (SELECT result FROM celery_taskmeta ORDER BY id DESC LIMIT %s) AS newest"
    )
    try:
        row = connection.execute(query, (_SAMPLE_ROWS,)).fetchone()
    except (psycopg.errors.UndefinedTable, psycopg.errors.InsufficientPrivilege) as failure:
        yield NO_TABLES.finding(str(failure).splitlines()[0])
        return
    except psycopg.errors.QueryCanceled:
        yield could_not_check("the newest results", "reading them took too long")
        return
    pickled, looked_at = row or (0, 0)
    if pickled:
        yield PICKLED.finding(f"{pickled} of the newest {looked_at} results start with 0x80")
