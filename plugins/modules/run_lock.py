"""Take or release a host's run lock; one compare-and-swap, the action plugin of the same name decides."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from typing import TYPE_CHECKING, Any

from ansible.module_utils.basic import AnsibleModule

if TYPE_CHECKING:
    from collections.abc import Iterator

DOCUMENTATION = """
module: run_lock
short_description: let one run at a time change a host
description:
  - Records the run in a file; a run that finds another one's record gets it returned.
  - The file stays empty after a release. It is gone with the next boot, as is every run of this host.
  - Reports no change, because nothing of the host's desired state changes.
options:
  path:
    description: the file, in a directory that only root writes
    type: str
    default: /run/celery-results.lock
  state:
    description: what is wanted
    type: str
    choices: [taken, released]
    required: true
  holder:
    description: the run, set by the action plugin
    type: dict
    default: {}
  replace:
    description: the run whose lock may be taken over, set by the action plugin
    type: str
    default: ""
  stale_after_seconds:
    description: age after which the lock of a run on another controller is taken over
    type: int
    default: 3600
  break_lock:
    description: take the lock, whoever holds it
    type: bool
    default: false
author: celery-results
"""
EXAMPLES = """
- name: Take the run lock
  run_lock:
    state: taken
"""
RETURN = """
taken:
  description: whether this run holds the lock now
  type: bool
  returned: always
holder:
  description: the run that holds it
  type: dict
  returned: always
age_seconds:
  description: for how long, by the host's clock
  type: float
  returned: always
"""


@contextlib.contextmanager
def locked_file(path: str) -> Iterator[int]:
    """Open the file for this process alone; the kernel lets go of it even at kill -9."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def read_holder(descriptor: int) -> dict[str, Any]:
    """Return who holds the lock; nobody if the file is empty or was cut short by a crash."""
    try:
        holder = json.loads(os.pread(descriptor, 65536, 0) or b"{}")
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) and isinstance(holder.get("run"), str) else {}


def write_holder(descriptor: int, holder: dict[str, Any]) -> None:
    """Record the holder, or nobody."""
    os.ftruncate(descriptor, 0)
    if holder:
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)
    os.fsync(descriptor)


def swap(path: str, state: str, holder: dict[str, Any], replace: str) -> dict[str, Any]:
    """Take the lock if it is free, ours or that of the run to replace; release it if it is ours."""
    with locked_file(path) as descriptor:
        found = read_holder(descriptor)
        age = time.time() - os.fstat(descriptor).st_mtime
        if state == "taken" and (not found or found.get("run") in (holder["run"], replace)):
            write_holder(descriptor, holder)
            found, age = holder, 0.0
        elif state == "released" and found.get("run") == holder["run"]:
            write_holder(descriptor, {})
            found = {}
    return {"taken": found.get("run") == holder["run"], "holder": found, "age_seconds": age}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "str", "default": "/run/celery-results.lock"},
            "state": {"type": "str", "required": True, "choices": ["taken", "released"]},
            "holder": {"type": "dict", "default": {}},
            "replace": {"type": "str", "default": ""},
            "stale_after_seconds": {"type": "int", "default": 3600},
            "break_lock": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    if module.check_mode:
        module.exit_json(changed=False, taken=False, holder={}, age_seconds=0.0)
    parameters = module.params
    try:
        result = swap(parameters["path"], parameters["state"], parameters["holder"], parameters["replace"])
    except OSError as error:
        module.fail_json(
            msg=f"the run lock cannot be used: {error}. Ansible works here as uid {os.geteuid()}; root is "
            "needed: see become and ansible_become_user"
        )
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
