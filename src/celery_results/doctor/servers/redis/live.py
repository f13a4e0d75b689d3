"""The live Redis server: first the connection, then the logins, then what the server says of itself."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from redis.exceptions import AuthenticationError, NoPermissionError, RedisError, ResponseError

from celery_results.doctor import certificates
from celery_results.doctor.findings import (
    LOGIN_REFUSED,
    MONITOR_REFUSED,
    SERVER_NOT_CHECKED,
    UNREACHABLE,
    Finding,
    could_not_check,
    error,
    warning,
)
from celery_results.doctor.servers.redis import keys, network, state
from celery_results.doctor.servers.redis.parameters import Parameters, RefusedError, read_parameters
from celery_results.doctor.subject import Subject, result_backend

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

OPEN_TO_ALL = error(
    "CRB509",
    "Anybody may use the server without a password",
    "Switch the default user off (ACL SETUSER default off) once the workers have users of their own.",
)
TOO_POWERFUL = warning(
    "CRB510",
    "The login of the settings may do more than Celery needs",
    "Give it the key patterns and commands of docs/doctor.md#crb510 and nothing else: who steals this "
    "password "
    "rules the server.",
)

_BEYOND_CELERY: Final = (
    ("read the server's configuration (CONFIG GET)", ("CONFIG", "GET", "maxmemory-policy")),
    ("list all users (ACL LIST)", ("ACL", "LIST")),
    ("see all connections (CLIENT LIST)", ("CLIENT", "LIST")),
    ("read keys that are not Celery's results (GET)", ("GET", "celery-results-doctor:absent")),
    ("list keys (SCAN)", ("SCAN", "0", "COUNT", "1")),
)
WALL_CLOCK: Final = time.time
_NO_ACCESS: Final = (
    "Deploy monitor.env, or run doctor with --monitor-env-file: its login may run INFO, SCAN, TTL and TIME."
)


def check_server(subject: Subject) -> Iterator[Finding]:
    """Judge the live server."""
    if subject.alias == "sentinel":
        yield SERVER_NOT_CHECKED.finding("doctor does not follow Sentinel to the current primary yet")
        return
    try:
        own = read_parameters(subject.settings, subject.result_backend)
    except RefusedError:
        yield SERVER_NOT_CHECKED.finding("the settings describe no connection", "Correct the settings first.")
        return
    if not own.socket_path:
        problem = certificates.unreachable(own.host, own.port)
        if problem:
            yield UNREACHABLE.finding(f"{own.host}:{own.port}: {problem}")
            return
        findings = list(network.check(own, datetime.now(UTC)))
        yield from findings
        if any(finding.code in network.FATAL for finding in findings):
            yield could_not_check(
                "what the server says of itself",
                "doctor sends no password over a connection that it cannot trust",
                "Correct the TLS findings, then run doctor again.",
            )
            return
    yield from _logins(subject, own)


def _logins(subject: Subject, own: Parameters) -> Iterator[Finding]:
    yield from _default_user(own)
    refused = list(login(own))
    yield from refused
    parameters = None if refused else own
    monitor = _monitor(subject)
    if monitor:
        problem = _refusal(monitor)
        if problem:
            yield MONITOR_REFUSED.finding(problem)
        else:
            parameters = monitor
    if not refused:
        yield from privileges(own)
    if parameters is None:
        yield could_not_check("what the server says of itself", "no login is accepted")
        return
    yield from _server(parameters)


def _server(parameters: Parameters) -> Iterator[Finding]:
    plain_port = 0
    with parameters.client() as client:
        try:
            told = state.read(client)
        except NoPermissionError:
            yield could_not_check(
                "memory, persistence and version", "this login may not run INFO", _NO_ACCESS
            )
        except (RedisError, OSError) as failure:
            yield could_not_check("memory, persistence and version", _said(failure))
            return
        else:
            plain_port = int(told.get("tcp_port", 0))
            yield from state.judge(told)
        yield from state.clock(client, _NO_ACCESS, WALL_CLOCK)
        yield from keys.check(client, parameters, _NO_ACCESS)
    if not parameters.socket_path:
        yield from network.check_other_ports(parameters, plain_port)


def _monitor(subject: Subject) -> Parameters | None:
    settings = subject.monitor_settings
    if settings is None:
        return None
    try:
        return read_parameters(settings, result_backend(settings, subject.monitor_environ))
    except RefusedError:
        return None


def login(parameters: Parameters) -> Iterator[Finding]:
    """Say why a login is refused; nothing where it is accepted."""
    try:
        with parameters.client() as client:
            client.ping()
    except NoPermissionError:
        return  # without the right to ping, but logged in
    except (AuthenticationError, ResponseError) as failure:
        yield LOGIN_REFUSED.finding(_said(failure))
    except (RedisError, OSError) as failure:
        yield UNREACHABLE.finding(f"{parameters.host}:{parameters.port}: {_said(failure)}")


def _refusal(parameters: Parameters) -> str:
    for finding in login(parameters):
        return finding.found
    return ""


def _said(failure: Exception) -> str:
    return " ".join(str(failure).split()) or type(failure).__name__


def _default_user(own: Parameters) -> Iterator[Finding]:
    """Read a key that is not there: a user who may only ping does no harm."""
    try:
        own.ask_anonymously("GET", own.task_prefix + b"celery-results-doctor-absent")
    except (AuthenticationError, ResponseError):
        return
    except (RedisError, OSError) as failure:
        yield could_not_check("whether the server wants a password", _said(failure))
        return
    yield OPEN_TO_ALL.finding("a connection without a password may read results")


def privileges(own: Parameters) -> Iterator[Finding]:
    """Try what Celery never does, with commands that change nothing and cost the server nothing."""
    try:
        with own.client() as client:
            may = [what for what, command in _BEYOND_CELERY if _allowed(client, command)]
    except (RedisError, OSError) as failure:
        yield could_not_check("what the login of the settings may do", _said(failure))
        return
    if may:
        yield TOO_POWERFUL.finding(f"it may {', '.join(may)}")


def _allowed(client: Redis, command: tuple[str, ...]) -> bool:
    try:
        client.execute_command(*command)  # type: ignore[no-untyped-call]
    except ResponseError:
        return False
    return True
