"""Run one step of a check, and turn whatever happens into an outcome with a remedy."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from celery_results import interruption
from celery_results.smoke.catalog import NAMES
from celery_results.smoke.diagnosis import causes, describe, remedy_for, telling_line
from celery_results.smoke.outcome import CheckFailed, NotRun, Outcome, Status
from celery_results.smoke.refusals import Accepted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from celery_results.redaction import Redactor
    from celery_results.smoke.catalog import Entry
    from celery_results.smoke.checks import Steps
    from celery_results.smoke.diagnosis import Hint


class Recorder:
    """The outcomes of one run, by name."""

    def __init__(
        self, redactor: Redactor, hints: Sequence[Hint], not_offered: Mapping[str, str] | None = None
    ) -> None:
        """Know the secrets not to print, what the server's messages mean, and what it does not offer."""
        self._not_offered = not_offered or {}
        self._redactor = redactor
        self._hints = hints
        self._outcomes: dict[str, Outcome] = {}
        self._began: dict[str, float] = {}
        # Where a result does not come, the reason is in the worker's log.
        self.worker_log: Callable[[], str] = str

    def outcomes(self) -> tuple[Outcome, ...]:
        """Give the outcomes in the catalog's order."""
        return tuple(sorted(self._outcomes.values(), key=lambda outcome: NAMES.index(outcome.name)))

    def any_failed(self, entries: Iterable[Entry]) -> bool:
        """Tell whether one of these failed."""
        names = {entry.name for entry in entries}
        return any(
            outcome.status is Status.FAILED for outcome in self._outcomes.values() if outcome.name in names
        )

    def step(self, entry: Entry, steps: Steps) -> bool:
        """Run a check up to its next yield; tell whether it goes on."""
        interruption.check()
        self._began.setdefault(entry.name, time.monotonic())
        try:
            next(steps)
        except StopIteration as end:
            absent = self._not_offered.get(entry.name)
            if absent is None:
                self._record(entry, Status.PASSED, end.value)
            else:
                self._record(entry, Status.NOT_OFFERED, f"{absent}; shown: {end.value}")
        except (CheckFailed, Accepted) as answer:
            self._fail(
                entry, str(answer), getattr(answer, "remedy", ""), accepted=isinstance(answer, Accepted)
            )
        except NotRun as answer:
            self.not_run(entry, str(answer))
        except Exception as error:  # noqa: BLE001 - any library's: it is this check's failure
            texts = " ".join(describe(cause) for cause in causes(error))
            self._fail(entry, describe(error), remedy_for(texts, self._hints))
        else:
            return True
        return False

    def not_run(self, entry: Entry, why: str) -> None:
        """Record that a check makes no sense here."""
        self._record(entry, Status.NOT_RUN, f"not run here: {why}")

    def not_offered(self, entry: Entry) -> None:
        """Record what this backend does not have, and says so."""
        self._record(entry, Status.NOT_OFFERED, self._not_offered[entry.name])

    def fail_the_rest(self, entries: Iterable[Entry], why: str) -> None:
        """Record a failure for every check that has no outcome yet."""
        for entry in entries:
            if entry.name not in self._outcomes:
                self._fail(entry, why, "")

    def _fail(self, entry: Entry, note: str, remedy: str, *, accepted: bool = False) -> None:
        if not accepted:
            remedy = remedy or remedy_for(note, self._hints)
            if not remedy and (line := telling_line(self.worker_log(), self._hints)):
                note = f"{note}; the worker's log says: {line[-200:]}"
                remedy = remedy_for(line, self._hints)
        self._record(entry, Status.FAILED, note, remedy or entry.remedy)

    def _record(self, entry: Entry, status: Status, note: str, remedy: str = "") -> None:
        seconds = time.monotonic() - self._began.get(entry.name, time.monotonic())
        note = self._redactor.clean(note)
        self._outcomes[entry.name] = Outcome(entry.name, status, round(seconds * 1000), note, remedy)
