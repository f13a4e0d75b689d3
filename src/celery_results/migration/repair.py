"""Pay what the journal owes: copy each result that a side lacks from the other one, until both are equal.

    report = repair(app)        # an app whose result_backend is the dual backend, in any stage
    report.clean                # nothing is owed on this host any more

Safe to repeat and to kill at any point: an entry leaves the journal only after both sides were seen to be
equal, at a time when no late answer of the mirror can still arrive. Results that tasks store meanwhile are
met by reading both sides again after each copy. It finds what is journalled, and no more: a process that was
killed between its two writes has journalled nothing, which is for the full comparison to find, and whose ids
can then be given here as `ids`.
"""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from celery import states

from celery_results.backends.dual.options import NEW, OLD, SETTING, Options
from celery_results.backends.dual.points import Point, lists_of, point_of, remaining_seconds, translated
from celery_results.backends.dual.side import build
from celery_results.migration.journal import (
    CHORD_PART,
    DELETE_GROUP,
    FORGET,
    GROUP,
    TASK,
    Entry,
    Journal,
    now_entry,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

logger = logging.getLogger(__name__)
TRIES: Final = 5
# Both sides take the time of a result by themselves, one after the other.
TOLERANCE_SECONDS: Final = 5.0
DEFAULT_SECONDS: Final = 60.0
_POLL_SECONDS: Final = 0.2
# What only a document has, and what one side may leave out.
_COMPARED: Final = ("status", "traceback")
_OPTIONAL: Final = ("name", "args", "kwargs", "worker", "retries", "queue")


@dataclass(frozen=True)
class Left:
    """What is still owed, and why."""

    entry: Entry
    reason: str


@dataclass(frozen=True)
class Report:
    """What one repair has done: ids that it looked at, writes and deletions that it made."""

    looked_at: int
    copied: int
    deleted: int
    left: tuple[Left, ...]
    overflowed: bool

    @property
    def clean(self) -> bool:
        """Say whether nothing is owed; after an overflow only the full comparison can say so."""
        return not self.left and not self.overflowed


class _AwayError(Exception):
    """A side does not answer: no entry after this one will fare better."""


def repair(
    app: Any,  # noqa: ANN401 # Celery has no types
    *,
    ids: Iterable[str] = (),
    seconds: float = DEFAULT_SECONDS,
    progress: Callable[[int], object] | None = None,
) -> Report:
    """Repair what is journalled on this host, and the results `ids` on the mirror of the present stage.

    Ends after `seconds` at the latest, with what is left. Raises JournalError if another repair runs,
    RepairError for sides of an unknown class and ImproperlyConfigured for an app without a dual backend.
    """
    options = Options.of_settings(app.conf.get(SETTING) or {})
    journal = Journal(options.journal, options.journal_bytes)
    sides = {name: point_of(build(app, options.sides[name])) for name in (OLD, NEW)}
    job = _Job(sides, options.stage.primary, progress)
    settled_after = 2 * options.mirror_seconds + 1.0
    end = time.monotonic() + seconds
    with journal.repairing():
        journal.append(now_entry(TASK, task_id, options.stage.mirror) for task_id in ids)
        while True:
            taken = journal.claim()
            # A late answer to the write that was journalled may still undo what is repaired now.
            final = time.time() - settled_after
            young = {id(entry): entry for entry in taken if entry.seconds > final}
            left = job.settle(taken, end)
            for item in left:
                young.pop(id(item.entry), None)
            journal.settle([*(item.entry for item in left), *young.values()])
            if not young and (left or not any(journal.entries())):
                break
            remaining = end - time.monotonic()
            if remaining <= 0:
                break
            youngest = max((entry.seconds for entry in young.values()), default=final)
            time.sleep(min(remaining, max(_POLL_SECONDS, youngest - final)))
        left += [Left(entry, "too young to be final") for entry in young.values()]
    return Report(job.looked_at, job.copied, job.deleted, tuple(left), journal.overflowed)


class _Job:
    def __init__(
        self, sides: dict[str, Point], primary: str, progress: Callable[[int], object] | None
    ) -> None:
        self._sides = sides
        self._primary = primary
        self._progress = progress
        self.looked_at = self.copied = self.deleted = 0

    def settle(self, entries: list[Entry], end: float) -> list[Left]:
        """Pay these; give those that could not be paid."""
        left: list[Left] = []
        away = ""
        for entry in entries:
            if not away and time.monotonic() >= end:
                away = "the time was up"
            reason = away
            if not away:
                try:
                    reason = self._pay(entry)
                    self.looked_at += 1
                except _AwayError as error:
                    reason = away = str(error)
                if self._progress is not None:
                    self._progress(self.looked_at)
            if reason:
                left.append(Left(entry, reason))
        return left

    def _pay(self, entry: Entry) -> str:
        """Pay one; say why not, or nothing."""
        other = NEW if entry.side == OLD else OLD
        source, target = self._sides[other], self._sides[entry.side]
        pay = {
            TASK: self._task,
            FORGET: self._task,
            GROUP: self._group,
            DELETE_GROUP: self._group,
            CHORD_PART: self._part,
        }[entry.operation]
        try:
            return pay(entry, source, target)
        except Exception as error:
            if isinstance(error, OSError) or any(
                point.backend.exception_safe_to_retry(error) for point in (source, target)
            ):
                raise _AwayError(f"a side does not answer: {type(error).__name__}") from error
            # A value that the serializer or the column of this side cannot hold, a missing right.
            return f"refused by the side {entry.side}: {type(error).__name__}"

    def _task(self, entry: Entry, source: Point, target: Point) -> str:
        for _ in range(TRIES):
            theirs, ours = source.read_task(entry.id), target.read_task(entry.id)
            if theirs is None:
                if entry.operation == FORGET and ours is not None:
                    target.backend._forget(entry.id)  # noqa: SLF001 # its forget() would end a subscription
                    self.deleted += 1
                    continue
                return ""
            theirs = translated(theirs, source.backend, target.backend)
            if self._keeps(theirs, ours, target.backend, is_primary=entry.side == self._primary):
                return ""
            left = remaining_seconds(target.backend, theirs)
            if left is not None and left <= 0:
                return ""  # expired: the source has not removed it yet
            target.write_task(entry.id, theirs)
            self.copied += 1
        return "it changes faster than it can be copied"

    def _keeps(
        self,
        theirs: dict[str, Any],
        ours: dict[str, Any] | None,
        backend: Any,  # noqa: ANN401
        *,
        is_primary: bool,
    ) -> bool:
        """Say whether what the side has is equal, or is to stay."""
        if ours is None:
            return False
        if equal(theirs, ours, backend):
            return True
        there, here = _rank(theirs), _rank(ours)
        if there != here:
            return here > there
        if is_primary:
            return True
        if theirs["status"] == states.SUCCESS or theirs["date_done"] is None:
            return False
        return bool(ours["date_done"] > theirs["date_done"])

    def _group(self, entry: Entry, source: Point, target: Point) -> str:
        for _ in range(TRIES):
            theirs, ours = source.read_group(entry.id), target.read_group(entry.id)
            if theirs is None:
                if entry.operation != DELETE_GROUP or ours is None:
                    return ""
                target.backend.delete_group(entry.id)
                self.deleted += 1
                continue
            if ours == theirs:
                return ""
            target.write_group(entry.id, theirs)
            self.copied += 1
        return "it changes faster than it can be copied"

    def _part(self, entry: Entry, source: Point, target: Point) -> str:
        """See whether the side still waits for a part; only the process that had it can report it."""
        del source
        backend = target.backend
        if entry.group is None or not hasattr(backend, "client"):
            return ""
        size, seen = (backend.get_key_for_group(entry.group, suffix) for suffix in (".s", ".d"))
        index = "+inf" if entry.index is None else entry.index
        if not backend.client.exists(size) or backend.client.sismember(seen, f"{entry.id}:{index}"):
            return ""
        return f"the chord {entry.group} lacks this part until the process that ran it reports it"


def equal(one: dict[str, Any], other: dict[str, Any], backend: Any) -> bool:  # noqa: ANN401
    """Compare two metas in the form of one side's serializer; what one of them cannot hold is left out."""
    if any((one.get(name) or None) != (other.get(name) or None) for name in _COMPARED):
        return False
    if lists_of(one.get("children") or []) != lists_of(other.get("children") or []):
        return False
    done = [meta["date_done"] for meta in (one, other)]
    # Celery's own database class also writes a time when an unfinished state is stored again.
    if one["status"] in states.READY_STATES:
        if None in done:
            return False
        if abs((done[0] - done[1]).total_seconds()) > TOLERANCE_SECONDS:
            return False
    names = [name for name in _OPTIONAL if one.get(name) is not None and other.get(name) is not None]
    return all(_same(one[name], other[name], backend) for name in ("result", *names))


def _same(one: Any, other: Any, backend: Any) -> bool:  # noqa: ANN401
    if type(one) is type(other):
        with contextlib.suppress(Exception):
            if one == other:
                return True
    return bool(backend.encode(one) == backend.encode(other))


def _rank(meta: dict[str, Any]) -> int:
    """Order states by how final they are."""
    if meta["status"] == states.SUCCESS:
        return 3
    if meta["status"] in states.READY_STATES:
        return 2
    return int(meta["status"] != states.PENDING)
