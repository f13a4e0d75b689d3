"""The copy: one thread reads and converts, this one writes, and notes how far it is once that is durable.

Insert-if-absent makes everything repeatable: a batch is written again after a lost connection, a run after a
kill, and what is there is counted as there. A position is only kept where it means the same: not across the
restart of a Redis that is read, whose cursors end with it, nor of one that is filled: it may have forgotten.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from celery_results.migration.ahead import Ahead
from celery_results.migration.checkpoint import MOST_FAILURES, Checkpoint, Progress
from celery_results.migration.convert import Converter
from celery_results.migration.pace import Pace
from celery_results.migration.patience import Patience, StoppedError
from celery_results.stores.record import KINDS, Kind, Written

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from celery_results.migration.lossy import Lossy
    from celery_results.stores.endpoint import Endpoint
    from celery_results.stores.record import Batch, Failure, Position, Source, Target

ROWS: Final = 5000
BYTES: Final = 4 << 20
PATIENCE_SECONDS: Final = 120.0
_AHEAD: Final = 2  # batches that are read while one is written


@dataclass(frozen=True)
class Options:
    """How to copy; a store may be away for `patience` seconds.

    A batch has about so many records or bytes, or fewer if the target likes that better; after each `rows`
    records the position is noted.
    """

    rows: int = ROWS
    size: int = BYTES
    patience: float = PATIENCE_SECONDS


@dataclass
class _Prepared:
    """A batch as the target takes it."""

    batch: Batch  # without its records
    read: dict[Kind, int]
    records: dict[Kind, Sequence[object]]
    failures: list[Failure]
    lossy: Lossy


class _RestartedError(Exception):
    """A server is not the one that was begun with."""


class Copy:
    """One run; see `run`."""

    def __init__(  # noqa: PLR0913 - all but the first two have defaults
        self,
        source: Endpoint,
        target: Endpoint,
        checkpoint: Checkpoint | None = None,
        pace: Pace | None = None,
        options: Options | None = None,
        *,
        on_progress: Callable[[Progress], None] = lambda _progress: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Take two stores; connects to nothing yet. Without a checkpoint each run begins at the beginning."""
        self._options = options or Options()
        self._source: Source = source.source()
        self._target: Target = target.target()
        self._to_source = Patience(self._source, source.place, self._options.patience, stop)
        self._to_target = Patience(self._target, target.place, self._options.patience, stop)
        self._converter = Converter(source.shape, target.shape, self._target.packer)
        self._checkpoint = checkpoint
        self._unsaved = 0  # records since the position was noted
        self._pace = pace or Pace()
        self._on_progress = on_progress
        self._stop = stop
        self.progress = Progress()

    def run(self) -> Progress:
        """Copy what the target has not; tell what became of it.

        Raises CopyError when a store stays away for longer than `patience` or refuses, CheckpointError, and
        StoreError where it is not as it must be. What was durable by then is in the checkpoint.
        """
        if self._checkpoint is not None:
            self.progress = self._checkpoint.load()
        with closing(self._source), closing(self._target):
            try:
                while not self.progress.complete and not self._stop():
                    try:
                        self._meet_stores()
                        self._pass()
                    except _RestartedError:
                        self.progress.begin_anew()
            except StoppedError:
                pass
            finally:
                if self._unsaved:
                    self._save()
        return self.progress

    def _meet_stores(self) -> None:
        """Connect to both, and see whether a position from before still holds."""
        progress = self.progress
        now = self._to_source.connect(), self._to_target.connect()
        before = progress.source_identity, progress.target_identity
        if progress.position is not None and ("" in now or before != now):
            progress.begin_anew()
        progress.source_identity, progress.target_identity = now

    def _pass(self) -> None:
        """Go from the position to the end, or until the end is wanted."""
        ahead = Ahead(self._read(self.progress.position), _AHEAD)
        try:
            self._pace.begin()
            for prepared in ahead:
                self._store(prepared)
                self._on_progress(self.progress)
                self._pace.after(sum(prepared.read.values()), self._stop)
                if self._stop():
                    return
                self._pace.begin()
        finally:
            ahead.end()
        if self._stop():
            return  # the reader may have noticed it first
        self.progress.complete = True
        self.progress.fraction = 1.0
        self._save()
        self._on_progress(self.progress)

    def _read(self, position: Position | None) -> Generator[_Prepared, None, None]:
        """Give batches as the target takes them: the work of the reading thread."""
        identity = self.progress.source_identity
        rows = min(self._options.rows, self._target.rows)
        while True:
            try:
                batches = self._source.batches(position, rows, self._options.size)
                for batch in batches:
                    self._to_source.answered()
                    yield self._prepare(batch)
                    position = batch.position
                    if self._stop():
                        return
            except Exception as error:  # noqa: BLE001 - whatever a driver raises
                self._to_source.bear(error)
                if self._to_source.connect() != identity or not identity:
                    raise _RestartedError from None
            else:
                return

    def _prepare(self, batch: Batch) -> _Prepared:
        records: dict[Kind, Sequence[object]] = {}
        read: dict[Kind, int] = {}
        failures = list(batch.failures)
        for kind in KINDS:
            read[kind] = len(batch.of(kind))
            records[kind], failed = self._converter.convert(kind, batch.of(kind))
            failures += failed
        # Converted, they are held for as long as the batch waits; in their first form no longer.
        batch.results, batch.groups = [], []
        return _Prepared(batch, read, records, failures, self._converter.take_lossy())

    def _store(self, prepared: _Prepared) -> None:
        """Write a batch, and only then count it and note its position."""
        progress, batch = self.progress, prepared.batch
        failures = list(prepared.failures)
        written: dict[Kind, Written] = {}
        for kind in KINDS:
            work = partial(self._target.write, kind, prepared.records[kind])
            written[kind] = (
                self._to_target.run(work, self._see_target) if prepared.records[kind] else Written()
            )
            failures += written[kind].failures
        # What ends this batch before here leaves the counts as they are for the position that is noted.
        for kind, done in written.items():
            tally = progress.tallies[kind]
            gone = batch.expired.get(kind, 0)
            unnamed = sum(failure.kind == kind for failure in batch.failures)
            tally.read += prepared.read[kind] + gone + unnamed
            tally.expired += gone + done.expired
            tally.copied += done.copied
            tally.present += done.present
        for failure in failures:
            progress.tallies[failure.kind].failed += 1
        progress.failures += failures[: MOST_FAILURES - len(progress.failures)]
        progress.lossy.update(prepared.lossy)
        progress.position, progress.fraction = batch.position, batch.fraction
        self._unsaved += max(1, sum(prepared.read.values()))
        if self._unsaved >= self._options.rows:
            self._save()

    def _see_target(self, identity: str) -> None:
        """Begin anew where a target that may forget was away."""
        if not identity or identity != self.progress.target_identity:
            raise _RestartedError

    def _save(self) -> None:
        self._unsaved = 0
        if self._checkpoint is not None:
            self._checkpoint.save(self.progress)
