"""Rows of Celery's tables to and from what Celery hands over, byte for byte as its own class does it."""

from __future__ import annotations

import datetime as dt
import pickle
from typing import TYPE_CHECKING, Any, Final

from celery import states

from celery_results.backends.database.dialect import EXTENDED_COLUMNS
from celery_results.backends.database.errors import PickledResultError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

# Protocol 2 and later: what SQLAlchemy's PickleType wrote before Celery 5.7.
PICKLE_MARK: Final = b"\x80"
_STAMPS: Final = EXTENDED_COLUMNS.index("stamps")


def utc_now() -> dt.datetime:
    """Give the time as the tables hold it: UTC without a zone, whatever `timezone` is."""
    return dt.datetime.now(dt.UTC).replace(tzinfo=None)


def as_bytes(value: str | bytes) -> bytes:
    """Give the bytes of what a serializer made, or a driver read."""
    return value.encode() if isinstance(value, str) else bytes(value)


def row_of(meta: Mapping[str, Any], encode: Callable[[Any], Any], *, extended: bool) -> list[Any]:
    """Give the values of `dialect.columns`; `meta` is Celery's, with result, args and kwargs encoded."""
    children = meta.get("children")
    ready = meta["status"] in states.READY_STATES
    row = [
        meta["status"],
        meta["result"],
        utc_now() if ready else None,
        meta.get("traceback"),
        as_bytes(encode(children)) if children else None,
    ]
    if extended:
        row.extend(meta.get(name) for name in EXTENDED_COLUMNS[:_STAMPS])
        headers = meta.get("stamped_headers")
        stamps = {
            "stamped_headers": headers,
            "stamps": {name: meta.get(name) for name in headers or () if name in meta},
        }
        row.append(as_bytes(encode(stamps)) if headers else None)
    return row


def absent(task_id: str, *, extended: bool) -> dict[str, Any]:
    """Give what Celery says of a task of which nothing is stored."""
    names = (
        "result",
        "traceback",
        "date_done",
        "children",
        *(EXTENDED_COLUMNS[:_STAMPS] if extended else ()),
    )
    return {"task_id": task_id, "status": states.PENDING, **dict.fromkeys(names)}


def meta_of(
    row: Sequence[Any], moment: Callable[[Any], Any], decode: Callable[[Any], Any], *, legacy_pickle: bool
) -> dict[str, Any]:
    """Read a row of `select` or `select_extended`.

    Raises `PickledResultError` for a pickle, unless the serializer is pickle or `legacy_pickle` allows it,
    and what the serializer raises for anything else that it cannot read.
    """
    task_id, status, result, traceback, date_done, children, *extended = row
    meta = {
        "task_id": task_id,
        "status": status,
        "result": value_of(result, decode, task_id, legacy_pickle=legacy_pickle),
        "traceback": traceback,
        "date_done": moment(date_done),
        "children": decode(children),
    }
    if extended:
        meta.update(zip(EXTENDED_COLUMNS[:_STAMPS], extended, strict=False))
        for name in ("args", "kwargs"):
            meta[name] = decode(meta[name])
        _add_stamps(meta, extended[_STAMPS], decode)
    return meta


def value_of(payload: Any, decode: Callable[[Any], Any], owner: str, *, legacy_pickle: bool) -> Any:  # noqa: ANN401
    """Decode a `result` column; see `meta_of` for what it raises."""
    if payload is None:
        return None
    payload = as_bytes(payload)
    try:
        return decode(payload)
    except Exception:
        if payload[:1] != PICKLE_MARK:
            raise
    if legacy_pickle:
        return pickle.loads(payload)  # noqa: S301 # declared by the URL for rows of Celery before 5.7
    raise PickledResultError(
        expected=f"a result of {owner} in the configured result_serializer",
        found="a pickle, which would run code while it is read",
        do="delete the row; or, while trusted rows of Celery before 5.7 are migrated, add legacy_pickle=true"
        " to result_backend",
    )


def _add_stamps(meta: dict[str, Any], payload: Any, decode: Callable[[Any], Any]) -> None:  # noqa: ANN401
    """Spread the stamps over the meta as Celery does; what is no such record is left out, as it does too."""
    if payload is None:
        return
    try:
        record = decode(payload)
    except Exception:  # noqa: BLE001 # whatever the serializer raises
        return
    if isinstance(record, dict):
        if "stamped_headers" in record:
            meta["stamped_headers"] = record["stamped_headers"]
        if isinstance(record.get("stamps"), dict):
            meta.update(record["stamps"])
