"""Celery's JSON documents put together from the columns of a row: the other direction of `document`."""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING, Any, Final

from celery_results.migration.document import KNOWN, SCAN, MalformedError, iso
from celery_results.stores.record import TASK_COLUMNS, Row

if TYPE_CHECKING:
    from collections.abc import Sequence

# What JSON writes as it is.
_HARMLESS: Final = bytes(set(range(ord(" "), ord("~") + 1)) - {ord('"'), ord("\\")})
_MOST_CACHED: Final = 10_000
_OF_RESULT, _OF_ARGS, _OF_KWARGS = (TASK_COLUMNS.index(name) for name in ("result", "args", "kwargs"))
_SHORT_PAYLOAD: Final = 64
_AT_ONCE: Final = 1 << 19  # of JSON that is decoded to see whether it is some
_NONE: Final = b"null"
_BARE: Final = (
    b'{"status": %b, "result": %b, "traceback": null, "children": null, "date_done": %b, "task_id": "%b"}'
)
_EXTENDED: Final = (
    b'{"status": %b, "result": %b, "traceback": null, "children": null, "date_done": %b, "name": %b,'
    b' "args": %b, "kwargs": %b, %b"%b"}'
)
_VALID: Final = frozenset((b"null", b"[]", b"{}", b"true", b"false"))


class _Texts(dict[bytes | None, bytes]):
    """Short texts as JSON."""

    def __missing__(self, value: bytes | None) -> bytes:
        if len(self) > _MOST_CACHED:
            self.clear()
        quoted = self[value] = _quoted(value)
        return quoted


class _Calls(dict[tuple[Any, ...], bytes]):
    """What a document has of a worker, its retries and its queue, and the name of what follows."""

    def __init__(self, texts: _Texts) -> None:
        super().__init__()
        self._texts = texts

    def __missing__(self, call: tuple[Any, ...]) -> bytes:
        if len(self) > _MOST_CACHED:
            self.clear()
        worker, retries, queue = call
        number = b"null" if retries is None else b"%d" % retries
        members = (self._texts[worker], number, self._texts[queue])
        found = self[call] = b'"worker": %b, "retries": %b, "queue": %b, "task_id": ' % members
        return found


