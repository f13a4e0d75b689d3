"""Read what the celery role deploys: env files, the settings module, the connection it describes."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import sys
import threading
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any

from celery_results.errors import EnvFileError, SettingsError
from celery_results.redaction import redactor_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

PREFIX = "CELERYCONFIG_"
# The store of results; while they move to another one, the one that they leave, and the one that they go to.
RESULT = "RESULT"
TARGET = "TARGET"
# Stages of a migration in which the target's word counts (celery_results.backends.dual.options.STAGES).
TARGET_FIRST = frozenset({"cutover", "drain"})
_STAGE = f"{PREFIX}MIGRATION_STAGE"
# What describes a server; other names of the same beginning hold for both stores.
_SERVER = ("NAME", "SCHEME", "HOSTS", "DATABASE", "USERNAME", "PASSWORD", "OPTIONS", "TLS_")
# Celery takes these before any settings module: left in a shell, they would lead away from what is deployed.
OVERRIDES = (
    "CELERY_BROKER_READ_URL",
    "CELERY_BROKER_URL",
    "CELERY_BROKER_WRITE_URL",
    "CELERY_CONFIG_MODULE",
    "CELERY_LOADER",
    "CELERY_RESULT_BACKEND",
)

_ASSIGNMENT = re.compile(r"(?P<name>[A-Za-z_][A-Za-z0-9_]*)=(?P<value>.*)")
_BARE = re.compile(r"[A-Za-z0-9_@%+=:,./-]*")
_DOUBLE_QUOTED = re.compile(r'"(?P<body>(?:[^"\\$`]|\\.)*)"')
_SINGLE_QUOTED = re.compile(r"'(?P<body>[^'\\]*)'")
_ESCAPE = re.compile(r'\\([\\"$`])')
_HIGHEST_PORT = 65535
_import_lock = threading.Lock()


@dataclass(frozen=True)
class TlsFiles:
    """Where this host keeps what TLS needs; an empty string means not used."""

    enabled: bool
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""


@dataclass(frozen=True)
class Connection:
    """One backend or broker as the environment describes it."""

    name: str
    scheme: str
    hosts: tuple[tuple[str, int], ...]
    database: str
    username: str
    password: str = field(repr=False)
    tls: TlsFiles
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """Name it in messages: no password."""
        hosts = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts)
        login = f"{self.username}@" if self.username else ""
        return f"{self.scheme}://{login}{hosts}" + (f"/{self.database}" if self.database else "")


def read_env_file(path: Path) -> dict[str, str]:
    r"""Read the values as both systemd and sh would; refuse what the two read differently.

    A value is a bare word, '…' without a backslash, or "…" in which ``\ " $ ` `` are escaped by a backslash.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise EnvFileError(
            expected=f"the env file {path}",
            found="no such file",
            do="deploy this host (make deploy backend=...), or name another with --env-file",
        ) from None
    except PermissionError:
        raise EnvFileError(
            expected=f"to read the env file {path}",
            found="permission denied",
            do="run as root or as a member of the group celery",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise EnvFileError(
            expected=f"the env file {path} as UTF-8 text",
            found=type(error).__name__,
            do="deploy this host again: the file is written by the celery role",
        ) from None
    values = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip() and not line.lstrip().startswith(("#", ";")):
            name, value = _parse_assignment(line.strip(), path, number)
            values[name] = value
    return values


def _parse_assignment(line: str, path: Path, number: int) -> tuple[str, str]:
    # The line itself may be a secret: only its place is told.
    assignment = _ASSIGNMENT.fullmatch(line)
    if assignment:
        name, raw = assignment["name"], assignment["value"]
        if double := _DOUBLE_QUOTED.fullmatch(raw):
            return name, _ESCAPE.sub(r"\1", double["body"])
        if single := _SINGLE_QUOTED.fullmatch(raw):
            return name, single["body"]
        if _BARE.fullmatch(raw):
            return name, raw
    raise EnvFileError(
        expected=f'NAME="value" in {path}, with \\ " $ ` escaped by a backslash',
        found=f"something else in line {number}",
        do="quote the value; sh and systemd would read this line differently",
    )


def environment(env_file: Path | None, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """Give the environment of a process that starts with this env file.

    The file is the whole truth: CELERYCONFIG_* names and Celery's own overrides of the base do not shine
    through. Without a file, the base itself is taken as it is.
    """
    base = os.environ if base is None else base
    if env_file is None:
        return dict(base)
    kept = {
        name: value for name, value in base.items() if not name.startswith(PREFIX) and name not in OVERRIDES
    }
    return kept | read_env_file(env_file)


def load_settings(
    config_directory: Path,
    environ: Mapping[str, str],
    module: str = "celeryconfig",
) -> dict[str, Any]:
    """Import the settings afresh under this environment and give their public names.

    The process's own environment, import path and modules are as before afterwards.
    """
    if not (config_directory / f"{module}.py").is_file() and not (config_directory / module).is_dir():
        raise SettingsError(
            expected=f"the settings module {module} in {config_directory}",
            found="no such file",
            do="deploy this host (make deploy backend=...), or name the place with --config-directory",
        )
    with _import_lock, _as_if_alone(config_directory, environ, module):
        try:
            loaded = importlib.import_module(module)
        except Exception as error:  # noqa: BLE001 - it is the user's code: anything may be raised
            raise SettingsError(
                expected=f"{config_directory}/{module}.py to be importable with this env file",
                found=redactor_for(environ).clean(f"{type(error).__name__}: {error}"),
                do="compare the env file with the deployed one; deploy this host again",
            ) from None
        return {
            name: value
            for name, value in vars(loaded).items()
            if not name.startswith("_") and not isinstance(value, ModuleType)
        }


@contextlib.contextmanager
def _as_if_alone(directory: Path, environ: Mapping[str, str], module: str) -> Iterator[None]:
    def ours() -> list[str]:
        return [
            name for name in sys.modules if name == module or name.startswith((f"{module}_", f"{module}."))
        ]

    before_environ, before_path, before_bytecode = dict(os.environ), list(sys.path), sys.dont_write_bytecode
    before_modules = {name: sys.modules.pop(name) for name in ours()}
    _replace_environ(environ)
    sys.path.insert(0, str(directory))
    sys.dont_write_bytecode = True  # /etc/celery is no place for __pycache__
    importlib.invalidate_caches()
    try:
        yield
    finally:
        for name in ours():
            del sys.modules[name]
        sys.modules.update(before_modules)
        sys.path[:] = before_path
        sys.dont_write_bytecode = before_bytecode
        _replace_environ(before_environ)


def _replace_environ(environ: Mapping[str, str]) -> None:
    for name in set(os.environ) - set(environ):
        del os.environ[name]
    os.environ.update(environ)


def connection_from_env(environ: Mapping[str, str], role: str = "RESULT") -> Connection | None:
    """Parse CELERYCONFIG_<ROLE>_*; None where the environment names no backend of that role."""
    prefix = f"{PREFIX}{role}_"
    name = environ.get(f"{prefix}NAME", "")
    if not name:
        return None

    def get(key: str) -> str:
        return environ.get(f"{prefix}{key}", "")

    return Connection(
        name=name,
        scheme=get("SCHEME"),
        hosts=_parse_hosts(get("HOSTS"), f"{prefix}HOSTS"),
        database=get("DATABASE"),
        username=get("USERNAME"),
        password=get("PASSWORD"),
        tls=TlsFiles(
            enabled=_parse_bool(get("TLS_ENABLED"), f"{prefix}TLS_ENABLED"),
            ca_file=get("TLS_CA_FILE"),
            cert_file=get("TLS_CERT_FILE"),
            key_file=get("TLS_KEY_FILE"),
        ),
        options=_parse_options(get("OPTIONS"), f"{prefix}OPTIONS"),
    )


def _parse_hosts(text: str, variable: str) -> tuple[tuple[str, int], ...]:
    hosts = []
    for item in filter(None, text.split(",")):
        host, colon, port = item.strip().rpartition(":")
        if (
            not colon
            or not port.isascii()
            or not port.isdigit()
            or not 0 < int(port) <= _HIGHEST_PORT
            or not host
        ):
            raise SettingsError(
                expected=f"{variable} as host:port,host:port (IPv6 in brackets)",
                found=repr(item),
                do="correct the env file, or deploy this host again",
            )
        hosts.append((host.strip("[]"), int(port)))
    return tuple(hosts)


def _parse_bool(text: str, variable: str) -> bool:
    if text not in {"", "true", "false"}:
        raise SettingsError(
            expected=f"{variable} as true or false",
            found=repr(text),
            do="correct the env file, or deploy this host again",
        )
    return text == "true"


def _parse_options(text: str, variable: str) -> dict[str, Any]:
    try:
        options = json.loads(text or "{}")
    except ValueError:
        options = None
    if not isinstance(options, dict):
        raise SettingsError(
            expected=f"{variable} as a JSON object",
            found="something else",
            do="correct the env file, or deploy this host again",
        )
    return options


def stage(environ: Mapping[str, str]) -> str:
    """Name the stage of the migration that these settings take part in; empty where there is none."""
    return environ.get(_STAGE, "")


def primary_role(environ: Mapping[str, str]) -> str:
    """Name the role of the store whose word counts: RESULT, or TARGET after a cutover."""
    return TARGET if stage(environ) in TARGET_FIRST else RESULT


def alone(environ: Mapping[str, str], role: str) -> dict[str, str]:
    """Give the environment in which one of the two stores of a migration is the only one.

    Without a migration it is the environment as it is.
    """
    if not stage(environ):
        return dict(environ)
    heads = {each: tuple(f"{PREFIX}{each}_{name}" for name in _SERVER) for each in (RESULT, TARGET)}
    dropped = (f"{PREFIX}MIGRATION_", f"{PREFIX}{TARGET}_", *(heads[RESULT] if role == TARGET else ()))
    kept = {name: value for name, value in environ.items() if not name.startswith(dropped)}
    if role == TARGET:
        start = len(f"{PREFIX}{TARGET}_")
        for name, value in environ.items():
            if name.startswith(heads[TARGET]):
                kept[f"{PREFIX}{RESULT}_{name[start:]}"] = value
    return kept
