"""Celery's JSON documents taken apart byte by byte, without decoding what they hold.

A document is what Celery 5.7's key-value backends store: {"status", "result", "traceback", "children",
"date_done", "group_id"?, "parent_id"?, "name"…"queue"?, stamps?, "task_id"}. A column of its tables holds one
of these values in the same serializer, so the bytes of a value are the bytes of a column.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import re
from typing import TYPE_CHECKING, Any, Final

from celery_results.stores.record import Row, microseconds, moment

if TYPE_CHECKING:
    from celery_results.migration.lossy import Lossy

# What Celery writes for nearly every result, under UTC, without and with result_extended. A key can only
# stand where JSON has a key: within a string its quotes would be escaped. So where "traceback" is there once,
# that is the document's own, and the result ends before it; the name and what follows the last "worker" are
# matched to the end of the document, so these are its own too, and one "kwargs" between them divides the
# rest. Keys of these names within a result or an argument fail that; such a document is taken apart by JSON.
_HEAD: Final = re.compile(rb'\{"status": "([A-Z]+)", "result": ').match
SUCCESS: Final = b'{"status": "SUCCESS", "result": '
TRACEBACK: Final = b'"traceback": '
MIDDLE: Final = b', "traceback": null, "children": [], "date_done": "'
_RESULT: Final = len(SUCCESS)
_DONE: Final = len(MIDDLE)
_MINUTE: Final = len("2026-11-20T20:18:")
_POINT: Final = _MINUTE + len("07")
_TIME: Final = _POINT + len(".123456")
_MINUTES: Final = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:").fullmatch
ARGS: Final = b', "args": '
KWARGS: Final = b', "kwargs": '
WORKER: Final = b', "worker": '
_INSIDE: Final = len(ARGS)
_WITHIN: Final = len(KWARGS)
END: Final = b'"}'
BARE: Final = b'+00:00", "task_id": "'
_REST: Final = len(BARE)
_SHORT: Final = rb'(?:"([ !#-\[\]-~]{0,155})"|null)'  # what goes into its column as it is
_NAME: Final = re.compile(rb'\+00:00", "name": ' + _SHORT).fullmatch
_TAIL: Final = re.compile(
    rb', "worker": ' + _SHORT + rb', "retries": (?:(\d{1,9})|null), "queue": ' + _SHORT + rb', "task_id": "'
).fullmatch
_MOST_CACHED: Final = 10_000
_META: Final = ("status", "result", "traceback", "children", "date_done", "group_id", "parent_id", "task_id")
_CALL: Final = ("name", "args", "kwargs", "worker", "retries", "queue", "stamped_headers")
KNOWN: Final = frozenset((*_META, *_CALL))
# After date_done, in a row of which nothing more is known.
_NOTHING: Final = (None,) * 9
SCAN: Final[Any] = json.JSONDecoder().scan_once  # type: ignore[attr-defined] # of the C implementation
_STRING: Final = json.decoder.scanstring  # type: ignore[attr-defined] # json's own, documented nowhere
_SPACE: Final = re.compile(r"[ \t\n\r]*")
_WIDTH: Final = 155  # of name, worker and queue
_MOST: Final = 2**31 - 1


class MalformedError(ValueError):
    """What is stored is no document of Celery's; the message quotes nothing of it."""


class Reader:
    """Takes documents apart; remembers minutes, names, workers with their queues, of which there are few."""

    def __init__(self) -> None:
        """Remember nothing yet."""
        self.minutes: dict[bytes, int] = {}
        self.names: dict[bytes, bytes | None] = {}
        self.tails: dict[bytes, tuple[bytes | None, int | None, bytes | None]] = {}

    def task_row(  # noqa: PLR0911 - one for each doubt
        self, identifier: bytes, document: bytes, lossy: Lossy
    ) -> Row:
        """Give the columns of a document; raises MalformedError."""
        place = document.find(TRACEBACK)
        if (
            not document.startswith(MIDDLE, place - 2)
            or document.find(TRACEBACK, place + 1) > 0
            or document[-2:] != END
        ):
            return _task_row_of_any(identifier, document, lossy)
        if document.startswith(SUCCESS):
            status, result = b"SUCCESS", document[_RESULT : place - 2]
        elif head := _HEAD(document):
            status, result = head[1], document[head.end() : place - 2]
        else:
            return _task_row_of_any(identifier, document, lossy)
        start = place - 2 + _DONE
        point = start + _POINT
        rest = start + _TIME
        last = len(document) - len(identifier) - 2
        args = document.find(ARGS, rest)
        worker = document.rfind(WORKER)
        minute = document[start : start + _MINUTE]
        digits = document[point - 2 : point] + document[point + 1 : rest]
        if not digits.isdigit() or document[point : point + 1] != b".":
            return _task_row_of_any(identifier, document, lossy)
        try:
            date = self.minutes[minute] + int(digits)
            if last - rest == _REST and document.startswith(BARE, rest):
                return (identifier, status, result, date, *_NOTHING)
            name = self.names[document[rest:args]]
            by, retries, queue = self.tails[document[worker:last]]
        except KeyError:
            self._remember(minute, document[rest:args], document[worker:last])
            return _task_row_of_any(identifier, document, lossy)
        kwargs = document.find(KWARGS, args)
        if kwargs < 0 or document.find(KWARGS, kwargs + 1) > 0:
            return _task_row_of_any(identifier, document, lossy)
        positional, named = document[args + _INSIDE : kwargs], document[kwargs + _WITHIN : worker]
        return (
            identifier,
            status,
            result,
            date,
            None,
            None,  # Celery's tables have NULL for no children, and for None
            name,
            None if positional == b"null" else positional,
            None if named == b"null" else named,
            by,
            retries,
            queue,
            None,
        )

    def _remember(self, minute: bytes, name: bytes, tail: bytes) -> None:
        """Keep what is read without a doubt."""
        for kept in (self.minutes, self.names, self.tails):
            if len(kept) > _MOST_CACHED:
                kept.clear()
        if _MINUTES(minute):
            with contextlib.suppress(MalformedError):
                self.minutes[minute] = _date(minute.decode() + "00+00:00")
        if found := _NAME(name):
            self.names[name] = found[1]
        if found := _TAIL(tail):
            self.tails[tail] = found[1], None if found[2] is None else int(found[2]), found[3]


