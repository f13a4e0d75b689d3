"""Names: Celery ignores a setting that it does not know, without a word."""

from __future__ import annotations

from difflib import get_close_matches
from types import ModuleType
from typing import TYPE_CHECKING, Final

from celery.app.defaults import _OLD_SETTING_KEYS, _TO_NEW_KEY, NAMESPACES, SETTING_KEYS
from celery.app.utils import detect_settings
from celery.exceptions import ImproperlyConfigured

from celery_results.doctor.findings import Finding, error, info, warning

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery_results.doctor.subject import Subject

MISSPELT = error(
    "CRB101",
    "Celery does not know this setting",
    "Use the name that Celery reads; it ignores every other one silently.",
)
FOREIGN = warning(
    "CRB102",
    "No part of Celery reads this setting",
    "Remove it, or start its name with an underscore if it is a helper of your own.",
)
HELPER = info(
    "CRB103",
    "A public name that is no setting",
    "Start helper names with an underscore, so that a misspelt setting stands out.",
)
DEAD = warning("CRB104", "This setting has no effect", "Remove it.")
MIXED = error(
    "CRB105",
    "Old and new setting names are mixed",
    "Celery refuses to start with both styles: rename all to the new, lower-case names (celery upgrade "
    "settings).",
)
OLD = info(
    "CRB106",
    "Old upper-case setting names",
    "Celery 6 removes them: rename them with `celery upgrade settings FILE`.",
)

# Read through conf.get(), hence missing from Celery's own table.
UNLISTED: Final = frozenset(
    {
        "dynamodb_endpoint_url",
        "gcs_threadpool_maxsize",
        "override_backends",
        "redis_backend_credential_provider",
        "redis_backend_health_check_interval",
        "redis_client_name",
        "result_backend_thread_safe",
    }
)
# Settings of well-known extensions, which live in the same module.
_EXTENSIONS: Final = ("redbeat_", "django_celery_", "flower_", "beat_dburi", "once")
_DEAD: Final = {
    "result_compression_level": "Celery has neither a level nor a threshold for compression: remove it.",
    "result_exchange": "The rpc backend replies through the default exchange: remove it.",
    "result_exchange_type": "The rpc backend replies through the default exchange: remove it.",
    "database_short_lived_sessions": "Every operation has its own session already; against stale "
    "connections keep "
    "database_engine_options['pool_pre_ping'] = True.",
    "result_transport_options": "The name is result_backend_transport_options.",
    "CELERY_RESULT_TRANSPORT_OPTIONS": "The name is result_backend_transport_options.",
    "new_result_backend": "Celery has one result backend: set result_backend.",
    "result_threshold": "Celery has neither a level nor a threshold for compression: remove it.",
}
_OLD_PREFIXES: Final = ("CELERY_", "CELERYD_", "CELERYBEAT_", "BROKER_")
_PREFIXES: Final = tuple(f"{name}_" for name, options in NAMESPACES.items() if isinstance(options, dict))


def check(subject: Subject) -> Iterator[Finding]:
    """Judge every name that the module makes public."""
    for name in sorted(subject.raw):
        if name in _DEAD:
            yield DEAD.finding(f"{name} is set", _DEAD[name])
        elif name not in SETTING_KEYS | UNLISTED | _OLD_SETTING_KEYS and not _is_code(subject.raw[name]):
            yield from _unknown(name)
    yield from _styles(subject)


def _is_code(value: object) -> bool:
    return isinstance(value, ModuleType | type) or callable(value)


def _unknown(name: str) -> Iterator[Finding]:
    if name.startswith("_") or name.lower().startswith(_EXTENSIONS):
        return
    if name.isupper():
        # Other upper-case names are constants of the module.
        if name.startswith(_OLD_PREFIXES):
            yield _unknown_old(name)
        return
    nearest = get_close_matches(name, SETTING_KEYS | UNLISTED, n=1, cutoff=0.84)
    if nearest:
        yield MISSPELT.finding(f"{name}", f"Did you mean {nearest[0]}? Celery ignores {name} silently.")
    elif name.startswith(_PREFIXES):
        yield FOREIGN.finding(f"{name}")
    else:
        yield HELPER.finding(f"{name}")


def _unknown_old(name: str) -> Finding:
    new = name.removeprefix("CELERY_").lower()
    if new in SETTING_KEYS | UNLISTED:
        return MISSPELT.finding(
            name,
            f"Write {new}: {name} is read only where the application says "
            "config_from_object(..., namespace='CELERY').",
        )
    nearest = get_close_matches(name, _OLD_SETTING_KEYS, n=1, cutoff=0.6)
    meant = f"Did you mean {_TO_NEW_KEY[nearest[0]]}? " if nearest else ""
    return MISSPELT.finding(name, f"{meant}Celery ignores {name} silently.")


def _styles(subject: Subject) -> Iterator[Finding]:
    old = sorted(name for name in subject.raw if name in _OLD_SETTING_KEYS)
    if not old:
        return
    listed = ", ".join(f"{name} -> {_TO_NEW_KEY[name]}" for name in old)
    try:
        detect_settings(dict(subject.raw))
    except ImproperlyConfigured:
        yield MIXED.finding(listed)
    else:
        yield OLD.finding(listed)
