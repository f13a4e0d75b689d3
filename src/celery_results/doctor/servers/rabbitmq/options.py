"""Settings of a RabbitMQ broker: address, TLS, login, heartbeat, confirmation."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from celery_results.doctor import address
from celery_results.doctor.files import check_certificate_file, check_readable
from celery_results.doctor.findings import Finding, could_not_check, error, info, warning
from celery_results.doctor.servers.rabbitmq import queues
from celery_results.doctor.servers.rabbitmq.parameters import Parameters, RefusedError, read_parameters

if TYPE_CHECKING:
    from celery_results.doctor.subject import Settings, Subject

SILENT_LOSS = warning(
    "CRB404",
    "Refused messages are lost without an error",
    "Set broker_transport_options = {'confirm_publish': True}: a client that may not write is dropped "
    "silently otherwise.",
)
PLAIN_TEXT = error(
    "CRB430",
    "Tasks, results and password cross the network in plain text",
    "Use amqps:// with broker_use_ssl = {'cert_reqs': ssl.CERT_REQUIRED, 'ca_certs': ..., "
    "'server_hostname': None}.",
)
PLAIN_TEXT_LOCAL = info(
    "CRB431",
    "The broker has no TLS, on this machine only",
    "Nothing to do while the broker stays on this machine; use amqps:// before it moves.",
)
NOT_VERIFIED = error(
    "CRB432",
    "The broker's certificate is not verified",
    "Set 'cert_reqs': ssl.CERT_REQUIRED in broker_use_ssl, and name the CA in 'ca_certs'.",
)
NAME_NOT_VERIFIED = error(
    "CRB433",
    "The name in the broker's certificate is not verified",
    "Add 'server_hostname': None to broker_use_ssl (None: the name in the URL): without that entry any "
    "certificate of a trusted authority passes for the broker's.",
)
REFUSED = error(
    "CRB434",
    "Celery cannot connect with these broker settings",
    "Correct the setting: workers and clients raise an error when they connect.",
)
ANY_AUTHORITY = info(
    "CRB435",
    "Every public authority is trusted for the broker",
    "Name your own CA in 'ca_certs' of broker_use_ssl, or leave it so if the broker's certificate is a "
    "public one.",
)
GUEST = warning(
    "CRB436",
    "The settings use the account guest",
    "Give the workers a user of their own, without tags and with its own permissions, and delete guest:"
    " it is an administrator, and everybody knows its password.",
)
DEFAULT_VHOST = info(
    "CRB437",
    "The application uses the default vhost",
    "Give the application a vhost of its own: in / it meets whatever else uses this server, and a vhost"
    " is what keeps applications apart.",
)
ODD_VHOST = warning(
    "CRB438",
    "The vhost in the broker URL may be read differently than it is meant",
    "Percent-encode it: urllib.parse.quote(vhost, safe=''); one slash alone stands between host and vhost.",
)
NO_HEARTBEAT = warning(
    "CRB439",
    "A worker notices a lost broker late, or never",
    "Set broker_heartbeat to 30 or 60 seconds: a connection that a firewall has forgotten is silent "
    "otherwise, and so is the worker.",
)

LONGEST_HEARTBEAT_SECONDS: Final = 300


def check_settings(subject: Subject) -> Iterator[Finding]:
    """Judge what the settings say of the broker."""
    settings, urls = subject.settings, subject.broker.split(";")
    for url in urls:
        yield from address.encoding(url, "broker_url")
        yield from _vhost(url)
    if len(urls) > 1:
        yield could_not_check(f"{len(urls) - 1} of {len(urls)} brokers", "only the first one is looked at")
    options = settings.get("broker_transport_options") or {}
    if not options.get("confirm_publish"):
        yield SILENT_LOSS.finding("broker_transport_options has no confirm_publish")
    yield from _heartbeat(settings)
    yield from queues.check(subject)
    try:
        parameters = read_parameters(settings, urls[0])
    except RefusedError as refused:
        yield REFUSED.finding(str(refused))
        return
    yield from _tls(parameters)
    if parameters.username == "guest" and parameters.login_method != "EXTERNAL":
        yield GUEST.finding("broker_url names guest, or nobody, which means guest")
    if parameters.vhost == "/":
        yield DEFAULT_VHOST.finding("the vhost is /")


def _vhost(url: str) -> Iterator[Finding]:
    rest = url.partition("://")[2]
    authority, slash, path = rest.partition("/")
    # A password with a / is another finding; / alone is the usual way to write the default vhost.
    if not slash or "@" in path or (":" in authority and not re.search(r"[:\]]\d*$|@", authority)):
        return
    vhost = path.partition("?")[0]
    if vhost not in {"", "/"} and "/" in vhost:
        yield ODD_VHOST.finding(f"the vhost is written {vhost}, with a / in it")
    elif re.search(r"%(?![0-9A-Fa-f]{2})", vhost):
        yield ODD_VHOST.finding(f"the vhost is written {vhost}, with a % that starts no percent code")
    elif "#" in vhost:
        yield ODD_VHOST.finding(f"the vhost is written {vhost}: what follows # is not read")


def _heartbeat(settings: Settings) -> Iterator[Finding]:
    seconds = settings.get("broker_heartbeat", 120)
    if not seconds:
        yield NO_HEARTBEAT.finding(f"broker_heartbeat = {seconds!r}")
    elif float(seconds) > LONGEST_HEARTBEAT_SECONDS:
        yield NO_HEARTBEAT.finding(f"broker_heartbeat = {seconds!r}: lost after twice that time")


def _tls(parameters: Parameters) -> Iterator[Finding]:
    if parameters.tls is None:
        kind = PLAIN_TEXT_LOCAL if parameters.is_local else PLAIN_TEXT
        yield kind.finding(f"amqp://{parameters.where} without TLS")
        return
    requirement = parameters.requirement
    if requirement != ssl.CERT_REQUIRED:
        yield NOT_VERIFIED.finding(f"cert_reqs = {requirement.name}")
    elif not parameters.checked_name:
        has = "no server_hostname" if isinstance(parameters.tls, Mapping) and parameters.tls else "no options"
        yield NAME_NOT_VERIFIED.finding(f"broker_use_ssl has {has}")
    authority, now = parameters.authority, datetime.now(UTC)
    if authority.ca_file:
        yield from check_certificate_file(Path(authority.ca_file), "ca_certs", now)
    elif requirement == ssl.CERT_REQUIRED:
        yield ANY_AUTHORITY.finding("broker_use_ssl has no ca_certs")
    if authority.cert_file:
        yield from check_certificate_file(Path(authority.cert_file), "certfile", now)
    if authority.key_file:
        yield from check_readable(Path(authority.key_file), "keyfile")
