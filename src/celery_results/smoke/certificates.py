"""Refusals on our side: the deployed settings must not talk to a server that cannot prove who it is.

They go through the deployed celeryconfig, so they are the same for every backend.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import socket
import threading
import uuid
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from celery_results.settings import connection_from_env, load_settings
from celery_results.smoke.application import build_reader, connect_to_broker, dispose
from celery_results.smoke.diagnosis import is_certificate_error, is_name_error
from celery_results.smoke.refusals import Accepted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from celery_results.smoke.refusals import Attempt, Target

# An address of this machine that no certificate bears; all of 127/8 is.
_UNNAMED_ADDRESS = "127.83.77.75"
_CHUNK_BYTES = 65536


def read_nothing(config_directory: Path, environ: Mapping[str, str]) -> None:
    """Ask for a result that does not exist, through the settings under this environment."""
    reader = build_reader(load_settings(config_directory, environ))
    try:
        reader.backend.get_task_meta(str(uuid.uuid4()))
    finally:
        dispose(reader)


def untrusted_ca(target: Target) -> str:
    """Trust another authority than the one that signed the server's certificate."""
    _need_tls(target)
    _ask(target, target.environ)
    other = target.directory / "other-ca.crt"
    other.write_bytes(_certificate_authority())
    try:
        _ask(target, _changed(target, "TLS_CA_FILE", str(other)))
    except Exception as error:
        if is_certificate_error(error):
            return "the settings verify the chain"
        raise
    raise Accepted("the settings talk to a server whose authority they do not know")


def wrong_name(target: Target) -> str:
    """Reach the server by an address that its certificate does not bear."""
    _need_tls(target)
    _ask(target, target.environ)
    try:
        with _forwarder(target.login.hosts[0]) as (host, port):
            _ask(target, _changed(target, "HOSTS", f"{host}:{port}"))
    except Exception as error:
        if is_name_error(error):
            return "the settings verify the name"
        raise
    raise Accepted("the settings talk to any server with a certificate of this authority")


def _ask(target: Target, environ: Mapping[str, str]) -> None:
    if target.role == "RESULT":
        read_nothing(target.config_directory, environ)
    else:
        connect_to_broker(load_settings(target.config_directory, environ))


def _changed(target: Target, name: str, value: str) -> dict[str, str]:
    """Change one variable of the server; results that travel over the broker take the broker's."""
    changed = {**target.environ, f"CELERYCONFIG_{target.role}_{name}": value}
    broker = connection_from_env(target.environ, "BROKER")
    if (
        target.role == "RESULT"
        and broker
        and (broker.name, broker.hosts) == (target.login.name, target.login.hosts)
    ):
        changed[f"CELERYCONFIG_BROKER_{name}"] = value
    return changed


def _need_tls(target: Target) -> None:
    if not target.login.tls.enabled:
        raise Accepted("the settings use no TLS")


def _certificate_authority() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "celery-results smoke: trusted by nobody")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM)


@contextlib.contextmanager
def _forwarder(server: tuple[str, int]) -> Iterator[tuple[str, int]]:
    """Pass bytes between a listener on the unnamed address and the server."""
    with socket.create_server((_UNNAMED_ADDRESS, 0)) as listener:
        threading.Thread(target=_accept, args=(listener, server), daemon=True).start()
        yield listener.getsockname()[:2]


def _accept(listener: socket.socket, server: tuple[str, int]) -> None:
    with contextlib.suppress(OSError):  # the listener is closed: the end
        while True:
            near, _ = listener.accept()
            far = socket.create_connection(server, timeout=10)
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=_copy, args=(source, sink), daemon=True).start()


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while chunk := source.recv(_CHUNK_BYTES):
            sink.sendall(chunk)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


ATTEMPTS: Mapping[str, Attempt] = {"untrusted_ca": untrusted_ca, "wrong_name": wrong_name}
