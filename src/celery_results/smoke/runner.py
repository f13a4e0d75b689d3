"""One run, in the order that costs the least time: the worker starts while the refusals are tried."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery_results import interruption
from celery_results.errors import CeleryResultsError, SettingsError, UnreachableError
from celery_results.redaction import redactor_for
from celery_results.settings import connection_from_env, load_settings
from celery_results.smoke import refusals
from celery_results.smoke.application import QUEUE_EXPIRES_SECONDS, Run, build, connect_to_broker, dispose
from celery_results.smoke.attacks import Attacks
from celery_results.smoke.catalog import CATALOG, Entry, Kind
from celery_results.smoke.certificates import read_nothing
from celery_results.smoke.diagnosis import describe, remedy_for
from celery_results.smoke.outcome import CheckFailed, NotRun, OutOfTime, Status
from celery_results.smoke.recorder import Recorder
from celery_results.smoke.session import Session
from celery_results.smoke.sides import Sides
from celery_results.smoke.worker import Worker, last_lines

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from celery_results.redaction import Redactor
    from celery_results.settings import Connection
    from celery_results.smoke.checks import Steps
    from celery_results.smoke.outcome import Outcome

# Sending, collecting, and what a task does after its progress was seen; what is left waits for the clock.
_ROUNDS_WITH_WORKER = 3
# A start takes one second, on a small machine under load also ten.
_START_SECONDS = 30.0
# All of this is done within a second or two; a server that dies meanwhile must not hold the run for ever.
_REFUSALS_SECONDS = 60.0
_SECONDS_BESIDE_TASKS = 10.0
_CLEANING_SECONDS = 10.0


@dataclass(frozen=True)
class Plan:
    """What is asked for."""

    config_directory: Path
    environ: Mapping[str, str] = field(repr=False)
    client_environ: Mapping[str, str] | None = field(repr=False)
    monitor_environ: Mapping[str, str] | None = field(repr=False)
    timeout_seconds: float
    names: frozenset[str]
    keep_witness: bool = False
    witness: str = ""

    def selected(self, *kinds: Kind) -> list[Entry]:
        """Give the selected checks of these kinds, in the catalog's order."""
        names = self.names
        if self.keep_witness or any(e.name in names and e.kind is Kind.REFUSAL_OF_A_RESULT for e in CATALOG):
            names |= {"value"}  # which stores the result that is attacked, or kept
        if self.broker is None:
            kinds = tuple(kind for kind in kinds if kind is not Kind.REFUSAL_OF_THE_BROKER)
        return [entry for entry in CATALOG if entry.name in names and entry.kind in kinds]

    @property
    def broker(self) -> Connection | None:
        """Give the deployed broker, where it is another server than the result store, or another login."""
        environ = Sides.of(self.environ).alone(self.environ)
        broker, results = connection_from_env(environ, "BROKER"), connection_from_env(environ)
        if broker is None or results is None:
            return None
        same = (broker.hosts, broker.username) == (results.hosts, results.username)
        return None if same else broker


@dataclass(frozen=True)
class Report:
    """What was found."""

    backend: str
    broker: str
    login: str
    outcomes: tuple[Outcome, ...]
    witness: str = ""
    leftovers: tuple[str, ...] = ()
    log_tail: str = ""
    migration: Mapping[str, Any] | None = None

    @property
    def ok(self) -> bool:
        """Something was proven, and nothing failed."""
        statuses = {outcome.status for outcome in self.outcomes}
        return Status.FAILED not in statuses and Status.PASSED in statuses


