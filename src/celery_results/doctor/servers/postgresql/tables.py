"""Celery's two tables, from the catalogue and the statistics: no result is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from celery_results.doctor.findings import Finding, error, warning
from celery_results.doctor.servers.postgresql.state import rows_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg

    Connection = psycopg.Connection[Any]

NO_INDEX = warning(
    "CRB547",
    "The clean-up reads every result",
    "Run site.yml for the server again, which makes the index on date_done without stopping anybody; "
    "tables made by "
    "Celery before 5.7 have none.",
)
IDS_END = error(
    "CRB548",
    "The ids of results run out",
    "Run site.yml for the server again, which makes them 64 bits wide: after 2,147,483,647 no result can "
    "be stored.",
)
BLOATED = warning(
    "CRB549",
    "The tables are full of what was deleted",
    "Find what holds autovacuum up (a transaction that is open for long, autovacuum_enabled = false), "
    "then run VACUUM; "
    "VACUUM FULL gives the room back and locks the table.",
)

TABLES: Final = ("celery_taskmeta", "celery_tasksetmeta")
_IDS_SHARE: Final = 0.5
_INTEGER_MOST: Final = 2_147_483_647
_DEAD_ROWS: Final = 100_000
_TABLE: Final = """
SELECT c.relname AS name, a.atttypid = 'int4'::regtype AS narrow,
       EXISTS (SELECT FROM pg_index i JOIN pg_attribute d ON d.attrelid = c.oid AND d.attname = 'date_done'
                WHERE i.indrelid = c.oid AND i.indkey[0] = d.attnum AND i.indisvalid) AS indexed,
       coalesce('autovacuum_enabled=false' = ANY(c.reloptions), false) AS without_vacuum,
       s.n_live_tup AS live, s.n_dead_tup AS dead
  FROM pg_class c LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'id'
  LEFT JOIN pg_stat_user_tables s ON s.relid = c.oid
 WHERE c.relname = ANY(%s) AND c.relkind IN ('r', 'p') AND pg_table_is_visible(c.oid)
"""
_SEQUENCES: Final = """
SELECT sequencename AS name, last_value FROM pg_sequences
 WHERE sequencename IN ('task_id_sequence', 'taskset_id_sequence')
"""


def check(connection: Connection) -> Iterator[Finding]:
    """Judge the tables."""
    used = {row["name"]: row["last_value"] or 0 for row in rows_of(connection, _SEQUENCES)}
    for row in rows_of(connection, _TABLE, list(TABLES)):
        name = row["name"]
        if not row["indexed"]:
            yield NO_INDEX.finding(f"{name} has no index on date_done")
        sequence = "task_id_sequence" if name == TABLES[0] else "taskset_id_sequence"
        last = used.get(sequence, 0)
        if row["narrow"] and last > _INTEGER_MOST * _IDS_SHARE:
            yield IDS_END.finding(f"{name}: {last / _INTEGER_MOST:.0%} of the 32-bit ids are used")
        if row["without_vacuum"]:
            yield BLOATED.finding(f"{name} has autovacuum_enabled = false")
        elif (row["dead"] or 0) > max(_DEAD_ROWS, row["live"] or 0):
            yield BLOATED.finding(f"{name}: {row['dead']:,} dead rows beside {row['live']:,} live ones")
