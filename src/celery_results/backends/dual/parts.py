"""Parts of chords that the mirror has not taken yet.

A chord belongs to the side that was the primary when it was created; after a switch that is the mirror, and
its body runs only if every part of its header is reported there. So a part that the mirror did not take is
kept in memory and reported again until it does; its id is journalled meanwhile, so that what a killed process
had kept is known (`celery_results.migration.repair` names the chord).
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from celery.backends.base import Backend, BaseKeyValueStoreBackend
from kombu.utils.compat import detect_environment

from celery_results.backends.database import fork
from celery_results.migration.journal import CHORD_PART, CHORD_PART_DONE, now_entry

if TYPE_CHECKING:
    from celery_results.backends.dual.mirror import Mirror

logger = logging.getLogger(__name__)
# A process whose mirror is away for long keeps so many; older ones are in the journal only.
MOST: Final = 10_000
# How often the thread looks whether the breaker lets it try.
LOOK_SECONDS: Final = 0.5
_reporting: Final = ContextVar("celery_results_reporting", default=False)


@dataclass(frozen=True)
class Part:
    """What on_chord_part_return was called with."""

    request: Any
    state: str
    result: Any
    options: dict[str, Any]


def counts_parts(kind: type[Backend]) -> bool:
    """Say whether a backend of this class does anything at all with a part.

    A database does not: its chords are finished by the task celery.chord_unlock, which reads the results.
    """
    method = kind.on_chord_part_return
    if method is BaseKeyValueStoreBackend.on_chord_part_return:
        return bool(kind.implements_incr)
    return method is not Backend.on_chord_part_return


def is_concerned(backend: Any, request: Any) -> bool:  # noqa: ANN401 # Celery has no types
    """Say whether a part may be reported to this side.

    Redis and the databases bear the parts of any chord. Celery's other counting backends take a part of a
    chord that they did not create for one whose header is lost, and fail its body.
    """
    if type(backend).on_chord_part_return is not BaseKeyValueStoreBackend.on_chord_part_return:
        return True
    return not request.group or backend._restore_group(request.group) is not None  # noqa: SLF001


class Parts:
    """Report parts to the mirror, in this process and until it ends."""

    def __init__(self, mirror: Mirror) -> None:
        """Keep nothing yet."""
        self._mirror = mirror
        self.after_fork()
        fork.register(self)

    def after_fork(self) -> None:
        """Begin empty in a child: what the parent keeps, the parent reports."""
        self._guard = threading.Lock()
        self._kept: deque[Part] = deque(maxlen=MOST)
        self._thread: threading.Thread | None = None

    def __len__(self) -> int:
        """Count what is kept."""
        return len(self._kept)

    def report(self, part: Part) -> None:
        """Report a part, or keep it for later."""
        request = part.request
        if not request.group or not request.id:
            return
        entry = now_entry(
            CHORD_PART, request.id, self._mirror.name, request.group, _index(request.group_index)
        )
        if self._mirror.write(entry, lambda mirror: _report(mirror, part)):
            return
        with self._guard:
            self._kept.append(part)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(
                    target=self._try_again, name="celery-results-chord-parts", daemon=True
                )
                self._thread.start()

    def _try_again(self) -> None:
        while True:
            with self._guard:
                if not self._kept:
                    self._thread = None
                    return
                part = self._kept[0]
            taken = self._mirror.offer(partial(_report, part=part))
            if taken is None:
                time.sleep(LOOK_SECONDS)
                continue
            if taken:
                done = now_entry(CHORD_PART_DONE, part.request.id, self._mirror.name, part.request.group)
                self._mirror.owe(done)
            # What it refuses stays in the journal.
            with self._guard:
                if self._kept and self._kept[0] is part:
                    self._kept.popleft()


_of_process: Final[dict[tuple[str, str], Parts]] = {}


def parts_of(mirror: Mirror) -> Parts:
    """Give what reports the parts of one backend.

    With gevent Celery makes a backend for each task: then all share what is kept and the thread that looks.
    """
    if detect_environment() == "default":  # type: ignore[no-untyped-call]
        return Parts(mirror)
    return _of_process.setdefault(mirror.place, Parts(mirror))


def _report(mirror: Any, part: Part) -> None:  # noqa: ANN401 # a backend
    if not is_concerned(mirror, part.request):
        return
    token = _reporting.set(True)
    try:
        mirror.on_chord_part_return(part.request, part.state, part.result, **part.options)
    finally:
        _reporting.reset(token)


def reporting() -> bool:
    """Say whether this thread reports a part to the mirror."""
    return _reporting.get()


def _index(value: Any) -> int | None:  # noqa: ANN401 # Celery's
    return value if isinstance(value, int) else None