def _task_row_of_any(identifier: bytes, document: bytes, lossy: Lossy) -> Row:
    fields = members(document)
    values = {name: value for name, (value, _raw) in fields.items()}

    def raw(name: str) -> bytes | None:
        return fields[name][1].encode("utf-8", "surrogatepass") if values.get(name) is not None else None

    result = fields["result"][1].encode("utf-8", "surrogatepass") if "result" in fields else None
    stamps = None
    if values.get("stamped_headers"):
        headers = values["stamped_headers"]
        kept = {header: values[header] for header in headers if header in values}
        stamps = json.dumps({"stamped_headers": headers, "stamps": kept}).encode()
    # NULL for no children, as Celery's own class has it.
    return columns_of(values, identifier, lossy, result=result, stamps=stamps, raw=raw)


def columns_of(  # noqa: PLR0913 - a document has that many parts
    values: dict[str, Any],
    identifier: bytes,
    lossy: Lossy,
    *,
    result: bytes | None,
    stamps: bytes | None,
    raw: Any,  # noqa: ANN401 - a function from a field's name to its payload, None where it is null
) -> Row:
    """Give the columns of a decoded document whose payloads are at hand; count what has no column."""
    status = values.get("status")
    if not isinstance(status, str):
        raise MalformedError("no state in it")
    for name in ("group_id", "parent_id"):
        if values.get(name) is not None:
            lossy[name] += 1
    stamped = values.get("stamped_headers") or ()
    for name in values.keys() - KNOWN:
        if name not in stamped:
            lossy[f"field:{name[:40]}"] += 1
    retries = values.get("retries")
    if retries is not None and not (isinstance(retries, int) and abs(retries) <= _MOST):
        raise MalformedError("retries is no number of 32 bits")
    done = values.get("date_done")
    if isinstance(done, dt.datetime):
        date: int | None = microseconds(done)
    else:
        date = None if done is None else _date(str(done))
    children = values.get("children")
    return (
        identifier,
        status.encode(),
        result,
        date,
        _text(values.get("traceback"), "traceback", lossy),
        raw("children") if children else None,
        _text(values.get("name"), "name", lossy, _WIDTH),
        raw("args"),
        raw("kwargs"),
        _text(values.get("worker"), "worker", lossy, _WIDTH),
        None if retries is None else int(retries),
        _text(values.get("queue"), "queue", lossy, _WIDTH),
        stamps,
    )


def members(document: bytes) -> dict[str, tuple[Any, str]]:
    """Give each member of a JSON object decoded, and as it is written; raises MalformedError."""
    found: dict[str, tuple[Any, str]] = {}
    try:
        text = document.decode()
        place = _skip(text, 0)
        if text[place] != "{":
            raise MalformedError("no JSON object")
        place = _skip(text, place + 1)
        while text[place] != "}":
            if text[place] != '"':
                raise MalformedError("no JSON object")
            name, place = _STRING(text, place + 1, True)  # noqa: FBT003 - as json calls it
            place = _skip(text, place)
            if text[place] != ":":
                raise MalformedError("no JSON object")
            start = _skip(text, place + 1)
            value, end = SCAN(text, start)
            found[name] = (value, text[start:end])
            place = _skip(text, end)
            if text[place] == ",":
                place = _skip(text, place + 1)
            elif text[place] != "}":
                raise MalformedError("no JSON object")
        if _skip(text, place + 1) != len(text):
            raise MalformedError("more than one JSON value")
    except (ValueError, IndexError, StopIteration, RecursionError) as error:
        raise MalformedError(str(error) if isinstance(error, MalformedError) else "no JSON object") from None
    return found


def group_row(identifier: bytes, document: bytes, date: int) -> Row:
    """Give the columns of a saved group; raises MalformedError."""
    fields = members(document)
    if "result" not in fields:
        raise MalformedError("no result in it")
    return identifier, fields["result"][1].encode(), date


def _text(value: object, field: str, lossy: Lossy, width: int | None = None) -> bytes | None:
    """Encode text for a column; what no column takes is replaced and counted."""
    if value is None:
        return None
    text = value if isinstance(value, str) else str(value)
    if width is not None and len(text) > width:
        lossy[field] += 1
        text = text[:width]
    try:
        encoded = text.encode()
    except UnicodeEncodeError:
        lossy[field] += 1
        encoded = text.encode("utf-8", "replace")
    if b"\0" in encoded:
        lossy[field] += 1
        encoded = encoded.replace(b"\0", "\N{REPLACEMENT CHARACTER}".encode())
    return encoded


def _date(text: str) -> int:
    try:
        return microseconds(dt.datetime.fromisoformat(text))
    except (ValueError, OverflowError):
        raise MalformedError("date_done is no time") from None


def iso(count: int) -> bytes:
    """Write it as Celery does under UTC."""
    return moment(count).isoformat().encode() + b"+00:00"


def _skip(text: str, place: int) -> int:
    match = _SPACE.match(text, place)
    return match.end() if match else place
