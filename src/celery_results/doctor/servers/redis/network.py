"""Between here and the server: certificate, TLS versions, and ports that take plain text."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Final

from celery_results.doctor import certificates
from celery_results.doctor.files import WARNING_BEFORE
from celery_results.doctor.findings import Finding, error, warning
from celery_results.doctor.servers.redis.parameters import DEFAULT_PORT, Parameters

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

EXPIRED = error(
    "CRB501",
    "The server's certificate has expired",
    "Issue it again: site.yml renews it and the server takes it without a restart.",
)
EXPIRES_SOON = warning(
    "CRB502",
    "The server's certificate expires soon",
    "Issue it again: site.yml renews it and the server takes it without a restart.",
)
WRONG_NAME = error(
    "CRB503",
    "The server's certificate is for another name",
    "Issue a certificate that carries the name in the settings, or put a name from the certificate into "
    "them.",
)
UNTRUSTED = error(
    "CRB504",
    "The server's certificate comes from another authority",
    "Put the CA that issued it into ssl_ca_certs; if you know of no other CA, find out who answers there.",
)
OBSOLETE = warning(
    "CRB505",
    "The server accepts TLS 1.1 or older",
    'Set tls-protocols "TLSv1.2 TLSv1.3" in the server\'s configuration.',
)
NO_TLS = error(
    "CRB506",
    "The TLS handshake fails",
    "Check that the port is the server's TLS port; with mutual TLS, that ssl_certfile and ssl_keyfile are "
    "set.",
)
PLAIN_PORT = error(
    "CRB507",
    "The server takes plain text",
    "Set `port 0` in the server's configuration, so that nothing but tls-port is left.",
)
OTHER_PLAIN_PORT = warning(
    "CRB508",
    "Port 6379 of the same host takes plain text",
    "If it belongs to the same server set `port 0` in its configuration, otherwise secure the server "
    "behind it.",
)
NOT_YET_VALID = error(
    "CRB511",
    "The server's certificate is not valid yet",
    "Compare the clocks of this host, of the server and of the host that issued it.",
)

# With one of these no verified connection comes about.
FATAL: Final = frozenset({"CRB501", "CRB503", "CRB504", "CRB506", "CRB507", "CRB511"})


def check(parameters: Parameters, now: datetime) -> Iterator[Finding]:
    """Judge what stands between here and the server, before any login."""
    host, port = parameters.host, parameters.port
    if not parameters.is_tls:
        return
    if certificates.answers_in_plain_text(host, port):
        yield PLAIN_PORT.finding(
            f"{host}:{port} answers PING in plain text, though the settings want TLS there"
        )
        return
    try:
        handshake = certificates.fetch(host, port, parameters.authority)
    except (OSError, ValueError) as failure:
        reason = failure.reason if isinstance(failure, ssl.SSLError) else str(failure)
        yield NO_TLS.finding(f"{host}:{port}: {reason or type(failure).__name__}")
        return
    if not handshake.stays_open:
        yield NO_TLS.finding(
            f"{host}:{port} closes the connection after the handshake; it may want a certificate"
        )
        return
    yield from _dates(handshake, now)
    if not parameters.socket_path and parameters.values.get("ssl_check_hostname") is not False:
        yield from _name(host, handshake)
    yield from _chain(parameters)
    if certificates.accepts_obsolete(host, port, parameters.authority):
        yield OBSOLETE.finding(f"{host}:{port} completes a handshake below TLS 1.2")


def check_other_ports(parameters: Parameters, plain_port: int) -> Iterator[Finding]:
    """Try the port that the server names as its plain one, and 6379, which may be another server's."""
    if not parameters.is_tls:
        return
    for port, kind in ((plain_port, PLAIN_PORT), (DEFAULT_PORT, OTHER_PLAIN_PORT)):
        if port in {0, parameters.port} or (kind is OTHER_PLAIN_PORT and port == plain_port):
            continue
        if certificates.answers_in_plain_text(parameters.host, port):
            yield kind.finding(f"{parameters.host}:{port} answers PING in plain text")


def _dates(handshake: certificates.Handshake, now: datetime) -> Iterator[Finding]:
    certificate = handshake.certificate
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if end <= now:
        yield EXPIRED.finding(f"it expired on {end:%Y-%m-%d %H:%M} UTC, {(now - end).days} days ago")
    elif start > now:
        yield NOT_YET_VALID.finding(f"it becomes valid on {start:%Y-%m-%d %H:%M} UTC")
    elif end - now < WARNING_BEFORE:
        yield EXPIRES_SOON.finding(f"{(end - now).days} days left, until {end:%Y-%m-%d %H:%M} UTC")


def _name(host: str, handshake: certificates.Handshake) -> Iterator[Finding]:
    names = certificates.names(handshake.certificate)
    if not certificates.name_matches(host, names):
        yield WRONG_NAME.finding(
            f"the settings say {host}, the certificate {', '.join(names) or 'no name at all'}"
        )


def _chain(parameters: Parameters) -> Iterator[Finding]:
    if parameters.values["ssl_cert_reqs"] == ssl.CERT_NONE:
        return
    problem = certificates.chain_problem(parameters.host, parameters.port, parameters.authority)
    if problem:
        yield UNTRUSTED.finding(problem)
