"""The live broker: first the connection, then the logins, then what the broker says of itself."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import amqp

from celery_results.doctor import certificates
from celery_results.doctor import subject as subjects
from celery_results.doctor.findings import (
    LOGIN_REFUSED,
    MONITOR_REFUSED,
    SERVER_NOT_CHECKED,
    UNREACHABLE,
    Finding,
    could_not_check,
    error,
)
from celery_results.doctor.servers.rabbitmq import network, rights, state
from celery_results.doctor.servers.rabbitmq.parameters import Parameters, RefusedError, read_parameters

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery_results.doctor.subject import Subject

NO_VHOST = error(
    "CRB450",
    "The broker has no such vhost",
    "Correct the vhost in broker_url (what follows the first / after the host; / itself is written "
    "%2F), or add it: rabbitmqctl add_vhost.",
)
VHOST_CLOSED = error(
    "CRB451",
    "The login may not use this vhost",
    "User and password are right, permissions are missing: rabbitmqctl set_permissions -p VHOST USER "
    "CONFIGURE WRITE READ, or correct the vhost in broker_url.",
)

_ALARMS: Final = frozenset(kind.code for kind in (state.MEMORY_ALARM, state.DISK_ALARM, state.BLOCKED))
_REFUSALS: Final = frozenset(kind.code for kind in (LOGIN_REFUSED, UNREACHABLE, NO_VHOST, VHOST_CLOSED))


def check_server(subject: Subject) -> Iterator[Finding]:
    """Judge the live broker."""
    try:
        own = read_parameters(subject.settings, subject.broker.split(";")[0])
    except RefusedError:
        yield SERVER_NOT_CHECKED.finding(
            "the settings describe no connection to the broker", "Correct the settings first."
        )
        return
    if problem := certificates.unreachable(own.host, own.port):
        yield UNREACHABLE.finding(f"the broker {own.where}: {problem}")
        return
    findings = list(network.check(own, datetime.now(UTC)))
    yield from findings
    yield from network.check_other_ports(own)
    if any(finding.code in network.FATAL for finding in findings):
        yield could_not_check(
            "what the broker says of itself",
            "doctor sends no password over a connection that it cannot trust",
            "Correct the TLS findings, then run doctor again.",
        )
        return
    yield from rights.guest(own)
    yield from _logins(subject, own)


def _logins(subject: Subject, own: Parameters) -> Iterator[Finding]:
    refused = list(_own(subject, own))
    yield from refused
    monitor = _monitor(subject)
    if monitor and (problem := next((finding.found for finding in _refusal(monitor)), "")):
        yield MONITOR_REFUSED.finding(problem)
        monitor = None
    findings = list(state.alarms(monitor))
    yield from findings
    if any(finding.code in _ALARMS for finding in findings):
        yield could_not_check("what the logins may do on the broker", "the broker takes no messages")
        return
    if monitor:
        yield from rights.check_monitor(monitor)
    if not any(finding.code in _REFUSALS for finding in refused):
        yield from rights.check(own, subject)


def _own(subject: Subject, own: Parameters) -> Iterator[Finding]:
    try:
        with own.connection() as connection:
            yield from state.judge(connection.server_properties, subject.settings)
            yield from state.task_queues(connection, subject.settings)
    except (amqp.AMQPError, OSError) as failure:
        yield _judged(own, failure)


def _refusal(parameters: Parameters) -> Iterator[Finding]:
    try:
        with parameters.connection():
            return
    except (amqp.AMQPError, OSError) as failure:
        yield _judged(parameters, failure)


def _judged(parameters: Parameters, failure: Exception) -> Finding:
    """Tell apart what a broker refuses a login for; its texts name user and vhost, never a password."""
    said = " ".join(str(getattr(failure, "reply_text", "") or failure).split()) or type(failure).__name__
    login = f"the broker {parameters.where}, user {parameters.username}"
    if isinstance(failure, amqp.AccessRefused):
        return LOGIN_REFUSED.finding(f"{login}: user name or password is wrong")
    if isinstance(failure, amqp.NotAllowed):
        if "not found" in said:
            return NO_VHOST.finding(f"{login}: vhost {parameters.vhost} not found")
        if f"access to vhost '{parameters.vhost}' refused" in said and "limit" not in said:
            return VHOST_CLOSED.finding(f"{login}: vhost {parameters.vhost}")
        return LOGIN_REFUSED.finding(f"{login}: {said}", "Look at the limits of the user and of the vhost.")
    return UNREACHABLE.finding(f"{login}: {said}")


def _monitor(subject: Subject) -> Parameters | None:
    settings = subject.monitor_settings
    url = subjects.broker(settings, subject.monitor_environ) if settings is not None else ""
    if settings is None or not url:
        return None
    try:
        return read_parameters(settings, url.split(";")[0])
    except RefusedError:
        return None
