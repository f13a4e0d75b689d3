"""What PostgreSQL's catalog says about our tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sqlalchemy.engine import Connection

    from .layout import Table


@dataclass(frozen=True)
class Column:
    """A column: its type as SQL writes it, its default as SQL, '' for none, its compression ('l' is lz4)."""

    type: str
    default: str
    compression: str


@dataclass(frozen=True)
class Index:
    """An index; not valid while it is built, and after a build that was interrupted."""

    name: str
    method: str
    valid: bool
    unique: bool
    columns: tuple[str, ...]


@dataclass(frozen=True)
class Sequence:
    """A sequence; ``owned_by`` names the column with which it goes, '' for none."""

    owner: str
    type: str
    owned_by: str
    last_value: int


@dataclass(frozen=True)
class TableState:
    """One table as it is."""

    kind: str
    owner: str
    columns: Mapping[str, Column]
    indexes: tuple[Index, ...]
    options: Mapping[str, str]
    sequence: Sequence | None
    highest_id: int
    lz4: bool
    bytes: int


def server_version(connection: Connection) -> int:
    """Give the release as a number: 170011 is 17.11."""
    return int(connection.exec_driver_sql("SHOW server_version_num").scalar_one())


def has_lz4(connection: Connection) -> bool:
    """Tell whether this build of the server can compress with lz4."""
    statement = (
        "SELECT count(*) FROM pg_settings WHERE name = 'default_toast_compression' AND 'lz4' = ANY(enumvals)"
    )
    return bool(connection.exec_driver_sql(statement).scalar())


def relations(connection: Connection, names: Iterable[str]) -> dict[str, str]:
    """Give the owner of each of these tables that exists in the schema public."""
    rows = connection.execute(
        sqlalchemy.text(
            "SELECT relname, pg_get_userbyid(relowner) FROM pg_class"
            " WHERE relnamespace = 'public'::regnamespace AND relname = ANY(:names)"
        ),
        {"names": list(names)},
    )
    return {row[0]: row[1] for row in rows}


def table_state(connection: Connection, table: Table) -> TableState | None:
    """Look at one table; None where there is none."""
    found = connection.execute(
        sqlalchemy.text(
            "SELECT c.oid, c.relkind::text, pg_get_userbyid(c.relowner), c.reloptions, t.reloptions,"
            " pg_table_size(c.oid)"
            " FROM pg_class c LEFT JOIN pg_class t ON t.oid = c.reltoastrelid"
            " WHERE c.relnamespace = 'public'::regnamespace AND c.relname = :name"
        ),
        {"name": table.name},
    ).first()
    if found is None:
        return None
    oid, kind, owner, options, toast_options, size = found
    columns = _columns(connection, oid)
    # Before the sequence is read: beside a live writer both grow, and it must not seem to lag behind.
    highest_id = _highest_id(connection, table) if kind == "r" and "id" in columns else 0
    return TableState(
        kind=kind,
        owner=owner,
        columns=columns,
        indexes=_indexes(connection, oid),
        options={**_options(options, ""), **_options(toast_options, "toast.")},
        sequence=_sequence(connection, table),
        highest_id=highest_id,
        lz4=has_lz4(connection),
        bytes=size,
    )


def _options(items: list[str] | None, prefix: str) -> dict[str, str]:
    pairs = (item.partition("=") for item in items or ())
    return {f"{prefix}{name}": value for name, _, value in pairs}


def _columns(connection: Connection, oid: int) -> dict[str, Column]:
    rows = connection.execute(
        sqlalchemy.text(
            "SELECT a.attname, format_type(a.atttypid, a.atttypmod),"
            " coalesce(pg_get_expr(d.adbin, d.adrelid), ''), a.attcompression::text"
            " FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum"
            " WHERE a.attrelid = :oid AND a.attnum > 0 AND NOT a.attisdropped"
        ),
        {"oid": oid},
    )
    return {row[0]: Column(row[1], row[2], row[3]) for row in rows}


def _indexes(connection: Connection, oid: int) -> tuple[Index, ...]:
    rows = connection.execute(
        sqlalchemy.text(
            "SELECT c.relname, m.amname, i.indisvalid AND i.indpred IS NULL, i.indisunique,"
            " ARRAY(SELECT coalesce(a.attname, '')::text"
            "  FROM unnest(i.indkey) WITH ORDINALITY k(number, place)"
            "  LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number"
            "  ORDER BY k.place)"
            " FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am m ON m.oid = c.relam"
            " WHERE i.indrelid = :oid ORDER BY c.relname"
        ),
        {"oid": oid},
    )
    return tuple(Index(row[0], row[1], row[2], row[3], tuple(row[4])) for row in rows)


def _sequence(connection: Connection, table: Table) -> Sequence | None:
    row = connection.execute(
        sqlalchemy.text(
            "SELECT pg_get_userbyid(c.relowner), format_type(s.seqtypid, NULL),"
            " coalesce(d.refobjid::regclass::text || '.' || a.attname, '')"
            " FROM pg_class c JOIN pg_sequence s ON s.seqrelid = c.oid"
            " LEFT JOIN pg_depend d ON d.objid = c.oid AND d.classid = 'pg_class'::regclass"
            "  AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')"
            " LEFT JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid"
            " WHERE c.relnamespace = 'public'::regnamespace AND c.relname = :name"
        ),
        {"name": table.sequence},
    ).first()
    if row is None:
        return None
    return Sequence(row[0], row[1], row[2], _last_value(connection, table))


def number(connection: Connection, statement: str) -> int:
    """Ask for one number."""
    return int(connection.exec_driver_sql(statement).scalar_one())


def _last_value(connection: Connection, table: Table) -> int:
    statement = (
        f"SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END FROM public.{table.sequence}"  # noqa: S608 - constants
    )
    return _as_login(connection, statement)


def _highest_id(connection: Connection, table: Table) -> int:
    return _as_login(connection, f"SELECT coalesce(max(id), 0) FROM public.{table.name}")  # noqa: S608 - constants


def _as_login(connection: Connection, statement: str) -> int:
    # Before the first upgrade the tables may belong to another role than the one that is to own them.
    connection.exec_driver_sql("BEGIN")
    try:
        connection.exec_driver_sql("SET LOCAL ROLE NONE")
        return int(connection.exec_driver_sql(statement).scalar_one())
    finally:
        connection.exec_driver_sql("ROLLBACK")
