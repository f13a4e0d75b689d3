"""What stands between this host and the server: address, TLS, certificate."""

from __future__ import annotations

import socket
import ssl
import struct
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import psycopg
from cryptography import x509

from celery_results.doctor import certificates
from celery_results.doctor.files import WARNING_BEFORE
from celery_results.doctor.findings import Finding, error, warning

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from celery_results.doctor.servers.postgresql.parameters import Parameters

EXPIRED = error(
    "CRB521",
    "The server's certificate has expired",
    "Issue it again: site.yml renews it and the server takes it without a restart.",
)
EXPIRES_SOON = warning(
    "CRB522",
    "The server's certificate expires soon",
    "Issue it again: site.yml renews it and the server takes it without a restart.",
)
UNTRUSTED = error(
    "CRB523",
    "The server's certificate is not one that the settings trust",
    "Connect by a name that the certificate bears, and put the CA that issued it into sslrootcert; if "
    "you know of no "
    "other CA, find out who answers there.",
)
NO_TLS = error(
    "CRB524",
    "The server speaks no TLS",
    "Set ssl = on with a certificate in the server's configuration: role postgresql does both.",
)
OBSOLETE = warning(
    "CRB525",
    "The server accepts TLS 1.1 or older",
    "Set ssl_min_protocol_version = 'TLSv1.2' in the server's configuration.",
)
PLAIN_TEXT = error(
    "CRB526",
    "The server takes logins without TLS",
    "Use hostssl instead of host in pg_hba.conf, and `hostnossl all all all reject` before everything else.",
)
WEAK_LOGIN = error(
    "CRB527",
    "The server takes a login by another way than SCRAM",
    "Write scram-sha-256 in pg_hba.conf instead of trust, password and md5, set password_encryption = "
    "'scram-sha-256', and set the passwords again.",
)

_SSL_REQUEST: Final = struct.pack("!ii", 8, 80877103)


def unreachable(parameters: Parameters) -> str:
    """Say why nothing answers; empty if something does."""
    if parameters.is_socket:
        return ""
    try:
        socket.create_connection((parameters.host, parameters.port), certificates.TIMEOUT_SECONDS).close()
    except OSError as failure:
        return failure.strerror or str(failure) or type(failure).__name__
    return ""


def check(parameters: Parameters, now: datetime) -> Iterator[Finding]:
    """Judge the certificate, before any login."""
    if parameters.is_socket or not parameters.is_tls:
        return
    context = parameters.authority.context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        certificate = _certificate(parameters, context)
    except (OSError, ValueError) as failure:
        yield NO_TLS.finding(f"{parameters.host}:{parameters.port}: {failure or type(failure).__name__}")
        return
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if end <= now:
        yield EXPIRED.finding(f"it expired on {end:%Y-%m-%d %H:%M} UTC, {(now - end).days} days ago")
    elif start > now:
        yield EXPIRED.finding(
            f"it becomes valid on {start:%Y-%m-%d %H:%M} UTC",
            "Compare the clocks of this host, of the server and of the host that issued it.",
        )
    elif end - now < WARNING_BEFORE:
        yield EXPIRES_SOON.finding(f"{(end - now).days} days left, until {end:%Y-%m-%d %H:%M} UTC")
    yield from _trust(parameters, certificate)
    if _accepts_obsolete(parameters):
        yield OBSOLETE.finding(f"{parameters.host}:{parameters.port} completes a handshake below TLS 1.2")


def _trust(parameters: Parameters, certificate: x509.Certificate) -> Iterator[Finding]:
    names = certificates.names(certificate)
    if parameters.values.get("sslmode") == "verify-full" and not certificates.name_matches(
        parameters.host, names
    ):
        yield UNTRUSTED.finding(
            f"the settings say {parameters.host}, the certificate {', '.join(names) or 'no name at all'}"
        )
    context = parameters.authority.context()
    context.check_hostname = False
    try:
        _certificate(parameters, context)
    except ssl.SSLCertVerificationError as failure:
        # The dates are judged from the certificate itself.
        if parameters.verifies and failure.verify_code not in {9, 10}:
            yield UNTRUSTED.finding(failure.verify_message)


def _certificate(parameters: Parameters, context: ssl.SSLContext) -> x509.Certificate:
    """Ask for TLS as libpq does, and read the certificate; raises OSError (ssl.SSLError is one)."""
    address = parameters.host, parameters.port
    with socket.create_connection(address, certificates.TIMEOUT_SECONDS) as plain:
        plain.sendall(_SSL_REQUEST)
        if plain.recv(1) != b"S":
            raise ssl.SSLError("it answers that it has no TLS")
        with context.wrap_socket(plain, server_hostname=parameters.host) as tls:
            encoded = tls.getpeercert(binary_form=True)
    if encoded is None:
        raise ssl.SSLError("it sent no certificate")
    return x509.load_der_x509_certificate(encoded)


def _accepts_obsolete(parameters: Parameters) -> bool:
    context = parameters.authority.context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # old versions are the point here
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with suppress(OSError, ValueError):
        _certificate(parameters, context)
        return True
    return False


def check_login(parameters: Parameters) -> Iterator[Finding]:
    """Try the genuine login in ways that a server should refuse; the password itself is never sent."""
    if parameters.is_socket or not parameters.is_tls:
        return
    ways = (
        # libpq ends the connection by itself if it is asked for the password in clear.
        (PLAIN_TEXT, {"sslmode": "disable", "require_auth": "scram-sha-256"}, "without TLS"),
        (WEAK_LOGIN, {"require_auth": "!scram-sha-256,!password"}, "by another way than SCRAM"),
    )
    for kind, changes, how in ways:
        with suppress(psycopg.OperationalError):
            parameters.connect(**changes).close()
            yield kind.finding(f"{parameters.user} got in {how}")
