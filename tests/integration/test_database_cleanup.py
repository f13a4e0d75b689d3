"""Cleanup: what goes, what stays, in which batches, and beside whom."""

# ruff: noqa: FBT001, S608 # parameters of tests; names of this file's own

from __future__ import annotations

import datetime as dt
import threading
from typing import Any

import pytest
from celery.result import AsyncResult, GroupResult
from tests.integration.database_case import STOCK, backend_on, until
from tests.integration.database_lab import LABS, Database, DatabaseLab

from celery_results.backends.database.cleanup import Deleted, delete_expired
from celery_results.backends.database.storage import Storage

NOW = dt.datetime.now(dt.UTC).replace(tzinfo=None)
CUTOFF = NOW - dt.timedelta(days=1)


@pytest.fixture(scope="module", params=LABS)
def lab(request: Any) -> Any:
    with LABS[request.param]() as lab:
        yield lab


@pytest.fixture
def database(lab: DatabaseLab) -> Database:
    return lab.database()


def store(database: Database, task_id: str, age_days: float | None) -> None:
    """Store a result with an age, or an unfinished one for None."""
    backend = backend_on(database)
    backend.store_result(task_id, 1, "STARTED" if age_days is None else "SUCCESS")
    if age_days is not None:
        age(database, "celery_taskmeta", "task_id", task_id, age_days)


def age(database: Database, table: str, column: str, name: str, days: float) -> None:
    mark = "?" if database.lab.scheme == "sqlite" else "%s"
    moment = (NOW - dt.timedelta(days=days)).isoformat(sep=" ", timespec="microseconds")
    database.rows(f"UPDATE {table} SET date_done = {mark} WHERE {column} = {mark}", moment, name)


def left(database: Database) -> set[str]:
    return {row[0] for row in database.rows("SELECT task_id FROM celery_taskmeta")}


def storage(database: Database) -> Storage:
    return Storage.at(database.url())


def without_index(database: Database) -> None:
    table = " ON celery_taskmeta" if database.lab.scheme == "mysql" else ""
    database.rows(f"DROP INDEX ix_celery_taskmeta_date_done{table}")


@pytest.mark.parametrize("indexed", [True, False])
def test_the_expired_go_in_batches_and_the_live_stay(database: Database, indexed: bool) -> None:
    if not indexed:
        without_index(database)
    for number in range(25):
        store(database, f"old{number}", 2)
        store(database, f"live{number}", 0.5)
    progress: list[Deleted] = []
    done = delete_expired(storage(database), CUTOFF, batch=4, pause=0, on_progress=progress.append)
    assert (done.results, done.complete) == (25, True)
    assert left(database) == {f"live{number}" for number in range(25)}
    if indexed:
        steps = [b.results - a.results for a, b in zip([Deleted(), *progress], progress, strict=False)]
        assert max(steps) <= 4


def test_groups_expire_too(database: Database) -> None:
    backend = backend_on(database)
    for name in ("old", "live"):
        GroupResult(name, [AsyncResult("t", app=backend.app)], app=backend.app).save(backend=backend)
    age(database, "celery_tasksetmeta", "taskset_id", "old", 2)
    backend.cleanup()
    assert backend.restore_group("old", cache=False) is None
    assert backend.restore_group("live", cache=False) is not None


def test_an_unfinished_result_goes_once_its_age_is_proven(database: Database) -> None:
    store(database, "lost", None)
    store(database, "witness", 2)
    store(database, "running", None)
    store(database, "live", 0.5)
    store(database, "new", None)
    done = delete_expired(storage(database), CUTOFF)
    assert (done.results, done.unfinished) == (1, 1)
    assert left(database) == {"running", "live", "new"}


def test_an_update_does_not_make_an_unfinished_result_younger_or_older(database: Database) -> None:
    store(database, "lost", None)
    store(database, "witness", 2)
    backend_on(database).store_result("lost", {}, "PROGRESS")
    store(database, "running", None)
    backend_on(database).store_result("running", {}, "PROGRESS")
    delete_expired(storage(database), CUTOFF)
    assert left(database) == {"running"}


def test_a_restored_row_proves_nothing(database: Database) -> None:
    store(database, "live", 0.5)
    store(database, "running", None)
    store(database, "restored", 30)
    done = delete_expired(storage(database), CUTOFF)
    assert (done.results, done.unfinished) == (1, 0)
    assert left(database) == {"live", "running"}


def test_a_deleted_running_task_comes_back_with_its_result(database: Database) -> None:
    store(database, "slow", None)
    store(database, "witness", 2)
    delete_expired(storage(database), CUTOFF)
    backend = backend_on(database)
    assert backend.get_state("slow") == "PENDING"
    backend.store_result("slow", 7, "SUCCESS")
    assert backend.get_result("slow") == 7


def test_it_stops_between_batches_and_goes_on_later(database: Database) -> None:
    for number in range(12):
        store(database, f"old{number}", 2)
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 2

    done = delete_expired(storage(database), CUTOFF, batch=3, pause=0, stop=stop)
    assert (done.complete, 0 < done.results < 12 or database.lab.scheme == "postgresql") == (False, True)
    done = delete_expired(storage(database), CUTOFF, batch=3, pause=0)
    assert done.complete
    assert left(database) == set()


def test_a_store_never_waits_for_a_row_that_cleanup_left(database: Database) -> None:
    if database.lab.scheme == "sqlite":
        return  # one writer at a time, by design
    store(database, "old", 2)
    store(database, "held", 2)
    with database.admin() as connection:
        cursor = connection.cursor()
        cursor.execute("BEGIN")
        cursor.execute("SELECT 1 FROM celery_taskmeta WHERE task_id = 'held' FOR UPDATE")
        worker = threading.Thread(target=delete_expired, args=(storage(database), CUTOFF), daemon=True)
        worker.start()
        if database.lab.scheme == "postgresql":
            worker.join(20)
            assert left(database) == {"held"}
        backend_on(database).store_result("fresh", 1, "SUCCESS")
        cursor.execute("COMMIT")
    worker.join(20)
    assert not worker.is_alive()


@pytest.mark.parametrize("prefix", [STOCK])
def test_rows_of_celerys_own_class_expire_alike(database: Database, prefix: str) -> None:
    stock = backend_on(database, prefix, timezone="UTC")
    stock.store_result("old", 1, "SUCCESS")
    stock.store_result("live", 1, "SUCCESS")
    age(database, "celery_taskmeta", "task_id", "old", 2)
    backend_on(database).cleanup()
    assert left(database) == {"live"}


@pytest.mark.parametrize("name", ["postgresql", "mysql"])
def test_kill_9_in_the_middle_loses_no_live_result(name: str) -> None:
    with LABS[name]() as lab:
        database = lab.database()
        for number in range(60):
            store(database, f"old{number}", 2)
            store(database, f"live{number}", 0.5)
        killed = threading.Event()

        def kill(done: Deleted) -> None:
            if done.results > 20 and not killed.is_set():
                killed.set()
                lab.kill()

        with pytest.raises(Exception, match=r"."):
            delete_expired(storage(database), CUTOFF, batch=10, pause=0.01, on_progress=kill)
        assert killed.is_set()
        lab.restart()
        until(lambda: delete_expired(storage(database), CUTOFF).complete, "cleanup went on")
        assert left(database) == {f"live{number}" for number in range(60)}
