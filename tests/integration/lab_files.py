"""What the labs have in common: they run while a `with` block does, and write what the celery role writes."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import socket
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).parents[2]
_PORTS = range(10_000, 32_768)
# Each env file in /etc/celery, and whose login is in it.
LOGIN_FILES = {"celery.env": "worker", "client.env": "client", "monitor.env": "monitor"}
RESULTS = {
    "CELERYCONFIG_RESULT_EXPIRES_SECONDS": "86400",
    "CELERYCONFIG_RESULT_EXTENDED": "false",
    "CELERYCONFIG_RESULT_SERIALIZER": "json",
}


class Lab(ABC):
    """A server of the tests' own, or several."""

    address: str
    port: int
    passwords: dict[str, str]
    authority: Any

    @abstractmethod
    def start(self) -> None:
        """Start them, and wait until they answer."""

    @abstractmethod
    def stop(self) -> None:
        """End what was started, as much of it as there is."""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def connection_values(self, role: str, login: str, **more: str) -> dict[str, str]:
        """Give what leads a login here, by TLS; `role` is RESULT or BROKER, `more` named as in the files."""
        values = {
            "hosts": f"{self.address}:{self.port}",
            "password": self.passwords[login],
            "tls_enabled": "true",
            "tls_ca_file": str(self.authority.file),
            "tls_cert_file": "",
            "tls_key_file": "",
            **more,
        }
        return {f"CELERYCONFIG_{role}_{name.upper()}": value for name, value in values.items()}


def write_settings(directory: Path, name: str) -> None:
    """Put the settings files for the backend of this name into a directory, which may exist."""
    directory.mkdir(parents=True, exist_ok=True)
    for source, deployed in (("base", "celeryconfig"), (name, f"celeryconfig_{name}")):
        shutil.copy(ROOT / "files" / "celeryconfig" / f"{source}.py", directory / f"{deployed}.py")


def weaken(module: Path, *changes: tuple[str, str]) -> None:
    """Change deployed settings: what is to be replaced must be there."""
    text = module.read_text()
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    module.write_text(text)


def write_env(path: Path, values: Mapping[str, str]) -> None:
    """Write one env file, its owner's alone."""
    path.write_text("".join(f"{name}={quoted(value)}\n" for name, value in values.items()))
    path.chmod(0o600)


def quoted(value: str) -> str:
    """Write a value as systemd and a shell read it."""
    escaped = "".join(f"\\{character}" if character in '\\"$`' else character for character in value)
    return f'"{escaped}"'


def free_port(address: str = "127.0.0.1") -> int:
    """Find a port of an address where nothing listens, below those that the kernel gives to clients.

    One of these may be a client's by the time that the server takes it.
    """
    while True:
        port = secrets.choice(_PORTS)
        with contextlib.suppress(OSError), socket.create_server((address, port)):
            return port
