"""Compare celery_results.backends.database with Celery's own class and with Redis; print ratios.

    .venv/bin/python benchmarks/database.py [--parts store get wait group cleanup e2e] [--databases postgresql mysql sqlite]
        [--rounds 5] [--operations 400] [--rows 1000000] [--tasks 500]

It starts private servers on loopback (those of tests/integration), TLS on and the servers' own defaults kept.
Contestants take turns in every round; a figure is the median of the rounds, with minimum and maximum, and a
ratio is of two figures of this run. `pooled` is Celery's class in a forked child, as in a prefork worker;
`unpooled` is the same in any other process. CPU is that of the client process.
"""

# ruff: noqa: ANN401, S608 # Celery has no types; names of this file's own

import argparse
import contextlib
import datetime as dt
import json
import os
import statistics
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[1]
sys.path[:0] = [str(PROJECT), str(PROJECT / "src")]

from celery import Celery, chord  # noqa: E402
from celery.contrib.testing.worker import start_worker  # noqa: E402
from celery.result import AsyncResult, ResultSet  # noqa: E402
from tests.integration.database_case import OURS, STOCK, app_on, counted  # noqa: E402
from tests.integration.database_lab import LABS, Database, DatabaseLab  # noqa: E402
from tests.integration.redis_lab import RedisLab  # noqa: E402

from celery_results.backends.database.cleanup import delete_expired  # noqa: E402
from celery_results.backends.database.storage import Storage  # noqa: E402

VALUE = {"answer": 42, "text": "x" * 100}
Figures = dict[str, list[float]]


def measure(operation: Callable[[str], object], count: int) -> dict[str, float]:
    """Run an operation on `count` fresh ids; give p50 in ms and client CPU in ms."""
    operation(str(uuid.uuid4()))
    times = []
    cpu = time.process_time()
    for _ in range(count):
        task_id = str(uuid.uuid4())
        began = time.perf_counter()
        operation(task_id)
        times.append(time.perf_counter() - began)
    return {"p50": statistics.median(times) * 1e3, "cpu": (time.process_time() - cpu) / count * 1e3}


def in_child(work: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Run in a forked child, where Celery's class pools (billiard's hook does not run: say so ourselves)."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        with contextlib.suppress(BaseException):
            os.write(write, json.dumps(work()).encode())
            status = 0
        os._exit(status)
    os.close(write)
    with os.fdopen(read) as answers:
        text = answers.read()
    os.waitpid(pid, 0)
    answer: dict[str, float] = json.loads(text)
    return answer


def pooled(app: Celery, work: Callable[[Any], dict[str, float]]) -> dict[str, float]:
    """Run with Celery's class as a prefork child has it."""

    def child() -> dict[str, float]:
        manager = getattr(app.backend, "session_manager", None)
        if manager is not None:
            manager.forked = True
        return work(app.backend)

    return in_child(child)


def rounds(number: int, contestants: dict[str, Callable[[], dict[str, float]]]) -> dict[str, Figures]:
    """Let the contestants take turns."""
    figures: dict[str, Figures] = {name: {} for name in contestants}
    for _ in range(number):
        for name, run in contestants.items():
            for figure, value in run().items():
                figures[name].setdefault(figure, []).append(value)
    return figures


def show(title: str, figures: dict[str, Figures], against: str, unit: str = "ms") -> None:
    """Print medians, ranges and ratios to one contestant."""
    print(f"\n{title}")
    for name, values in figures.items():
        for figure, numbers in values.items():
            median = statistics.median(numbers)
            ratio = median / statistics.median(figures[against][figure])
            print(
                f"  {name:12} {figure:6} {median:10.3f} {unit}  [{min(numbers):.3f}..{max(numbers):.3f}]"
                f"  {ratio:7.2f} x {against}"
            )


@contextlib.contextmanager
def redis() -> Iterator[str]:
    """Start Redis with TLS; give the URL of its result backend."""
    import tempfile  # noqa: PLC0415
    from urllib.parse import quote  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as directory:
        lab = RedisLab(Path(directory))
        lab.start()
        try:
            # As the bundle provisions it: on the disk within a second, not never.
            admin = lab.admin()
            admin.config_set("appendfsync", "everysec")
            admin.config_set("appendonly", "yes")
            password = quote(lab.passwords["admin"], safe="")
            yield (
                f"rediss://admin:{password}@{lab.address}:{lab.port}/0"
                f"?ssl_cert_reqs=required&ssl_ca_certs={lab.authority.file}"
            )
        finally:
            lab.stop()


