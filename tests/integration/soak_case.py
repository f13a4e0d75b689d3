"""A migration by hand, as docs/dual-write.md orders it, of two workers and a load that never stops."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.integration.dual_case import until
from tests.integration.lab_files import RESULTS, ROOT, write_env, write_settings
from tests.integration.postgresql_lab import NAME

if TYPE_CHECKING:
    from pathlib import Path

    from tests.integration.postgresql_lab import DeployedPostgres
    from tests.integration.redis_lab import RedisLab

WAIT_SECONDS = 90.0
TASK, GROUP = "celery-task-meta-*", "celery-taskset-meta-*"
# What role redis gives the login of a migration; the lab calls it reader.
REDIS_RIGHTS = {
    "reader": f"~{TASK} ~{GROUP} +ping +select +client|setname +info +scan +get +mget +pttl +set +evalsha "
    "+evalsha_ro +script|load",
    "broker": "~* &* +@all",
}
# A build that breaks a promise: what a worker imports before anything else, by the name in SOAK_BREAK.
BROKEN = """
import datetime, os
from celery_results.backends.database import payload
from celery_results.backends.dual.backend import DualBackend
from celery_results.backends.dual.mirror import Mirror

def drop():
    write = Mirror.write
    Mirror.write = lambda self, entry, work: entry.operation == "task" or write(self, entry, work)

def shift():
    now = payload.utc_now
    payload.utc_now = lambda: now() + datetime.timedelta(hours=1)

def part():
    report, seen = DualBackend.on_chord_part_return, set()
    def once(self, request, state, result, **more):
        if os.getpid() in seen:
            report(self, request, state, result, **more)
        seen.add(os.getpid())
    DualBackend.on_chord_part_return = once

