"""The backend: the primary's word counts, the mirror follows."""

from __future__ import annotations

import contextlib
import datetime as dt
import time
from typing import TYPE_CHECKING, Any, Final

from celery import states

from celery_results.backends.database.chord import current_header
from celery_results.backends.database.waiting import PollingWait
from celery_results.backends.dual.mirror import Mirror
from celery_results.backends.dual.options import SETTING, Options
from celery_results.backends.dual.parts import Part, counts_parts, is_concerned, parts_of, reporting
from celery_results.backends.dual.points import moment_of
from celery_results.backends.dual.side import build, check_pair, class_of, place_of
from celery_results.backends.dual.waiting import WaitingBackend
from celery_results.migration.journal import DELETE_GROUP, FORGET, GROUP, TASK, now_entry

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from celery.result import ResultSet

# A cleanup of the mirror may take so long before nobody waits for it any more.
CLEANUP_SECONDS: Final = 3600.0
# A worker's second write is no later than its retries and the clocks of two hosts are apart.
RECENT_SECONDS: Final = 30.0


class DualBackend(WaitingBackend):
    """Two backends as one, for the time of a migration; see `options` for its settings.

    Raises `ImproperlyConfigured` at construction for options or sides that cannot be used, and what the
    primary's class raises. A mirror that is not there raises nothing.
    """

    # The sides see to both, each as its class can.
    supports_result_compression = True
    supports_failure_expires = True
    supports_native_join = True

    def __init__(self, app: Any, url: str | None = None, **kwargs: Any) -> None:  # noqa: ANN401 # Celery's
        """Build the primary; the settings of both sides are read here, once."""
        self.options = options = Options.of_settings(app.conf.get(SETTING) or {})
        check_pair(app, options.sides)
        self.stage = options.stage
        self.notify, self.read_fallback = self.stage.notify, self.stage.read_fallback
        self.primary = build(app, options.sides[self.stage.primary])
        self.mirror = Mirror(app, options)
        mirror_class, _ = class_of(app, self.mirror.settings)
        self._parts = parts_of(self.mirror) if counts_parts(mirror_class) else None
        super().__init__(app, url=url, serializer=self.primary.serializer, **kwargs)
        # Who deletes what is expired calls cleanup() unless neither side needs it.
        self.supports_autoexpire = self.primary.supports_autoexpire and mirror_class.supports_autoexpire
        # The worker asks for these when it looks at a result that it did not store (worker/request.py).
        self.always_retry = self.primary.always_retry
        self.max_retries = self.primary.max_retries
        self.persistent = self.primary.persistent

    def exception_safe_to_retry(self, exc: BaseException) -> bool:
        """Retry what the primary would."""
        return bool(self.primary.exception_safe_to_retry(exc))

    def on_backend_retryable_error(self, exc: BaseException) -> None:
        """Let the primary prepare for another try."""
        self.primary.on_backend_retryable_error(exc)

    # Writes

    def _mirrored(self, operation: str, identifier: str, work: Callable[[Any], object]) -> None:
        self.mirror.write(now_entry(operation, str(identifier), self.mirror.name), work)

    def store_result(  # Celery's
        self,
        task_id: str,
        result: object,
        state: str,
        traceback: str | None = None,
        request: Any = None,  # noqa: ANN401 # Celery has no types
        **kwargs: Any,  # noqa: ANN401 # Celery's
    ) -> object:
        """Store on the primary, whose error is the caller's, then on the mirror."""
        stored: object = self.primary.store_result(
            task_id, result, state, traceback=traceback, request=request, **kwargs
        )
        if self.stage.mirror_results:
            self._mirrored(
                TASK,
                task_id,
                lambda mirror: mirror.store_result(
                    task_id, result, state, traceback=traceback, request=request, **kwargs
                ),
            )
        return stored

    def forget(self, task_id: str) -> None:
        """Delete a result on both sides, in every stage: the other one would answer otherwise.

        Who forgets a result as soon as it is there may come between the worker's two writes: then this waits
        for the second one, at most half of `mirror_seconds`, and leaves the rest to the repair. While workers
        are restarted into another stage, some write the mirror first.
        """
        self._cache.pop(task_id, None)
        late = self._late_side(task_id)
        self.primary.forget(task_id)
        entry = now_entry(FORGET, task_id, self.mirror.name)
        forgotten = self.mirror.write(entry, lambda mirror: mirror.forget(task_id))
        if late and (forgotten or late != self.mirror.name):
            self.mirror.owe(now_entry(FORGET, task_id, late))

    def _late_side(self, task_id: str) -> str:
        """Name the side that a worker may be about to write still, after it was waited for; mostly none."""
        if not self.stage.mirror_results:
            return ""

        def on_primary() -> dict[str, Any] | None:
            with contextlib.suppress(Exception):  # what cannot be read can be forgotten all the same
                return self.primary._get_task_meta_for(task_id)  # type: ignore[no-any-return] # noqa: SLF001
            return None

        def on_mirror() -> dict[str, Any] | None:
            return self.mirror.read(lambda mirror: mirror._get_task_meta_for(task_id))  # noqa: SLF001

        if _is_recent(on_primary()):
            return "" if self._arrives(on_mirror) else self.mirror.name
        if self.read_fallback and _is_recent(on_mirror()):
            return "" if self._arrives(on_primary) else self.stage.primary
        return ""

    def _arrives(self, read: Callable[[], dict[str, Any] | None]) -> bool:
        """Wait until a side has a final state; one that cannot be read has not."""
        end = time.monotonic() + self.mirror.seconds / 2
        wait = PollingWait()
        while True:
            meta = read()
            if meta is None or meta["status"] in states.READY_STATES:
                return meta is not None
            left = end - time.monotonic()
            if left <= 0:
                return False
            wait.pause(left, 0.0)

    def save_group(self, group_id: str, result: ResultSet) -> ResultSet:
        """Save a group on the primary, then on the mirror."""
        self._cache.pop(group_id, None)
        saved = _save_group(self.primary, group_id, result)
        if self.stage.mirror_results:
            self._mirrored(GROUP, group_id, lambda mirror: _save_group(mirror, group_id, result))
        return saved

    def delete_group(self, group_id: str) -> None:
        """Delete a group on both sides, in every stage."""
        self._cache.pop(group_id, None)
        self.primary.delete_group(group_id)
        self._mirrored(DELETE_GROUP, group_id, lambda mirror: mirror.delete_group(group_id))

    # Reads

    def _get_task_meta_for(self, task_id: str) -> dict[str, Any]:
        # In celery.chord_unlock our database class answers for the whole header at once.
        read = self.primary.get_task_meta if current_header() else self.primary._get_task_meta_for  # noqa: SLF001
        meta: dict[str, Any] = read(task_id)
        if not self.read_fallback or meta["status"] in states.READY_STATES:
            return meta
        other = self.mirror.read(lambda mirror: mirror._get_task_meta_for(task_id))  # noqa: SLF001
        return _further(meta, other)

    def read_ready(
        self, task_ids: Collection[str], ready_states: Collection[str]
    ) -> dict[str, dict[str, Any]]:
        """Give the metas of those of many tasks that are ready: of the primary, else of the mirror."""
        found = {task_id: self._cache[task_id] for task_id in task_ids if task_id in self._cache}
        asked = [task_id for task_id in task_ids if task_id not in found]
        metas: dict[str, dict[str, Any]] = self._ensure_retryable(_ready, self.primary, asked, ready_states)
        absent = [task_id for task_id in asked if task_id not in metas]
        if absent and self.read_fallback:
            metas |= self.mirror.read(lambda mirror: _ready(mirror, absent, ready_states)) or {}
        for task_id, meta in metas.items():
            if meta["status"] == states.SUCCESS:
                self._cache[task_id] = meta
        return found | metas

    def is_cached(self, task_id: str) -> bool:
        """Say whether the meta is at hand: Celery's report of a failed chord looks at no other."""
        return bool(super().is_cached(task_id)) or bool(self.primary.is_cached(task_id))

    def task_result_exists(self, task_id: str) -> bool:
        """Say whether a side that is read has anything of this task."""
        if self.primary.task_result_exists(task_id):
            return True
        return self.read_fallback and bool(
            self.mirror.read(lambda mirror: mirror.task_result_exists(task_id))
        )

    def _restore_group(self, group_id: str) -> dict[str, Any] | None:
        if reporting():  # the mirror finishes a chord of its own, whose header it has saved
            return self.mirror.backend()._restore_group(group_id)  # type: ignore[no-any-return] # noqa: SLF001
        meta: dict[str, Any] | None = self.primary._restore_group(group_id)  # noqa: SLF001
        if meta is None and self.read_fallback:
            meta = self.mirror.read(lambda mirror: mirror._restore_group(group_id))  # noqa: SLF001
        return meta

    # Chords: created on the primary, their parts reported to both

    def ensure_chords_allowed(self) -> None:
        """Ask the primary."""
        self.primary.ensure_chords_allowed()

    def apply_chord(self, header_result_args: Any, body: Any, **kwargs: Any) -> None:  # noqa: ANN401 # Celery's
        """Start a chord on the primary."""
        self.primary.apply_chord(header_result_args, body, **kwargs)

    def set_chord_size(self, group_id: str, chord_size: int) -> None:
        """Tell the primary how many parts there are."""
        self.primary.set_chord_size(group_id, chord_size)

    def add_to_chord(self, chord_id: str, result: Any) -> None:  # noqa: ANN401 # Celery's
        """Add a task to a running chord, on the side that has it."""
        if not _has_chord(self.primary, chord_id) and self.mirror.read(
            lambda mirror: _has_chord(mirror, chord_id)
        ):
            # Its error is the caller's: a chord of the wrong size never ends, or ends too early.
            self.mirror.backend().add_to_chord(chord_id, result)
            return
        self.primary.add_to_chord(chord_id, result)

    def on_chord_part_return(self, request: Any, state: str, result: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Report a part to the side that created the chord, by telling both."""
        try:
            if is_concerned(self.primary, request):
                self.primary.on_chord_part_return(request, state, result, **kwargs)
        finally:
            if self._parts is not None:
                self._parts.report(Part(request, state, result, kwargs))

    # Housekeeping

    def cleanup(self) -> None:
        """Delete what has expired, where it does not go by itself; with result_expires 0 or None nothing."""
        if not self.primary.supports_autoexpire and self.primary.expires:
            self.primary.cleanup()

        def clean(mirror: Any) -> None:  # noqa: ANN401 # a backend
            if not mirror.supports_autoexpire and mirror.expires:
                mirror.cleanup()

        self.mirror.long(clean, CLEANUP_SECONDS)

    def process_cleanup(self) -> None:
        """End what a task has begun, on both sides."""
        self.primary.process_cleanup()
        mirror = self.mirror.built()
        if mirror is not None:
            with contextlib.suppress(Exception):
                mirror.process_cleanup()

    def as_uri(self, include_password: bool = False) -> str:  # noqa: ARG002, FBT001, FBT002 # Celery's
        """Name both sides; there is no single URL that could have the passwords."""
        return " -> ".join(
            place_of(self.app, self.options.sides[side]) for side in (self.stage.primary, self.stage.mirror)
        )


def _is_recent(meta: dict[str, Any] | None) -> bool:
    """Say whether a task ended just now, so that its worker may have written one side only."""
    done = None
    with contextlib.suppress(Exception):
        done = moment_of(meta.get("date_done")) if meta else None
    return done is not None and abs((dt.datetime.now(dt.UTC) - done).total_seconds()) < RECENT_SECONDS


def _further(meta: dict[str, Any], other: dict[str, Any] | None) -> dict[str, Any]:
    """Choose between two metas, the first of which is not ready: the other one only if it knows more."""
    if other is None:
        return meta
    knows_more = meta["status"] == states.PENDING and other["status"] != states.PENDING
    return other if knows_more or other["status"] in states.READY_STATES else meta


def _ready(
    backend: Any,  # noqa: ANN401 # Celery has no types
    task_ids: Collection[str],
    ready_states: Collection[str],
) -> dict[str, dict[str, Any]]:
    """Read many, with one query where the backend can."""
    if not task_ids:
        return {}
    if hasattr(backend, "get_many"):
        return dict(backend.get_many(set(task_ids), interval=0, max_iterations=1, READY_STATES=ready_states))
    metas = ((task_id, backend._get_task_meta_for(task_id)) for task_id in task_ids)  # noqa: SLF001
    return {task_id: meta for task_id, meta in metas if meta["status"] in ready_states}


def _save_group(backend: Any, group_id: str, result: ResultSet) -> ResultSet:  # noqa: ANN401 # a backend
    """Replace a group: Celery's own database class refuses to save one twice, Redis does not."""
    if hasattr(backend, "session_manager"):
        backend.delete_group(group_id)
    saved: ResultSet = backend.save_group(group_id, result)
    return saved


def _has_chord(backend: Any, group_id: str) -> bool:  # noqa: ANN401 # a backend
    """Say whether a Redis backend knows the size of this chord; a database never does."""
    if not hasattr(backend, "get_key_for_group") or not hasattr(backend, "client"):
        return False
    return bool(backend.client.exists(backend.get_key_for_group(group_id, ".s")))
