"""Values of settings that mean the same for every backend."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from kombu.compression import get_encoder
from kombu.serialization import registry

from celery_results.doctor.findings import Finding, error, info, warning

if TYPE_CHECKING:
    from celery_results.doctor.subject import Subject

PICKLE = error(
    "CRB120",
    "Pickle is accepted",
    "Whoever can write one result or message runs code in every reader: use json, and accept_content = "
    "['json'].",
)
NOT_ACCEPTED = error(
    "CRB121",
    "Results are written in a format that readers refuse",
    "Name the serializer in result_accept_content (or accept_content) too, else reading raises "
    "ContentDisallowed.",
)
EXTENDED = info(
    "CRB122",
    "Task arguments are stored with the results",
    "If arguments can hold secrets or personal data, set result_extended = False.",
)
NO_RETRY = warning(
    "CRB123",
    "A short interruption of the server fails tasks",
    "Set result_backend_always_retry = True with a finite result_backend_max_retries, for example 10.",
)
ENDLESS_RETRY = warning(
    "CRB124",
    "A worker retries for ever",
    "Set result_backend_max_retries to a finite number: with the default (infinite) a worker hangs while "
    "the server "
    "is away, and does not stop when told to.",
)
CLEANUP_TWICE = warning(
    "CRB125",
    "Beat runs the clean-up twice",
    "Beat schedules celery.backend_cleanup by itself; give your own entry the key "
    "'celery.backend_cleanup', which "
    "replaces Celery's.",
)
CLEANUP_IDLE = info(
    "CRB126",
    "The clean-up in beat's schedule does nothing",
    "This backend expires results by itself: remove the entry.",
)
BAD_COMPRESSION = error(
    "CRB127",
    "Unknown compression method",
    "Celery refuses to start with it; use 'gzip', or remove result_compression.",
)
OVERRIDDEN = warning(
    "CRB128",
    "The environment overrides the settings",
    "Remove the variable, or the setting, so that only one place names the server.",
)
NEVER_EXPIRES = warning(
    "CRB129",
    "Results never expire",
    "Set result_expires to the seconds that results are needed, otherwise the store grows without limit.",
)

_CLEANUP: Final = "celery.backend_cleanup"
_BUNDLED: Final = frozenset(
    {"celery_results.backends.redis:RedisBackend", "celery_results.backends.rpc:RPCBackend"}
)
# The database backend retries by itself; these do only when told.
_RETRYING: Final = frozenset({"redis", "rediss", "sentinel", "mongodb"})
_AUTO_EXPIRING: Final = frozenset({"redis", "rediss", "sentinel", "rpc", "cache"}) | _BUNDLED
# Modules of their own say what it means there.
_OWN_EXPIRY_CHECK: Final = _BUNDLED | frozenset(
    {"redis", "rediss", "sentinel", "db", "database", "rpc", "", "disabled"}
)


def check(subject: Subject) -> Iterator[Finding]:
    """Judge what does not depend on the backend."""
    settings = subject.settings
    yield from _serializers(settings)
    if settings.get("result_extended"):
        yield EXTENDED.finding("result_extended = True")
    yield from _retries(subject)
    yield from _cleanup(subject)
    yield from _compression(settings)
    yield from _environment(subject)
    expires = settings.get("result_expires", 1)
    if subject.alias not in _OWN_EXPIRY_CHECK and not expires:
        yield NEVER_EXPIRES.finding(f"result_expires = {expires!r}")


def _names(value: object) -> set[str]:
    if isinstance(value, str):
        return {value}
    return {str(item) for item in value} if isinstance(value, Iterable) else set()


def _content_types(names: Iterable[str]) -> set[str]:
    return {str(registry.name_to_type.get(name, name)) for name in names}


def _serializers(settings: Mapping[str, Any]) -> Iterator[Finding]:
    pickled = _content_types({"pickle"}) | {"pickle"}
    accepted = _names(settings.get("accept_content") or ["json"])
    result_accepted = _names(settings.get("result_accept_content") or accepted)
    serializer = str(settings.get("result_serializer") or "json")
    for name in ("accept_content", "result_accept_content", "result_serializer"):
        if _names(settings.get(name)) & pickled:
            yield PICKLE.finding(f"{name} = {settings[name]!r}")
    # The type of a serializer of the user's own is known to his processes only.
    if serializer in registry.name_to_type and not _content_types({serializer}) & _content_types(
        result_accepted
    ):
        yield NOT_ACCEPTED.finding(
            f"result_serializer = {serializer!r}, accepted: {', '.join(sorted(result_accepted))}"
        )


def _retries(subject: Subject) -> Iterator[Finding]:
    settings = subject.settings
    if subject.alias not in _RETRYING:
        return
    if not settings.get("result_backend_always_retry"):
        yield NO_RETRY.finding(
            "result_backend_always_retry is off: get, delete and chord commands are not retried"
        )
        return
    retries = settings.get("result_backend_max_retries", math.inf)
    if retries is None or math.isinf(float(retries)):
        yield ENDLESS_RETRY.finding(
            "result_backend_always_retry = True with infinite result_backend_max_retries"
        )


def _cleanup(subject: Subject) -> Iterator[Finding]:
    schedule = subject.settings.get("beat_schedule")
    if not isinstance(schedule, Mapping):
        return
    for key, entry in schedule.items():
        task = entry.get("task") if isinstance(entry, Mapping) else getattr(entry, "task", None)
        if task != _CLEANUP:
            continue
        if subject.alias in _AUTO_EXPIRING:
            yield CLEANUP_IDLE.finding(f"beat_schedule[{key!r}]")
        elif key != _CLEANUP:
            yield CLEANUP_TWICE.finding(f"beat_schedule[{key!r}] beside Celery's own entry")


def _compression(settings: Mapping[str, Any]) -> Iterator[Finding]:
    method = settings.get("result_compression")
    if not method:
        return
    try:
        get_encoder(method)  # type: ignore[no-untyped-call]
    except KeyError:
        yield BAD_COMPRESSION.finding(f"result_compression = {method!r}")


def _environment(subject: Subject) -> Iterator[Finding]:
    for variable, setting in (
        ("CELERY_RESULT_BACKEND", "result_backend"),
        ("CELERY_BROKER_URL", "broker_url"),
    ):
        value = subject.environ.get(variable)
        if value and subject.settings.get(setting) not in (None, value):
            yield OVERRIDDEN.finding(f"{variable} is set and wins over {setting} of the settings")
    for variable in ("RESULT_BACKEND", "BROKER_URL"):
        if subject.environ.get(variable):
            yield OVERRIDDEN.finding(
                f"{variable} is set: the celery command takes it instead of the settings"
            )
