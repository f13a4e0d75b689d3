"""Documents as Celery writes nearly all, cut straight into packed rows: the way of most results, in one loop.

What may be taken for granted, and why, is told in `document`: a document of which anything is in doubt goes
through its `Reader`, which also learns the names, workers and minutes that are known here.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final

from celery_results.migration.document import (
    ARGS,
    BARE,
    END,
    KWARGS,
    MIDDLE,
    SUCCESS,
    TRACEBACK,
    WORKER,
    Reader,
)
from celery_results.stores.copy_rows import EPOCH, NULL, field

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from celery_results.stores.copy_rows import Packer
    from celery_results.stores.record import Document, PackedRow

_SIZE: Final = Struct(">i").pack
_DATE: Final = Struct(">iq").pack
_MOST_CACHED: Final = 10_000
_RESULT: Final = len(SUCCESS)
_DONE: Final = len(MIDDLE)
_INSIDE: Final = len(ARGS)
_WITHIN: Final = len(KWARGS)
_MINUTE: Final = len("2026-11-20T20:18:")
_SECOND: Final = _MINUTE + len("07")
_TIME: Final = _SECOND + len(".123456")
_POINT: Final = ord(".")
_NO_TRACE_NO_CHILDREN: Final = NULL * 2
_BARE_CALL: Final = (NULL * 9,)  # from traceback on
_NONE: Final = b"null"


class _Sizes(dict[int, bytes]):
    """Packed lengths, of which those of small values are kept."""

    def __missing__(self, length: int) -> bytes:
        packed = _SIZE(length)
        if length < _MOST_CACHED:
            self[length] = packed
        return packed


class _Names(dict[bytes, bytes]):
    """Packed traceback, children and name, by what the document has from its time to its arguments."""

    def __init__(self, known: Mapping[bytes, bytes | None]) -> None:
        super().__init__()
        self._known = known

    def __missing__(self, text: bytes) -> bytes:
        if len(self) > _MOST_CACHED:
            self.clear()
        packed = self[text] = _NO_TRACE_NO_CHILDREN + field(self._known[text])
        return packed


class _Tails(dict[bytes, bytes]):
    """Packed worker, retries, queue and stamps, by the document's end without its id."""

    def __init__(
        self, known: Mapping[bytes, tuple[bytes | None, int | None, bytes | None]], packer: Packer
    ) -> None:
        super().__init__()
        self._known = known
        self._packer = packer

    def __missing__(self, text: bytes) -> bytes:
        if len(self) > _MOST_CACHED:
            self.clear()
        worker, retries, queue = self._known[text]
        texts, numbers = self._packer.texts, self._packer.numbers
        packed = self[text] = texts[worker] + numbers[retries] + texts[queue] + NULL
        return packed


class Cutter:
    """Cuts documents for one packer."""

    def __init__(self, reader: Reader, packer: Packer) -> None:
        """Know what the reader knows."""
        self._minutes = reader.minutes
        self._names = _Names(reader.names)
        self._tails = _Tails(reader.tails, packer)
        self._sizes = _Sizes()
        self._status = packer.texts[b"SUCCESS"]

    def rows(
        self,
        records: list[Document],
        life: int,
        tolerance: int,
        doubt: Callable[[Document], PackedRow | None],
    ) -> tuple[list[PackedRow], int, int]:
        """Give rows, how many of the documents never expire, and how many not when their time says so.

        `doubt` takes what is in doubt, and gives its row unless there is none. The two counts leave such out.
        """
        rows: list[PackedRow] = []
        never = odd = 0
        add, join, sizes, status = rows.append, b"".join, self._sizes, self._status
        minutes, names, tails = self._minutes, self._names, self._tails
        for record in records:
            identifier, value, deadline = record
            place = value.find(TRACEBACK) - 2
            start = place + _DONE
            rest = start + _TIME
            digits = value[start + _MINUTE : start + _SECOND] + value[start + _SECOND + 1 : rest]
            last = len(value) - len(identifier) - 2
            args = value.find(ARGS, rest)
            try:
                if (
                    not value.startswith(MIDDLE, place)
                    or not value.startswith(SUCCESS)
                    or not value.endswith(END)
                    or value.find(TRACEBACK, start) > 0
                    or not digits.isdigit()
                    or value[start + _SECOND] != _POINT
                ):
                    raise KeyError  # noqa: TRY301 - one way out for every doubt
                date = minutes[value[start : start + _MINUTE]] + int(digits)
                call: tuple[bytes, ...]
                if args > 0:
                    kwargs = value.find(KWARGS, args)
                    worker = value.rfind(WORKER)
                    if kwargs < 0 or value.find(KWARGS, kwargs + 1) > 0:
                        raise KeyError  # noqa: TRY301 - one way out for every doubt
                    positional, named = value[args + _INSIDE : kwargs], value[kwargs + _WITHIN : worker]
                    call = (
                        names[value[rest:args]],
                        NULL if positional == _NONE else sizes[len(positional)] + positional,
                        NULL if named == _NONE else sizes[len(named)] + named,
                        tails[value[worker:last]],
                    )
                elif value[rest:last] == BARE:
                    call = _BARE_CALL
                else:
                    raise KeyError  # noqa: TRY301 - one way out for every doubt
            except (KeyError, IndexError):  # in doubt, or not known yet
                row = doubt(record)
                if row is not None:
                    add(row)
                continue
            if deadline is None:
                never += 1
            elif abs(deadline * 1000 - date - life) > tolerance:
                odd += 1
            size = sizes[place - _RESULT]
            key = sizes[len(identifier)]
            result = value[_RESULT:place]
            packed = join((key, identifier, status, size, result, _DATE(8, date - EPOCH), *call))
            add((identifier, packed, date))
        return rows, never, odd
