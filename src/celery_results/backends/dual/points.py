"""One result or saved group of one side, read and written as it is stored: with its time, whatever wrote it.

`store_result` would take the present for the time a task ended, and begin its retention anew.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import math
from typing import TYPE_CHECKING, Any, Final, Protocol

from celery import states
from celery.backends.base import BaseKeyValueStoreBackend
from celery.result import ResultBase, result_from_tuple

from celery_results.backends.database import DatabaseBackend, payload
from celery_results.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator

_OBJECTS: Final = {"pickle", "yaml"}  # kombu writes an exception as an object with these
_EXTENDED: Final = ("name", "args", "kwargs", "worker", "retries", "queue")
_COLUMNS: Final = frozenset({"status", "result", "traceback", "children", "date_done", "task_id", *_EXTENDED})


class RepairError(ConfigurationError):
    """A side is of a class that single results cannot be copied to."""


class Point(Protocol):
    """One side; metas are decoded, exceptions in them are not; raises what the backend's driver raises."""

    backend: Any

    def read_task(self, task_id: str) -> dict[str, Any] | None:
        """Give the meta, `date_done` as an aware datetime or None; None if nothing is stored."""

    def write_task(self, task_id: str, meta: dict[str, Any]) -> None:
        """Store a meta such as `read_task` gives, of this side's serializer."""

    def read_group(self, group_id: str) -> Any:  # noqa: ANN401 # nested lists
        """Give a saved group as `as_tuple` writes it, or None."""

    def write_group(self, group_id: str, value: Any) -> None:  # noqa: ANN401
        """Save a group anew."""


def point_of(backend: Any) -> Point:  # noqa: ANN401 # Celery has no types
    """Give the access to a side; raises RepairError."""
    if isinstance(backend, DatabaseBackend):
        return _Rows(backend)
    if isinstance(backend, BaseKeyValueStoreBackend):
        return _Documents(backend)
    if hasattr(backend, "session_manager"):
        return _StockRows(backend)
    raise RepairError(
        expected="sides in Redis, PostgreSQL, MySQL, MariaDB or SQLite",
        found=type(backend).__name__,
        do="repair them by a full copy",
    )


def remaining_seconds(backend: Any, meta: dict[str, Any]) -> float | None:  # noqa: ANN401
    """Give how long a result of a side may still live, None for ever; what is not ready begins now."""
    expires = backend.expires
    if meta["status"] == states.FAILURE:
        expires = getattr(backend, "failure_expires", expires)
    seconds = expires.total_seconds() if isinstance(expires, dt.timedelta) else expires
    if not seconds:
        return None
    done: dt.datetime | None = meta["date_done"]
    if done is None:
        return float(seconds)
    return float(seconds) - (dt.datetime.now(dt.UTC) - done).total_seconds()


def translated(meta: dict[str, Any], source: Any, target: Any) -> dict[str, Any]:  # noqa: ANN401
    """Give the meta as the target's serializer has it: an exception is an object or a dict."""
    if meta["status"] not in states.EXCEPTION_STATES:
        return meta
    if (source.serializer in _OBJECTS) == (target.serializer in _OBJECTS):
        return meta
    return {**meta, "result": target.prepare_exception(source.exception_to_python(meta["result"]))}


class _Documents:
    """A key-value store: one document for each result."""

    def __init__(self, backend: Any) -> None:  # noqa: ANN401
        self.backend = backend

    def read_task(self, task_id: str) -> dict[str, Any] | None:
        document = self.backend.get(self.backend.get_key_for_task(task_id))
        if not document:
            return None
        meta: dict[str, Any] = self.backend.decode(document)
        return {**meta, "date_done": moment_of(meta.get("date_done"))}

    def write_task(self, task_id: str, meta: dict[str, Any]) -> None:
        done: dt.datetime | None = meta["date_done"]
        document = {
            name: value
            for name, value in meta.items()
            if value is not None or name in {"status", "result", "traceback", "children"}
        }
        document.update(date_done=done and done.isoformat(), task_id=task_id)
        left = remaining_seconds(self.backend, meta)
        self._set(self.backend.get_key_for_task(task_id), document, left)

    def read_group(self, group_id: str) -> Any:  # noqa: ANN401
        document = self.backend.get(self.backend.get_key_for_group(group_id))
        return _plain(self.backend.decode(document)["result"]) if document else None

    def write_group(self, group_id: str, value: Any) -> None:  # noqa: ANN401
        self._set(
            self.backend.get_key_for_group(group_id),
            {"result": value},
            float(self.backend.expires or 0) or None,
        )

    def _set(self, key: Any, document: dict[str, Any], left: float | None) -> None:  # noqa: ANN401
        value = self.backend.encode(document)
        if hasattr(self.backend, "failure_expires"):  # Redis
            self.backend.set(key, value, expires=0 if left is None else max(1, math.ceil(left)))
        else:
            self.backend.set(key, value)


