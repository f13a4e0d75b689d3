"""The live server: the way there, the logins, then what the server says of itself."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import psycopg

from celery_results.doctor.findings import (
    LOGIN_REFUSED,
    MONITOR_REFUSED,
    SERVER_NOT_CHECKED,
    UNREACHABLE,
    Finding,
    could_not_check,
    error,
)
from celery_results.doctor.servers.postgresql import network, session, state, tables
from celery_results.doctor.servers.postgresql.parameters import Parameters, UnreadableError, read_parameters
from celery_results.doctor.subject import Subject, result_backend

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Connection = psycopg.Connection[Any]

FULL = error(
    "CRB528",
    "The server has no connection left",
    "Each process that uses results holds a connection: raise max_connections and the limit of the login "
    "(postgresql_max_connections, postgresql_connection_limits), or run fewer processes.",
)
WALL_CLOCK: Final = time.time
_NO_ACCESS: Final = (
    "Deploy monitor.env, or run doctor with --monitor-env-file: its login is a member of pg_monitor."
)
# With one of these doctor sends no login over the connection.
_FATAL: Final = frozenset({network.EXPIRED.code, network.UNTRUSTED.code, network.NO_TLS.code})
_PASSWORD_ERRORS: Final = ("authentication failed", "no password supplied", "pg_hba.conf", "does not exist")


def check_server(subject: Subject) -> Iterator[Finding]:
    """Judge the live server."""
    try:
        own = read_parameters(subject.settings, subject.result_backend)
    except UnreadableError:
        yield SERVER_NOT_CHECKED.finding("the settings describe no connection", "Correct the settings first.")
        return
    problem = network.unreachable(own)
    if problem:
        yield UNREACHABLE.finding(f"{own.host}:{own.port}: {problem}")
        return
    findings = list(network.check(own, datetime.now(UTC)))
    yield from findings
    if any(finding.code in _FATAL for finding in findings):
        yield could_not_check(
            "what the server says of itself",
            "doctor sends no login over a connection that it cannot trust",
            "Correct the TLS findings, then run doctor again.",
        )
        return
    refused, told_by_own = _with_login(own, lambda connection: session.check(connection, subject))
    yield from told_by_own
    if not refused:
        yield from network.check_login(own)
    yield from _monitored(subject, None if refused else own)


def _monitored(subject: Subject, own: Parameters | None) -> Iterator[Finding]:
    """Ask with the monitor login; without one, with the login of the settings."""
    monitor = _monitor(subject)
    for parameters in (monitor, own):
        if parameters is None:
            continue
        refused, findings = _with_login(parameters, _state)
        if not refused:
            yield from findings
            return
        if parameters is monitor:
            yield MONITOR_REFUSED.finding(findings[0].found)
    yield could_not_check("what the server says of itself", "no login is accepted", _NO_ACCESS)


def _state(connection: Connection) -> Iterator[Finding]:
    yield from state.check(connection, WALL_CLOCK)
    yield from tables.check(connection)


def _monitor(subject: Subject) -> Parameters | None:
    settings = subject.monitor_settings
    if settings is None:
        return None
    try:
        return read_parameters(settings, result_backend(settings, subject.monitor_environ))
    except UnreadableError:
        return None


def _with_login(
    parameters: Parameters, check: Callable[[Connection], Iterator[Finding]]
) -> tuple[bool, list[Finding]]:
    """Connect and check; say whether the login was refused, with the finding that tells why."""
    try:
        connection = parameters.connect()
    except (psycopg.Error, OSError) as failure:
        return True, [_refusal(parameters, failure)]
    with connection:
        findings: list[Finding] = []
        try:
            findings.extend(check(connection))
        except psycopg.Error as failure:
            findings.append(could_not_check("the server", _said(failure), _NO_ACCESS))
        return False, findings


def _refusal(parameters: Parameters, failure: Exception) -> Finding:
    text = _said(failure)
    if "too many connections" in text or "connection slots" in text:
        return FULL.finding(text)
    if "hot standby" in text or "read-only" in text:
        return state.STANDBY.finding(text)
    if any(part in text for part in _PASSWORD_ERRORS):
        return LOGIN_REFUSED.finding(text)
    return UNREACHABLE.finding(f"{parameters.host}:{parameters.port}: {text}")


def _said(failure: Exception) -> str:
    return " ".join(str(failure).split()) or type(failure).__name__
