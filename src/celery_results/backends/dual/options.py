"""What result_backend_transport_options says of the two sides, the stage and the bounds.

    {
        "stage": "dual_write",            # one of STAGES
        "old": {"result_backend": ...},   # the Celery settings that are this side's own
        "new": {"result_backend": ...},
        "journal": "/var/lib/celery/mirror-journal",
        # and, where the defaults do not fit: mirror_seconds, breaker_seconds, journal_bytes,
        # read_fallback, wait ("notify" or "poll")
    }

Celery ignores settings that it does not know. Here an unknown name is refused, in each of the three dicts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from celery.app.defaults import SETTING_KEYS
from celery.exceptions import ImproperlyConfigured

from celery_results.migration.journal import DEFAULT_LIMIT_BYTES

SETTING: Final = "result_backend_transport_options"
OLD: Final = "old"
NEW: Final = "new"
# celery/backends/redis.py reads these; they are missing in Celery's own list.
_UNLISTED: Final = {
    "redis_backend_health_check_interval",
    "redis_client_name",
    "redis_backend_credential_provider",
}
# One answer of the mirror may take so long; a task waits for no more than one that is too late, and then for
# none until the breaker lets another one try.
DEFAULT_MIRROR_SECONDS: Final = 2.0
DEFAULT_BREAKER_SECONDS: Final = 5.0


@dataclass(frozen=True)
class Stage:
    """What one step of a migration reads, writes and waits for."""

    primary: str
    read_fallback: bool  # ask the mirror too where the primary has no final answer
    notify: bool  # wait on the primary, which every worker surely writes; otherwise look at both
    mirror_results: bool = True  # results and groups; parts of chords and forget() always go to both

    @property
    def mirror(self) -> str:
        """Name the other side."""
        return NEW if self.primary == OLD else OLD


STAGES: Final[Mapping[str, Stage]] = {
    # The new side is filled; nobody depends on it.
    "dual_write": Stage(OLD, read_fallback=False, notify=True),
    # Between the two, for clients: while workers are restarted from dual_write into cutover, and back.
    "bridge": Stage(OLD, read_fallback=True, notify=False),
    # The new side answers, the old one is kept complete for the way back.
    "cutover": Stage(NEW, read_fallback=True, notify=False),
    # No way back: the old side is only read, until what it alone has is expired or fetched.
    "drain": Stage(NEW, read_fallback=True, notify=True, mirror_results=False),
}


@dataclass(frozen=True)
class Options:
    """The checked options."""

    stage: Stage
    sides: Mapping[str, Mapping[str, Any]]
    journal: Path
    mirror_seconds: float
    breaker_seconds: float
    journal_bytes: int

    @classmethod
    def of_settings(cls, options: Mapping[str, Any]) -> Options:
        """Check the whole; raises ImproperlyConfigured, and never repeats a value of a side."""
        required = {"stage", OLD, NEW, "journal"}
        known = required | {"mirror_seconds", "breaker_seconds", "journal_bytes", "read_fallback", "wait"}
        if missing := sorted(required - set(options)):
            raise _wrong(f"{', '.join(sorted(required))}", f"no {', '.join(missing)}")
        if unknown := sorted(map(str, set(options) - known)):
            raise _wrong(", ".join(sorted(known)), ", ".join(unknown))
        stage = STAGES.get(options["stage"])
        if stage is None:
            raise _wrong(f"stage to be one of {', '.join(STAGES)}", repr(options["stage"]))
        fallback, wait = options.get("read_fallback", stage.read_fallback), options.get("wait")
        if not isinstance(fallback, bool) or wait not in {None, "notify", "poll"}:
            raise _wrong(
                "read_fallback to be True or False, wait to be notify or poll", f"{fallback!r}, {wait!r}"
            )
        notify = stage.notify if wait is None else wait == "notify"
        stage = Stage(stage.primary, fallback, notify, stage.mirror_results)
        journal = Path(options["journal"])
        if not journal.is_absolute():
            raise _wrong("journal to be an absolute path", str(journal))
        return cls(
            stage,
            {name: _side(name, options[name]) for name in (OLD, NEW)},
            journal,
            _above_zero(options, "mirror_seconds", DEFAULT_MIRROR_SECONDS),
            _above_zero(options, "breaker_seconds", DEFAULT_BREAKER_SECONDS),
            int(_above_zero(options, "journal_bytes", DEFAULT_LIMIT_BYTES)),
        )


def _side(name: str, settings: Any) -> Mapping[str, Any]:  # noqa: ANN401 # whatever was configured
    if not isinstance(settings, Mapping) or not settings.get("result_backend"):
        raise _wrong(f"{name} to be a dict of Celery settings with result_backend", "something else")
    if unknown := sorted(map(str, set(settings) - SETTING_KEYS - _UNLISTED)):
        raise _wrong(f"{name} to hold settings of Celery in lower case", ", ".join(unknown))
    return settings


def _above_zero(options: Mapping[str, Any], name: str, default: float) -> float:
    try:
        value = float(options.get(name, default))
    except (TypeError, ValueError):
        value = 0.0
    if value <= 0:
        raise _wrong(f"{name} to be a number above 0", repr(options.get(name)))
    return value


def _wrong(expected: str, found: str) -> ImproperlyConfigured:
    return ImproperlyConfigured(f"{SETTING} of the dual backend: expected {expected}, found {found}")