class _Rows:
    """Our own database class."""

    def __init__(self, backend: DatabaseBackend) -> None:
        self.backend: Any = backend

    def read_task(self, task_id: str) -> dict[str, Any] | None:
        rows = self.backend._rows(self.backend._sql.select_extended, task_id)  # noqa: SLF001 # our own
        if not rows:
            return None
        meta = payload.meta_of(
            rows[0],
            self.backend._driver.moment,  # noqa: SLF001
            self.backend.decode,
            legacy_pickle=False,
        )
        return {**meta, "date_done": moment_of(meta["date_done"])}

    def write_task(self, task_id: str, meta: dict[str, Any]) -> None:
        encode = self.backend.encode
        encoded = {**meta, "result": payload.as_bytes(encode(meta["result"]))}
        for name in ("args", "kwargs"):
            if meta.get(name) is not None:
                encoded[name] = payload.as_bytes(encode(meta[name]))
        row = [task_id, *payload.row_of(encoded, encode, extended=True)]
        row[3] = self.backend._driver.moment(_naive(meta["date_done"]))  # noqa: SLF001
        stored = self.read_task(task_id)
        if stored is not None and stored["status"] == states.SUCCESS:
            self.backend._forget(task_id)  # noqa: SLF001 # a stored SUCCESS is final but for this
        self.backend._rows(self.backend._sql.store_extended, *row)  # noqa: SLF001

    def read_group(self, group_id: str) -> Any:  # noqa: ANN401
        rows = self.backend._rows(self.backend._sql.select_group, group_id)  # noqa: SLF001
        if not rows:
            return None
        return _plain(payload.value_of(rows[0][1], self.backend.decode, group_id, legacy_pickle=False))

    def write_group(self, group_id: str, value: Any) -> None:  # noqa: ANN401
        self.backend.save_group(group_id, result_from_tuple(value, self.backend.app))


class _StockRows:
    """Celery's own database class."""

    def __init__(self, backend: Any) -> None:  # noqa: ANN401
        self.backend = backend

    def read_task(self, task_id: str) -> dict[str, Any] | None:
        with self._session() as session:
            row = self.backend._query_task(session, task_id)  # noqa: SLF001 # Celery's
            meta = dict(row.to_dict()) if row else None
        if meta is None:
            return None
        decode = self.backend.decode
        for name in ("result", "children", "args", "kwargs"):
            if meta.get(name) is not None:
                meta[name] = decode(payload.as_bytes(meta[name]))
        stamps = meta.pop("stamps", None)
        if stamps is not None:
            record = decode(payload.as_bytes(stamps))
            meta.update(stamped_headers=record["stamped_headers"], **record["stamps"])
        return {**meta, "date_done": moment_of(meta["date_done"])}

    def write_task(self, task_id: str, meta: dict[str, Any]) -> None:
        from sqlalchemy.orm.attributes import flag_modified  # noqa: PLC0415 # only where Celery's class is used

        encode = self.backend.encode
        values = dict(
            zip(
                ("status", "result", "date_done", "traceback", "children", *_EXTENDED, "stamps"),
                payload.row_of(
                    {**meta, "result": payload.as_bytes(encode(meta["result"]))}, encode, extended=True
                ),
                strict=True,
            )
        )
        values["date_done"] = _naive(meta["date_done"])
        for name in ("args", "kwargs"):
            values[name] = None if meta.get(name) is None else payload.as_bytes(encode(meta[name]))
        with self._session() as session:
            row = self.backend._query_task(session, task_id)  # noqa: SLF001
            if not row:
                row = self.backend.task_cls(task_id)
                session.add(row)
                session.flush()
            for name, value in values.items():
                if name in row.__table__.columns and hasattr(type(row), name):
                    setattr(row, name, value)
                    flag_modified(row, name)  # a time that is left out would become the present
            session.commit()

    def read_group(self, group_id: str) -> Any:  # noqa: ANN401
        meta = self.backend._restore_group(group_id)  # noqa: SLF001
        return _plain(meta["result"]) if meta else None

    def write_group(self, group_id: str, value: Any) -> None:  # noqa: ANN401
        self.backend.delete_group(group_id)
        self.backend.save_group(group_id, result_from_tuple(value, self.backend.app))

    @contextlib.contextmanager
    def _session(self) -> Iterator[Any]:
        session = self.backend.ResultSession()
        try:
            yield session
        except BaseException:
            session.rollback()
            raise
        finally:
            session.close()


def moment_of(value: Any) -> dt.datetime | None:  # noqa: ANN401 # text or datetime
    """Give an aware time; what has no zone is UTC, as the bundle's stores have it."""
    if value is None:
        return None
    moment = dt.datetime.fromisoformat(value) if isinstance(value, str) else value
    assert isinstance(moment, dt.datetime)
    return moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)


def _naive(value: dt.datetime | None) -> dt.datetime | None:
    return None if value is None else value.astimezone(dt.UTC).replace(tzinfo=None)


def _plain(value: Any) -> Any:  # noqa: ANN401
    """Give a group as nested lists; pickle keeps the object."""
    return lists_of(value.as_tuple() if isinstance(value, ResultBase) else value)


def lists_of(value: Any) -> Any:  # noqa: ANN401
    """Give nested lists for what one serializer keeps as tuples and another as lists."""
    return [lists_of(item) for item in value] if isinstance(value, list | tuple) else value
