"""A secret by its name: the user's own, or one generated once on the controller."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
import string
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.errors import AnsibleError, AnsibleLookupError
from ansible.plugins.lookup import LookupBase

if TYPE_CHECKING:
    from collections.abc import Iterator

DOCUMENTATION = """
name: bundle_secret
short_description: a secret by its name, generated on first use
description:
  - Returns the variable C(vault_<name>) where it is defined and not empty.
  - Otherwise returns the content of C(<state_directory>/secrets/<name>), which is generated on first use.
  - In check mode a secret that does not exist yet is a random value that is written nowhere.
options:
  _terms:
    description: names of the secrets, such as V(redis_worker_password)
    required: true
  length:
    description: letters and digits of a secret that is generated; 40 of them carry 238 bits
    type: int
    default: 40
"""
EXAMPLES = """
- ansible.builtin.debug:
    msg: "{{ lookup('bundle_secret', 'redis_worker_password') | length }}"
"""
RETURN = """
_list:
  description: the secrets, in the order of the names
  type: list
  elements: str
"""

ALPHABET = string.ascii_letters + string.digits
SHORTEST_LENGTH = 16
NAME = re.compile(r"[a-z][a-z0-9_]*")
OTHERS = stat.S_IRWXG | stat.S_IRWXO


class SecretError(Exception):
    """A secret that cannot be had; the message names the file or variable and the remedy, never the value."""


def generate(length: int) -> str:
    """Return letters and digits only: valid in every URL, shell, ini file and connection string."""
    return "".join(secrets.choice(ALPHABET) for _ in range(length))


def own_secret(name: str, value: object) -> str | None:
    """Return the user's own secret, or None where the variable is not set."""
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise SecretError(f"vault_{name} is not a text: put its value in quotes")
    return value


def checked_directory(value: object) -> Path:
    """Return the state directory; a relative one would depend on where the command was typed."""
    if not isinstance(value, str) or not Path(value).is_absolute():
        raise SecretError(
            f"state_directory is {value!r}, expected an absolute path. It is set beside the bundled "
            "inventory: put -i inventory/groups.yml before the -i of your own inventory"
        )
    return Path(value)


def generated_secret(name: str, state_directory: Path, length: int, *, check_mode: bool) -> str:
    """Return the content of the secret's file, which is written on first use."""
    file = state_directory / "secrets" / name
    with _explained(name, file):
        if file.exists():
            return _read(name, file)
        value = generate(length)
        if check_mode:
            return value
        _make_private(state_directory)
        _make_private(file.parent)
        _publish(file, value)
        # What was published first is the secret, whoever published it.
        return _read(name, file)


@contextlib.contextmanager
def _explained(name: str, file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SecretError(
            f"the secret {name} cannot be read or written: {error.filename or file}: {error.strerror}. "
            f"Give it to the user who runs Ansible (uid {os.geteuid()}), "
            f"or set state_directory to a directory of yours, or vault_{name} to a secret of yours"
        ) from error


def _make_private(directory: Path) -> None:
    """Create a directory that only its owner enters; refuse one that others enter already."""
    if not directory.exists():
        directory.parent.mkdir(parents=True, exist_ok=True)
        directory.mkdir(mode=0o700, exist_ok=True)
    # Never repaired silently: others may have read it, and a mistaken state_directory may be /tmp or a home.
    if directory.stat().st_mode & OTHERS:
        raise SecretError(
            f"{directory} holds secrets, and others than its owner may enter it: chmod 700 {directory}"
        )


def _publish(file: Path, value: str) -> None:
    """Write a file at once and whole, unless it exists: forks and a second run agree on the first one's."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(value + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        # Unlike a rename, a link never replaces what another process has published meanwhile.
        with contextlib.suppress(FileExistsError):
            os.link(temporary, file)
    finally:
        temporary.unlink()
    directory = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _read(name: str, file: Path) -> str:
    if file.stat().st_mode & OTHERS:
        raise SecretError(f"others than its owner may read {file}: chmod 600 {file}, or replace it")
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise SecretError(f"{file} is not a text in UTF-8: put one line into it") from error
    if not lines or not lines[0].strip():
        raise SecretError(
            f"{file} is empty: restore it from your copy, or remove it to have a new secret generated, "
            f"or set vault_{name}"
        )
    if len(lines) > 1:
        raise SecretError(f"{file} has {len(lines)} lines: a secret is one line")
    return lines[0]


class LookupModule(LookupBase):  # type: ignore[misc] # Ansible ships no types
    """The plugin: variables in, secrets out."""

    def run(self, terms: list[Any], variables: dict[str, Any] | None = None, **kwargs: Any) -> list[str]:  # noqa: ANN401
        """Return one secret for each name."""
        self.set_options(var_options=variables, direct=kwargs)
        length = self.get_option("length")
        if length < SHORTEST_LENGTH:
            raise AnsibleLookupError(f"bundle_secret: length={length}, expected at least {SHORTEST_LENGTH}")
        return [self._secret(term, variables or {}, length) for term in terms]

    def _secret(self, name: object, variables: dict[str, Any], length: int) -> str:
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise AnsibleLookupError(
                f"bundle_secret: {name!r} names no secret; expected small letters, digits and underscores"
            )
        try:
            value = own_secret(name, self._variable(variables, f"vault_{name}"))
            if value is not None:
                return value
            directory = checked_directory(self._variable(variables, "state_directory"))
            check_mode = bool(variables.get("ansible_check_mode"))
            return generated_secret(name, directory, length, check_mode=check_mode)
        except SecretError as error:
            raise AnsibleLookupError(f"bundle_secret: {error}") from error

    def _variable(self, variables: dict[str, Any], name: str) -> Any:  # noqa: ANN401
        if name not in variables:
            return None
        try:
            return self._templar.template(variables[name])
        except AnsibleError as error:
            raise SecretError(f"the variable {name} cannot be resolved: {error}") from error
