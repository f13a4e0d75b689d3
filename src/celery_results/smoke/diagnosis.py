"""From a message to the setting to look at."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@dataclass(frozen=True)
class Hint:
    """What a message means: a pattern, and what to do."""

    pattern: str
    remedy: str


# OpenSSL's own words; libpq's for the chain, and for the name.
_UNTRUSTED = (
    r"CERTIFICATE_VERIFY_FAILED|SSL error: certificate verify failed"
    r"|server certificate for .* does not match"
)

# The first that matches counts: the special before the general.
GENERAL = (
    Hint(
        r"certificate has expired|certificate is not yet valid",
        "the server's certificate is out of its time: run site.yml, which renews it; compare the clocks",
    ),
    Hint(
        r"mismatch|doesn't match|does not match host name|not valid for",
        "CELERYCONFIG_RESULT_HOSTS is a name or address that the server's certificate does not bear: connect "
        "by one that it does, or run site.yml for the server again",
    ),
    Hint(
        r"(?i)certificate[ _]verify[ _]failed|self.signed certificate|unable to get local issuer",
        "CELERYCONFIG_RESULT_TLS_CA_FILE is not the authority that signed the server's certificate: run "
        "site.yml for the server and this host with the same .state directory or the same tls_ca_* variables",
    ),
    Hint(
        r"certificate required|alert handshake failure|alert unknown ca|alert bad certificate",
        "the server wants a certificate of ours: see CELERYCONFIG_RESULT_TLS_CERT_FILE and _KEY_FILE",
    ),
    Hint(
        r"WRONG_VERSION_NUMBER|record layer failure",
        "this port does not speak TLS: see CELERYCONFIG_RESULT_HOSTS and _TLS_ENABLED",
    ),
    Hint(
        r"(?i)connection refused|timed? ?out connecting|no route to host|network is unreachable",
        "nothing answers at CELERYCONFIG_RESULT_HOSTS: is the server up, does its firewall know this host?",
    ),
    Hint(
        r"(?i)name or service not known|temporary failure in name resolution|no address associated",
        "the name in CELERYCONFIG_RESULT_HOSTS is not known here: see DNS, or set the server's address",
    ),
    Hint(
        r"ContentDisallowed|DecodeError|EncodeError",
        "worker and client disagree about result_serializer or accept_content: deploy both again",
    ),
)


def remedy_for(text: str, hints: Sequence[Hint]) -> str:
    """Give the remedy of the first hint that matches, or nothing."""
    return next((hint.remedy for hint in (*hints, *GENERAL) if re.search(hint.pattern, text)), "")


def telling_line(log: str, hints: Sequence[Hint]) -> str:
    """Find the last line of a log that a hint knows."""
    lines = (line.strip() for line in reversed(log.splitlines()))
    return next((line for line in lines if remedy_for(line, hints)), "")


def causes(error: BaseException) -> Iterator[BaseException]:
    """Walk from an exception to those behind it, each once: libraries wrap the telling one."""
    seen: set[int] = set()
    waiting: list[object] = [error]
    while waiting:
        current = waiting.pop(0)
        if isinstance(current, BaseException) and id(current) not in seen:
            seen.add(id(current))
            yield current
            waiting += [current.__cause__, current.__context__, *current.args]


def describe(error: BaseException) -> str:
    """Name an exception in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def is_certificate_error(error: BaseException) -> bool:
    """Tell whether the certificate was what was refused, and nothing else."""
    return any(
        isinstance(cause, ssl.SSLCertVerificationError) or re.search(_UNTRUSTED, str(cause))
        for cause in causes(error)
    )


def is_name_error(error: BaseException) -> bool:
    """Tell whether the certificate was refused because of the name in it."""
    return is_certificate_error(error) and any(
        re.search(r"mismatch|doesn't match|does not match|not valid for", str(cause))
        for cause in causes(error)
    )
