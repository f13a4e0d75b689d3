"""A server's certificate: fetched without trust, to be read even where it has expired."""

from __future__ import annotations

import ipaddress
import socket
import ssl
import warnings
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from cryptography import x509

# A server that accepts a connection and then says nothing must not hold up the report.
TIMEOUT_SECONDS: Final = 5.0
# OpenSSL's X509_V_ERR_*: the dates are judged from the certificate itself.
_DATE_ERRORS: Final = frozenset({9, 10})


@dataclass(frozen=True)
class Greeting:
    """What a client says first, and how every answer to it begins, also a refusal; no TLS record does."""

    said: bytes
    answers: tuple[bytes, ...]


REDIS: Final = Greeting(b"PING\r\n", (b"+", b"-"))
# A frame of connection.start, or the header of the version that the server has.
AMQP: Final = Greeting(b"AMQP\x00\x00\x09\x01", (b"\x01\x00\x00", b"AMQP"))
HTTP: Final = Greeting(b"GET / HTTP/1.0\r\n\r\n", (b"HTTP/",))


@dataclass(frozen=True)
class Authority:
    """What a client trusts, and how it presents itself."""

    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    alone: bool = False  # the system's authorities do not count beside the named one

    def context(self) -> ssl.SSLContext:
        """Build what a client with these files would use."""
        if self.alone and self.ca_file:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        else:
            # Like redis-py: the system's authorities count beside the named one.
            context = ssl.create_default_context()
        if self.ca_file:
            context.load_verify_locations(self.ca_file)
        if self.cert_file:
            context.load_cert_chain(self.cert_file, self.key_file)
        return context


@dataclass(frozen=True)
class Handshake:
    """What a server shows of itself before any login."""

    certificate: x509.Certificate
    version: str
    stays_open: bool


def fetch(host: str, port: int, authority: Authority, greeting: Greeting = REDIS) -> Handshake:
    """Read certificate and TLS version without judging either; raises OSError (ssl.SSLError is one)."""
    context = authority.context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with _connect(host, port, context) as tls:
        encoded = tls.getpeercert(binary_form=True)
        if encoded is None:
            raise ssl.SSLError("the server sent no certificate")
        certificate = x509.load_der_x509_certificate(encoded)
        return Handshake(certificate, tls.version() or "", _answers(tls, greeting))


def _answers(tls: ssl.SSLSocket, greeting: Greeting) -> bool:
    """Say something: with TLS 1.3 a server refuses a client that shows no certificate after the handshake."""
    with suppress(OSError):
        tls.sendall(greeting.said)
        return bool(tls.recv(1))
    return False


def chain_problem(host: str, port: int, authority: Authority) -> str:
    """Say why the chain is not trusted; dates and names are judged elsewhere, so that each is told apart."""
    context = authority.context()
    context.check_hostname = False
    try:
        _connect(host, port, context).close()
    except ssl.SSLCertVerificationError as failure:
        return "" if failure.verify_code in _DATE_ERRORS else failure.verify_message
    return ""


def accepts_obsolete(host: str, port: int, authority: Authority) -> bool:
    """Try TLS 1.1 and older, with the weakest ciphers that this host's OpenSSL still has."""
    context = authority.context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # old versions are the point here
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with suppress(OSError):
        _connect(host, port, context).close()
        return True
    return False


def _connect(host: str, port: int, context: ssl.SSLContext) -> ssl.SSLSocket:
    plain = socket.create_connection((host, port), TIMEOUT_SECONDS)
    try:
        return context.wrap_socket(plain, server_hostname=host)
    except BaseException:
        plain.close()
        raise


def unreachable(host: str, port: int) -> str:
    """Say why nothing takes a connection; empty if something does."""
    try:
        socket.create_connection((host, port), TIMEOUT_SECONDS).close()
    except OSError as failure:
        return failure.strerror or str(failure) or type(failure).__name__
    return ""


def answers_in_plain_text(host: str, port: int, greeting: Greeting = REDIS) -> bool:
    """Say something outside TLS: any answer, also a refusal, shows that the port takes plain text."""
    with suppress(OSError), socket.create_connection((host, port), TIMEOUT_SECONDS) as plain:
        plain.settimeout(TIMEOUT_SECONDS)
        plain.sendall(greeting.said)
        return plain.recv(16).startswith(greeting.answers)
    return False


def names(certificate: x509.Certificate) -> list[str]:
    """List the names and addresses that a certificate is for."""
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    addresses = [str(address) for address in extension.get_values_for_type(x509.IPAddress)]
    return extension.get_values_for_type(x509.DNSName) + addresses


def name_matches(host: str, certificate_names: list[str]) -> bool:
    """Match as OpenSSL does: an address by value, a name by label, a star for the whole first label only."""
    with suppress(ValueError):
        address = ipaddress.ip_address(host)
        return str(address) in certificate_names
    wanted = host.rstrip(".").lower()
    parent = wanted.partition(".")[2]
    return any(
        name.lower() == wanted or (name.startswith("*.") and bool(parent) and name[2:].lower() == parent)
        for name in certificate_names
    )
