"""Move old results into an archive: a row leaves the database only when the disk has it, verified.

For each chunk: write, force to the disk, name, read again; write its line into the manifest, durably; delete
from the database what is unchanged; say so in the manifest. Killed at any point, the next run finds

- a file without a line in the manifest: its rows are all in the database; the file is removed;
- a line `written`: the file is complete; its rows are deleted as far as that was not done;
- a line `moved`: nothing to do.

So every row is in the archive or in the database; in both only between a kill and the next run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Final

from celery_results.archive import manifest as manifests
from celery_results.archive.errors import ArchiveError, ArchiveUsageError
from celery_results.archive.formats import (
    SUFFIXES,
    damaged,
    force_directory,
    read_chunk,
    require,
    sha256,
    write_chunk,
)
from celery_results.archive.manifest import COPIED, MOVED, WRITTEN, Chunk, Manifest
from celery_results.archive.rows import GROUP_BYTES, GROUP_ROWS, Candidate, Rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from celery_results.archive.records import Record

CHUNK_ROWS: Final = 50_000
CHUNK_BYTES: Final = 256 * 1024 * 1024  # before compression


@dataclass(frozen=True)
class Plan:
    """What is asked for."""

    directory: Path
    cutoff: datetime
    source: Mapping[str, str]
    form: str = "jsonl"
    keep: bool = False
    chunk_rows: int = CHUNK_ROWS
    chunk_bytes: int = CHUNK_BYTES


@dataclass(frozen=True)
class Progress:
    """What one run has done so far, in rows and files."""

    archived: int = 0
    deleted: int = 0
    not_moved: int = 0
    chunks: int = 0
    resumed: int = 0  # chunks of an earlier run whose deletion this one ended
    complete: bool = False


class Mover:
    """One run."""

    def __init__(
        self,
        plan: Plan,
        rows: Rows,
        on_progress: Callable[[Progress], None],
        stop: Callable[[], bool],
        reached: Callable[[str], None] = lambda _point: None,
    ) -> None:
        """Use these rows; `reached` hears of each point at which a kill must do no harm."""
        self._plan = plan
        self._rows = rows
        self._on_progress = on_progress
        self._stop = stop
        self._reached = reached
        self._progress = Progress()

    def run(self) -> Progress:
        """Archive all that is old enough, or until told to stop; raises ArchiveError, driver's errors."""
        plan = self._plan
        require(plan.form)
        if not self._rows.lock():
            raise ArchiveUsageError(
                expected="to be the only archive at work on this database",
                found="another one",
                do="wait for its end",
            )
        manifest = self._manifest()
        self._remove_leftovers(manifest)
        for chunk in manifest.chunks:
            if chunk.state == WRITTEN and not self._stop():
                manifest = self._let_go(manifest, chunk)
                self._tell(resumed=self._progress.resumed + 1)
        after = max((chunk.last_id for chunk in manifest.chunks), default=0) if plan.keep else 0
        for candidates in self._chunks(after):
            if self._stop():
                return self._progress
            manifest = self._archive(manifest, candidates)
        if self._stop():
            return self._progress
        if plan.keep:
            replace(manifest, complete=True).save(plan.directory)
        self._tell(complete=True)
        return self._progress

    def _manifest(self) -> Manifest:
        plan = self._plan
        mode = "copy" if plan.keep else "move"
        found = manifests.load(plan.directory)
        if found is None:
            if any(path.name.endswith(tuple(SUFFIXES.values())) for path in plan.directory.iterdir()):
                raise ArchiveError(
                    expected=f"a manifest beside the chunks in {plan.directory}",
                    found="none",
                    do="bring it back from a copy, or name another directory",
                )
            revision = self._rows.revision()
            new = Manifest(dict(plan.source), mode, revision, cutoff=plan.cutoff.isoformat())
            new.save(plan.directory)
            return new
        same = ("dialect", "database", "table")
        if found.mode != mode or any(found.source.get(name) != plan.source[name] for name in same):
            raise ArchiveUsageError(
                expected=f"an archive of {plan.source['database']} to {mode} results to",
                found=f"one of {found.source.get('database')} to {found.mode} them to",
                do="name another directory",
            )
        if found.complete:
            raise ArchiveUsageError(
                expected="a copy that is not complete yet",
                found=f"one that has all results before {found.cutoff}",
                do="name another directory",
            )
        if plan.keep:  # all of a copy is of one moment
            self._plan = replace(plan, cutoff=datetime.fromisoformat(found.cutoff))
            return found
        return replace(found, cutoff=plan.cutoff.isoformat())

    def _remove_leftovers(self, manifest: Manifest) -> None:
        known = {chunk.file for chunk in manifest.chunks}
        endings = (*SUFFIXES.values(), ".tmp")
        for path in sorted(self._plan.directory.iterdir()):
            ours = path.name.startswith(("chunk-", manifests.NAME)) and path.name.endswith(endings)
            if ours and path.name not in known:
                path.unlink()
        force_directory(self._plan.directory)

    def _chunks(self, after: int) -> Iterator[list[Candidate]]:
        chunk: list[Candidate] = []
        size = 0
        for candidate in self._rows.candidates(self._plan.cutoff, after):
            chunk.append(candidate)
            size += candidate.size
            if len(chunk) >= self._plan.chunk_rows or size >= self._plan.chunk_bytes:
                yield chunk
                chunk, size = [], 0
        if chunk:
            yield chunk

    def _archive(self, manifest: Manifest, candidates: list[Candidate]) -> Manifest:
        plan = self._plan
        number = 1 + max((int(chunk.file[6:14]) for chunk in manifest.chunks), default=0)
        path = plan.directory / f"chunk-{number:08}{SUFFIXES[plan.form]}"
        keys = write_chunk(path, plan.form, self._batches(candidates))
        self._reached("named")
        if not keys:  # all were deleted meanwhile
            path.unlink()
            return manifest
        chunk = Chunk(
            file=path.name,
            format=plan.form,
            sha256=sha256(path),
            bytes=path.stat().st_size,
            rows=len(keys),
            first_id=min(key[0] for key in keys),
            last_id=max(key[0] for key in keys),
            first_date_done=min(key[1] for key in keys),
            last_date_done=max(key[1] for key in keys),
            state=COPIED if plan.keep else WRITTEN,
        )
        if [record.key for record in read_chunk(path, plan.form)] != keys:
            raise damaged(path, "other rows than were written: the disk does not keep what it is given")
        manifest = manifest.with_chunk(chunk)
        manifest.save(plan.directory)
        self._reached("listed")
        self._tell(archived=self._progress.archived + len(keys), chunks=self._progress.chunks + 1)
        return manifest if plan.keep else self._let_go(manifest, chunk)

    def _batches(self, candidates: list[Candidate]) -> Iterator[list[Record]]:
        ids: list[int] = []
        size = 0
        for candidate in candidates:
            if ids and (len(ids) >= GROUP_ROWS or size + candidate.size > GROUP_BYTES):
                yield self._read(ids)
                ids, size = [], 0
            ids.append(candidate.id)
            size += candidate.size
        if ids:
            yield self._read(ids)

    def _read(self, ids: list[int]) -> list[Record]:
        self._reached("reading")
        return self._rows.read(ids, self._plan.cutoff)

    def _let_go(self, manifest: Manifest, chunk: Chunk) -> Manifest:
        path = self._plan.directory / chunk.file
        if sha256(path) != chunk.sha256:
            raise damaged(path, "another checksum")
        changed: list[int] = []
        deleted = 0
        keys: list[tuple[int, str, str]] = []
        for record in read_chunk(path, chunk.format):
            keys.append(record.key)
            if len(keys) == GROUP_ROWS:
                changed += self._rows.delete_unchanged(keys)
                deleted += len(keys)
                self._reached("deleting")
                keys = []
        if keys:
            changed += self._rows.delete_unchanged(keys)
            deleted += len(keys)
        self._reached("deleted")
        manifest = manifest.with_chunk(replace(chunk, state=MOVED, not_moved=tuple(changed)))
        manifest.save(self._plan.directory)
        self._reached("moved")
        self._tell(
            deleted=self._progress.deleted + deleted - len(changed),
            not_moved=self._progress.not_moved + len(changed),
        )
        return manifest

    def _tell(self, **changes: int | bool) -> None:
        self._progress = replace(self._progress, **changes)  # type: ignore[arg-type] # fields by name
        self._on_progress(self._progress)
