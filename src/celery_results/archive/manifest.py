"""The manifest of an archive: what each chunk holds, and how far its move has come.

`manifest.json`: `{"format": 1, "source": {...}, "mode": "move"|"copy", "schema_revision": "0001"|null,
"complete": bool, "chunks": [...]}`. It is replaced as a whole, durably, so it is old or new, never half.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from celery_results.archive.errors import ArchiveError, ArchiveUsageError
from celery_results.archive.formats import force_directory

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

NAME: Final = "manifest.json"
FORMAT: Final = 1
# A chunk is WRITTEN when it and its line here are durable, MOVED when the database has let go of its rows.
WRITTEN, MOVED, COPIED = "written", "moved", "copied"


@dataclass(frozen=True)
class Chunk:
    """One file: its checksum and what is in it.

    `not_moved` are ids of rows that had changed in the database before they could be deleted: these versions
    are no part of the archive, the database holds newer ones.
    """

    file: str
    format: str
    sha256: str
    bytes: int
    rows: int
    first_id: int
    last_id: int
    first_date_done: str
    last_date_done: str
    state: str
    not_moved: tuple[int, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """The whole archive."""

    source: Mapping[str, str]
    mode: str
    schema_revision: str | None = None
    complete: bool = False
    cutoff: str = ""
    chunks: tuple[Chunk, ...] = field(default=())

    def with_chunk(self, chunk: Chunk) -> Manifest:
        """Add a chunk, or put it in the place of the one with its name."""
        others = {known.file: known for known in self.chunks} | {chunk.file: chunk}
        return replace(self, chunks=tuple(others.values()))

    def save(self, directory: Path) -> None:
        """Replace the file durably."""
        temporary = directory / f"{NAME}.tmp"
        text = json.dumps({"format": FORMAT, **asdict(self)}, indent=1, ensure_ascii=False)
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(directory / NAME)
        force_directory(directory)


def load(directory: Path) -> Manifest | None:
    """Read the manifest; None where there is none, ArchiveError where it cannot be read."""
    path = directory / NAME
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return _manifest(document)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArchiveError(
            expected=f"{path} as celery-results archive writes it",
            found=f"{type(error).__name__}: {error}",
            do="bring it back from a copy; nothing was changed",
        ) from error


def _manifest(document: dict[str, Any]) -> Manifest:
    if document.pop("format") != FORMAT:
        raise ValueError("another format")
    chunks = tuple(_chunk(item) for item in document.pop("chunks"))
    return Manifest(chunks=chunks, **document)


def _chunk(item: dict[str, Any]) -> Chunk:
    chunk = Chunk(**{**item, "not_moved": tuple(item["not_moved"])})
    if "/" in chunk.file or chunk.file.startswith("."):
        raise ValueError(f"a chunk outside the directory: {chunk.file}")
    if chunk.state not in {WRITTEN, MOVED, COPIED} or chunk.format not in {"jsonl", "parquet"}:
        raise ValueError(f"unknown state or format of {chunk.file}")
    return chunk


@contextlib.contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Let one process at a time work on a directory; it ends with the process, however that ends."""
    with (directory / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ArchiveUsageError(
                expected=f"to be the only one that works on {directory}",
                found="another archive or restore at work",
                do="wait for its end",
            ) from None
        yield
