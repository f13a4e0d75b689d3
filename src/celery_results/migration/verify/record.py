"""A result as one value that is the same on both sides, whatever store or serializer it was in."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from celery import states
from celery.backends.base import decompress_payload
from kombu.serialization import loads, registry

if TYPE_CHECKING:
    from collections.abc import Mapping

TASK: Final = "result"
GROUP: Final = "group"
# The fields by which two results are told apart, in the order of `Record.values`.
FIELDS: Final = (
    "status",
    "result",
    "traceback",
    "children",
    "date_done",
    "name",
    "args",
    "kwargs",
    "worker",
    "retries",
    "queue",
    "stamps",
    "group_id",
    "parent_id",
)
_DONE: Final = FIELDS.index("date_done")
_KNOWN: Final = frozenset((*FIELDS, "task_id", "stamped_headers"))
_WIDTH: Final = 155
_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_NAIVE_EPOCH: Final = dt.datetime(1970, 1, 1)  # noqa: DTZ001 - as databases have it: UTC without a zone
_MICROSECOND: Final = dt.timedelta(microseconds=1)
UNREADABLE: Final = "unreadable"


@dataclass(frozen=True)
class Terms:
    """What two sides can both hold: the rest cannot be compared, and is told by the copy."""

    databases: bool  # at least one side is one: no group_id, no parent_id, 155 characters, no NUL
    by_age: bool = False  # the target is one: its results end by their age, whatever their keys had
    seconds: bool = False  # at least one side keeps no microseconds
    json: bool = False  # both keep JSON: results can be looked at without decoding them
    # Seconds by which the end of a life may differ, and the time of a result: a dual write takes it twice.
    tolerance: float = 5.0

    def date(self, value: Any) -> int | None:  # noqa: ANN401 - text, datetime or None
        """Count microseconds since 1970, whole seconds of them where a side keeps no more."""
        count = self.microseconds(value)
        return count - count % 1_000_000 if self.seconds and count is not None else count

    @staticmethod
    def microseconds(value: Any) -> int | None:  # noqa: ANN401 - text, datetime or None
        """Count them since 1970; a time without a zone is UTC."""
        if value is None:
            return None
        when = value if isinstance(value, dt.datetime) else dt.datetime.fromisoformat(str(value))
        return (when - (_EPOCH if when.tzinfo else _NAIVE_EPOCH)) // _MICROSECOND

    def same_time(self, one: int | None, two: int | None) -> bool:
        """Say whether two times of a result, in microseconds, are those of one result."""
        if one is None or two is None:
            return one is two
        return abs(one - two) <= self.tolerance * 1_000_000


class Decoder:
    """Reads payloads of one serializer; JSON's own tags are compared as they are."""

    def __init__(self, serializer: str) -> None:
        """Take the name of result_serializer."""
        self._json = serializer == "json"
        self._type, self._encoding, _ = registry._encoders[serializer]  # noqa: SLF001 - as Celery does

    def __call__(self, payload: Any) -> Any:  # noqa: ANN401 - a payload, and any value
        """Give the value; raises ValueError."""
        if payload is None:
            return None
        plain = decompress_payload(payload)
        try:
            if self._json:
                return json.loads(plain)
            return loads(plain, self._type, self._encoding, accept=[self._type])  # type: ignore[no-untyped-call]
        except Exception as error:  # noqa: BLE001 - whatever the serializer raises
            raise ValueError(type(error).__name__) from None


@dataclass(frozen=True, slots=True)
class Record:
    """One result; `end` is when it expires, seconds since 1970, None for never or not before it is done."""

    id: str
    values: tuple[Any, ...]
    end: float | None
    expected_end: float | None

    @property
    def state(self) -> str:
        """Give the state."""
        return str(self.values[0])

    @property
    def done(self) -> int | None:
        """Give date_done in microseconds."""
        value: int | None = self.values[_DONE] if len(self.values) == len(FIELDS) else None
        return value

    def odd(self, terms: Terms) -> str | None:
        """Say, roughly, when its life ends, if that is not what its age and result_expires make it."""
        if self.expected_end is None or self.end is None:
            return None if self.end == self.expected_end else "never"
        return None if abs(self.end - self.expected_end) <= terms.tolerance else str(round(self.end / 60))

    def digest(self, terms: Terms) -> int:
        """Give 64 bits of everything that is compared.

        The end of a life is no number that is read twice alike: it is part of this only where it is odd. What
        differs by that alone is compared once more, to the second. The time of a result is no part of it at
        all, but whether there is one: a survey adds the times up instead.
        """
        values = self.values
        if len(values) == len(FIELDS):
            values = (*values[:_DONE], values[_DONE] is not None, *values[_DONE + 1 :])
        whole = (self.id, values, None if terms.by_age else self.odd(terms))
        text = json.dumps(whole, sort_keys=True, default=repr)
        return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())

    def differences(self, other: Record, terms: Terms) -> list[str]:
        """Name the fields that differ."""
        if len(self.values) != len(other.values):
            return [UNREADABLE]
        names = FIELDS if len(self.values) == len(FIELDS) else ("result",)
        canonical = [
            [json.dumps(value, sort_keys=True, default=repr) for value in record.values]
            for record in (self, other)
        ]
        fields = [name for name, one, two in zip(names, *canonical, strict=False) if one != two]
        if "date_done" in fields and terms.same_time(self.done, other.done):
            fields.remove("date_done")
        if terms.by_age or (terms.databases and (self.done is None or other.done is None)):
            return fields  # a row that is not done has no end
        if self.end is None or other.end is None:
            same = self.end == other.end
        else:
            same = abs(self.end - other.end) <= terms.tolerance
        return fields if same else [*fields, "expiry"]


def of_meta(
    identifier: str, meta: Mapping[str, Any], terms: Terms, end: float | None, expires: float | None
) -> Record:
    """Take what a result says of itself, decoded; raises ValueError for what is no result."""
    date = terms.date(meta.get("date_done"))
    status = meta["status"]
    if not isinstance(status, str):
        raise ValueError("status")  # noqa: TRY004 - of the data, not of the caller
    headers = meta.get("stamped_headers")
    stamps = {header: meta.get(header) for header in headers if header in meta} if headers else None
    cut = _cut if terms.databases else _same
    values = (
        status,
        meta.get("result"),
        _text(meta.get("traceback")) if terms.databases else meta.get("traceback"),
        meta.get("children") or None,
        date,
        cut(meta.get("name")),
        meta.get("args"),
        meta.get("kwargs"),
        cut(meta.get("worker")),
        meta.get("retries"),
        cut(meta.get("queue")),
        stamps,
        None if terms.databases else meta.get("group_id"),
        None if terms.databases else meta.get("parent_id"),
    )
    expected = None if date is None or expires is None else date / 1e6 + expires
    if date is None or status not in states.READY_STATES:
        expected = end  # nothing says when an unfinished result should go
    return Record(identifier, values, end, expected)


def unreadable(identifier: str, payload: object) -> Record:
    """Stand for what cannot be read: equal only to the same bytes."""
    mark = hashlib.blake2b(repr(payload).encode("utf-8", "replace")).hexdigest()
    return Record(identifier, (UNREADABLE, mark), None, None)


def _same(value: Any) -> Any:  # noqa: ANN401 - a member of a document
    return value


def _cut(value: Any) -> Any:  # noqa: ANN401 - a member of a document
    return value[:_WIDTH] if isinstance(value, str) else value


def _text(value: Any) -> Any:  # noqa: ANN401 - a member of a document
    if not isinstance(value, str):
        return value
    return value.encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")
