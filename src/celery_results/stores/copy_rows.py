"""Rows as PostgreSQL's binary COPY takes them: "Binary Format" in the manual's page on COPY.

Text and payloads go as they are, behind their length; NULL is the length -1. What few distinct texts and
numbers look like is remembered, so that most of a row is put together from bytes that are there.

A packed row is a result's id, its fields without their number, which depends on who gives ids, and its
date_done as in a row.
"""

from __future__ import annotations

from itertools import chain
from struct import Struct
from typing import TYPE_CHECKING, Final

from celery_results.stores.record import TASK_DATE
from celery_results.stores.tables import COLUMNS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from celery_results.stores.record import Kind, PackedRow, Row

HEADER: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER: Final = b"\xff\xff"
# PostgreSQL counts from 2000, in microseconds.
EPOCH: Final = 946_684_800_000_000
_SIZE: Final = Struct(">i").pack
_INT4: Final = Struct(">ii").pack
_INT8: Final = Struct(">iq").pack
_COUNT: Final = Struct(">h").pack
NULL: Final = _SIZE(-1)
_PACKED: Final = 3  # parts of a packed row; a result's row has thirteen
_MOST_CACHED: Final = 10_000


class _Texts(dict[bytes | None, bytes]):
    """Fields of text of which there are few."""

    def __missing__(self, text: bytes | None) -> bytes:
        if len(self) > _MOST_CACHED:
            self.clear()
        packed = self[text] = field(text)
        return packed


class _Numbers(dict[int | None, bytes]):
    """Fields of type int4 of which there are few."""

    def __missing__(self, number: int | None) -> bytes:
        if len(self) > _MOST_CACHED:
            self.clear()
        packed = self[number] = NULL if number is None else _INT4(4, number)
        return packed


class Packer:
    """Packs rows of one kind; `texts` and `numbers` are the packed forms of what there is little of."""

    def __init__(self, kind: Kind) -> None:
        """Remember nothing yet."""
        self._kind = kind
        self.texts = _Texts()
        self.numbers = _Numbers()

    def row(self, row: Row) -> PackedRow:
        """Pack a result's row; raises struct.error for a number beyond its column."""
        return row[0], self._fields(row), row[TASK_DATE]

    def _fields(self, row: Row) -> bytes:
        if self._kind == "groups":
            identifier, result, date = row
            return field(identifier) + field(result) + _date(date)
        identifier, status, result, date, trace, children, *call = row
        name, args, kwargs, worker, retries, queue, stamps = call
        texts = self.texts
        return b"".join(
            (
                field(identifier),
                texts[status],
                field(result),
                _date(date),
                field(trace),
                field(children),
                texts[name],
                field(args),
                field(kwargs),
                texts[worker],
                self.numbers[retries],
                texts[queue],
                field(stamps),
            )
        )

    def stream(
        self, rows: Sequence[Row | PackedRow], ids: Sequence[int] | None = None, *, wide: bool = False
    ) -> bytes:
        """Give rows, packed or not, as COPY takes them, with ids of eight or four bytes or without any.

        Without header and trailer; raises struct.error for a number beyond its column.
        """
        if self._kind == "groups":
            packed = [self._fields(row) for row in rows]
        else:
            packed = [row[1] if len(row) == _PACKED else self._fields(row) for row in rows]
        start = _COUNT(len(COLUMNS[self._kind]) + (ids is not None))
        if ids is None:
            return b"".join((start, start.join(packed))) if packed else b""
        starts = (start + (_INT8(8, i) if wide else _INT4(4, i)) for i in ids)
        return b"".join(chain.from_iterable(zip(starts, packed, strict=True)))


def field(value: bytes | None) -> bytes:
    """Pack text or a payload."""
    return NULL if value is None else _SIZE(len(value)) + value


def _date(date: int | None) -> bytes:
    return NULL if date is None else _INT8(8, date - EPOCH)