class Writer:
    """Puts documents together; remembers short texts and minutes, of which there are few."""

    def __init__(self) -> None:
        """Remember nothing yet."""
        self._texts = _Texts()
        self._calls = _Calls(self._texts)
        self._minutes: dict[int, bytes] = {}
        self._known: set[bytes] = set()  # short payloads that are JSON

    def task_documents(self, rows: Sequence[Row]) -> list[bytes]:
        """Put some rows together, whose payloads are looked at all at once; raises MalformedError."""
        if not self._all_json(rows) or b"".join([row[0] for row in rows]).translate(None, _HARMLESS):
            return [self.task_document(row) for row in rows]
        documents: list[bytes] = []
        add, texts, calls, time = documents.append, self._texts, self._calls, self._time
        for row in rows:
            (
                identifier,
                status,
                result,
                date,
                trace,
                children,
                name,
                args,
                kwargs,
                worker,
                retries,
                queue,
                stamps,
            ) = row
            if date is None or trace is not None or children is not None or stamps is not None:
                add(self.task_document(row))
            elif name is not None:
                call = calls[worker, retries, queue]
                members = (args or _NONE, kwargs or _NONE, call, identifier)
                add(_EXTENDED % (texts[status], result or _NONE, time(date), texts[name], *members))
            elif args is None and kwargs is None and worker is None and retries is None and queue is None:
                add(_BARE % (texts[status], result or _NONE, time(date), identifier))
            else:
                add(self.task_document(row))
        return documents

    def _all_json(self, rows: Sequence[Row]) -> bool:
        known = self._known
        payloads = [
            value
            for row in rows
            for value in (row[_OF_RESULT], row[_OF_ARGS], row[_OF_KWARGS])
            if value is not None and (len(value) > _SHORT_PAYLOAD or value not in known)
        ]
        if not all_json(payloads):
            return False
        if len(known) > _MOST_CACHED:
            known.clear()
        known.update(value for value in payloads if len(value) <= _SHORT_PAYLOAD)
        return True

    def task_document(self, row: Row) -> bytes:
        """Put the columns of a row together as Celery does; raises MalformedError for what is no JSON."""
        identifier, status, result, date, trace, children, name, args, kwargs, *call, stamps = row
        worker, retries, queue = call
        document = b'{"status": %b, "result": %b, "traceback": %b, "children": %b, "date_done": %b' % (
            self._texts[status],
            _payload(result, "result"),
            b"null" if trace is None else _quoted(trace),
            b"null" if children is None else _payload(children, "children"),
            b"null" if date is None else self._time(date),
        )
        if any(value is not None for value in (name, args, kwargs, worker, retries, queue, stamps)):
            document += (
                b', "name": %b, "args": %b, "kwargs": %b, "worker": %b, "retries": %b, "queue": %b'
                % (
                    self._texts[name],
                    _payload(args, "args"),
                    _payload(kwargs, "kwargs"),
                    self._texts[worker],
                    b"null" if retries is None else b"%d" % retries,
                    self._texts[queue],
                )
            )
        if stamps is not None:
            document += _stamps(stamps)
        return b'%b, "task_id": %b}' % (document, _quoted(identifier))

    def _time(self, date: int) -> bytes:
        minute, rest = divmod(date, 60_000_000)
        if rest % 1_000_000 == 0:
            return b'"%b"' % iso(date)
        text = self._minutes.get(minute)
        if text is None:
            if len(self._minutes) > _MOST_CACHED:
                self._minutes.clear()
            text = self._minutes[minute] = iso(minute * 60_000_000)[:16]
        return b'"%b:%02d.%06d+00:00"' % (text, *divmod(rest, 1_000_000))


def group_document(row: Row) -> bytes:
    """Put a saved group together; raises MalformedError."""
    return b'{"result": %b}' % _payload(row[1], "result")


def _stamps(payload: bytes) -> bytes:
    try:
        record = json.loads(payload)
        headers, stamps = record["stamped_headers"], record.get("stamps") or {}
        spread = {name: value for name, value in stamps.items() if name not in KNOWN}
        return b", " + json.dumps({"stamped_headers": headers, **spread}).encode()[1:-1]
    except (ValueError, TypeError, KeyError, AttributeError):
        raise MalformedError("stamps are no record of Celery's") from None


def all_json(payloads: Sequence[bytes]) -> bool:
    """Tell whether each of them is one JSON value; false also where it is better to look at each by itself.

    They are read as one array with a mark between each two, which no payload can know: so a value that ends
    in another payload, or two in one, moves the marks to other places.
    """
    if not payloads:
        return True
    mark = secrets.token_hex(8)
    try:
        text = (b"[%b]" % (b',"%b",' % mark.encode()).join(payloads)).decode()
        if len(text) > _AT_ONCE:
            return False
        values, end = SCAN(text, 0)
    except (ValueError, StopIteration, RecursionError):
        return False
    return bool(
        end == len(text)
        and len(values) == 2 * len(payloads) - 1
        and values[1::2] == [mark] * (len(payloads) - 1)
    )


def _payload(value: bytes | None, column: str) -> bytes:
    if value is None:
        return b"null"
    if value not in _VALID:
        try:
            json.loads(value.decode())
        except (ValueError, RecursionError):
            pickled = ", but a pickle" if value[:1] == b"\x80" else ""
            raise MalformedError(f"{column} is no JSON{pickled}") from None
    return value


def _quoted(value: bytes | None) -> bytes:
    if value is None:
        return b"null"
    if not value.translate(None, _HARMLESS):
        return b'"%b"' % value
    return json.dumps(value.decode(errors="replace")).encode()
