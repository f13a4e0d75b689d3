"""What the scenarios of migrations share: the load and its checker on their hosts, runs of the stages."""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING, Any

from scenario_support import CeleryHost, Site, until

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DIRECTORY = "/var/lib/celery/soak"
# A walk is all stages in one.
STAGE_SECONDS = 1500
# In which each result must be there: while workers are restarted one after the other on a busy machine, too.
BOUND_SECONDS = 240
DEFAULTS = {"sample": 1500, "at_least": 50, "bound": BOUND_SECONDS}
# Offenders whose story is told.
SHOWN = 3
PYTHON = "/opt/celery/venv/bin/python"
# All that says how results are stored, and whether a worker was restarted.
FINGERPRINT = (
    "cat /etc/celery/*.py /etc/celery/*.env /etc/celery/migration.json 2>/dev/null | sha256sum; "
    "systemctl show -p MainPID --value celery-worker"
)


class MigrationSite(Site):
    """Runs of the stages' playbooks from one backend to another, and of site.yml."""

    source = "redis"
    target = "postgresql"

    def arguments(self, *more: str, playbook: str = "site.yml", **variables: Any) -> list[str]:
        made = super().arguments(*more, playbook=playbook, **variables)
        if playbook == "site.yml":
            return made
        others = [argument for argument in made if not argument.startswith("--extra-vars")]
        return [*others, f"--extra-vars={json.dumps(variables)}"]

    def stage(self, name: str, *more: str, **variables: Any) -> subprocess.CompletedProcess[str]:
        """Run a stage as a user does, to its end, whatever comes; what it printed is kept."""
        with self.start(*more, **self._of_stage(name), **variables) as process:
            output, _ = process.communicate(timeout=STAGE_SECONDS)
        run = subprocess.CompletedProcess(process.args, process.returncode, output)
        with (self.ephemeral / "stages.log").open("a") as log:
            log.write(f"{name} {self.source} -> {self.target}: {run.returncode}\n{run.stdout}\n")
        return run

    def start_stage(self, name: str, **variables: Any) -> subprocess.Popen[str]:
        return self.start(**self._of_stage(name), **variables)

    def _of_stage(self, name: str) -> dict[str, str]:
        playbook = "playbooks/migrate.yml" if name == "walk" else f"playbooks/migrate/{name}.yml"
        return {"playbook": playbook, "source": self.source, "target": self.target, "broker": "redis"}

    def does(self, *names: str, **variables: Any) -> None:
        """Run stages that succeed and show no secret."""
        for name in names:
            run = self.stage(name, **variables)
            assert run.returncode == 0, f"{name}\n{run.stdout[-6000:]}"
            self.assert_hidden(run.stdout)

    def refuses(self, name: str, *told: str, **variables: Any) -> None:
        """Run a stage that is refused; it tells all this."""
        run = self.stage(name, **variables)
        assert run.returncode != 0, f"{name}\n{run.stdout[-6000:]}"
        for text in told:
            assert text in run.stdout, run.stdout[-6000:]


