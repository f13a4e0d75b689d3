"""What the server says of itself: settings, connections, archiving."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg.rows import dict_row

from celery_results.doctor.findings import Finding, could_not_check, error, warning

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Connection = psycopg.Connection[Any]

UNSAFE = error(
    "CRB537",
    "A crash of the machine can destroy the database",
    "Set fsync = on and full_page_writes = on in the server's configuration; if they were off, restore a "
    "backup after "
    "the next crash.",
)
STANDBY = error(
    "CRB538",
    "The server takes no results",
    "Name the primary in the settings; if it is one, set default_transaction_read_only = off.",
)
PENDING = warning(
    "CRB539",
    "Settings wait for a restart of the server",
    "Run site.yml again, or restart the server.",
)
FILLING = warning(
    "CRB540",
    "The server's connections are running out",
    "Raise postgresql_max_connections and postgresql_connection_limits, or run fewer processes: each "
    "that uses results "
    "holds a connection.",
)
NO_VACUUM = error(
    "CRB541",
    "Nothing cleans up after deleted results",
    "Set autovacuum = on and track_counts = on: without them tables grow for ever, and the server stops "
    "taking writes "
    "in the end.",
)
WRAPAROUND = error(
    "CRB542",
    "The server will stop taking writes",
    "Find what holds VACUUM up (old transactions, replication slots, prepared transactions), then run "
    "VACUUM FREEZE.",
)
SLOT = warning(
    "CRB543",
    "A replication slot without a reader fills the disk",
    "Bring its reader back, or drop it: SELECT pg_drop_replication_slot(name).",
)
TOO_OLD = warning(
    "CRB544",
    "The server's version is no longer maintained",
    "Upgrade to PostgreSQL 14 or later.",
)
CLOCK = warning(
    "CRB545",
    "The clocks differ",
    "Run a time service (systemd-timesyncd, chrony) on both hosts: the clean-up compares times of both.",
)
PLAIN_SETTINGS = warning(
    "CRB546",
    "The server's configuration weakens logins",
    "Set ssl = on, ssl_min_protocol_version = 'TLSv1.2' and password_encryption = 'scram-sha-256'.",
)

CLOCK_TOLERANCE_SECONDS: Final = 2.0
_FILLING_SHARE: Final = 0.8
_LEAST_VERSION: Final = 140000
_OLD_TRANSACTIONS: Final = 1_500_000_000  # of 2,147 million
_SLOT_BYTES: Final = 1 << 30
_NAMES: Final = (
    "fsync",
    "full_page_writes",
    "autovacuum",
    "track_counts",
    "ssl",
    "ssl_min_protocol_version",
    "password_encryption",
    "max_connections",
    "default_transaction_read_only",
)
_CONNECTIONS: Final = """
SELECT r.rolname, r.rolconnlimit, count(a.pid) AS used
  FROM pg_roles r JOIN pg_stat_activity a ON a.usesysid = r.oid GROUP BY r.rolname, r.rolconnlimit
"""
_SLOTS: Final = """
SELECT slot_name, pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint AS kept
  FROM pg_replication_slots WHERE NOT active AND restart_lsn IS NOT NULL
"""


def rows_of(connection: Connection, query: str, *arguments: object) -> list[dict[str, Any]]:
    """Run a query."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query, arguments or None).fetchall()


def check(connection: Connection, now: Callable[[], float]) -> Iterator[Finding]:
    """Judge the server as a whole."""
    yield from _clock(connection, now)
    standby = rows_of(connection, "SELECT pg_is_in_recovery() AS standby")[0]["standby"]
    if standby:
        yield STANDBY.finding("it is a standby (pg_is_in_recovery)")
    found = {
        row["name"]: row
        for row in rows_of(
            connection,
            "SELECT name, setting, reset_val, source FROM pg_settings WHERE name = ANY(%s)",
            list(_NAMES),
        )
    }
    settings = {name: row["setting"] for name, row in found.items()}
    yield from _settings(settings)
    pending = rows_of(connection, "SELECT name FROM pg_settings WHERE pending_restart ORDER BY name")
    if pending:
        yield PENDING.finding(", ".join(row["name"] for row in pending))
    yield from _connections(connection, int(settings["max_connections"]))
    yield from _age(connection)
    if not standby:
        yield from _slots(connection)
    if connection.info.server_version < _LEAST_VERSION:
        yield TOO_OLD.finding(f"PostgreSQL {connection.info.server_version // 10000}")


def _settings(settings: dict[str, str]) -> Iterator[Finding]:
    off = [f"{name} = off" for name in ("fsync", "full_page_writes") if settings[name] == "off"]
    if off:
        yield UNSAFE.finding(", ".join(off))
    off = [f"{name} = off" for name in ("autovacuum", "track_counts") if settings[name] == "off"]
    if off:
        yield NO_VACUUM.finding(", ".join(off))
    weak = []
    if settings["ssl"] != "on":
        weak.append("ssl = off")
    elif settings["ssl_min_protocol_version"] in {"", "TLSv1", "TLSv1.1"}:
        weak.append(f"ssl_min_protocol_version = '{settings['ssl_min_protocol_version']}'")
    if settings["password_encryption"] != "scram-sha-256":  # noqa: S105 - a way, not a password
        weak.append(f"password_encryption = {settings['password_encryption']}")
    if weak:
        yield PLAIN_SETTINGS.finding(", ".join(weak))


def _connections(connection: Connection, most: int) -> Iterator[Finding]:
    rows = rows_of(connection, _CONNECTIONS)
    total = sum(row["used"] for row in rows)
    if total >= most * _FILLING_SHARE:
        yield FILLING.finding(f"{total} of max_connections = {most} in use")
    for row in rows:
        limit = row["rolconnlimit"]
        # The doctor's own connection is one of them.
        if limit > 0 and row["used"] > 1 and row["used"] >= limit * _FILLING_SHARE:
            yield FILLING.finding(f"{row['rolname']} has {row['used']} of its {limit}")


def _age(connection: Connection) -> Iterator[Finding]:
    row = rows_of(connection, "SELECT max(age(datfrozenxid)) AS age FROM pg_database")[0]
    if row["age"] > _OLD_TRANSACTIONS:
        yield WRAPAROUND.finding(
            f"{row['age']:,} transactions since the last VACUUM; it stops at 2,147 million"
        )


def _slots(connection: Connection) -> Iterator[Finding]:
    for row in rows_of(connection, _SLOTS):
        if row["kept"] > _SLOT_BYTES:
            yield SLOT.finding(f"{row['slot_name']} keeps {row['kept'] / 2**30:.1f} GiB")


def _clock(connection: Connection, now: Callable[[], float]) -> Iterator[Finding]:
    before = now()
    try:
        told = rows_of(connection, "SELECT extract(epoch FROM clock_timestamp())::float8 AS seconds")
    except psycopg.Error as failure:
        yield could_not_check("the server's clock", type(failure).__name__)
        return
    after = now()
    ahead = told[0]["seconds"] - (before + after) / 2
    # A slow answer says nothing of the clock.
    if abs(ahead) - (after - before) / 2 > CLOCK_TOLERANCE_SECONDS:
        yield CLOCK.finding(
            f"the server is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} this host"
        )
