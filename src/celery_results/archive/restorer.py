"""Bring results back from an archive: checksums first, then rows that the database has not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from celery_results.archive import manifest as manifests
from celery_results.archive.errors import ArchiveError
from celery_results.archive.formats import damaged, read_chunk, sha256
from celery_results.archive.rows import GROUP_BYTES, GROUP_ROWS, Rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime
    from pathlib import Path

    from celery_results.archive.manifest import Chunk
    from celery_results.archive.records import Record


@dataclass(frozen=True)
class Selection:
    """What to bring back: tasks by id, or all that ended in [since, until); naive UTC."""

    task_ids: frozenset[str] = frozenset()
    since: datetime | None = None
    until: datetime | None = None

    def may_be_in(self, chunk: Chunk) -> bool:
        """Tell whether a chunk can hold what is wanted."""
        return not (
            (self.since is not None and chunk.last_date_done < _text(self.since))
            or (self.until is not None and chunk.first_date_done >= _text(self.until))
        )

    def takes(self, record: Record) -> bool:
        """Tell whether a row is wanted."""
        return (
            (not self.task_ids or record.task_id in self.task_ids)
            and (self.since is None or record.date_done >= _text(self.since))
            and (self.until is None or record.date_done < _text(self.until))
        )


@dataclass(frozen=True)
class Restored:
    """What one run has done so far, in rows."""

    selected: int = 0
    restored: int = 0
    renumbered: int = 0  # of these: under a new id, as the old one could be given to a new row
    present: int = 0  # the database had a row of the task: it stays as it is
    complete: bool = False


def restore(
    directory: Path,
    selection: Selection,
    rows: Rows,
    on_progress: Callable[[Restored], None],
    stop: Callable[[], bool],
) -> Restored:
    """Bring back what is selected; raises ArchiveError before anything is stored, and the driver's errors."""
    manifest = manifests.load(directory)
    if manifest is None:
        raise ArchiveError(
            expected=f"an archive in {directory}", found=f"no {manifests.NAME}", do="name its directory"
        )
    # The newest first: of a task that was archived twice, the later result is the one to have.
    chunks = [chunk for chunk in reversed(manifest.chunks) if selection.may_be_in(chunk)]
    _verify(directory, chunks)
    done = Restored()
    handed_out = None
    for batch in _batches(directory, chunks, selection):
        if stop():
            return done
        if handed_out is None:
            handed_out = rows.ids_handed_out()
        done = _store(rows, batch, handed_out, done)
        on_progress(done)
    return replace(done, complete=True)


def _verify(directory: Path, chunks: list[Chunk]) -> None:
    for chunk in chunks:
        path = directory / chunk.file
        if sha256(path) != chunk.sha256:
            raise damaged(path, "another checksum")


def _batches(directory: Path, chunks: list[Chunk], selection: Selection) -> Iterator[list[Record]]:
    for chunk in chunks:
        skipped = frozenset(chunk.not_moved)
        batch: list[Record] = []
        size = 0
        for record in read_chunk(directory / chunk.file, chunk.format):
            if record.id in skipped or not selection.takes(record):
                continue
            if batch and (len(batch) >= GROUP_ROWS or size + record.size > GROUP_BYTES):
                yield batch
                batch, size = [], 0
            batch.append(record)
            size += record.size
        if batch:
            yield batch


def _store(rows: Rows, batch: list[Record], handed_out: int | None, done: Restored) -> Restored:
    present = rows.present([record.task_id for record in batch])
    absent = [record for record in batch if record.task_id not in present]
    same = [record for record in absent if handed_out is None or record.id < handed_out]
    if same:
        rows.insert_absent(same, keep_ids=True)
    # Another row has the id, or a new one could get it: a new id then.
    there = rows.present([record.task_id for record in same]) if same else set()
    others = [record for record in absent if record.task_id not in there]
    if others:
        rows.insert_absent(others, keep_ids=False)
    return replace(
        done,
        selected=done.selected + len(batch),
        present=done.present + len(batch) - len(absent),
        restored=done.restored + len(absent),
        renumbered=done.renumbered + len(others),
    )


def _text(moment: datetime) -> str:
    return moment.isoformat(sep=" ", timespec="microseconds")
