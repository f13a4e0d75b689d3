"""Delete expired results in small transactions beside live stores.

    delete_expired(Storage.at(url), cutoff)        # cutoff: naive UTC; all that finished before it goes

Celery deletes in one statement: on MariaDB that is seconds of locks, on every database one huge transaction.
Here each batch is its own transaction and a pause follows, so stores wait for at most one batch.

**Unfinished results.** Celery writes no time with STARTED, RETRY or a custom state, so its cleanup never
deletes them: a lost worker leaves a row for ever. But ids come from a sequence, in the order in which tasks
are first stored, and an update keeps the id. So if a row with a greater id was finished before the cutoff,
the unfinished one was first stored before the cutoff as well. That is the rule: an unfinished result expires
`result_expires` after it was *first* stored. A task that still runs and stores a state later gets a new row.

Restored or migrated rows bear fresh ids and old times, and would prove too much. So an unfinished row also
needs an id below that of every finished row that is still alive. This errs on the side of keeping a row until
a later cleanup. Clocks of workers, and a store that is retried, may be off by less than `result_expires`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from celery_results.backends.database.sweep import sweep_for

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Callable

    from celery_results.backends.database.storage import Storage

DEFAULT_BATCH: Final = 2000  # rows; with the pause 49,000 rows/s on PostgreSQL, hardly visible to stores
DEFAULT_PAUSE_SECONDS: Final = 0.02


@dataclass(frozen=True)
class Deleted:
    """What a cleanup has deleted so far, in rows."""

    results: int = 0
    groups: int = 0
    unfinished: int = 0
    complete: bool = False  # false while it runs, and for good if it was told to stop

    @property
    def total(self) -> int:
        """Give the sum."""
        return self.results + self.groups + self.unfinished


def delete_expired(  # noqa: PLR0913 # every one has its default
    storage: Storage,
    cutoff: dt.datetime,
    *,
    batch: int = DEFAULT_BATCH,
    pause: float = DEFAULT_PAUSE_SECONDS,
    on_progress: Callable[[Deleted], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Deleted:
    """Delete what finished before `cutoff` (naive UTC), groups, and unfinished rows that are surely older.

    `batch` is in rows, `pause` in seconds after each batch. `on_progress` gets the sums after each batch;
    `stop` is asked before each and ends the work in order. Killed or interrupted at any point, nothing is
    half done: run it again. Opens one connection of its own; raises the driver's errors.
    """
    done = Deleted()
    if stop is not None and stop():
        return done
    tables = storage.tables
    with storage.session() as session:
        sweep = sweep_for(storage.driver, session, batch)
        newest_expired = 0
        for field, schema, table in (
            ("results", tables.task_schema, tables.task),
            ("groups", tables.group_schema, tables.group),
        ):
            for ids in sweep.expired(schema, table, cutoff):
                done = replace(done, **{field: getattr(done, field) + len(ids)})
                if field == "results" and ids:
                    newest_expired = max(newest_expired, *ids)
                if not _go_on(done, on_progress, stop, pause if ids else 0):
                    return done
        for count in sweep.unfinished(tables.task_schema, tables.task, cutoff, newest_expired):
            done = replace(done, unfinished=done.unfinished + count)
            if not _go_on(done, on_progress, stop, pause if count else 0):
                return done
    return replace(done, complete=True)


def _go_on(
    done: Deleted,
    on_progress: Callable[[Deleted], None] | None,
    stop: Callable[[], bool] | None,
    pause: float,
) -> bool:
    if on_progress is not None:
        on_progress(done)
    if stop is not None and stop():
        return False
    if pause:
        time.sleep(pause)
    return True
