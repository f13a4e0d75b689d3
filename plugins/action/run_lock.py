"""One run at a time on a host: say who this run is, and whether the one that holds the lock still lives."""

from __future__ import annotations

import datetime as dt
import getpass
import multiprocessing
import os
import re
import socket
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase

# Two runs that started together may each hold a host that the other one wants. The later one gives up at
# once; the earlier one waits this long for it to end.
TIE_SECONDS = 15
POLL_SECONDS = 1


@dataclass(frozen=True)
class Holder:
    """A run of ansible-playbook."""

    controller: str
    machine: str
    pid: int
    started: str
    user: str
    since: str

    @property
    def run(self) -> str:
        """Return what no other run is called: a pid is used again, but not at the same start time."""
        return f"{self.controller}/{self.machine}/{self.pid}/{self.started}"


def start_time(pid: int) -> str:
    """Return when a process started, to the tick; empty if it is dead, or a zombie that nobody collects."""
    try:
        # The name, in brackets, may hold spaces and brackets of its own.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return "" if Path("/proc/self/stat").exists() else start_time_by_ps(pid)
    return "" if fields[0] in "ZX" else fields[19]


def start_time_by_ps(pid: int) -> str:
    """Return the same where there is no /proc, as on macOS."""
    found = subprocess.run(  # noqa: S603 a fixed command
        ["/bin/ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    state, _, started = found.stdout.strip().partition(" ")
    return "" if state.startswith("Z") else " ".join(started.split())


def wall_clock(started: str) -> dt.datetime:
    """Return a start time as a date: the same for every worker process of a run."""
    if not started.isdecimal():
        return dt.datetime.strptime(started, "%a %b %d %H:%M:%S %Y").astimezone(dt.UTC)
    boot = re.search(r"^btime (\d+)$", Path("/proc/stat").read_text(encoding="utf-8"), re.MULTILINE)
    seconds = int(started) / os.sysconf("SC_CLK_TCK")
    return dt.datetime.fromtimestamp((int(boot[1]) if boot else 0) + seconds, dt.UTC)


def machine() -> str:
    """Return what tells apart machines and containers of one host name: pids mean nothing between them."""
    parts = []
    for file in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        path = Path(file)
        try:
            parts.append(
                path.readlink().name if path.is_symlink() else path.read_text(encoding="utf-8").strip()
            )
        except OSError:
            continue
    return " ".join(parts)


def this_run() -> Holder:
    """Return this run: the ansible-playbook that was started, which runs an action or has a child do so."""
    parent = multiprocessing.parent_process()
    pid = os.getpid() if parent is None or parent.pid is None else parent.pid
    started = start_time(pid)
    return Holder(
        controller=socket.gethostname(),
        machine=machine(),
        pid=pid,
        started=started,
        user=getpass.getuser(),
        since=wall_clock(started).isoformat(timespec="milliseconds"),
    )


def verdict(found: dict[str, Any], mine: Holder, *, alive: bool, age: float, stale_after: float) -> str:
    """Return what to do about the lock of another run: replace, wait or refuse."""
    if (found.get("controller"), found.get("machine")) == (mine.controller, mine.machine):
        if not alive:
            return "replace"
    elif age > stale_after:
        return "replace"
    # A total order, so that of two runs that wait for each other only one does.
    earlier = (mine.since, mine.run) < (str(found.get("since")), str(found.get("run")))
    return "wait" if earlier else "refuse"


def refusal(host: str, found: dict[str, Any]) -> str:
    """Return who holds the lock, and what to do."""
    since = str(found.get("since"))[:19].replace("T", " ")
    return (
        f"{host} is being changed by another run: {found.get('user')} on {found.get('controller')}, "
        f"process {found.get('pid')}, since {since} UTC. "
        "Wait for it to end; if you know that it is dead: -e lock_break=true"
    )


class ActionModule(ActionBase):  # type: ignore[misc] # Ansible ships no types
    """The plugin: decides on the controller what the module does on the host."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Take or release the lock of one host."""
        super().run(tmp, task_vars)
        variables = task_vars or {}
        mine = this_run()
        arguments = {**self._task.args, "holder": {**asdict(mine), "run": mine.run}}
        stale_after = float(arguments.get("stale_after_seconds", 3600))
        broken = boolean(arguments.get("break_lock", False))
        deadline = time.monotonic() + TIE_SECONDS
        while True:
            result: dict[str, Any] = self._execute_module("run_lock", arguments, task_vars=variables)
            arguments["replace"] = ""
            if self._task.check_mode or result.get("failed") or "taken" not in result:
                return result
            if result["taken"] or arguments.get("state") == "released":
                return result
            found, age = result["holder"], result["age_seconds"]
            pid = found.get("pid")
            alive = isinstance(pid, int) and start_time(pid) == found.get("started")
            answer = verdict(found, mine, alive=alive, age=age, stale_after=stale_after)
            if answer == "replace" or broken:
                # Only this very holder: another run may be taking over at this moment.
                arguments["replace"] = found.get("run", "")
            elif answer == "refuse" or time.monotonic() > deadline:
                raise AnsibleActionFail(refusal(variables["inventory_hostname"], found))
            else:
                time.sleep(POLL_SECONDS)
