"""Read both sides by the drivers' ordinary commands: MGET and PTTL, SELECT. Nothing of the copy is used."""

# ruff: noqa: S608 # names are quoted and come from the operator's settings; numbers are ours

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol

from celery import Celery

from celery_results.backends.database.dialect import qualified
from celery_results.migration.verify.brief import Documents, Rows, of_record
from celery_results.migration.verify.record import GROUP, TASK, Decoder, Record, Terms, of_meta, unreadable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from celery_results.backends.database.storage import Storage
    from celery_results.migration.verify.brief import Brief
    from celery_results.stores.endpoint import Endpoint

_KEYS: Final = 1000
_FIRST: Final = 50
_ROWS: Final = 2000
_BYTES: Final = 4 << 20
_COLUMNS: Final = (
    "task_id, status, result, traceback, children, date_done,"
    " name, args, kwargs, worker, retries, queue, stamps"
)
_GROUP_COLUMNS: Final = "taskset_id, result, date_done"
# psycopg refuses a whole answer for infinity, a year BC or one of five digits.
_DATE_OR_NULL: Final = (
    "CASE WHEN date_done BETWEEN '0001-01-01' AND '9999-12-31 23:59:59.999999' THEN date_done END"
)
_DATE: Final = _COLUMNS.replace(" ", "").split(",").index("date_done")
_LIVES: Final = """
local out = {}
for place, key in ipairs(KEYS) do out[place] = redis.call('PTTL', key) end
return out
"""
_CHORD_KEY: Final = re.compile(rb"\.[jstdc]$")


Wanted = Callable[[str, bytes], bool]


class Side(Protocol):
    """One store."""

    def all(self, wanted: Wanted) -> Iterator[tuple[str, int, list[Record]]]:
        """Give (kind, how many were read, records of those that are wanted) of everything that is there."""

    def briefs(self) -> Iterator[tuple[str, int, list[Brief]]]:
        """Give the same of all, brief; only where both sides keep JSON."""

    def some(self, kind: str, ids: Sequence[str]) -> dict[str, Record]:
        """Give those of these that are there."""

    def close(self) -> None:
        """Let go of the connection."""


def side(endpoint: Endpoint, terms: Terms) -> Side:
    """Open a store; raises the driver's errors."""
    storage = endpoint.storage
    if storage is None:
        return _Redis(endpoint, terms)
    return _Database(endpoint, storage, terms)


