"""A result as one number without decoding it: what a survey reads first, of stores that keep JSON.

The number is of the text that Celery would write: of a document its own, but for what two stores write
differently (the time of a result, and no children); of a row the text that its columns make. Texts that
differ may still hold the same values, so a difference here is never told: such results are read again and
decoded. Nor is anything proven about a document that is cut here in the wrong place: it then differs from
its row.
"""

from __future__ import annotations

import json
from json.encoder import encode_basestring_ascii
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from celery import states

from celery_results.migration.verify.record import FIELDS

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Sequence

    from celery_results.migration.verify.record import Record, Terms

_SUCCESS: Final = b'{"status": "SUCCESS", "result": '
_STATUS: Final = b'{"status": "'
# What Celery writes after a result, and what a copy from a database does, which has NULL for no children.
_MIDDLE: Final = b', "traceback": null, "children": [], "date_done": "'
_COPIED: Final = b', "traceback": null, "children": null, "date_done": "'
_ZONE: Final = b"+00:00"
_FOLLOWS: Final = (_ZONE + b'", "name": ', _ZONE + b'", "task_id": ')
_DAY: Final = len("2026-11-20")
_MINUTE: Final = len("2026-11-20T20:18:")
_TIME: Final = len("2026-11-20T20:18:07.123456")
_AFTER: Final = len('+00:00"')
_SECOND: Final = len("07")
_MOST_CACHED: Final = 10_000
_SECOND_OF_MICROSECONDS: Final = 1_000_000
_NULL: Final = b"null"
_NO_CALL: Final = (None, None, None)
_DONE: Final = FIELDS.index("date_done")


class Brief(NamedTuple):
    """One result: `odd` tells that its life does not end when its age says so."""

    id: bytes
    state: str
    done: int | None  # microseconds since 1970
    odd: bool
    number: int


class Documents:
    """Briefs of documents; remembers minutes, of which there are few."""

    def __init__(self, terms: Terms, expires: float | None) -> None:
        """Know when a result should expire."""
        self._terms = terms
        self._life = None if expires is None else int(expires * 1_000_000)
        self._minutes: dict[bytes, int] = {}

    def brief(self, identifier: bytes, value: bytes, end: int | None) -> Brief | None:
        """Take a document and when it expires, in microseconds; None where it is not a usual one."""
        place = value.find(_MIDDLE)
        start = place + len(_MIDDLE)
        if place < 0:
            place = value.find(_COPIED)
            start = place + len(_COPIED)
        rest = start + _TIME
        if place < 0 or not value.startswith(_FOLLOWS, rest):
            return None
        if value.startswith(_SUCCESS):
            state, ready = "SUCCESS", True
        elif value.startswith(_STATUS):
            state = value[len(_STATUS) : value.find(b'"', len(_STATUS))].decode(errors="replace")
            ready = state in states.READY_STATES
        else:
            return None
        done = self._done(value[start:rest])
        if done is None:
            return None
        odd = ready and self._odd(done, end)
        if odd and not self._terms.by_age:
            return None  # how odd is part of what is compared
        text = identifier + value[:place] + value[rest + _AFTER :]
        return Brief(identifier, state, done, odd, hash(text))

    def _odd(self, done: int, end: int | None) -> bool:
        life = self._life
        if end is None or life is None:
            return end is not life
        return abs(end - done - life) > self._terms.tolerance * 1_000_000

    def _done(self, text: bytes) -> int | None:
        minute, stamp = text[:_MINUTE], text[_MINUTE:]
        digits = stamp[:_SECOND] + stamp[_SECOND + 1 :]
        if not digits.isdigit() or stamp[_SECOND : _SECOND + 1] != b".":
            return None
        try:
            done = self._minutes[minute] + int(digits)
        except KeyError:
            try:
                done = self._learn(minute) + int(digits)
            except ValueError:
                return None
        return done - done % _SECOND_OF_MICROSECONDS if self._terms.seconds else done

    def _learn(self, minute: bytes) -> int:
        count = self._terms.microseconds(minute.decode() + "00+00:00")
        if count is None or minute[_DAY : _DAY + 1] != b"T":  # between day and hour Python takes anything
            raise ValueError("no time")
        if len(self._minutes) > _MOST_CACHED:
            self._minutes.clear()
        self._minutes[minute] = count
        return count


