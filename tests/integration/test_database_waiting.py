"""Waiting for results, groups and chords: how soon, with how many queries, and as Celery does it."""

# names of this file's own

from __future__ import annotations

import logging
import threading
import time
from typing import Any

import pytest
from celery import chain, chord, group
from celery.contrib.testing.worker import start_worker
from celery.exceptions import ChordError
from celery.exceptions import TimeoutError as CeleryTimeoutError
from celery.result import AsyncResult, GroupResult, ResultSet
from tests.integration.database_case import STOCK, app_on, backend_on, counted, until
from tests.integration.database_lab import LABS, Database, DatabaseLab

from celery_results.backends.database import waiting

LISTENERS = "FROM pg_stat_activity WHERE query LIKE '%pg_advisory_lock_shared%' AND usename = 'celery_worker'"
STORED_SECONDS = 0.55
SOON_SECONDS = 0.3  # Celery, which looks every 0.5 s, would take 0.45


@pytest.fixture(scope="module", params=LABS)
def lab(request: Any) -> Any:
    with LABS[request.param]() as lab:
        yield lab


@pytest.fixture
def database(lab: DatabaseLab) -> Database:
    return lab.database()


@pytest.fixture
def app(database: Database) -> Any:
    """Give an app with a worker in this process, results on the database."""
    app = app_on(
        database.url(),
        result_chord_retry_interval=0.05,
        task_track_started=False,
        worker_hijack_root_logger=False,
    )

    @app.task(shared=False)
    def add(x: int, y: int) -> int:
        return x + y

    @app.task(shared=False)
    def total(values: list[int]) -> int:
        return sum(values)

    @app.task(shared=False)
    def fail(*_: Any) -> None:
        message = "on purpose"
        raise ValueError(message)

    @app.task(shared=False)
    def note(*_: Any) -> str:
        return "noted"

    app.case = type("Tasks", (), {"add": add, "total": total, "fail": fail, "note": note})
    app.set_current()
    with start_worker(app, pool="threads", concurrency=2, perform_ping_check=False, loglevel=logging.ERROR):
        yield app


def test_a_result_is_seen_soon(database: Database) -> None:
    reader, writer = backend_on(database), backend_on(database)
    took = []
    for number in range(5):
        result = AsyncResult(f"t{number}", app=reader.app)
        threading.Timer(STORED_SECONDS, writer.store_result, (result.id, number, "SUCCESS")).start()
        began = time.monotonic()
        assert result.get(timeout=10) == number
        took.append(time.monotonic() - began - STORED_SECONDS)
    assert sorted(took)[2] < SOON_SECONDS


def test_a_result_of_celerys_own_class_is_seen_by_looking(database: Database) -> None:
    reader, writer = backend_on(database), backend_on(database, STOCK)
    threading.Timer(0.3, writer.store_result, ("t", 1, "SUCCESS")).start()
    assert AsyncResult("t", app=reader.app).get(timeout=10) == 1


def test_a_timeout_is_kept(database: Database) -> None:
    backend = backend_on(database)
    for timeout in (0, 0.2):
        began = time.monotonic()
        with pytest.raises(CeleryTimeoutError):
            AsyncResult("never", app=backend.app).get(timeout=timeout)
        with pytest.raises(CeleryTimeoutError):
            list(backend.get_many(["never", "ever"], timeout=timeout))
        assert time.monotonic() - began < 2 * timeout + 2


def test_an_exception_and_a_state_come_through(database: Database) -> None:
    backend = backend_on(database)
    backend.store_result("t", ValueError("bad"), "FAILURE", traceback="tb")
    with pytest.raises(ValueError, match="bad"):
        AsyncResult("t", app=backend.app).get(timeout=5)
    assert isinstance(AsyncResult("t", app=backend.app).get(timeout=5, propagate=False), ValueError)


def test_a_group_of_ten_thousand_takes_few_queries(database: Database) -> None:
    backend = backend_on(database)
    ids = [f"task-{number}" for number in range(10_000)]
    columns = "task_id, status, result, date_done"
    source = {
        "postgresql": "SELECT nextval('task_id_sequence'), 'task-' || n, 'SUCCESS', '1'::bytea, now()"
        " FROM generate_series(0, 9999) n",
        "mysql": "SELECT NEXT VALUE FOR task_id_sequence, CONCAT('task-', seq), 'SUCCESS', '1', NOW()"
        " FROM seq_0_to_9999",
        "sqlite": "WITH RECURSIVE c(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM c WHERE n < 9999)"
        " SELECT NULL, 'task-' || n, 'SUCCESS', CAST('1' AS BLOB), '2999-01-01 00:00:00.000000' FROM c",
    }[database.lab.scheme]
    results = ResultSet([AsyncResult(task_id, app=backend.app) for task_id in ids], app=backend.app)
    threading.Timer(0.5, database.rows, (f"INSERT INTO celery_taskmeta (id, {columns}) {source}",)).start()
    with counted(backend) as statements:
        assert results.get(timeout=60) == [1] * 10_000
    assert len([text for text in statements if text.startswith("SELECT task_id")]) < 100
    with counted(backend) as statements:
        assert results.ready()
        assert results.get(timeout=5) == [1] * 10_000
    assert statements == []