{"drop": drop, "shift": shift, "part": part}[os.environ["SOAK_BREAK"]]()
"""


@dataclass
class Walk:
    """Hosts of their own for worker and client, as directories: `etc`, with one env file for each process."""

    directory: Path
    old: RedisLab
    new: DeployedPostgres
    broken: str = ""
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    load: subprocess.Popen[bytes] | None = None
    numbers: int = 0

    def __post_init__(self) -> None:
        self.etc = self.directory / "etc"
        self.etc.mkdir(parents=True)
        self.soak = self.directory / "soak"
        self.soak.mkdir()
        for name in ("redis", "postgresql", "dual"):
            write_settings(self.etc, name)
        self._write("source.env", self._old("reader"), "reader")
        self._write("target.env", self._new("worker"), "worker")
        hook = self.directory / "broken"
        hook.mkdir()
        (hook / "sitecustomize.py").write_text(BROKEN)

    # Settings

    def _old(self, login: str, role: str = "RESULT") -> dict[str, str]:
        return self.old._connection_values(role, login)

    def _new(self, login: str, role: str = "RESULT") -> dict[str, str]:
        return self.new.connection_values(
            role,
            login,
            name="postgresql",
            scheme="postgresql",
            database=NAME,
            username=f"celery_{login}",
        )

    def _write(self, name: str, values: dict[str, str], login: str) -> Path:
        path = self.etc / name
        write_env(path.with_suffix(".draft"), {**values, **RESULTS, "CELERYCONFIG_LOGIN": login})
        path.with_suffix(".draft").replace(path)
        return path

    def settings(self, stage: str, login: str) -> dict[str, str]:
        """Give the variables of a stage, or of one side alone: old, new."""
        broker = self._old("broker", "BROKER")
        if stage in ("old", "new"):
            return {**(self._old(login) if stage == "old" else self._new(login)), **broker}
        return {
            **self._old(login),
            **self._new(login, "TARGET"),
            **broker,
            "CELERYCONFIG_MIGRATION_STAGE": stage,
            "CELERYCONFIG_MIGRATION_JOURNAL": str(self.directory / "journal"),
        }

    def environment(self, **more: str) -> dict[str, str]:
        path = f"{self.etc}:{ROOT / 'src'}:{ROOT}"
        return {**os.environ, "PYTHONPATH": path, "SOAK_DIRECTORY": str(self.soak), **more}

    # Processes

    def roll_workers(self, stage: str) -> None:
        """Restart one after the other; each finishes its tasks first."""
        before, self.workers = self.workers, []
        for number in range(2):
            if before:
                before[number].send_signal(signal.SIGTERM)
                before[number].wait(WAIT_SECONDS)
            self.workers.append(self._worker(stage))

    def _worker(self, stage: str) -> subprocess.Popen[bytes]:
        self.numbers += 1
        env_file = self._write(f"worker{self.numbers}.env", self.settings(stage, "worker"), "worker")
        environment = self.environment()
        if self.broken:
            environment["PYTHONPATH"] = f"{self.directory / 'broken'}:{environment['PYTHONPATH']}"
            environment["SOAK_BREAK"] = self.broken
        path = self.directory / f"worker{self.numbers}.log"
        command = [sys.executable, "-m", "celery", "-A", "tests.soak.soak_tasks:app", "worker"]
        command += [f"--hostname=w{self.numbers}@here", "--concurrency=2", "--loglevel=INFO"]
        with path.open("wb") as log:
            process = subprocess.Popen(
                self._with(env_file, command),
                env=environment,
                cwd=self.directory,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until(
            lambda: b"ready." in path.read_bytes() or process.poll() is not None, "the worker does not start"
        )
        assert process.poll() is None, path.read_text()
        return process

    @staticmethod
    def _with(env_file: Path, command: list[str]) -> list[str]:
        script = 'set -a; . "$1"; set +a; shift; exec "$@"'
        return ["/bin/sh", "-euc", script, "sh", str(env_file), *command]

    def roll_clients(self, stage: str) -> None:
        """Deploy the clients' settings and wait until the load runs with them."""
        before = self.starts()
        env_file = self._write("client.env", self.settings(stage, "client"), "client")
        if self.load is None:
            command = [sys.executable, "-m", "tests.soak.load", "run", "--env-file", str(env_file)]
            command += ["--directory", str(self.soak), "--rate", "10", "--slow", "2"]
            with (self.directory / "load.log").open("wb") as log:
                self.load = subprocess.Popen(
                    command, env=self.environment(), stdout=log, stderr=log, start_new_session=True
                )
        until(lambda: self.starts() > before, "the load does not start")
        self.goes_on()

    def starts(self) -> int:
        path = self.soak / "starts"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def got(self) -> int:
        path = self.soak / "client.jsonl"
        return path.read_bytes().count(b'"event": "got"') if path.exists() else 0

    def goes_on(self, more: int = 15) -> None:
        """Wait for so many more answers."""
        before = self.got()
        until(lambda: self.got() >= before + more, f"the load stands still\n{self.logs()}")

    def stop_load(self) -> None:
        assert self.load is not None
        (self.soak / "stop").touch()
        self.load.wait(WAIT_SECONDS)

    def end(self) -> None:
        for process in [*self.workers, *([self.load] if self.load else [])]:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def logs(self) -> str:
        return "\n".join(f"{path.name}\n{path.read_text()[-3000:]}" for path in self.directory.glob("*.log"))

    # What an operator does

    def _run(self, *command: str) -> tuple[int, dict[str, Any]]:
        ran = subprocess.run(
            command,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=2 * WAIT_SECONDS,
            check=False,
        )
        assert ran.stdout, ran.stderr
        return ran.returncode, json.loads(ran.stdout)

    def verb(self, name: str, *arguments: str) -> tuple[int, dict[str, Any]]:
        """Run a verb between the two stores; give its exit code and document."""
        stores = ["--from", str(self.etc / "source.env"), "--to", str(self.etc / "target.env")]
        tool = [sys.executable, "-m", "celery_results", name, "--config-directory", str(self.etc), "--json"]
        return self._run(*tool, *stores, *arguments)

    def copy(self) -> None:
        code, document = self.verb("copy", "--checkpoint", str(self.directory / "copy.json"))
        assert code == 0, document

    def repair(self, *options: str) -> None:
        """Pay what the journal owes, with the settings of the worker that was started last."""
        env_file = self.etc / f"worker{self.numbers}.env"
        tool = [sys.executable, "-m", "celery_results", "repair", "--config-directory", str(self.etc)]
        code, document = self._run(*tool, "--env-file", str(env_file), "--json", *options)
        assert code == 0, document

    def verify(self) -> None:
        """Compare both sides beside the load, repair what differs, and compare again, as an operator does.

        A task that ran twice, before and after its worker wrote to both, has two times, for example.
        """
        found = self.directory / "verify.json"
        for _ in range(5):
            code, document = self.verb("verify", "--journal", str(self.directory / "journal"))
            if code == 0:
                return
            found.write_text(json.dumps(document))
            self.repair("--ids", str(found))
        raise AssertionError(document)

    def chords_of_the_old_side(self) -> int:
        """Count those that were begun there and have not ended."""
        with self.old.admin() as admin:
            return sum(1 for _ in admin.scan_iter("celery-taskset-meta-*.s"))

    def check(self, *complete: str, final: bool = False, bound: float = 60.0) -> dict[str, Any]:
        """Run the checker with the clients' settings of the moment; `complete` names env files."""
        command = [sys.executable, "-m", "tests.soak.checker", "--directory", str(self.soak)]
        command += [f"--complete={self.etc / name}.env" for name in complete]
        command += [f"--bound={bound}", "--at-least=20", *(["--final"] if final else [])]
        code, document = self._run(*self._with(self.etc / "client.env", command))
        assert code == (0 if document["ok"] else 1)
        return document

    def check_both(self) -> dict[str, Any]:
        """Check that each side has everything, but for what a journal owes at the moment.

        Beside the load something may always be owed; what is wrong after three repairs is not owed.
        """
        for _ in range(3):
            self.repair()
            document = self.check("source", "target")
            if document["ok"]:
                break
        return document