class Rows:
    """Briefs of rows; remembers how names and workers are written, of which there are few."""

    def __init__(self, terms: Terms) -> None:
        """Remember nothing yet."""
        self._terms = terms
        self._names: dict[str | None, bytes] = {}
        self._calls: dict[tuple[Any, ...], bytes] = {}
        self._heads: dict[str, bytes] = {}

    def brief(self, row: Sequence[Any], when: dt.datetime | None) -> Brief | None:
        """Take a row's columns and its time; None where a document would not be as Celery usually writes."""
        name, status, result, trace, children, _, task, args, kwargs, worker, retries, queue, stamps = row
        if when is None or trace is not None or children is not None or stamps is not None:
            return None
        call = (worker, retries, queue)
        try:
            head, end = self._heads[status], self._calls[call]
        except KeyError:
            head, end = self._learn(status, call)
        identifier = name.encode()
        parts: tuple[bytes, ...] = (identifier, head, result or _NULL)
        if task is None and args is None and kwargs is None and call == _NO_CALL:
            parts += (b', "task_id": ',)
        else:
            before = self._names.get(task)
            if before is None:
                before = self._learn_name(task)
            parts += (before, args or _NULL, b', "kwargs": ', kwargs or _NULL, end)
        text = b"".join((*parts, encode_basestring_ascii(name).encode(), b"}"))
        return Brief(identifier, status, self._terms.date(when), odd=False, number=hash(text))

    def _learn(self, status: str, call: tuple[Any, ...]) -> tuple[bytes, bytes]:
        if len(self._calls) > _MOST_CACHED:
            self._calls.clear()
        if len(self._heads) > _MOST_CACHED:
            self._heads.clear()
        self._heads[status] = b'{"status": %b, "result": ' % json.dumps(status).encode()
        written = tuple(json.dumps(value).encode() for value in call)
        self._calls[call] = b', "worker": %b, "retries": %b, "queue": %b, "task_id": ' % written
        return self._heads[status], self._calls[call]

    def _learn_name(self, name: str | None) -> bytes:
        if len(self._names) > _MOST_CACHED:
            self._names.clear()
        self._names[name] = b', "name": %b, "args": ' % json.dumps(name).encode()
        return self._names[name]


def of_record(record: Record, terms: Terms) -> Brief:
    """Take a decoded result: its number is that of a brief where a document of it would be a usual one."""
    odd = record.odd(terms)
    identifier = record.id.encode("utf-8", "surrogatepass")
    if len(record.values) != len(FIELDS):
        return Brief(identifier, record.state, record.done, odd is not None, record.digest(terms))
    values = [json.dumps(value, default=repr).encode() for value in record.values]
    status, result, trace, children, _, name, args, kwargs, worker, retries, queue, stamps, *family = values
    parts = [identifier, b'{"status": ', status, b', "result": ', result]
    if any(value is not None for value in record.values[_DONE + 1 : -3]):
        parts += [b', "name": ', name, b', "args": ', args, b', "kwargs": ', kwargs]
        parts += [b', "worker": ', worker, b', "retries": ', retries, b', "queue": ', queue]
    parts += [b', "task_id": ', encode_basestring_ascii(record.id).encode(), b"}"]
    told = None if terms.by_age else odd
    unusual = (trace, children, stamps, *family, record.done is None, told)
    if unusual != _AS_USUAL:
        parts.append(repr(unusual).encode())
    return Brief(identifier, record.state, record.done, odd is not None, hash(b"".join(parts)))


_AS_USUAL: Final = (_NULL,) * 5 + (False, None)
