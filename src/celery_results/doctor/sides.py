"""Two stores at once, while results move: each side as the single one that it could be, and the journal."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from celery.exceptions import ImproperlyConfigured

from celery_results.backends.dual.options import OLD, SETTING, Options
from celery_results.backends.dual.side import check_pair
from celery_results.doctor.findings import Finding, could_not_check, error, warning
from celery_results.migration.journal import Journal
from celery_results.settings import RESULT, TARGET, alone

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery_results.doctor.subject import Subject

UNUSABLE: Final = error(
    "CRB146",
    "The dual backend does not take its options",
    "Deploy this host again, or correct result_backend_transport_options: no worker starts with them.",
)
OWED: Final = warning(
    "CRB147",
    "One of the two stores lacks results",
    "Run `celery-results repair` on this host; after an overflow compare both sides first "
    "(`celery-results verify`).",
)
_DUAL: Final = "celery_results.backends.dual"


def is_dual(subject: Subject) -> bool:
    """Say whether results go to two stores."""
    return subject.alias.startswith(_DUAL)


def sides(subject: Subject) -> list[tuple[str, Subject]]:
    """Give name and settings of each side, the primary first; nothing for options that cannot be used.

    The monitor login is that of the primary.
    """
    try:
        options = Options.of_settings(subject.settings.get(SETTING) or {})
    except ImproperlyConfigured:
        return []
    found = []
    for name in (options.stage.primary, options.stage.mirror):
        settings = {**subject.settings, SETTING: {}, **options.sides[name]}
        environ = alone(subject.environ, RESULT if name == OLD else TARGET)
        side = replace(subject, raw=settings, environ=environ)
        if name != options.stage.primary:
            side = replace(side, monitor_raw=None, monitor_environ={}, monitor_env_file=None)
        found.append((name, side))
    return found


def named(name: str, finding: Finding) -> Finding:
    """Say of which side a finding is."""
    return replace(finding, found=f"{name} side: {finding.found}")


def check(subject: Subject) -> Iterator[Finding]:
    """Judge the options, and look into the journal of this host."""
    from celery import Celery  # noqa: PLC0415 - only here

    app = Celery("doctor", set_as_current=False)
    app.config_from_object(subject.settings)
    try:
        options = Options.of_settings(subject.settings.get(SETTING) or {})
        check_pair(app, options.sides)
    except ImproperlyConfigured as failure:
        yield UNUSABLE.finding(str(failure))
        return
    journal = Journal(options.journal)
    try:
        owed, overflowed = len(journal), journal.overflowed
    except OSError as failure:
        yield could_not_check(
            "the repair journal",
            f"{options.journal}: {failure.strerror}",
            "Run doctor as root or as a member of the group celery.",
        )
        return
    if owed or overflowed:
        more = ", and it has overflowed" if overflowed else ""
        yield OWED.finding(f"{options.journal} holds {owed} entries{more}")
