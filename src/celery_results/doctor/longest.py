"""How long a task may take, and how far ahead it may be sent, as far as settings tell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celery_results.doctor.subject import Settings


def _annotations(settings: Settings) -> Iterator[Mapping[str, Any]]:
    given = settings.get("task_annotations") or ()
    for each in given if isinstance(given, list | tuple) else [given]:
        if isinstance(each, Mapping):
            yield from (value for value in each.values() if isinstance(value, Mapping))


def acknowledges_late(settings: Settings) -> str:
    """Name the setting by which tasks are acknowledged only when they are done; empty if there is none."""
    if settings.get("task_acks_late"):
        return "task_acks_late = True"
    if any(annotation.get("acks_late") for annotation in _annotations(settings)):
        return "task_annotations has acks_late"
    return ""


def run(settings: Settings) -> float | None:
    """Give the seconds that the longest task may run; None where nothing limits it."""
    general = settings.get("task_time_limit")
    own = [annotation.get("time_limit", general) for annotation in _annotations(settings)]
    limits = [general, *own]
    return None if any(limit is None for limit in limits) else max(float(limit) for limit in limits)


def delay(settings: Settings) -> float:
    """Give the seconds that beat's schedule and retries of the settings send tasks ahead; 0 if none."""
    schedule = settings.get("beat_schedule")
    entries = schedule.values() if isinstance(schedule, Mapping) else ()
    ahead = [
        (entry.get("options") or {}).get("countdown") or 0 for entry in entries if isinstance(entry, Mapping)
    ]
    ahead += [annotation.get("default_retry_delay") or 0 for annotation in _annotations(settings)]
    return max((float(seconds) for seconds in ahead), default=0.0)


def eta(settings: Settings) -> str:
    """Say how far ahead tasks are known to be sent."""
    seconds = delay(settings)
    return f"; tasks are sent {seconds:,.0f} s ahead" if seconds else ""
