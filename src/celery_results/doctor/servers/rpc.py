"""rpc: results as messages, which are gone once they are read. The server is looked at as the broker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from celery_results.doctor.findings import SERVER_NOT_CHECKED, Finding, error, info, warning
from celery_results.doctor.servers import rabbitmq
from celery_results.doctor.servers.rabbitmq.options import SILENT_LOSS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery_results.doctor.subject import Subject

NOT_STORED = info(
    "CRB401",
    "Results are messages, not records",
    "Use another backend if you need chords, saved groups, or a result twice or in another process: rpc"
    " has none of them. Whether the application has chords, doctor cannot see.",
)
PERSISTENT = info(
    "CRB402",
    "Persistent results do not outlive their client",
    "Nothing, if that is enough: a waiting result survives a server that is killed. An orderly stop of "
    "the server, or the end of the client, deletes the queue of a client that has begun to read, with "
    "all that is in it.",
)
COMPRESSION_IGNORED = warning(
    "CRB403",
    "Results are not compressed",
    "Remove result_compression: this backend ignores it.",
)
NEVER_EXPIRES = warning(
    "CRB405",
    "Reply queues never expire",
    "Set result_expires to 1 second or more: the queue of a client that never reads its results stays "
    "for ever otherwise.",
)
OTHER_BROKER = error(
    "CRB406",
    "rpc results need RabbitMQ as the broker",
    "Set broker_url to RabbitMQ (amqps://), or take another result backend: results travel over the "
    "broker, and other transports have no queues that expire with their client.",
)
TRANSIENT = warning(
    "CRB407",
    "A restart of the server loses results that wait",
    "Set result_persistent = True: the reply queue is durable, but the messages in it are not; the task"
    " has run then, and its caller waits for ever.",
)

ALIASES: Final = frozenset({"rpc", "celery_results.backends.rpc:RPCBackend"})


def check_settings(subject: Subject) -> Iterator[Finding]:
    """Judge the settings of the rpc backend."""
    settings = subject.settings
    yield NOT_STORED.finding("result_backend is rpc")
    if settings.get("result_persistent"):
        yield PERSISTENT.finding("result_persistent = True")
    else:
        yield TRANSIENT.finding("result_persistent is off")
    if settings.get("result_compression"):
        yield COMPRESSION_IGNORED.finding(f"result_compression = {settings['result_compression']!r}")
    if not settings.get("result_expires", 1):
        yield NEVER_EXPIRES.finding(f"result_expires = {settings['result_expires']!r}")
    options = settings.get("broker_transport_options") or {}
    if not options.get("confirm_publish"):
        yield SILENT_LOSS.finding("broker_transport_options has no confirm_publish")


def check_server(subject: Subject) -> Iterator[Finding]:
    """Say where there is no RabbitMQ to look at; otherwise it is looked at as the broker."""
    if not subject.broker:
        yield SERVER_NOT_CHECKED.finding(
            "the settings name no broker; unless the application does, Celery takes this machine's",
            "Set broker_url in the settings.",
        )
    elif subject.broker_scheme not in rabbitmq.BROKER_SCHEMES:
        scheme = subject.broker_scheme
        yield OTHER_BROKER.finding(
            f"broker_url starts with {scheme}" if scheme.isidentifier() else "broker_url is no URL"
        )
