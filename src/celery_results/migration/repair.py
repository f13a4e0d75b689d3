"""Pay what the journal owes: copy each result that a side lacks from the other one, until both are equal.

    report = repair(app)        # an app whose result_backend is the dual backend, in any stage
    report.clean                # nothing is owed on this host any more

Safe to repeat and to kill at any point: an entry leaves the journal only after both sides were seen to be
equal, at a time when no late answer of the mirror can still arrive. Results that tasks store meanwhile are
met by reading both sides again after each copy. It finds what is journalled, and no more: a process that was
killed between its two writes has journalled nothing, which is for the full comparison to find, and whose
findings can then be given here as `found` (see `given`).
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from celery import states
from celery.exceptions import ImproperlyConfigured

from celery_results.backends.dual.options import NEW, OLD, SETTING, Options
from celery_results.backends.dual.points import Point, point_of, remaining_seconds, translated
from celery_results.backends.dual.side import build_mirror, place_of
from celery_results.errors import CeleryResultsError, UnreachableError
from celery_results.migration.alike import UnreadableError, equal, rank, readable
from celery_results.migration.given import EXPIRY, Found, differs_in
from celery_results.migration.journal import (
    CHORD_PART,
    DELETE_GROUP,
    FORGET,
    GROUP,
    TASK,
    Entry,
    Journal,
)
from celery_results.migration.patience import is_full

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

T = TypeVar("T")
TRIES: Final = 5
DEFAULT_SECONDS: Final = 60.0
# A side that does not answer within this is away; nothing is asked twice.
ANSWER_SECONDS: Final = 20.0
_POLL_SECONDS: Final = 0.2


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
    found: Iterable[Found] = (),
    seconds: float = DEFAULT_SECONDS,
    progress: Callable[[int], object] | None = None,
) -> Report:
    """Repair what is journalled on this host, then the results `ids` and what a comparison has `found`.

    These are brought to both sides: what one alone has is copied to the other and nothing is deleted, for
    nobody can tell a result that was forgotten on one side from one that was lost there. Where both have one,
    the more final one stays, and of two alike the primary's. They are not journalled.

    Ends after `seconds` at the latest, with what is left. Raises JournalError if another repair runs,
    RepairError for sides of an unknown class, ImproperlyConfigured for an app without a dual backend, and
    UnreachableError for a class that cannot even be built without its server.
    """
    options = Options.of_settings(app.conf.get(SETTING) or {})
    journal = Journal(options.journal, options.journal_bytes)
    sides = {name: _point(app, options.sides[name]) for name in (OLD, NEW)}
    job = _Job(sides, options.stage.primary, progress, is_alone=not options.stage.read_fallback)
    settled_after = 2 * options.mirror_seconds + 1.0
    end = time.monotonic() + seconds
    with journal.repairing():
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
            youngest = max((entry.seconds for entry in young.values()), default=final)
            nap = max(_POLL_SECONDS, youngest - final)
            if time.monotonic() + nap >= end:
                break
            time.sleep(nap)
        left += [Left(entry, "too young to be final") for entry in young.values()]
        given = dict.fromkeys([*(Found(TASK, task_id) for task_id in ids), *found])
        left += job.bring(given, end)
    return Report(job.looked_at, job.copied, job.deleted, tuple(left), journal.overflowed)


def _point(app: Any, settings: Mapping[str, Any]) -> Point:  # noqa: ANN401 # Celery has no types
    try:
        return point_of(build_mirror(app, settings, ANSWER_SECONDS))
    except (CeleryResultsError, ImproperlyConfigured):
        raise
    except Exception as error:
        raise UnreachableError(
            expected=f"{place_of(app, settings)} to answer",
            found=type(error).__name__,
            do="see that its server runs, then repair again",
        ) from error


class _Job:
    def __init__(
        self,
        sides: dict[str, Point],
        primary: str,
        progress: Callable[[int], object] | None,
        *,
        is_alone: bool,
    ) -> None:
        self._sides = sides
        self._primary = primary
        self._progress = progress
        # Nobody reads the mirror yet: what it alone has was forgotten by a client that does not know of it.
        self._is_alone = is_alone
        self.looked_at = self.copied = self.deleted = 0

    def settle(self, entries: list[Entry], end: float) -> list[Left]:
        """Pay these; give those that could not be paid."""
        return [Left(entry, reason) for entry, reason in self._each(entries, self._pay, end)]

    def bring(self, given: Iterable[Found], end: float) -> list[Left]:
        """Have both sides hold these alike; give those that they do not."""
        mirror = NEW if self._primary == OLD else OLD
        return [
            Left(Entry(found.operation, found.id, mirror, time.time()), reason)
            for found, reason in self._each(given, lambda found: self._bring(found, mirror), end)
        ]

    def _each(self, items: Iterable[T], pay: Callable[[T], str], end: float) -> Iterator[tuple[T, str]]:
        """Pay each; give those that could not be paid, with the reason."""
        away = ""
        for item in items:
            if not away and time.monotonic() >= end:
                away = "the time was up"
            reason = away
            if not away:
                try:
                    reason = pay(item)
                    self.looked_at += 1
                except _AwayError as error:
                    reason = away = str(error)
                if self._progress is not None:
                    self._progress(self.looked_at)
            if reason:
                yield item, reason

    def _pay(self, entry: Entry, *, journalled: bool = True) -> str:
        """Pay one; say why not, or nothing."""
        other = NEW if entry.side == OLD else OLD
        source, target = self._sides[other], self._sides[entry.side]
        # What a comparison has found may be newer on either side.
        is_primary = journalled and entry.side == self._primary
        pays: dict[str, Callable[[Entry, Point, Point], str]] = {
            TASK: partial(self._task, is_primary=is_primary),
            FORGET: partial(self._task, is_primary=is_primary),
            GROUP: self._group,
            DELETE_GROUP: self._group,
            CHORD_PART: self._part,
        }
        with self._told(source, target, entry.side) as reasons:
            reasons.append(pays[entry.operation](entry, source, target))
        return reasons[-1]

    @contextlib.contextmanager
    def _told(self, source: Point, target: Point, side: str) -> Iterator[list[str]]:
        """Put what is raised into words; raises _AwayError."""
        reasons = [""]
        try:
            yield reasons
        except UnreadableError as error:
            reasons.append(str(error))
        except Exception as error:
            if isinstance(error, OSError) or any(
                point.backend.exception_safe_to_retry(error) for point in (source, target)
            ):
                lacks = "has no room" if is_full(error) else "does not answer"
                raise _AwayError(f"a side {lacks}: {type(error).__name__}") from error
            # A value that the serializer or the column of this side cannot hold, a missing right.
            reasons.append(f"refused by the side {side}: {type(error).__name__}")

    def _bring(self, found: Found, mirror: str) -> str:
        def pay(side: str) -> str:
            return self._pay(Entry(found.operation, found.id, side, 0.0), journalled=False)

        if self._is_alone:
            reason = self._forget_extra(found, mirror)
            if reason:
                return reason
        reason = pay(mirror)
        if reason:  # perhaps it is the primary that cannot be read
            reason = "" if not pay(self._primary) and not pay(mirror) else reason
        else:
            reason = pay(self._primary)
        if reason or found.operation != TASK or not found.fields:
            return reason
        source, target = self._sides[self._primary], self._sides[mirror]
        with self._told(source, target, mirror) as reasons:
            reasons.append(self._as_told(found, source, target))
        return reasons[-1]

    def _forget_extra(self, found: Found, mirror: str) -> str:
        """Delete on the mirror what the primary has no more."""
        source, target = self._sides[self._primary], self._sides[mirror]
        with self._told(source, target, mirror) as reasons:
            if found.operation == TASK:
                if readable(source, found.id) is None and target.backend.task_result_exists(found.id):
                    target.backend._forget(found.id)  # noqa: SLF001 # its forget() would end a subscription
                    self.deleted += 1
            elif source.read_group(found.id) is None and target.read_group(found.id) is not None:
                target.backend.delete_group(found.id)
                self.deleted += 1
        return reasons[-1]

    def _as_told(self, found: Found, source: Point, target: Point) -> str:
        """See to the fields that two equal results may differ in."""
        for may_write in (True, False):
            theirs, ours = readable(source, found.id), readable(target, found.id)
            if theirs is None or ours is None:
                return ""
            differ = [name for name in found.fields if differs_in(name, theirs, ours)]
            if not differ:
                return self._lives(found, [(source, theirs), (target, ours)])
            if may_write:
                target.write_task(found.id, translated(theirs, source.backend, target.backend))
                self.copied += 1
        return f"one side cannot hold the same {', '.join(differ)}"

    def _lives(self, found: Found, stored: list[tuple[Point, dict[str, Any]]]) -> str:
        """Have a result end on both sides when its age says so, as the rows of a database do anyway."""
        if EXPIRY not in found.fields:
            return ""
        for point, meta in stored:
            if meta["status"] not in states.READY_STATES:
                return "unfinished, so that nothing says when it should expire"
            left = remaining_seconds(point.backend, meta)
            if left is not None and left <= 0:
                return "older than result_expires: it is left to expire"
        for point, meta in stored:
            if hasattr(point.backend, "client"):
                point.write_task(found.id, meta)
                self.copied += 1
        return ""

    def _task(self, entry: Entry, source: Point, target: Point, *, is_primary: bool) -> str:
        for _ in range(TRIES):
            theirs = readable(source, entry.id)
            try:
                ours = readable(target, entry.id)
            except UnreadableError:
                if theirs is None and entry.operation != FORGET:
                    raise
                target.backend._forget(entry.id)  # noqa: SLF001 # nobody can read it
                ours = None
            if theirs is None:
                if entry.operation == FORGET and ours is not None:
                    target.backend._forget(entry.id)  # noqa: SLF001 # its forget() would end a subscription
                    self.deleted += 1
                    continue
                return ""
            theirs = translated(theirs, source.backend, target.backend)
            if self._keeps(theirs, ours, target.backend, is_primary=is_primary):
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
        there, here = rank(theirs), rank(ours)
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
