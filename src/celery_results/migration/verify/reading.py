"""Read both sides by the drivers' ordinary commands: MGET and PTTL, SELECT. Nothing of the copy is used."""

# ruff: noqa: S608 # names are quoted and come from the operator's settings; numbers are ours

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any, Final, Protocol

from celery import Celery

from celery_results.backends.database.dialect import qualified
from celery_results.migration.verify.record import GROUP, TASK, Decoder, Record, Terms, of_meta, unreadable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from celery_results.backends.database.storage import Storage
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
_CHORD_KEY: Final = re.compile(rb"\.[jstdc]$")


class Side(Protocol):
    """One store."""

    def all(self) -> Iterator[tuple[str, Record]]:
        """Give (kind, record) of everything that is there."""

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

    def all(self) -> Iterator[tuple[str, Record]]:
        for kind, prefix in self._prefixes.items():
            keys: list[bytes] = []
            pattern = re.sub(rb"([\\*?\[\]])", rb"\\\1", prefix) + b"*"
            for key in self._client.scan_iter(match=pattern, count=_KEYS):
                if kind == TASK or not _CHORD_KEY.search(key):
                    keys.append(key)
                if len(keys) >= _KEYS:
                    yield from ((kind, record) for record in self._read(kind, keys))
                    keys = []
            if keys:
                yield from ((kind, record) for record in self._read(kind, keys))

    def some(self, kind: str, ids: Sequence[str]) -> dict[str, Record]:
        prefix = self._prefixes[kind]
        return {record.id: record for record in self._read(kind, [prefix + name.encode() for name in ids])}

    def close(self) -> None:
        self._client.close()

    def _read(self, kind: str, keys: Sequence[bytes]) -> Iterator[Record]:
        """Read as many at once as make about _BYTES, going by those before."""
        place = 0
        while place < len(keys):
            part = keys[place : place + self._at_once]
            place += len(part)
            yield from self._values(kind, part)

    def _values(self, kind: str, keys: Sequence[bytes]) -> Iterator[Record]:
        pipeline = self._client.pipeline(transaction=False)
        pipeline.mget(keys)
        for key in keys:
            pipeline.pttl(key)
        values, *lives = pipeline.execute()
        now = time.time()
        mean = sum(map(len, filter(None, values))) // len(keys) + 1
        self._at_once = max(1, min(_KEYS, _BYTES // mean))
        start = len(self._prefixes[kind])
        for key, value, life in zip(keys, values, lives, strict=True):
            if value is None:
                continue
            name = key[start:].decode(errors="replace")
            end = None if life < 0 else now + life / 1000
            try:
                meta = self._decode(value)
                if kind == GROUP:
                    yield Record(name, (meta["result"],), end, end)
                else:
                    yield of_meta(name, meta, self._terms, end, self._expires)
            except (ValueError, KeyError, TypeError, AttributeError):
                yield unreadable(name, value)


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
        self._length = "length" if storage.driver.name == "sqlite" else "octet_length"
        if storage.driver.name == "postgresql":
            self._session.execute("SET statement_timeout = 0")

    def all(self) -> Iterator[tuple[str, Record]]:
        for kind, table in self._tables.items():
            columns = _COLUMNS if kind == TASK else _GROUP_COLUMNS
            parts = ("result", "args", "kwargs", "traceback") if kind == TASK else ("result",)
            size = " + ".join(f"coalesce({self._length}({part}), 0)" for part in parts)
            last = 0
            while True:
                sizes = self._session.execute(
                    f"SELECT id, {size} FROM {table} WHERE id > {last} ORDER BY id LIMIT {_ROWS}"
                )
                if not sizes:
                    break
                while sizes:
                    taken = total = 0
                    while taken < len(sizes) and (not taken or total + int(sizes[taken][1]) <= _BYTES):
                        total += int(sizes[taken][1])
                        taken += 1
                    first, last = last, int(sizes[taken - 1][0])
                    sizes = sizes[taken:]
                    rows = self._session.execute(
                        f"SELECT {columns} FROM {table} WHERE id > {first} AND id <= {last}"
                    )
                    yield from ((kind, self._record(kind, row)) for row in rows if row[0] is not None)

    def some(self, kind: str, ids: Sequence[str]) -> dict[str, Record]:
        columns, key = (_COLUMNS, "task_id") if kind == TASK else (_GROUP_COLUMNS, "taskset_id")
        match = {
            "postgresql": f"{key} = ANY(%s)",
            "mysql": f"{key} IN %s",
            "sqlite": f"{key} IN (SELECT value FROM json_each(?))",
        }[self._driver.name]
        statement = f"SELECT {columns} FROM {self._tables[kind].replace('%', '%%')} WHERE {match}"
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


def _bytes(value: Any) -> bytes | None:  # noqa: ANN401 - a column's
    if value is None:
        return None
    return value.encode() if isinstance(value, str) else bytes(value)