class _Redis:
    def __init__(self, endpoint: Endpoint, terms: Terms) -> None:
        app = Celery("verify", set_as_current=False)
        app.config_from_object(dict(endpoint.settings))
        backend: Any = app.backend
        self._client = backend.client
        self._prefixes = {TASK: bytes(backend.task_keyprefix), GROUP: bytes(backend.group_keyprefix)}
        self._decode = Decoder(endpoint.shape.serializer)
        self._expires = endpoint.shape.expires
        self._terms = terms
        self._at_once = _FIRST
        self._script: str | None = None  # its digest; empty where it cannot be used

    def all(self, wanted: Wanted) -> Iterator[tuple[str, int, list[Record]]]:
        for kind, keys, values, lives, now in self._parts():
            start = len(self._prefixes[kind])
            records = [
                self._record(kind, key[start:], value, life, now)
                for key, value, life in zip(keys, values, lives, strict=True)
                if value is not None and wanted(kind, key[start:])
            ]
            yield kind, len(keys), records

    def briefs(self) -> Iterator[tuple[str, int, list[Brief]]]:
        brief = Documents(self._terms, self._expires).brief
        for kind, keys, values, lives, now in self._parts():
            start = len(self._prefixes[kind])
            known: list[Brief] = []
            add = known.append
            for key, value, life in zip(keys, values, lives, strict=True):
                if value is None:
                    continue
                found = None
                if kind == TASK:
                    found = brief(key[start:], value, None if life < 0 else int(now * 1000 + life) * 1000)
                if found is None:
                    found = of_record(self._record(kind, key[start:], value, life, now), self._terms)
                add(found)
            yield kind, len(keys), known

    def some(self, kind: str, ids: Sequence[str]) -> dict[str, Record]:
        prefix = self._prefixes[kind]
        found: dict[str, Record] = {}
        for keys, values, lives, now in self._read([prefix + name.encode() for name in ids]):
            for key, value, life in zip(keys, values, lives, strict=True):
                if value is not None:
                    record = self._record(kind, key[len(prefix) :], value, life, now)
                    found[record.id] = record
        return found

    def close(self) -> None:
        self._client.close()

    def _parts(self) -> Iterator[tuple[str, Sequence[bytes], list[bytes | None], list[int], float]]:
        """Walk all keys; give values and lives of some at a time."""
        for kind, prefix in self._prefixes.items():
            pattern = re.sub(rb"([\\*?\[\]])", rb"\\\1", prefix) + b"*"
            cursor = 0
            while True:
                cursor, keys = self._client.scan(cursor, match=pattern, count=_KEYS)
                if kind == GROUP:
                    keys = [key for key in keys if not _CHORD_KEY.search(key)]
                for part in self._read(keys):
                    yield kind, *part
                if cursor == 0:
                    break

    def _read(
        self, keys: Sequence[bytes]
    ) -> Iterator[tuple[Sequence[bytes], list[bytes | None], list[int], float]]:
        """Read as many at once as make about _BYTES, going by those before."""
        place = 0
        while place < len(keys):
            part = keys[place : place + self._at_once]
            place += len(part)
            values = self._client.mget(part)
            lives = self._lives(part)
            mean = sum(map(len, filter(None, values))) // len(part) + 1
            self._at_once = max(1, min(_KEYS, _BYTES // mean))
            yield part, values, lives, time.time()

    def _lives(self, keys: Sequence[bytes]) -> list[int]:
        """Ask in one script, which a login may lack, or command by command."""
        from redis.exceptions import ResponseError  # noqa: PLC0415 - a host may lack redis-py

        if self._script is None:
            try:
                self._script = self._client.script_load(_LIVES)
            except ResponseError:
                self._script = ""
        if self._script:
            try:
                found: list[int] = self._client.evalsha_ro(self._script, len(keys), *keys)
            except ResponseError:
                self._script = ""  # no such right, or a server before 7.0
            else:
                return found
        pipeline = self._client.pipeline(transaction=False)
        for key in keys:
            pipeline.pttl(key)
        return list(pipeline.execute())

    def _record(self, kind: str, key: bytes, value: bytes, life: int, now: float) -> Record:
        name = key.decode(errors="replace")
        end = None if life < 0 else now + life / 1000
        try:
            meta = self._decode(value)
            if kind == GROUP:
                return Record(name, (meta["result"],), end, end)
            return of_meta(name, meta, self._terms, end, self._expires)
        except (ValueError, KeyError, TypeError, AttributeError):
            return unreadable(name, value)


class _Database:
    def __init__(self, endpoint: Endpoint, storage: Storage, terms: Terms) -> None:
        self._session = storage.driver.connect()
        self._driver = storage.driver
        self._decode = Decoder(endpoint.shape.serializer)
        self._expires = endpoint.shape.expires
        self._terms = terms
        names = storage.tables
        mark = "`" if storage.driver.name == "mysql" else '"'
        self._tables = {
            TASK: qualified(names.task_schema, names.task, mark).replace("%%", "%"),
            GROUP: qualified(names.group_schema, names.group, mark).replace("%%", "%"),
        }
        self._columns = {TASK: _COLUMNS, GROUP: _GROUP_COLUMNS}
        if storage.driver.name == "postgresql":
            self._columns = {
                kind: columns.replace("date_done", _DATE_OR_NULL) for kind, columns in self._columns.items()
            }
        self._length = "length" if storage.driver.name == "sqlite" else "octet_length"
        if storage.driver.name == "postgresql":
            self._session.execute("SET statement_timeout = 0")

    def all(self, wanted: Wanted) -> Iterator[tuple[str, int, list[Record]]]:
        for kind, rows in self._parts():
            records = [self._record(kind, row) for row in rows if wanted(kind, _id(row))]
            yield kind, len(rows), records

    def briefs(self) -> Iterator[tuple[str, int, list[Brief]]]:
        brief, moment = Rows(self._terms).brief, self._driver.moment
        for kind, rows in self._parts():
            known: list[Brief] = []
            for row in rows:
                try:
                    found = brief(row, moment(row[_DATE])) if kind == TASK else None
                except (ValueError, TypeError):
                    found = None  # a date that is none: the record says so
                known.append(of_record(self._record(kind, row), self._terms) if found is None else found)
            yield kind, len(rows), known

    def _parts(self) -> Iterator[tuple[str, list[Sequence[Any]]]]:
        """Walk both tables; give rows that have an id, some at a time."""
        for kind, table in self._tables.items():
            last = 0
            for following in self._ends(kind, table):
                rows = self._session.execute(
                    f"SELECT {self._columns[kind]} FROM {table} WHERE id > {last} AND id <= {following}"
                )
                last = following
                yield kind, [row for row in rows if row[0] is not None]

    def _ends(self, kind: str, table: str) -> Iterator[int]:
        """Give the last ids of parts of about _BYTES at most, so long as there are more."""
        parts = ("result", "args", "kwargs", "traceback") if kind == TASK else ("result",)
        size = " + ".join(f"coalesce({self._length}({part}), 0)" for part in parts)
        last = 0
        while True:
            some = f"SELECT id, {size} AS size FROM {table} WHERE id > {last} ORDER BY id LIMIT {_ROWS}"
            ((end, whole),) = self._session.execute(f"SELECT max(id), sum(size) FROM ({some}) AS part")
            if end is None:
                return
            if int(whole) <= _BYTES:
                last = int(end)
                yield last
                continue
            total = 0
            for number, bytes_ in self._session.execute(some):
                if total and total + int(bytes_) > _BYTES:
                    yield last
                    total = 0
                total += int(bytes_)
                last = int(number)
            yield last

    def some(self, kind: str, ids: Sequence[str]) -> dict[str, Record]:
        key = "task_id" if kind == TASK else "taskset_id"
        match = {
            "postgresql": f"{key} = ANY(%s)",
            "mysql": f"{key} IN %s",
            "sqlite": f"{key} IN (SELECT value FROM json_each(?))",
        }[self._driver.name]
        statement = f"SELECT {self._columns[kind]} FROM {self._tables[kind].replace('%', '%%')} WHERE {match}"
        rows = self._session.execute(statement, (self._driver.ids(ids),)) if ids else []
        return {str(row[0]): self._record(kind, row) for row in rows}

    def close(self) -> None:
        self._session.close()

    def _record(self, kind: str, row: Sequence[Any]) -> Record:
        name = str(row[0])
        try:
            if kind == GROUP:
                date = self._terms.date(self._driver.moment(row[2]))
                end = None if date is None or self._expires is None else date / 1e6 + self._expires
                return Record(name, (self._decode(_bytes(row[1])),), end, end)
            fields = dict(zip(_COLUMNS.split(", "), row, strict=True))
            for column in ("result", "children", "args", "kwargs", "stamps"):
                fields[column] = self._decode(_bytes(fields[column]))
            fields["date_done"] = self._driver.moment(fields["date_done"])
            stamps = fields.pop("stamps")
            if isinstance(stamps, dict):
                fields["stamped_headers"] = stamps.get("stamped_headers")
                fields.update(stamps.get("stamps") or {})
            date = self._terms.date(fields["date_done"])
            end = None if date is None or self._expires is None else date / 1e6 + self._expires
            return of_meta(name, fields, self._terms, end, self._expires)
        except (ValueError, KeyError, TypeError, AttributeError):
            return unreadable(name, row[1:])


def _id(row: Sequence[Any]) -> bytes:
    return str(row[0]).encode("utf-8", "surrogatepass")


def _bytes(value: Any) -> bytes | None:  # noqa: ANN401 - a column's
    if value is None:
        return None
    return value.encode() if isinstance(value, str) else bytes(value)