def store_and_get(name: str, database: Database, options: argparse.Namespace, redis_url: str) -> None:
    """Time single stores and gets."""
    count, few = options.operations, max(options.operations // 10, 20)
    url = database.url()

    def store(number: int, backend: Any) -> dict[str, float]:
        return measure(lambda task_id: backend.store_result(task_id, VALUE, "SUCCESS"), number)

    def get(number: int, backend: Any) -> dict[str, float]:
        backend.store_result("known", VALUE, "SUCCESS")
        return measure(lambda _: backend.get_task_meta("known", cache=False), number)

    # One app per contestant, made before any fork.
    ours, stock, other = app_on(url), app_on(url, STOCK), app_on(redis_url, "")
    for title, work in (("store", store), ("get", get)):
        if title in options.parts:
            contestants: dict[str, Callable[[], dict[str, float]]] = {
                "ours": partial(pooled, ours, partial(work, count)),
                "pooled": partial(pooled, stock, partial(work, count)),
                "unpooled": partial(in_child, partial(call, work, few, stock)),
                "redis": partial(in_child, partial(call, work, count, other)),
            }
            show(f"{name}: {title}", rounds(options.rounds, contestants), "ours")


def call(work: Callable[[int, Any], dict[str, float]], count: int, app: Celery) -> dict[str, float]:
    """Run with the app's backend as it is."""
    return work(count, app.backend)


def notified(database: Database, options: argparse.Namespace) -> None:
    """Time stores while a client waits, and how soon it knows."""
    worker, client = app_on(database.url()).backend, app_on(database.url())
    print("\npostgresql: what a waiting client costs a store, and when it knows")
    for waiting in (False, True):
        thread = threading.Thread(target=AsyncResult("last", app=client).get, kwargs={"timeout": 600})
        if waiting:
            thread.start()
            time.sleep(1)
        runs = [
            measure(lambda task_id: worker.store_result(task_id, VALUE, "SUCCESS"), options.operations)
            for _ in range(options.rounds)
        ]
        print(f"  waiting={waiting!s:5} store p50 {statistics.median(run['p50'] for run in runs):.3f} ms")
        if waiting:
            worker.store_result("last", VALUE, "SUCCESS")
            thread.join()
    delays = []
    for number in range(30):
        result = AsyncResult(f"late-{number}", app=client)
        stored: list[float] = []

        def late(task_id: str = result.id, stored: list[float] = stored) -> None:
            worker.store_result(task_id, VALUE, "SUCCESS")
            stored.append(time.perf_counter())

        threading.Timer(0.2, late).start()
        result.get(timeout=30)
        now = time.perf_counter()
        delays.append(max(now - (stored[0] if stored else now), 0.0) * 1e3)
    print(f"  get() returns {statistics.median(delays):.2f} ms after the store (median of 30)")


def queries(name: str, database: Database) -> None:
    """Count the queries of a chord of 1,000 and of a group of 10,000."""
    app = app_on(database.url(), worker_hijack_root_logger=False)

    @app.task(shared=False, name="bench.add")  # type: ignore[untyped-decorator] # Celery has no types
    def add(x: int) -> int:
        return x

    @app.task(shared=False, name="bench.total")  # type: ignore[untyped-decorator]
    def total(values: list[int]) -> int:
        return sum(values)

    app.set_current()
    with start_worker(app, pool="threads", concurrency=2, perform_ping_check=False, loglevel="ERROR"):
        with counted(app.backend) as statements:
            began = time.monotonic()
            chord(add.s(n) for n in range(1000))(total.s()).get(timeout=600)
            took = time.monotonic() - began
        reads = sum(text.startswith("SELECT") and "pg_" not in text for text in statements)
        print(
            f"\n{name}: a chord of 1,000: {reads} reads, {len(statements) - reads} other statements, {took:.1f} s"
        )
    backend = app_on(database.url()).backend
    ids = [str(uuid.uuid4()) for _ in range(10_000)]
    writer = app_on(database.url()).backend

    def write() -> None:
        for task_id in ids:
            writer.store_result(task_id, 1, "SUCCESS")

    with counted(backend) as statements:
        thread = threading.Thread(target=write)
        began = time.monotonic()
        thread.start()
        ResultSet([AsyncResult(i, app=backend.app) for i in ids], app=backend.app).get(timeout=600)
        took = time.monotonic() - began
        thread.join()
    reads = sum(text.startswith("SELECT task_id") for text in statements)
    print(f"{name}: a group of 10,000 being stored: {reads} reads, {took:.1f} s")


def fill(database: Database, number: int) -> None:
    """Make rows of which half have expired."""
    # One finished each 10 ms, as ids grow; the younger half begins an hour ago.
    statements = {
        "postgresql": "INSERT INTO celery_taskmeta (id, task_id, status, result, date_done)"
        " SELECT nextval('task_id_sequence'), gen_random_uuid()::text, 'SUCCESS', repeat('x', 200)::bytea,"
        f" now() - CASE WHEN n <= {number} / 2 THEN interval '3 days' ELSE interval '3 hours' END"
        f" + n * interval '10 ms' FROM generate_series(1, {number}) n",
        "mysql": "INSERT INTO celery_taskmeta (task_id, status, result, date_done)"
        " SELECT UUID(), 'SUCCESS', REPEAT('x', 200),"
        f" NOW(6) - INTERVAL IF(seq <= {number} / 2, 72, 3) HOUR + INTERVAL seq * 10000 MICROSECOND"
        f" FROM seq_1_to_{number}",
        "sqlite": f"WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < {number})"
        " INSERT INTO celery_taskmeta (task_id, status, result, date_done)"
        " SELECT hex(randomblob(16)), 'SUCCESS', randomblob(200),"
        f" strftime('%Y-%m-%d %H:%M:%f000', 'now', iif(n <= {number} / 2, '-72 hours', '-3 hours'),"
        " (n / 100.0) || ' seconds') FROM c",
    }
    database.rows(statements[database.lab.scheme])
    if database.lab.scheme == "postgresql":
        database.rows("VACUUM (ANALYZE) celery_taskmeta")
        database.rows("CHECKPOINT")


def stores(backend: Any, times: list[float], go_on: Callable[[], bool]) -> None:
    """Store fresh results as long as told."""
    while go_on():
        began = time.perf_counter()
        backend.store_result(str(uuid.uuid4()), VALUE, "SUCCESS")
        times.append(time.perf_counter() - began)


def cleaned(name: str, lab: DatabaseLab, index: str, options: argparse.Namespace) -> None:
    """Delete half of the rows beside live stores."""
    database = lab.database()
    if index == "brin":
        database.rows("DROP INDEX ix_celery_taskmeta_date_done")
        database.rows("CREATE INDEX ix_celery_taskmeta_date_done ON celery_taskmeta USING brin (date_done)")
    fill(database, options.rows)
    backend = app_on(database.url()).backend
    idle: list[float] = []
    stores(backend, idle, lambda: len(idle) < options.operations * 5)
    cutoff = dt.datetime.now(dt.UTC).replace(tzinfo=None) - dt.timedelta(days=1)
    answer: dict[str, float] = {}
    running = threading.Event()
    running.set()

    def clean() -> dict[str, float]:
        began = time.monotonic()
        done = delete_expired(Storage.at(database.url()), cutoff)
        return {"rows": done.results, "seconds": time.monotonic() - began}

    def run() -> None:
        # In a process of its own, as a worker's task: here it would share the interpreter with the stores.
        answer.update(in_child(clean))
        running.clear()

    during: list[float] = []
    thread = threading.Thread(target=run)
    thread.start()
    stores(backend, during, running.is_set)
    thread.join()
    before, beside = statistics.median(idle) * 1e3, statistics.median(during) * 1e3
    print(
        f"\n{name} ({index}): cleanup of {answer['rows']:,.0f} of {options.rows:,} rows:"
        f" {answer['rows'] / answer['seconds']:,.0f} rows/s; store p50 {before:.3f} -> {beside:.3f} ms"
        f" ({beside / before:.2f} x idle)"
    )


def end_to_end(name: str, database: Database, options: argparse.Namespace, redis_url: str) -> None:
    """Run tasks through a prefork worker of two, results fetched by this process, TLS on."""
    rates: Figures = {}
    for _ in range(options.rounds):
        for label, prefix in (("ours", OURS), ("stock", STOCK)):
            rates.setdefault(label, []).append(burst(prefix + database.url(), redis_url, options.tasks))
    figures = {label: {"tasks/s": values} for label, values in rates.items()}
    show(f"{name}: end to end, prefork -c 2, {options.tasks} tasks", figures, "stock", "")


def burst(backend: str, broker: str, number: int) -> float:
    """Give tasks per second of one burst with a fresh worker."""
    environment = {
        **os.environ,
        "BENCH_BACKEND": backend,
        "BENCH_BROKER": broker,
        "BENCH_QUEUE": f"bench-{uuid.uuid4()}",
        "PYTHONPATH": f"{PROJECT / 'src'}:{PROJECT}",
    }
    os.environ.update(environment)
    command = [sys.executable, "-m", "celery", "-A", "benchmarks.database_app", "worker", "-c", "2", "-l", "ERROR",
               "--without-gossip", "--without-mingle", "--without-heartbeat"]  # fmt: skip
    worker = subprocess.Popen(command, env=environment, cwd=PROJECT, stdout=subprocess.DEVNULL)
    try:
        from benchmarks.database_app import make_app  # noqa: PLC0415

        app = make_app()
        echo = app.tasks["bench.echo"]
        echo.delay(0).get(timeout=60)
        began = time.monotonic()
        results = [echo.delay(n) for n in range(number)]
        for result in results:
            result.get(timeout=300)
        return number / (time.monotonic() - began)
    finally:
        worker.terminate()
        worker.wait(30)


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = ["store", "get", "wait", "group", "cleanup", "e2e"]
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--databases", nargs="+", choices=sorted(LABS), default=list(LABS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--operations", type=int, default=400)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--tasks", type=int, default=500)
    options = parser.parse_args()
    with redis() as redis_url:
        for name in options.databases:
            with LABS[name]() as lab:
                if {"store", "get"} & set(options.parts):
                    store_and_get(name, lab.database(), options, redis_url)
                if "wait" in options.parts and name == "postgresql":
                    notified(lab.database(), options)
                if "group" in options.parts:
                    queries(name, lab.database())
                if "cleanup" in options.parts:
                    for index in ("btree", "brin") if name == "postgresql" else ("btree",):
                        cleaned(name, lab, index, options)
                if "e2e" in options.parts:
                    end_to_end(name, lab.database(), options, redis_url)


if __name__ == "__main__":
    main()
