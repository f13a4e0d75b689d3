"""What was typed, what the inventory says, and what the controller has; nothing is touched."""

from __future__ import annotations

import getpass
import importlib.util
import os
import platform
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible import constants, context
from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase
from ansible.release import __version__ as ansible_core
from ansible.utils.vars import load_extra_vars

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# What is chosen on the command line: site.yml and migrate.yml name their servers there.
CHOICES = ("backend", "broker", "source", "target")
# What roles and playbooks import on the controller.
REQUIRED = {
    "community.crypto": "ansible_collections.community.crypto",
    "flit_core": "flit_core",
    "cryptography": "cryptography",
}


class ActionModule(ActionBase):  # type: ignore[misc] # Ansible ships no types
    """The plugin: runs on the controller, whatever the host."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the facts that the filter preflight_problems judges."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        hostvars = variables["hostvars"]
        groups = {str(name): [str(host) for host in hosts] for name, hosts in variables["groups"].items()}
        extra = load_extra_vars(self._loader)
        servers = [str(extra[name]) for name in CHOICES if name in extra]
        involved = sorted(
            {host for name in (*servers, "celery", "celery_client") for host in groups.get(name, [])}
        )
        directories = _by_value({host: _value(hostvars[host], "state_directory") for host in involved})
        result["facts"] = {
            "controller": _controller(),
            "extra": {name: extra.get(name) for name in CHOICES},
            "inventory_choice": _inventory_choice(hostvars, groups.get("all", [])),
            "inventory": _inventory_arguments(),
            "groups": groups,
            "hosts_without_topology": [
                host for host in involved or groups.get("all", []) if "topology_servers" not in hostvars[host]
            ],
            "roles": self._roles(),
            "topology": {
                name: kind
                for name in servers
                for kind in [_value(hostvars[host], f"{name}_topology") for host in involved[:1]]
                if kind
            },
            "celery": {
                host: {
                    "app": _given(hostvars[host], "celery_app"),
                    "broker_url": _given(hostvars[host], "celery_broker_url"),
                }
                for host in groups.get("celery", [])
            },
            "state_directories": directories,
            "state_paths": {
                path: _path_facts(Path(path)) for path in directories if Path(path).is_absolute()
            },
        }
        return result

    def _roles(self) -> dict[str, list[str]]:
        """Return the roles that are backends, each with the topologies that it has."""
        playbooks = Path(self._loader.get_basedir())
        paths = [playbooks / "roles", *map(Path, constants.DEFAULT_ROLES_PATH)]
        contracts = [file for path in reversed(paths) for file in sorted(path.glob("*/tasks/connection.yml"))]
        return {
            file.parents[1].name: [
                kind.stem.removeprefix("topology_") for kind in file.parent.glob("topology_*.yml")
            ]
            for file in contracts
        }


def _controller() -> dict[str, Any]:
    return {
        "ansible_core": ansible_core,
        "python": platform.python_version(),
        "executable": sys.executable,
        "missing": [name for name, module in REQUIRED.items() if not _importable(module)],
    }


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of its parent
        return False


def _inventory_arguments() -> list[str]:
    """Return the sources named on the command line; none for the default inventory."""
    sources = [str(source) for source in context.CLIARGS.get("inventory") or ()]
    if sources == [str(source) for source in constants.DEFAULT_HOST_LIST]:
        return []
    here = Path.cwd()
    return [
        str(Path(source).relative_to(here)) if Path(source).is_relative_to(here) else source
        for source in sources
    ]


def _inventory_choice(hostvars: Mapping[str, Any], hosts: Iterable[str]) -> dict[str, str]:
    return {
        name: value
        for host in reversed(list(hosts))
        for name in CHOICES
        if (value := _value(hostvars[host], name))
    }


def _value(variables: Mapping[str, Any], name: str) -> str:
    """Return a variable as text, empty where it is undefined or cannot be resolved."""
    if name not in variables:
        return ""
    try:
        return str(variables[name] or "")
    except AnsibleError:
        return ""


def _given(variables: Mapping[str, Any], name: str) -> bool:
    """Tell whether a variable is set, without the value: it may hold a password."""
    if name not in variables:
        return False
    try:
        return bool(variables[name])
    except AnsibleError:
        return True


def _by_value(values: Mapping[str, str]) -> dict[str, list[str]]:
    result: dict[str, list[str]] = {}
    for host, value in values.items():
        result.setdefault(value, []).append(host)
    return result


def _path_facts(path: Path) -> dict[str, Any]:
    """Describe a directory, or the parent in which it would be made."""
    directory = next(candidate for candidate in (path, *path.parents) if candidate.exists())
    exists = directory == path
    return {
        "kind": "missing" if not exists else "directory" if path.is_dir() else "other",
        "directory": str(directory),
        "mode": stat.S_IMODE(path.stat().st_mode) if exists else 0,
        "writable": os.access(directory, os.W_OK | os.X_OK),
        "user": getpass.getuser(),
    }
