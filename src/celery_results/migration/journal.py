"""The ids whose second write is owed: a file that many processes append to and one repair empties.

A line holds the time, what was to be done, the id and the side that lacks it; never a value. It is written by
one write() to a file that is opened for appending, so lines of different processes never mix and what a
process has written outlives its kill -9. It is not fsynced: after a loss of power the last seconds may be
missing, which the full comparison before the cutover finds. The directory holds

    journal        what is owed
    claimed        what a repair has taken and not yet settled; its lines are read again after a kill -9
    overflow       present once the limit of bytes was reached or a line could not be written or read: only a
                   full comparison can tell then what is owed
    repair.lock    held by the one repair that runs

All of them belong to one host; several hosts each have their own.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from celery_results.errors import CeleryResultsError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# About 180,000 lines; a repair keeps them in memory.
DEFAULT_LIMIT_BYTES: Final = 16 << 20
TASK: Final = "task"
FORGET: Final = "forget"
GROUP: Final = "group"
DELETE_GROUP: Final = "delete_group"
CHORD_PART: Final = "chord_part"
CHORD_PART_DONE: Final = "chord_part_done"
OPERATIONS: Final = frozenset({TASK, FORGET, GROUP, DELETE_GROUP, CHORD_PART, CHORD_PART_DONE})
_MODE: Final = 0o660


class JournalError(CeleryResultsError):
    """The journal cannot be used: another repair runs, or the directory is not ours."""


@dataclass(frozen=True)
class Entry:
    """One write that a side lacks; `side` is "old" or "new", `seconds` is Unix time.

    A part of a chord also has its `group` and its place in the header, `index`.
    """

    operation: str
    id: str
    side: str
    seconds: float
    group: str | None = None
    index: int | None = None

    def line(self) -> bytes:
        """Give the line; it begins and ends one, so that a torn one before it spoils nothing."""
        values: dict[str, Any] = {"t": round(self.seconds, 3), "op": self.operation, "id": self.id}
        values["side"] = self.side
        if self.group is not None:
            values.update(group=self.group, index=self.index)
        return b"\n" + json.dumps(values, separators=(",", ":")).encode() + b"\n"

    @classmethod
    def of_line(cls, line: bytes) -> Entry:
        """Read a line; raises ValueError, KeyError or TypeError."""
        values = json.loads(line)
        if values["op"] not in OPERATIONS:
            raise ValueError(values["op"])
        index = values.get("index")
        return cls(
            str(values["op"]),
            str(values["id"]),
            str(values["side"]),
            float(values["t"]),
            values.get("group"),
            None if index is None else int(index),
        )


class Journal:
    """The journal of one host; nothing is opened before the first line."""

    def __init__(self, directory: Path, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        """Name the directory; it is made with the first line if its parent is there."""
        self.directory = Path(directory)
        self._limit = limit_bytes
        self._file = self.directory / "journal"
        self._claimed = self.directory / "claimed"
        self._overflow = self.directory / "overflow"

    # Appending

    def append(self, entries: Iterable[Entry]) -> None:
        """Add lines; raises OSError if not even the overflow could be noted."""
        lines = b"".join(entry.line() for entry in entries)
        if not lines:
            return
        try:
            self._make_directory()
            with self._open() as file:
                descriptor = file.fileno()
                if os.fstat(descriptor).st_size + len(lines) > self._limit:
                    self.note_overflow()
                elif os.write(descriptor, lines) != len(lines):
                    self.note_overflow()  # the disk is full: part of a line
        except OSError:
            self.note_overflow()

    def _make_directory(self) -> None:
        """Make it for this user and group, whatever the umask is; one that is there is left as it is."""
        with contextlib.suppress(FileExistsError):
            self.directory.mkdir()
            self.directory.chmod(0o2770)

    @contextlib.contextmanager
    def _open(self) -> Iterator[Any]:
        """Open the file that bears the name, and keep a repair from reading it until the line is there."""
        while True:
            descriptor = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _MODE)
            with os.fdopen(descriptor, "ab", buffering=0) as file:
                fcntl.flock(descriptor, fcntl.LOCK_SH)
                status = self._share(descriptor)
                try:
                    current = self._file.stat().st_ino == status.st_ino
                except FileNotFoundError:
                    current = False  # a repair took it between our open and our lock
                if current:
                    yield file
                    return

    def note_overflow(self) -> None:
        """Leave a mark that ids are missing here; raises OSError."""
        descriptor = os.open(self._overflow, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, _MODE)
        try:
            self._share(descriptor)
            # Its time is that of the last one. Another user's file cannot be given the present, but bytes.
            os.ftruncate(descriptor, 0)
            os.write(descriptor, b"ids are missing here\n")
        except OSError:
            pass  # the disk is full, which the file's being there says well enough
        finally:
            os.close(descriptor)

    @staticmethod
    def _share(descriptor: int) -> os.stat_result:
        """Let the group write a file of ours, whatever the umask is: workers and clients share one."""
        status = os.fstat(descriptor)
        if status.st_uid == os.geteuid() and not status.st_mode & stat.S_IWGRP:
            os.fchmod(descriptor, _MODE)
        return status

    # Reading

    @property
    def overflowed(self) -> bool:
        """Say whether ids are missing here, so that only a full comparison finds them."""
        return self._overflow.exists()

    @property
    def overflowed_since(self) -> float | None:
        """Give the Unix time of the last overflow, None if there is none."""
        try:
            return self._overflow.stat().st_mtime
        except FileNotFoundError:
            return None

    def clear_overflow(self) -> None:
        """Take the mark away: a full comparison that began after it has found no difference."""
        self._overflow.unlink(missing_ok=True)

    def entries(self) -> Iterator[Entry]:
        """Read what is owed, oldest first, without taking it."""
        for path in (self._claimed, self._file):
            yield from self._read(path)

    def __len__(self) -> int:
        """Count the writes that are owed, each id once for each side."""
        return len(owed(self.entries()))

    def _read(self, path: Path) -> Iterator[Entry]:
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return
        with file:
            for line in file:
                if line.strip():
                    try:
                        yield Entry.of_line(line)
                    except (ValueError, KeyError, TypeError, AttributeError):
                        self.note_overflow()

    # Emptying

    @contextlib.contextmanager
    def repairing(self) -> Iterator[None]:
        """Be the only repair of this host; raises JournalError if another one runs."""
        self._make_directory()
        descriptor = os.open(self.directory / "repair.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _MODE)
        with os.fdopen(descriptor, "rb+"):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise JournalError(
                    expected="one repair of this journal at a time",
                    found="another one that runs",
                    do="wait for it to end",
                ) from None
            yield

    def claim(self) -> list[Entry]:
        """Take what is owed, each id once for each side; what a killed repair had taken is among it.

        Only inside of `repairing`. It stays on the disk until `settle`.
        """
        if not self._claimed.exists():
            try:
                self._file.rename(self._claimed)
            except FileNotFoundError:
                return []
        with self._claimed.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # who had opened it before it was renamed has written by then
        return list(owed(self._read(self._claimed)).values())

    def settle(self, left: Iterable[Entry]) -> None:
        """Drop what was taken, but for what is `left`; killed in between, it is owed twice, never lost."""
        self.append(left)
        self._claimed.unlink(missing_ok=True)


def owed(entries: Iterable[Entry]) -> dict[tuple[str, str, str], Entry]:
    """Keep the last entry for each id and side; a reported part of a chord owes nothing."""
    kept: dict[tuple[str, str, str], Entry] = {}
    for entry in entries:
        kind = "group" if entry.operation in {GROUP, DELETE_GROUP} else "task"
        if entry.operation in {CHORD_PART, CHORD_PART_DONE}:
            kind = "part"
        key = (kind, entry.id, entry.side)
        kept.pop(key, None)
        if entry.operation != CHORD_PART_DONE:
            kept[key] = entry
    return kept


def now_entry(
    operation: str, identifier: str, side: str, group: str | None = None, index: int | None = None
) -> Entry:
    """Make an entry of this moment."""
    return Entry(operation, identifier, side, time.time(), group, index)
