"""Rows as PostgreSQL's binary COPY takes them: "Binary Format" in the manual's page on COPY.

Text and payloads go as they are, behind their length; NULL is the length -1. What few distinct texts and
numbers look like is remembered, so that most of a row is put together from bytes that are there.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final

from celery_results.stores.tables import COLUMNS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from celery_results.stores.record import Kind, Row

HEADER: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER: Final = b"\xff\xff"
# PostgreSQL counts from 2000, in microseconds.
EPOCH: Final = 946_684_800_000_000
_SIZE: Final = Struct(">i").pack
_INT4: Final = Struct(">ii").pack
_INT8: Final = Struct(">iq").pack
_COUNT: Final = Struct(">h").pack
_NULL: Final = _SIZE(-1)
_MOST_CACHED: Final = 10_000


class _Texts(dict[bytes | None, bytes]):
    """Fields of text of which there are few."""

    def __missing__(self, text: bytes | None) -> bytes:
        if len(self) > _MOST_CACHED:
            self.clear()
        packed = self[text] = _field(text)
        return packed


class _Numbers(dict[int | None, bytes]):
    """Fields of type int4 of which there are few."""

    def __missing__(self, number: int | None) -> bytes:
        if len(self) > _MOST_CACHED:
            self.clear()
        packed = self[number] = _NULL if number is None else _INT4(4, number)
        return packed


class Packer:
    """Packs rows of one kind, with ids of eight or four bytes, or without any."""

    def __init__(self, kind: Kind) -> None:
        """Remember nothing yet."""
        self._kind = kind
        self._texts = _Texts()
        self._numbers = _Numbers()

    def packed(self, rows: Sequence[Row], ids: Sequence[int] | None = None, *, wide: bool = False) -> bytes:
        """Give the rows, without header and trailer; raises struct.error for a number beyond its column."""
        start = _COUNT(len(COLUMNS[self._kind]) + (ids is not None))
        starts = None if ids is None else [start + (_INT8(8, i) if wide else _INT4(4, i)) for i in ids]
        parts: list[bytes] = []
        if self._kind == "groups":
            for place, (identifier, result, date) in enumerate(rows):
                parts += (starts[place] if starts else start, _field(identifier), _field(result), _date(date))
            return b"".join(parts)
        texts, numbers = self._texts, self._numbers
        for place, row in enumerate(rows):
            identifier, status, result, date, trace, children, *call = row
            name, args, kwargs, worker, retries, queue, stamps = call
            parts += (
                starts[place] if starts else start,
                _SIZE(len(identifier)),
                identifier,
                texts[status],
                _NULL if result is None else _SIZE(len(result)),
                result or b"",
                _NULL if date is None else _INT8(8, date - EPOCH),
                _NULL if trace is None else _field(trace),
                _NULL if children is None else _field(children),
                texts[name],
                _NULL if args is None else _SIZE(len(args)),
                args or b"",
                _NULL if kwargs is None else _SIZE(len(kwargs)),
                kwargs or b"",
                texts[worker],
                numbers[retries],
                texts[queue],
                _NULL if stamps is None else _field(stamps),
            )
        return b"".join(parts)


def _field(value: bytes | None) -> bytes:
    return _NULL if value is None else _SIZE(len(value)) + value


def _date(date: int | None) -> bytes:
    return _NULL if date is None else _INT8(8, date - EPOCH)