class Soak:
    """The load, on the host of the clients."""

    def __init__(
        self, client: CeleryHost, workers: Sequence[CeleryHost], env_file: str = "celery.env"
    ) -> None:
        self.client, self.workers, self.env_file = client, workers, env_file
        self.killed = 0

    @property
    def hosts(self) -> list[CeleryHost]:
        """Return every Celery host once."""
        names = {each.host.backend.name: each for each in (*self.workers, self.client)}
        return list(names.values())

    def fingerprints(self) -> list[str]:
        return [each.host.run(FINGERPRINT).stdout for each in self.hosts]

    def start(self, rate: float = 6.0) -> None:
        """Start it; it goes on until `stop`, and restarts its clients when their settings change."""
        load = f"-m soak.load run --env-file /etc/celery/{self.env_file} --directory {DIRECTORY}"
        self.client.host.check_output(f"rm -f {DIRECTORY}/stop")
        self.client.host.check_output(
            "systemd-run --unit=soak-load --uid=celery --gid=celery --working-directory=/var/lib/celery "
            f"--setenv=PYTHONPATH=/etc/celery:/srv/soak {PYTHON} {load} --rate {rate} --slow 4"
        )
        self.goes_on()

    def got(self) -> int:
        counted = self.client.host.run(f'grep -c \'"event": "got"\' {DIRECTORY}/client.jsonl')
        return int(counted.stdout or 0)

    def goes_on(self, more: int = 20, seconds: float = 90) -> None:
        """Wait for so many more answers."""
        wanted = self.got() + more
        until(lambda: self.got() >= wanted, seconds, "the load goes on")

    def stop(self) -> None:
        self.client.host.check_output(f"touch {DIRECTORY}/stop")
        until(lambda: not self.client.host.service("soak-load").is_running, 90, "the load ends")

    def kill(self, worker: CeleryHost) -> None:
        """Kill a worker with all its processes."""
        worker.host.check_output("systemctl kill -s KILL celery-worker")
        self.killed += 1

    def check(self, *complete: str, **options: Any) -> dict[str, Any]:
        """Run the checker, which fails on any offence; `complete` names env files of complete stores.

        Two of them are complete but for what a journal owes at the moment, which three repairs have paid.
        """
        for _ in range(3 if len(complete) > 1 else 1):
            if len(complete) > 1:
                until(self._repaired, 60, "nothing is owed")
            ran = self._checked(complete, {**DEFAULTS, "killed": self.killed, **options})
            if ran.rc == 0:
                break
        assert ran.stdout, ran.stderr[-3000:]
        document: dict[str, Any] = json.loads(ran.stdout)
        assert ran.rc == 0, f"{ran.stdout[-6000:]}\n{self._told_of(document)}\n{ran.stderr[-3000:]}"
        return document

    def _told_of(self, document: Mapping[str, Any]) -> str:
        """Give what ledgers and logs say of the first offenders: whether a worker had them at all."""
        wanted = "|".join(each["id"] for each in document["offenders"][:SHOWN] if each["id"])
        if not wanted:
            return ""
        logs = f"journalctl --no-pager --output=short-iso-precise | grep -E '{wanted}' | cut -c1-300"
        told = [self.client.host.run(f"grep -hE '{wanted}' {DIRECTORY}/*.jsonl").stdout]
        told += [f"{each.host.backend.name}\n{each.host.run(logs).stdout}" for each in self.hosts]
        return "\n".join(told)

    def _checked(self, complete: Sequence[str], options: Mapping[str, Any]) -> Any:
        self._collect()
        inner = (
            f"set -a; . /etc/celery/{self.env_file}; set +a; cd /var/lib/celery; "
            f"PYTHONPATH=/etc/celery:/srv/soak exec {PYTHON} -m soak.checker --directory {DIRECTORY}"
        )
        for name in complete:
            inner += f" --complete=/etc/celery/{name}.env"
        for name, value in options.items():
            inner += f" --{name.replace('_', '-')}" + ("" if value is True else f"={value}")
        return self.client.host.run(f"runuser -u celery -- sh -c '{inner}'")

    def _repaired(self) -> bool:
        return all(each.cli("repair")[0] == 0 for each in self.hosts)

    def _collect(self) -> None:
        """Bring the workers' ledgers to the client's host."""
        to = self.client.host.backend.name
        for worker in self.workers:
            name = worker.host.backend.name
            if name == to:
                continue
            read = ["docker", "exec", name, "sh", "-c", f"cat {DIRECTORY}/worker-*.jsonl"]
            content = subprocess.run(read, capture_output=True, check=True).stdout
            write = ["docker", "exec", "-i", to, "sh", "-c", f"cat >{DIRECTORY}/worker-{name}.jsonl"]
            subprocess.run(write, input=content, check=True)


def release() -> str:
    return os.environ.get("MOLECULE_DEBIAN", "13")
