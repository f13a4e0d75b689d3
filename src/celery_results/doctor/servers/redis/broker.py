"""Redis as the broker: its settings, and the live server that holds the queues."""

from __future__ import annotations

import ssl
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import NoPermissionError, RedisError, ResponseError

from celery_results.doctor import address, certificates, longest
from celery_results.doctor import subject as subjects
from celery_results.doctor.files import check_certificate_file, check_readable
from celery_results.doctor.findings import (
    MONITOR_REFUSED,
    SERVER_NOT_CHECKED,
    UNREACHABLE,
    Finding,
    could_not_check,
    error,
    info,
    warning,
)
from celery_results.doctor.servers.redis import ALIASES, live, network, options, state
from celery_results.doctor.servers.redis.parameters import (
    Parameters,
    RefusedError,
    read_broker_parameters,
    read_parameters,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from celery_results.doctor.subject import Settings, Subject

PLAIN_TEXT = error(
    "CRB220",
    "Tasks and password cross the network in plain text",
    "Use rediss:// with broker_use_ssl = {'ssl_cert_reqs': ssl.CERT_REQUIRED, 'ssl_ca_certs': ...}.",
)
PLAIN_TEXT_LOCAL = info(
    "CRB221",
    "The broker has no TLS, on this machine only",
    "Nothing to do while the broker stays on this machine; use rediss:// before it moves.",
)
NOT_VERIFIED = error(
    "CRB222",
    "The broker's certificate, or the name in it, is not verified",
    "Set broker_use_ssl = {'ssl_cert_reqs': ssl.CERT_REQUIRED, 'ssl_check_hostname': True, "
    "'ssl_ca_certs': ...}: for rediss:// alone kombu verifies nothing.",
)
NO_PASSWORD = warning(
    "CRB223",
    "The settings hold no password for the broker",
    "Give the workers a user of their own with a password (ACL): who writes to the queue decides what "
    "workers run.",
)
SOCKET_TIMEOUT = warning(
    "CRB224",
    "Waiting for the broker never ends",
    "Set socket_timeout and socket_connect_timeout in broker_transport_options, for example 30 and 5: "
    "kombu waits for ever for a host that drops packets.",
)
VISIBILITY = warning(
    "CRB225",
    "Tasks may be delivered again while they run or wait",
    "Raise visibility_timeout in broker_transport_options above the longest task and the longest "
    "countdown: with Redis a task that is not acknowledged by then is given to another worker too.",
)
SHARED_DATABASE = warning(
    "CRB226",
    "Broker and results share one database number",
    "Give the broker a number of its own (broker_url .../1): a FLUSHDB or SCAN for one of them meets "
    "the other.",
)
EVICTS_TASKS = error(
    "CRB227",
    "The broker throws tasks away when its memory is full",
    "Set maxmemory-policy noeviction: queues are keys like others, and their tasks are gone without a trace.",
)
READS_RESULTS = warning(
    "CRB228",
    "The broker's login can read results",
    "Give the broker a user of its own, whose key patterns leave celery-task-meta-* out (docs/redis.md).",
)

_NO_ACCESS: Final = (
    "Deploy monitor.env with the broker, or run doctor with --monitor-env-file: its login may run INFO."
)


def check_settings(subject: Subject) -> Iterator[Finding]:
    """Judge what the settings say of the broker."""
    settings, urls = subject.settings, subject.broker.split(";")
    for url in urls:
        yield from address.encoding(url, "broker_url")
    yield from _visibility(settings)
    if subject.broker_scheme == "sentinel":
        return
    try:
        broker = read_broker_parameters(settings, urls[0])
    except RefusedError as refused:
        yield options.REFUSED.finding(f"broker_url: {refused}")
        return
    yield from _tls(broker)
    if not broker.has_password and not broker.socket_path:
        yield NO_PASSWORD.finding("broker_url names none")
    lacking = [name for name in ("socket_timeout", "socket_connect_timeout") if not broker.values.get(name)]
    if lacking and not broker.socket_path:
        yield SOCKET_TIMEOUT.finding(f"broker_transport_options has no {' and no '.join(lacking)}")
    results = _results(subject)
    if results and _same_server(broker, results) and broker.values.get("db") == results.values.get("db"):
        yield SHARED_DATABASE.finding(f"both are in database {broker.values.get('db')}")


def _visibility(settings: Settings) -> Iterator[Finding]:
    given = settings.get("broker_transport_options") or {}
    timeout = float(given.get("visibility_timeout", 3600))
    allowed = f"visibility_timeout is {timeout:,.0f} s"
    ahead, late, run = longest.delay(settings), longest.acknowledges_late(settings), longest.run(settings)
    if ahead >= timeout:
        yield VISIBILITY.finding(f"tasks are sent {ahead:,.0f} s ahead, {allowed}")
    if late and (run is None or run >= timeout):
        limit = "tasks have no time limit" if run is None else f"tasks may run {run:,.0f} s"
        yield VISIBILITY.finding(f"{late}, {limit}, {allowed}")


def _tls(broker: Parameters) -> Iterator[Finding]:
    if not broker.is_tls:
        if not broker.socket_path:
            kind = PLAIN_TEXT_LOCAL if broker.is_local else PLAIN_TEXT
            yield kind.finding(f"redis://{broker.host}:{broker.port} without TLS")
        return
    requirement = broker.values["ssl_cert_reqs"]
    if requirement != ssl.CERT_REQUIRED:
        yield NOT_VERIFIED.finding(f"ssl_cert_reqs = {ssl.VerifyMode(requirement).name}")
    elif broker.values.get("ssl_check_hostname") is False:
        yield NOT_VERIFIED.finding("ssl_check_hostname = False")
    authority, now = broker.authority, datetime.now(UTC)
    if authority.ca_file:
        yield from check_certificate_file(Path(authority.ca_file), "ssl_ca_certs", now)
    elif requirement == ssl.CERT_REQUIRED:
        yield options.ANY_AUTHORITY.finding("broker_use_ssl has no ssl_ca_certs")
    if authority.cert_file:
        yield from check_certificate_file(Path(authority.cert_file), "ssl_certfile", now)
    if authority.key_file:
        yield from check_readable(Path(authority.key_file), "ssl_keyfile")


def _results(subject: Subject) -> Parameters | None:
    """Describe the Redis that holds the results; None where they are elsewhere."""
    return _result_parameters(subject.settings, subject.result_backend)


def _result_parameters(settings: Settings, backend: str) -> Parameters | None:
    if subjects.split_backend(backend)[0] not in ALIASES:
        return None
    try:
        return read_parameters(settings, backend)
    except RefusedError:
        return None


def _same_server(one: Parameters, other: Parameters) -> bool:
    """Whether two connections lead to one server; socket paths are compared as they are."""
    if one.socket_path or other.socket_path:
        return one.socket_path == other.socket_path
    both_local = one.is_local and other.is_local
    return one.port == other.port and (both_local or one.host == other.host)


def check_server(subject: Subject) -> Iterator[Finding]:
    """Judge the live server; what its results say already is not said again."""
    if subject.broker_scheme == "sentinel":
        yield SERVER_NOT_CHECKED.finding("doctor does not follow Sentinel to the broker's primary yet")
        return
    try:
        own = read_broker_parameters(subject.settings, subject.broker.split(";")[0])
    except RefusedError:
        yield SERVER_NOT_CHECKED.finding("the settings describe no broker", "Correct the settings first.")
        return
    results = _results(subject)
    shared = results if results and _same_server(own, results) else None
    for finding in _server(subject, own, shared):
        known = finding.found.startswith("the broker")
        yield (
            finding if known else replace(finding, found=f"the broker {own.host}:{own.port}: {finding.found}")
        )


def _server(subject: Subject, own: Parameters, shared: Parameters | None) -> Iterator[Finding]:
    if not own.socket_path:
        if problem := certificates.unreachable(own.host, own.port):
            if shared is None:
                yield UNREACHABLE.finding(problem)
            return
        findings = list(network.check(own, datetime.now(UTC)))
        if shared is None:
            yield from findings
        if any(finding.code in network.FATAL for finding in findings):
            yield could_not_check(
                "the server", "doctor sends no password over a connection that it cannot trust"
            )
            return
    refused = list(live.login(own))
    yield from refused
    if not refused:
        yield from live.privileges(own)
        if shared is not None:
            yield from _reads_results(own, shared)
    yield from _state(subject, own, shared is not None, bool(refused))


def _reads_results(own: Parameters, results: Parameters) -> Iterator[Finding]:
    """Read a result that is not there, in the results' database."""
    beside = replace(own, values=dict(own.values) | {"db": results.values.get("db", 0)})
    key = results.task_prefix + b"celery-results-doctor-absent"
    try:
        with beside.client() as client:
            client.get(key)
    except (NoPermissionError, ResponseError):
        return
    except (RedisError, OSError) as failure:
        yield could_not_check("whether its login can read results", type(failure).__name__)
        return
    yield READS_RESULTS.finding(f"its login may run GET {key.decode(errors='replace')}")


def _state(subject: Subject, own: Parameters, is_shared: bool, is_refused: bool) -> Iterator[Finding]:  # noqa: FBT001
    monitor = _monitor(subject, own)
    if monitor and (problem := next((finding.found for finding in live.login(monitor)), "")):
        yield MONITOR_REFUSED.finding(problem)
        monitor = None
    if monitor is None and is_refused:
        yield could_not_check("what it says of itself", "no login is accepted")
        return
    try:
        with (monitor or own).client() as client:
            told: Mapping[str, Any] = state.read(client)
    except NoPermissionError:
        yield could_not_check("its memory and its policy", "this login may not run INFO", _NO_ACCESS)
        return
    except (RedisError, OSError) as failure:
        yield could_not_check("its memory and its policy", type(failure).__name__)
        return
    policy = str(told.get("maxmemory_policy", ""))
    if policy.startswith("allkeys"):
        yield EVICTS_TASKS.finding(f"maxmemory-policy {policy}")
    if not is_shared:
        # Queues have no TTL: the policies that ask for one leave them alone.
        yield from state.judge(dict(told) | {"maxmemory_policy": "noeviction"})


def _monitor(subject: Subject, own: Parameters) -> Parameters | None:
    """Give the monitor's login: the one for the broker, or the one for results on the same server."""
    settings = subject.monitor_settings
    if settings is None:
        return None
    url = subjects.broker(settings, subject.monitor_environ)
    if url:
        try:
            return read_broker_parameters(settings, url.split(";")[0])
        except RefusedError:
            return None
    backend = subjects.result_backend(settings, subject.monitor_environ)
    results = _result_parameters(settings, backend)
    return results if results and _same_server(own, results) else None