class Smoke:
    """One run of one plan."""

    def __init__(self, plan: Plan) -> None:
        """Read everything that can be wrong without asking a server."""
        self._plan = plan
        self._login = plan.environ.get("CELERYCONFIG_LOGIN", "worker")
        if self._login not in {"worker", "client"}:
            raise SettingsError(
                expected="an env file of the worker's or the client's login (CELERYCONFIG_LOGIN)",
                found=self._login,
                do="name celery.env or client.env with --env-file",
            )
        client_environ = plan.environ if self._login == "client" else plan.client_environ
        self._sides = sides = Sides.of(plan.environ)
        self._environ = sides.alone(plan.environ)  # of the primary, which is attacked
        self._connection = _connection(self._environ)
        self._client = _connection(sides.alone(client_environ)) if client_environ is not None else None
        self._settings = load_settings(plan.config_directory, plan.environ)
        self._client_environ = plan.environ if client_environ is None else client_environ
        self._client_settings = load_settings(plan.config_directory, self._client_environ)
        if self._settings.get("broker_url") and not self._client_settings.get("broker_url"):
            raise SettingsError(
                expected="a broker in the client's env file, as in the worker's (CELERYCONFIG_BROKER_*)",
                found="none",
                do="run site.yml for this host again",
            )
        self._redactor: Redactor = redactor_for(
            plan.environ, self._client_environ, plan.monitor_environ or {}
        )
        plugin_is_needed = plan.selected(Kind.REFUSAL, Kind.REFUSAL_OF_A_RESULT)
        find = refusals.load if plugin_is_needed else refusals.find
        self._plugin = find(self._connection.name)
        self._not_offered = self._plugin.NOT_OFFERED if self._plugin else {}
        brokers = refusals.find(plan.broker.name) if plan.broker else None
        self._hints = [hint for plugin in (self._plugin, brokers) if plugin for hint in plugin.HINTS]
        self._recorder = Recorder(self._redactor, self._hints, self._not_offered)
        self._log_tail = ""
        self._witness = ""
        self._migration = self._sides.document(None)
        self._leftovers: list[str] = []

    def run(self) -> Report:
        """Run the selected checks; what is left running or stored is removed on every way out."""
        self._show_that_the_logins_work()
        with tempfile.TemporaryDirectory(prefix="celery-results-smoke-") as name:
            directory = Path(name)  # 0700, by tempfile's promise
            try:
                self._run_in(directory)
            except OutOfTime as error:
                self._recorder.fail_the_rest(self._entries(), f"{error}{self._say_if_unreachable()}")
            if self._recorder.any_failed(self._plan.selected(Kind.TASKS)):
                self._log_tail = last_lines(self._recorder.worker_log())
        interruption.check()
        return Report(
            backend=self._connection.name,
            broker=self._broker(),
            login=self._login,
            outcomes=self._recorder.outcomes(),
            witness=self._witness,
            leftovers=tuple(self._redactor.clean(line) for line in self._leftovers),
            log_tail=self._log_tail,
            migration=self._migration,
        )

    def _broker(self) -> str:
        if not self._settings.get("broker_url"):
            return "private" if self._login == "worker" else "none"
        return self._plan.environ.get("CELERYCONFIG_BROKER_NAME") or "external"

    def _show_that_the_logins_work(self) -> None:
        for environ, settings in (
            (self._environ, self._settings),
            (self._sides.alone(self._client_environ), self._client_settings),
        ):
            with self._said_plainly(str(_connection(environ)), "RESULT"), _time_limit(_START_SECONDS):
                read_nothing(self._plan.config_directory, environ)
            if self._login == "worker" and settings.get("broker_url"):
                broker = connection_from_env(environ, "BROKER")
                server = str(broker or "the broker at CELERYCONFIG_BROKER_URL")
                with self._said_plainly(server, "BROKER"), _time_limit(_START_SECONDS):
                    connect_to_broker(settings)

    @contextlib.contextmanager
    def _said_plainly(self, server: str, role: str) -> Iterator[None]:
        try:
            yield
        except CeleryResultsError:
            raise
        except (Exception, OutOfTime) as error:
            found = describe(error)
            remedy = remedy_for(found, self._hints)
            remedy = remedy or "see CELERYCONFIG_RESULT_* in the env file, and the server's log"
            raise UnreachableError(
                expected=f"{server} to answer the login of the settings",
                found=self._redactor.clean(found),
                do=remedy.replace("CELERYCONFIG_RESULT_", f"CELERYCONFIG_{role}_"),
            ) from error

    def _say_if_unreachable(self) -> str:
        try:
            with _time_limit(_CLEANING_SECONDS):
                read_nothing(self._plan.config_directory, self._sides.alone(self._client_environ))
        except (Exception, OutOfTime) as error:  # noqa: BLE001 - of any backend: it is the answer
            return f"; the result store: {describe(error)}"
        return ""

    def _entries(self) -> list[Entry]:
        reads_witness = self._plan.witness or self._login == "client"
        return [e for e in self._plan.selected(*Kind) if reads_witness or e.kind is not Kind.WITNESS]

    def _run_in(self, directory: Path) -> None:
        if self._login == "client":
            for entry in self._plan.selected(Kind.TASKS):
                self._recorder.not_run(entry, "the client's login stores nothing, so no worker can run")
            self._run_without_worker(directory, Kind.REFUSAL, Kind.REFUSAL_OF_A_RESULT)
        elif self._plan.selected(Kind.TASKS, Kind.REFUSAL_OF_A_RESULT):
            self._run_with_worker(directory)
        else:
            self._run_without_worker(directory, Kind.REFUSAL)

    def _run_without_worker(self, directory: Path, *kinds: Kind) -> None:
        session = self._session(Run("none", directory, private_broker=False, parent=0, task_seconds=0))
        try:
            with _time_limit(_REFUSALS_SECONDS):
                self._read_witness(session)
                self._attack(session, *kinds)
                self._attack_broker(session)
        finally:
            dispose(session.app)

    def _run_with_worker(self, directory: Path) -> None:
        run = Run(
            queue=f"celery-results-smoke-{secrets.token_hex(6)}",
            directory=directory,
            private_broker=not self._settings.get("broker_url"),
            parent=os.getpid(),
            task_seconds=int(self._plan.timeout_seconds) + 5,
        )
        with Worker(run, dict(self._plan.environ), self._plan.config_directory, self._redactor) as worker:
            self._recorder.worker_log = worker.log
            session = self._session(run)
            try:
                with _time_limit(_REFUSALS_SECONDS):
                    self._read_witness(session)
                    self._attack(session, Kind.REFUSAL)
                    self._attack_broker(session)
                worker.wait_until_ready(max(_START_SECONDS, self._plan.timeout_seconds))
                with _time_limit(self._plan.timeout_seconds + _SECONDS_BESIDE_TASKS):
                    self._run_tasks(session, worker)
            finally:
                self._clean(session)
        if not run.private_broker:
            self._delete_queue(run)

    def _run_tasks(self, session: Session, worker: Worker) -> None:
        entries = {entry.name: entry for entry in self._plan.selected(Kind.TASKS)}
        session.start_clock()
        going = {}
        for name, entry in entries.items():
            steps = entry.absence if name in self._not_offered else entry.steps
            if steps:
                going[name] = steps(session)
            else:
                self._recorder.not_offered(entry)
        for _ in range(_ROUNDS_WITH_WORKER):
            going = {
                name: steps for name, steps in going.items() if self._recorder.step(entries[name], steps)
            }
        if session.victim is not None and self._plan.keep_witness and "witness" not in self._not_offered:
            self._witness = session.victim.id
        self._migration = self._sides.document(session)
        worker.ask_to_stop()
        self._attack(session, Kind.REFUSAL_OF_A_RESULT)
        while going:
            going = {
                name: steps for name, steps in going.items() if self._recorder.step(entries[name], steps)
            }

    def _session(self, run: Run) -> Session:
        def make_app() -> Any:  # noqa: ANN401 - Celery has no types
            app = build(self._client_settings, run)
            if "expiry" in self._not_offered:  # what expires is a queue, and a killed run leaves one
                app.conf.result_expires = QUEUE_EXPIRES_SECONDS
            return app

        return Session(make_app(), run.directory, self._plan.timeout_seconds, make_app, self._sides.primary)

    def _read_witness(self, session: Session) -> None:
        for entry in self._entries():
            if entry.kind is not Kind.WITNESS:
                continue
            if entry.name in self._not_offered:
                self._recorder.not_offered(entry)
            else:
                self._recorder.step(entry, _witness(session, self._plan.witness))

    def _attack(self, session: Session, *kinds: Kind) -> None:
        entries = self._plan.selected(*kinds)
        if entries and self._plugin:
            monitor = connection_from_env(self._plan.monitor_environ or {})
            if monitor and monitor.name != self._connection.name:
                monitor = None  # of the other store of a migration
            Attacks(
                plugin=self._plugin,
                recorder=self._recorder,
                login=self._connection,
                client=self._client,
                monitor=monitor,
                environ=self._environ,
                config_directory=self._plan.config_directory,
            ).run(entries, session)

    def _attack_broker(self, session: Session) -> None:
        entries, broker = self._plan.selected(Kind.REFUSAL_OF_THE_BROKER), self._plan.broker
        if entries and broker:
            Attacks(
                plugin=refusals.load(broker.name),
                recorder=self._recorder,
                login=broker,
                client=None,
                monitor=None,
                environ=self._environ,
                config_directory=self._plan.config_directory,
                role="BROKER",
            ).run(entries, session)

    def _clean(self, session: Session) -> None:
        try:
            with _time_limit(_CLEANING_SECONDS):
                self._leftovers += session.remove_all(self._sides.forget_chord, self._witness)
        except OutOfTime:
            self._leftovers.append("results of this run: the server does not answer")
        with contextlib.suppress(Exception, OutOfTime), _time_limit(_CLEANING_SECONDS):
            dispose(session.app)

    def _delete_queue(self, run: Run) -> None:
        app = build(self._settings, run)  # the client may be one that declares and deletes no queue
        try:
            with _time_limit(_CLEANING_SECONDS), app.connection_for_write() as connection:
                connection.default_channel.queue_delete(run.queue)
        except (Exception, OutOfTime) as error:  # noqa: BLE001 - of any broker; the queue is empty, and expires where it can
            self._leftovers.append(f"queue {run.queue}: {describe(error)}")
        finally:
            app.close()


def _connection(environ: Mapping[str, str]) -> Connection:
    connection = connection_from_env(environ)
    if connection is None or not (connection.hosts or connection.database):
        raise SettingsError(
            expected="CELERYCONFIG_RESULT_NAME and _HOSTS (or _DATABASE, for a file) in the env file",
            found="none",
            do="deploy this host (make deploy backend=...), or name its env file with --env-file",
        )
    return connection


def _witness(session: Session, task_id: str) -> Steps:
    if not task_id:
        raise NotRun("no --witness ID of a result that a worker's host has kept")
    result = session.fresh(task_id)
    if result.state != "SUCCESS":
        raise CheckFailed(f"the client sees {result.state}")
    return "stored on another host, read here"
    yield  # a check has steps; this one has a single one


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise OutOfTime in whatever is running then: a library may be in retries of its own."""

    def out_of_time(_number: int, _frame: object) -> None:
        raise OutOfTime(f"no end within {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, out_of_time)
    # Again each second: an exception from a signal is lost where it meets a destructor.
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
