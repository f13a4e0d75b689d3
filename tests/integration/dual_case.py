"""Two stores, a broker, and workers of several stages, for the tests of celery_results.backends.dual."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery import chain, chord, group, states
from celery.result import AsyncResult, GroupResult
from tests.integration import database_case
from tests.integration.database_case import OURS, STOCK
from tests.integration.dual_application import make
from tests.integration.lab_files import ROOT

from celery_results.backends.dual.points import lists_of
from celery_results.migration.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from celery import Celery
    from tests.integration.database_lab import Database
    from tests.integration.redis_lab import RedisLab

DUAL = "celery_results.backends.dual:DualBackend"
REDIS = "celery_results.backends.redis:RedisBackend+"
# A wall bound of the tests, wide enough for a busy machine; what is promised is asserted by counting.
PATIENCE_SECONDS = 90.0
SETTLE_SECONDS = 15.0


def until(condition: Callable[[], Any], what: str, seconds: float = PATIENCE_SECONDS) -> Any:
    """Ask until the answer is true."""
    return database_case.until(condition, what, seconds)


def redis_side(
    lab: RedisLab, login: str = "worker", *, stock: bool = False, **settings: Any
) -> dict[str, Any]:
    # A client whose Redis was killed would try twenty times, a second apart, to end a subscription.
    retries = {"result_backend_transport_options": {"retry_policy": {"max_retries": 2}}}
    return {"result_backend": ("" if stock else REDIS) + lab.url(login), **retries, **settings}


def database_side(
    database: Database, login: str = "worker", *, stock: bool = False, **settings: Any
) -> dict[str, Any]:
    return {"result_backend": (STOCK if stock else OURS) + database.url(login), **settings}


def durable(lab: RedisLab) -> RedisLab:
    """Have the server keep what it acknowledged over a kill -9."""
    with lab.admin() as admin:
        admin.config_set("appendonly", "yes")
        admin.config_set("appendfsync", "always")
        # Until the first rewrite has ended, the file that a restart reads does not exist.
        until(lambda: not admin.info("persistence")["aof_rewrite_in_progress"], "the rewrite does not end")
    with (lab.directory / "redis.conf").open("a") as file:
        file.write("appendonly yes\nappendfsync always\n")
    return lab


@dataclass
class Case:
    """One migration: two sides, one broker, one journal."""

    directory: Path
    broker: RedisLab
    old: dict[str, Any]
    new: dict[str, Any]
    more: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def journal(self) -> Journal:
        return Journal(self.directory / "journal")

    def settings(self, stage: str | None, **options: Any) -> dict[str, Any]:
        """Give the settings of a stage, or of one side alone where `stage` is its name."""
        sides = {"old": self.old, "new": self.new}
        backend: Mapping[str, Any] = {
            "result_backend": DUAL,
            "result_backend_transport_options": {
                "stage": stage,
                **sides,
                "journal": str(self.directory / "journal"),
                **self.options,
                **options,
            },
        }
        return {
            "broker_url": self.broker.url("admin", 1),
            "broker_connection_retry_on_startup": True,
            "result_expires": 3600,
            "task_track_started": True,
            "result_backend_max_retries": 3,
            "database_create_tables_at_setup": False,
            "result_chord_retry_interval": 0.2,
            "worker_prefetch_multiplier": 1,
            "timezone": "UTC",
            **self.more,
            **sides.get(stage or "", backend),
        }

    def app(self, stage: str, **options: Any) -> Celery:
        """Make the client of a stage in this process."""
        return make(self.settings(stage, **options))

    def backend(self, side: str) -> Any:
        """Give one side as its own class sees it."""
        return self.app(side).backend

    def worker(
        self, stage: str, *, pool: str = "prefork", concurrency: int = 2, **options: Any
    ) -> subprocess.Popen[bytes]:
        """Start a worker and wait until it takes tasks."""
        number = len(self.workers)
        settings = self.directory / f"worker{number}.json"
        given = self.settings(stage, **options)
        # Once it has all that it may have, Celery asks a Redis for more every two seconds there.
        if pool == "gevent":
            given["worker_prefetch_multiplier"] = 50
        settings.write_text(json.dumps(given))
        path = self.directory / f"worker{number}.log"
        with path.open("wb") as log:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "celery", "-A", "tests.integration.dual_application", "worker"),
                    *("--pool", pool, f"--concurrency={concurrency}", f"--hostname=w{number}@here"),
                    *("--loglevel=INFO", "--without-gossip", "--without-mingle", "--without-heartbeat"),
                ],
                env={
                    **os.environ,
                    "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}",
                    "DUAL_SETTINGS": str(settings),
                    "PYTHONUNBUFFERED": "1",
                },
                cwd=self.directory,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.workers.append(process)
        until(
            lambda: b"ready." in path.read_bytes() or process.poll() is not None, "the worker does not start"
        )
        assert process.poll() is None, path.read_text()
        return process

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        """End a worker as a restart does: what runs is finished."""
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE_SECONDS)

    def log(self, number: int = 0) -> str:
        return (self.directory / f"worker{number}.log").read_text()

    def end(self) -> None:
        for process in self.workers:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        with self.broker.admin() as admin:
            admin.flushall()

    # What both sides hold

    def metas(self, task_id: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Give what each side has of a task, in a form that compares."""
        old, new = (comparable(self.backend(side).get_task_meta(task_id)) for side in ("old", "new"))
        return old, new

    def differing(self, ids: list[str]) -> list[str]:
        """Give the ids that the two sides do not hold alike: the tests' own comparison."""
        backends = [self.backend(side) for side in ("old", "new")]
        metas = [[comparable(backend.get_task_meta(task_id)) for backend in backends] for task_id in ids]
        return [task_id for task_id, (old, new) in zip(ids, metas, strict=True) if old != new]

    def check_equal(self, ids: list[str]) -> None:
        """See both sides equal; a client may be faster than a worker's second write."""
        left = list(ids)
        deadline = time.monotonic() + SETTLE_SECONDS
        while left:
            left = self.differing(left)
            if left and time.monotonic() > deadline:
                raise AssertionError({task_id: self.metas(task_id) for task_id in left})


