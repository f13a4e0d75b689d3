"""rpc: results as messages, which are gone once they are read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from celery_results.doctor.findings import SERVER_NOT_CHECKED, Finding, info, warning

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery_results.doctor.subject import Subject

NOT_STORED = info(
    "CRB401",
    "Results are messages, not records",
    "Use another backend if you need chords, saved groups, or a result twice or in another process: rpc "
    "has none of "
    "them, and results that nobody read leave with their client.",
)
PERSISTENT = warning(
    "CRB402",
    "Persistent results do not outlive their client",
    "Do not rely on it: the reply queue is deleted when the client disconnects, whatever "
    "result_persistent says.",
)
COMPRESSION_IGNORED = warning(
    "CRB403", "Results are not compressed", "Remove result_compression: this backend ignores it."
)
SILENT_LOSS = warning(
    "CRB404",
    "Refused messages are lost without an error",
    "Set broker_transport_options = {'confirm_publish': True}: a client that may not write is dropped "
    "silently "
    "otherwise.",
)
NEVER_EXPIRES = warning(
    "CRB405",
    "Reply queues never expire",
    "Set result_expires to 1 second or more.",
)

ALIASES: Final = frozenset({"rpc"})


def check_settings(subject: Subject) -> Iterator[Finding]:
    """Judge the settings of the rpc backend."""
    settings = subject.settings
    yield NOT_STORED.finding("result_backend = 'rpc://'")
    if settings.get("result_persistent"):
        yield PERSISTENT.finding("result_persistent = True")
    if settings.get("result_compression"):
        yield COMPRESSION_IGNORED.finding(f"result_compression = {settings['result_compression']!r}")
    if not settings.get("result_expires", 1):
        yield NEVER_EXPIRES.finding(f"result_expires = {settings['result_expires']!r}")
    options = settings.get("broker_transport_options") or {}
    if not options.get("confirm_publish"):
        yield SILENT_LOSS.finding("broker_transport_options has no confirm_publish")


def check_server(subject: Subject) -> Iterator[Finding]:
    """Say that the server was not looked at."""
    yield SERVER_NOT_CHECKED.finding(f"doctor has no live checks for {subject.alias} yet")
