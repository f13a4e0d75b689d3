"""What is examined: the settings as Celery would see them, and the files they came from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

from celery.app.defaults import _TO_NEW_KEY  # Celery publishes its table of old names nowhere else.

from celery_results.errors import ConfigurationError
from celery_results.settings import environment, load_settings

if TYPE_CHECKING:
    from pathlib import Path

Settings = Mapping[str, Any]

_SECRET_NAME: Final = re.compile(r"password|passwd|secret|token|access_key", re.IGNORECASE)
# Shorter values would blank out half of the report; no finding quotes a secret in the first place.
_SHORTEST_REDACTED: Final = 4


@dataclass(frozen=True)
class Subject:
    """The settings of one deployment."""

    raw: Settings  # names as they are written
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)
    sources: tuple[Path, ...] = ()
    env_file: Path | None = None
    monitor_env_file: Path | None = None
    monitor_raw: Settings | None = field(default=None, repr=False)
    monitor_problem: str = ""
    monitor_environ: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def settings(self) -> dict[str, Any]:
        """Give the settings under Celery's present names."""
        return current_names(self.raw)

    @property
    def monitor_settings(self) -> dict[str, Any] | None:
        """Give the settings as they are with the monitor login."""
        return None if self.monitor_raw is None else current_names(self.monitor_raw)

    @property
    def result_backend(self) -> str:
        """Name the backend that Celery would use."""
        return result_backend(self.settings, self.environ)

    @property
    def alias(self) -> str:
        """Name the backend's alias or class."""
        return split_backend(self.result_backend)[0]

    @property
    def backend_name(self) -> str:
        """Name the backend in a message: a URL without its // is all alias, password included."""
        return self.alias if re.fullmatch(r"[\w.:]+", self.alias) else "an unreadable"

    @property
    def url(self) -> str:
        """Give the backend's URL; it may hold a password."""
        return split_backend(self.result_backend)[1]

    @property
    def broker(self) -> str:
        """Give the broker's URL, several of them with ; in between; empty where the settings name none."""
        return broker(self.settings, self.environ)

    @property
    def broker_scheme(self) -> str:
        """Name the broker's transport."""
        return broker_scheme(self.broker, self.settings)


def current_names(raw: Settings) -> dict[str, Any]:
    """Rename the upper-case settings of Celery 3; where both names are given, the new one counts."""
    renamed = {_TO_NEW_KEY[name]: value for name, value in raw.items() if name in _TO_NEW_KEY}
    return renamed | {name: value for name, value in raw.items() if name not in _TO_NEW_KEY}


def result_backend(settings: Settings, environ: Mapping[str, str]) -> str:
    """Name the backend as Celery finds it: the environment comes first."""
    backend = environ.get("CELERY_RESULT_BACKEND") or settings.get("result_backend") or ""
    return backend if isinstance(backend, str) else f"{backend.__module__}:{backend.__qualname__}"


def broker(settings: Settings, environ: Mapping[str, str]) -> str:
    """Name the broker that tasks are sent to, as Celery finds it: the environment comes first."""
    named = (
        environ.get("CELERY_BROKER_WRITE_URL")
        or settings.get("broker_write_url")
        or environ.get("CELERY_BROKER_URL")
        or settings.get("broker_url")
        or settings.get("broker_host")
        or ""
    )
    return ";".join(map(str, named)) if isinstance(named, list | tuple) else str(named)


def broker_scheme(url: str, settings: Settings) -> str:
    """Name the transport as kombu does: a URL without a scheme, and a bare host name, are amqp."""
    if not url:
        return ""
    scheme = url.partition("://")[0].partition("+")[0] if "://" in url else ""
    return scheme or str(settings.get("broker_transport") or "amqp")


def split_backend(backend: str) -> tuple[str, str]:
    """Return alias or class, and URL, divided as celery.app.backends.by_url does."""
    if "://" not in backend:
        return backend, ""
    scheme = backend.partition("://")[0]
    if "+" in scheme:
        alias, _, url = backend.partition("+")
        return alias, url
    return scheme, backend


def read_subject(
    directory: Path, module: str, env_file: Path | None, monitor_env_file: Path | None
) -> Subject:
    """Read settings and environment; raises ConfigurationError where there is nothing to examine."""
    environ = environment(env_file)
    raw = load_settings(directory, environ, module)
    monitor_environ: dict[str, str] = {}
    monitor_raw, problem = None, ""
    if monitor_env_file:
        try:
            monitor_environ = environment(monitor_env_file)
            monitor_raw = load_settings(directory, monitor_environ, module)
        except ConfigurationError as failure:
            problem = failure.found
    return Subject(
        raw,
        environ,
        source_files(directory, module),
        env_file,
        monitor_env_file,
        monitor_raw,
        problem,
        monitor_environ,
    )


def source_files(directory: Path, module: str) -> tuple[Path, ...]:
    """Return the module's file, and the files beside it that carry its name: celeryconfig_redis.py."""
    stem = directory.joinpath(*module.split("."))
    package = stem / "__init__.py"
    beside = sorted(stem.parent.glob(f"{stem.name}_*.py"))
    return tuple(path for path in (stem.with_suffix(".py"), package, *beside) if path.is_file())


def secrets(subject: Subject) -> set[str]:
    """Every value that may not be printed, also as it is written in a URL."""
    found: set[str] = set()
    for name, value in [*subject.environ.items(), *subject.monitor_environ.items()]:
        if _SECRET_NAME.search(name):
            found.add(value)
        found |= url_passwords(value)
    for settings in (subject.raw, subject.monitor_raw or {}):
        _collect(settings, found)
    return {secret for secret in found if len(secret) >= _SHORTEST_REDACTED}


def _collect(value: object, found: set[str]) -> None:
    if isinstance(value, str):
        found |= url_passwords(value)
    elif isinstance(value, Mapping):
        for name, item in value.items():
            if isinstance(item, str) and _SECRET_NAME.search(str(name)):
                found.add(item)
            _collect(item, found)
    elif isinstance(value, list | tuple):
        for item in value:
            _collect(item, found)


def url_passwords(text: str) -> set[str]:
    """Give what is between user name and last @ of each URL, also where it is not encoded as it should be."""
    found: set[str] = set()
    for url in re.split(r"[;\s]+(?=[a-z0-9+.]+://)", text):
        _, separator, rest = url.partition("://")
        userinfo, at, _ = rest.rpartition("@")
        password = userinfo.partition(":")[2]
        if separator and at and password:
            found |= {password, unquote(password)}
    return found