def comparable(meta: dict[str, Any]) -> dict[str, Any]:
    """Leave out what only one kind of store has, and the time, which each side takes by itself."""
    result = meta["result"]
    if isinstance(result, BaseException):
        result = (type(result).__name__, [str(value) for value in result.args])
    return {
        "status": meta["status"],
        "result": result,
        "traceback": meta.get("traceback"),
        "children": lists_of(meta.get("children") or []),
        "done": meta["status"] in states.READY_STATES and meta.get("date_done") is not None,
    }


@dataclass
class Seen:
    """What a client got, and the ids of which both sides must hold the same."""

    values: dict[str, Any]
    ids: list[str]


def run_canvas(app: Celery, timeout: float = PATIENCE_SECONDS) -> Seen:  # noqa: PLR0915 # a list of uses
    """Use everything of a result backend that an application can, as a client does."""
    add = app.tasks["dual.add"]
    total, fail = app.tasks["dual.total"], app.tasks["dual.fail"]
    seen: dict[str, Any] = {}
    ids: list[str] = []

    def note(name: str, result: Any, value: Any) -> None:
        seen[name] = value
        ids.append(result.id)

    single = add.delay(2, 3)
    note("value", single, single.get(timeout=timeout))
    failed = fail.delay()
    note("error", failed, repr(failed.get(timeout=timeout, propagate=False)))
    again = app.tasks["dual.again"].delay()
    note("retry", again, again.get(timeout=timeout))
    progress = app.tasks["dual.progress"].delay()
    until(lambda: AsyncResult(progress.id, app=app).state == "PROGRESS", "no custom state")
    note("custom", progress, AsyncResult(progress.id, app=app).info)

    members = group(add.s(n, n) for n in range(5)).apply_async()
    members.save()
    seen["group"] = members.get(timeout=timeout)
    ids += [member.id for member in members]
    restored = GroupResult.restore(members.id, app=app)
    seen["restored"] = restored.get(timeout=timeout)
    members.save()  # twice, as Redis allows
    seen["saved"] = members.id
    gone = GroupResult(f"gone-{members.id}", members.results, app=app)
    gone.save()
    gone.delete()
    seen["deleted"] = gone.id

    body = chord((add.s(n, 1) for n in range(4)), total.s(), app=app).apply_async()
    note("chord", body, body.get(timeout=timeout))
    ids += [part.id for part in body.parent]
    nested = chord([group(add.s(1, 1), add.s(2, 2)), add.s(3, 3)], total.s(), app=app).apply_async()
    note("nested", nested, nested.get(timeout=timeout))
    broken = chord([add.s(1, 1), fail.s()], total.s(), app=app).apply_async()
    error = broken.get(timeout=timeout, propagate=False)
    note("chord error", broken, type(error).__name__ in {"ChordError", "ValueError"})
    steps = chain(add.s(1, 1), add.s(10), add.s(100), app=app).apply_async()
    note("chain", steps, steps.get(timeout=timeout))
    upgraded = chain(group(add.s(1, 1), add.s(2, 2)), total.s(), add.s(5), app=app).apply_async()
    note("group in chain", upgraded, upgraded.get(timeout=timeout))
    inner = app.tasks["dual.inside"].delay()
    started = AsyncResult(inner.get(timeout=timeout), app=app)
    note("chord in a task", inner, started.get(timeout=timeout))

    forgotten = add.delay(9, 9)
    forgotten.get(timeout=timeout)
    forgotten.forget()
    note("forgotten", forgotten, AsyncResult(forgotten.id, app=app).state)
    silent = app.tasks["dual.ignored"].delay()
    after = add.delay(0, 0)
    after.get(timeout=timeout)
    note("ignored", silent, AsyncResult(silent.id, app=app).state)
    return Seen(seen, ids)


EXPECTED: dict[str, Any] = {
    "value": 5,
    "error": "ValueError('on purpose')",
    "retry": 1,
    "custom": {"done": 3},
    "group": [0, 2, 4, 6, 8],
    "restored": [0, 2, 4, 6, 8],
    "chord": 10,
    "nested": 12,
    "chord error": True,
    "chain": 112,
    "group in chain": 11,
    "chord in a task": 6,
    "forgotten": states.PENDING,
    "ignored": states.PENDING,
}


@contextlib.contextmanager
def stopped(*pids: int) -> Iterator[None]:
    """Have processes hang, and all that they have started: their connections stay, nothing answers."""
    hung: list[int] = []
    try:
        for pid in pids:
            _hang(pid, hung)
        yield
    finally:
        for pid in hung:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def _hang(pid: int, hung: list[int]) -> None:
    os.kill(pid, signal.SIGSTOP)
    hung.append(pid)
    # Asked for now: who hangs starts no others. One of them may end by itself before it is reached.
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            _hang(int(child), hung)


def keys(lab: RedisLab, pattern: str) -> list[str]:
    with lab.admin() as admin:
        found: list[str] = sorted(admin.scan_iter(pattern))
        return found
