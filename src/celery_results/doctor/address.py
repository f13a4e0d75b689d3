"""The result_backend itself: a backend that exists, in a URL that is read as it was meant."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import TYPE_CHECKING, Final

from celery.app.backends import BACKEND_ALIASES
from celery.exceptions import ImproperlyConfigured
from celery.utils.imports import load_extension_class_names, symbol_by_name

from celery_results.doctor.findings import Finding, error, warning

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery_results.doctor.subject import Subject

NONE = error(
    "CRB140",
    "There is no result backend",
    "Set result_backend; without it every result is thrown away and get() raises.",
)
UNKNOWN = error("CRB141", "There is no such result backend", "Use a scheme that Celery has a backend for.")
CLUSTER = error(
    "CRB142",
    "Celery has no Redis Cluster backend",
    "Use one server, or Sentinel (sentinel://). redis+cluster:// is taken as a plain Redis without a "
    "word, and fails "
    "at the first key of another node.",
)
CUT_URL = error(
    "CRB143",
    "The password cuts the URL in two",
    "Percent-encode the password: urllib.parse.quote(password, safe='').",
)
RAW_PASSWORD = warning(
    "CRB144",
    "The password in the URL is not percent-encoded",
    "Percent-encode the password: urllib.parse.quote(password, safe=''). Celery may still read it, other "
    "tools differ.",
)
NOT_IMPORTABLE = error(
    "CRB145",
    "The result backend's class cannot be imported",
    "Install the package in the environment of every worker and client: a module beside the application "
    "is not "
    "enough for the worker.",
)

# With one of these there is nothing more to look at.
UNUSABLE: Final = frozenset({NONE.code, UNKNOWN.code, CLUSTER.code, NOT_IMPORTABLE.code})

_INSTEAD: Final = {
    "postgresql": "db+postgresql+psycopg://",
    "postgres": "db+postgresql+psycopg://",
    "mysql": "db+mysql+pymysql://",
    "mariadb": "db+mysql+pymysql://",
    "sqlite": "db+sqlite:///",
    "amqp": "rpc://",
    "amqps": "rpc://",
    "pyamqp": "rpc://",
    "valkey": "redis://",
    "valkeys": "rediss://",
    "sentinels": "sentinel:// with redis_backend_use_ssl",
}


def check(subject: Subject) -> Iterator[Finding]:
    """Judge the setting that names the backend."""
    backend = subject.result_backend
    if not backend or backend == "disabled":
        yield NONE.finding("result_backend is not set" if not backend else "result_backend = 'disabled'")
        return
    # The scheme may not say redis at all: rediscluster:// comes from add-ons that 5.7 does not load.
    if subject.alias in {"rediscluster", "redisscluster"} or re.match(r"rediss?\+clusters?://", backend):
        yield CLUSTER.finding(f"result_backend starts with {backend.partition('://')[0]}://")
        return
    yield from _alias(subject)
    for url in subject.url.split(";"):
        yield from encoding(url)


def _alias(subject: Subject) -> Iterator[Finding]:
    alias = subject.alias
    aliases = BACKEND_ALIASES | subject.settings.get("override_backends", {})
    aliases |= load_extension_class_names("celery.result_backends")
    if alias in aliases:
        return
    if alias != subject.backend_name:
        yield UNKNOWN.finding(
            "result_backend is no URL",
            "Write scheme://user:password@host:port/database. "
            "What is there is not shown: it may hold a password.",
        )
        return
    if "." in alias or ":" in alias:
        try:
            symbol_by_name(alias)
        except (ImportError, AttributeError, ValueError, ImproperlyConfigured) as failure:
            yield NOT_IMPORTABLE.finding(f"{alias}: {type(failure).__name__}")
        return
    nearest = get_close_matches(alias, aliases, n=1)
    instead = _INSTEAD.get(alias) or (f"{nearest[0]}://" if nearest else "")
    yield UNKNOWN.finding(
        f"result_backend starts with {alias}",
        f"Use {instead}" if instead else f"Known are: {', '.join(sorted(aliases))}.",
    )


def encoding(url: str, setting: str = "") -> Iterator[Finding]:
    """Judge how user and password are written in a URL; a setting is named where it is another than usual."""
    said = f"{setting}: the part" if setting else "the part"
    rest = url.partition("://")[2]
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" in rest.partition("?")[0] and "@" not in authority and ":" in authority:
        yield CUT_URL.finding(f"{said} before the @ holds a /, ? or #, so that Celery reads another host")
    elif "@" not in authority and "@" in rest and re.match(r"[^/]*:[^/]*[?#]", rest):
        yield CUT_URL.finding(f"{said} before the @ holds a ? or #, so that Celery reads another host")
    elif authority.count("@") > 1:
        yield RAW_PASSWORD.finding(f"{said} before the host holds an @")
    elif "@" in authority and re.search(r"%(?![0-9A-Fa-f]{2})", authority):
        yield RAW_PASSWORD.finding(f"{said} before the host holds a % that starts no percent code")
