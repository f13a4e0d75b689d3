"""Between here and the broker: certificate, TLS versions, and ports that should not answer."""

from __future__ import annotations

import ssl
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from celery_results.doctor import certificates
from celery_results.doctor.certificates import AMQP, HTTP, Greeting
from celery_results.doctor.files import WARNING_BEFORE
from celery_results.doctor.findings import Finding, Kind, error, warning

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from celery_results.doctor.servers.rabbitmq.parameters import Parameters

EXPIRED = error(
    "CRB452",
    "The broker's certificate has expired",
    "Issue it again: site.yml renews it and RabbitMQ takes it without a restart. Replacing the files "
    "alone changes nothing: rabbitmqctl eval 'ssl:clear_pem_cache().'",
)
EXPIRES_SOON = warning(
    "CRB453",
    "The broker's certificate expires soon",
    "Issue it again: site.yml renews it and RabbitMQ takes it without a restart.",
)
WRONG_NAME = error(
    "CRB454",
    "The broker's certificate is for another name",
    "Issue a certificate that carries the name in broker_url, or put a name from the certificate there.",
)
UNTRUSTED = error(
    "CRB455",
    "The broker's certificate comes from another authority",
    "Put the CA that issued it into 'ca_certs' of broker_use_ssl; if you know of no other CA, find out "
    "who answers there.",
)
OBSOLETE = warning(
    "CRB456",
    "The broker accepts TLS 1.1 or older",
    "Set ssl_options.versions.1 = tlsv1.3 and ssl_options.versions.2 = tlsv1.2 in rabbitmq.conf.",
)
NO_TLS = error(
    "CRB457",
    "The TLS handshake with the broker fails",
    "Check that the port is the broker's TLS port (5671); with mutual TLS, that 'certfile' and "
    "'keyfile' of broker_use_ssl are set.",
)
PLAIN_PORT = error(
    "CRB458",
    "The broker's port takes plain text",
    "Use the TLS port (5671) in broker_url; if this is it, set listeners.ssl.1 in rabbitmq.conf for it.",
)
OTHER_PLAIN_PORT = warning(
    "CRB459",
    "The broker's host takes AMQP in plain text",
    "Set listeners.tcp = none in rabbitmq.conf: whoever is on the way reads the password of a client "
    "that forgets TLS. If another server answers there, secure that one.",
)
NOT_YET_VALID = error(
    "CRB460",
    "The broker's certificate is not valid yet",
    "Compare the clocks of this host, of the broker and of the host that issued it.",
)
MANAGEMENT = warning(
    "CRB461",
    "The broker's management answers in plain text",
    "Bind it to the loopback address of the broker's host and give it TLS (management.ssl.*, "
    "prometheus.ssl.*), or switch the plug-in off: its logins, and what it tells, can be read on the "
    "way.",
)
DISTRIBUTION = warning(
    "CRB462",
    "The broker's port for other nodes can be reached from here",
    "Let a firewall admit the cluster's own nodes only to the ports 4369 and 25672, and bind them to "
    "addresses of theirs: whoever has the cookie is administrator there, and no TLS protects it by "
    "default.",
)

# With one of these no verified connection comes about.
FATAL: Final = frozenset(
    kind.code for kind in (EXPIRED, WRONG_NAME, UNTRUSTED, NO_TLS, PLAIN_PORT, NOT_YET_VALID)
)
PLAIN_PORTS: Final = (5672,)
MANAGEMENT_PORTS: Final = (15672, 15692)
DISTRIBUTION_PORTS: Final = (25672,)


def check(parameters: Parameters, now: datetime) -> Iterator[Finding]:
    """Judge what stands between here and the broker, before any login."""
    host, port = parameters.host, parameters.port
    if parameters.tls is None:
        return
    if certificates.answers_in_plain_text(host, port, AMQP):
        yield PLAIN_PORT.finding(f"{host}:{port} answers without TLS, though the settings want TLS there")
        return
    try:
        handshake = certificates.fetch(host, port, parameters.authority, AMQP)
    except (OSError, ValueError) as failure:
        reason = failure.reason if isinstance(failure, ssl.SSLError) else str(failure)
        yield NO_TLS.finding(f"{host}:{port}: {reason or type(failure).__name__}")
        return
    if not handshake.stays_open:
        yield NO_TLS.finding(
            f"{host}:{port} closes the connection after the handshake; it may want a certificate"
        )
        return
    certificate = handshake.certificate
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if end <= now:
        yield EXPIRED.finding(f"it expired on {end:%Y-%m-%d %H:%M} UTC, {(now - end).days} days ago")
    elif start > now:
        yield NOT_YET_VALID.finding(f"it becomes valid on {start:%Y-%m-%d %H:%M} UTC")
    elif end - now < WARNING_BEFORE:
        yield EXPIRES_SOON.finding(f"{(end - now).days} days left, until {end:%Y-%m-%d %H:%M} UTC")
    yield from _trust(parameters, certificates.names(certificate))
    if certificates.accepts_obsolete(host, port, parameters.authority):
        yield OBSOLETE.finding(f"{host}:{port} completes a handshake below TLS 1.2")


def _trust(parameters: Parameters, names: list[str]) -> Iterator[Finding]:
    wanted = parameters.checked_name
    if wanted and not certificates.name_matches(wanted, names):
        yield WRONG_NAME.finding(
            f"the settings say {wanted}, the certificate {', '.join(names) or 'no name'}"
        )
    if parameters.requirement == ssl.CERT_NONE:
        return
    problem = certificates.chain_problem(parameters.host, parameters.port, parameters.authority)
    if problem:
        yield UNTRUSTED.finding(problem)


def check_other_ports(parameters: Parameters) -> Iterator[Finding]:
    """Try the usual ports of RabbitMQ on the same host, which may be another server's.

    All at once: a firewall that drops packets costs one timeout, not one for each.
    """
    probes: list[tuple[Kind, int, Greeting | None]] = []
    if parameters.tls is not None:
        probes += [(OTHER_PLAIN_PORT, port, AMQP) for port in PLAIN_PORTS if port != parameters.port]
    if not parameters.is_local:  # what listens on the loopback address only is where it belongs
        probes += [(MANAGEMENT, port, HTTP) for port in MANAGEMENT_PORTS]
        probes += [(DISTRIBUTION, port, None) for port in DISTRIBUTION_PORTS]
    if not probes:
        return
    with ThreadPoolExecutor(len(probes)) as pool:
        answers = list(pool.map(lambda probe: _answers(parameters.host, probe[1], probe[2]), probes))
    for (kind, port, _), answer in zip(probes, answers, strict=True):
        if answer:
            yield kind.finding(f"{parameters.host}:{port} {answer}")


def _answers(host: str, port: int, greeting: Greeting | None) -> str:
    """Say what a port does; empty where it does nothing that it should not."""
    if greeting is None:
        return "" if certificates.unreachable(host, port) else "takes connections"
    protocol = "AMQP" if greeting is AMQP else "HTTP"
    plain = certificates.answers_in_plain_text(host, port, greeting)
    return f"answers {protocol} without TLS" if plain else ""