def test_a_group_in_a_group_joins(app: Any) -> None:
    add = app.case.add
    inner = group(add.s(1, 1), add.s(2, 2))
    assert group(add.s(0, 1), group(inner, add.s(3, 3))).apply_async().get(timeout=20) == [1, 2, 4, 6]
    assert group(add.s(n, n) for n in range(20)).apply_async().get(timeout=20) == [2 * n for n in range(20)]


def test_a_chord_takes_few_queries(app: Any) -> None:
    with counted(app.backend) as statements:
        result = chord(app.case.add.s(n, 1) for n in range(200))(app.case.total.s())
        assert result.get(timeout=60) == sum(range(200)) + 200
    reads = [text for text in statements if text.startswith(("SELECT task_id", "SELECT count"))]
    # The worker counts until all are ready and reads once; the client looks at the body and its parents.
    assert len(reads) < 150


def test_chords_in_chords_and_chains(app: Any) -> None:
    add, total = app.case.add, app.case.total
    inner = chord([add.s(1, 1), add.s(2, 2)], total.s())
    assert chord([inner, add.s(3, 3)], total.s()).apply_async().get(timeout=30) == 12
    assert (
        chain(add.s(1, 1), group(add.s(2), add.s(3)), total.s(), add.s(10)).apply_async().get(timeout=30)
        == 19
    )
    assert (group(add.s(1, 1), group(add.s(2, 2), add.s(3, 3))) | total.s()).apply_async().get(
        timeout=30
    ) == 12


def test_a_failed_header_fails_the_body_and_calls_its_errback(app: Any) -> None:
    body = app.case.total.s().on_error(app.case.note.s())
    result = chord([app.case.add.s(1, 1), app.case.fail.s()], body)()
    with pytest.raises(ChordError, match=r"Dependency .* raised ValueError\('on purpose'\)"):
        result.get(timeout=30, follow_parents=False)
    failed = next(part for part in result.parent.results if part.failed())
    assert failed.id in str(result.result)


def test_a_saved_group_is_restored_and_read_with_one_query(app: Any) -> None:
    result = group(app.case.add.s(n, n) for n in range(10)).apply_async()
    result.get(timeout=20)
    result.save()
    with counted(app.backend) as statements:
        restored = GroupResult.restore(result.id, app=app)
        assert restored.get(timeout=5) == [2 * n for n in range(10)]
    assert len(statements) == 2


def test_threads_share_one_listening_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "KEEP_SECONDS", 0.1)
    with LABS["postgresql"]() as lab:
        database = lab.database()
        backend = backend_on(database)
        answers: list[Any] = []
        threads = [
            threading.Thread(
                target=lambda n=n: answers.append(backend.wait_for(f"t{n}", timeout=20)["result"])
            )
            for n in range(8)
        ]
        for thread in threads:
            thread.start()
        listening = f"SELECT count(*) {LISTENERS}"
        until(lambda: database.rows(listening) == [(1,)], "one connection listens")
        for number in range(8):
            backend.store_result(f"t{number}", number, "SUCCESS")
        for thread in threads:
            thread.join(20)
        assert sorted(answers) == list(range(8))
        until(lambda: database.rows(listening) == [(0,)], "it is closed when nobody waits")


def test_nobody_is_told_when_nobody_waits() -> None:
    with LABS["postgresql"]() as lab:
        backend = backend_on(lab.database())
        with counted(backend) as statements:
            backend.store_result("t", 1, "SUCCESS")
        assert [text for text in statements if "pg_notify" in text] == []


def test_a_wait_outlives_its_listening_connection() -> None:
    with LABS["postgresql"]() as lab:
        database = lab.database()
        backend = backend_on(database)
        answers: list[Any] = []
        thread = threading.Thread(target=lambda: answers.append(backend.wait_for("t", timeout=20)["result"]))
        thread.start()
        others = LISTENERS
        first = until(lambda: database.rows(f"SELECT pid {others}"), "it listens")
        database.rows(f"SELECT pg_terminate_backend(pid) {others}")
        until(lambda: database.rows(f"SELECT pid {others}") not in ([], first), "it listens anew")
        backend.store_result("t", 1, "SUCCESS")
        thread.join(20)
        assert answers == [1]
