"""What goes wrong with a server, seen from a worker and a client."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from celery.exceptions import BackendStoreError
from tests.integration.database_case import app_on, backend_on, until
from tests.integration.database_lab import LABS, DatabaseLab, PostgresLab

from celery_results.backends.database.errors import ReadOnlyServerError

if TYPE_CHECKING:
    from collections.abc import Callable

SERVERS = ["postgresql", "mysql"]
READ_ONLY = {
    "postgresql": "ALTER DATABASE {name} SET default_transaction_read_only = on",
    "mysql": "SET GLOBAL read_only = 1",
}
WRITABLE = {
    "postgresql": "ALTER DATABASE {name} RESET default_transaction_read_only",
    "mysql": "SET GLOBAL read_only = 0",
}
TIMEOUT = {
    "postgresql": "ALTER ROLE celery_worker SET statement_timeout = '300ms'",
    "mysql": "SET GLOBAL max_statement_time = 0.3",
}
ASLEEP = {"postgresql": "SELECT 7 FROM pg_sleep(3)", "mysql": "SELECT 7 + SLEEP(3)"}
LIMIT = {
    "postgresql": "ALTER ROLE celery_worker CONNECTION LIMIT {count}",
    "mysql": "ALTER USER celery_worker WITH MAX_USER_CONNECTIONS {count}",
}
CONNECTIONS = {
    "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE usename = 'celery_worker'",
    "mysql": "SELECT count(*) FROM information_schema.processlist WHERE user = 'celery_worker'",
}


@pytest.fixture(params=SERVERS)
def lab(request: Any) -> Any:
    with LABS[request.param]() as lab:
        yield lab


def retried(backend: Any) -> list[BaseException]:
    """Record the errors after which the backend tried again."""
    errors: list[BaseException] = []
    backend.on_backend_retryable_error = errors.append
    return errors


def more_than(things: list[str], goal: int) -> bool:
    return len(things) > goal


def test_kill_9_in_the_middle_of_stores_loses_none_that_was_acknowledged(lab: DatabaseLab) -> None:
    database = lab.database()
    acknowledged: list[str] = []
    stop = threading.Event()

    def work(name: str) -> None:
        backend = backend_on(database, result_backend_max_retries=0)
        number = 0
        while not stop.is_set():
            number += 1
            with contextlib.suppress(BackendStoreError):
                backend.store_result(f"{name}-{number}", {"n": number}, "SUCCESS")
                acknowledged.append(f"{name}-{number}")

    threads = [threading.Thread(target=work, args=(str(n),)) for n in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(2):
        goal = len(acknowledged) + 100
        until(partial(more_than, acknowledged, goal), "stores go on")
        lab.kill()
        lab.restart()
    goal = len(acknowledged) + 100
    until(partial(more_than, acknowledged, goal), "stores go on after the server is back")
    stop.set()
    for thread in threads:
        thread.join(20)
    stored = {row[0] for row in database.rows("SELECT task_id FROM celery_taskmeta WHERE status = 'SUCCESS'")}
    assert set(acknowledged) <= stored


def test_a_restart_under_idle_pools_is_not_seen(lab: DatabaseLab) -> None:
    database = lab.database()
    backend = backend_on(database)
    errors = retried(backend)
    threads = [threading.Thread(target=backend.get_task_meta, args=("t",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    for killed in (False, True):
        if killed:
            lab.kill()
        lab.restart()
        backend.store_result("t", 1, "STARTED")
        assert backend.get_state("t") == "STARTED"
    assert errors == []


def test_a_connection_that_died_without_a_word_is_replaced_at_once(lab: DatabaseLab) -> None:
    backend = backend_on(lab.database())
    errors = retried(backend)
    backend.store_result("t", 1, "STARTED")
    pooled = backend._pool._idle[0].session
    pooled.stale = lambda: False  # as if the farewell had been lost
    lab.restart()
    backend.store_result("t", 2, "SUCCESS")
    assert backend.get_result("t") == 2
    assert errors == []


def test_a_server_that_comes_back_is_waited_for(lab: DatabaseLab) -> None:
    backend = backend_on(
        lab.database(), result_backend_max_retries=60, result_backend_max_sleep_between_retries_ms=200
    )
    errors = retried(backend)
    lab.kill()
    thread = threading.Thread(target=backend.store_result, args=("t", 1, "SUCCESS"))
    thread.start()
    until(lambda: errors, "the first attempt failed")
    lab.restart()
    thread.join(20)
    assert backend.get_result("t") == 1


def test_the_limit_of_connections_is_ridden_out_and_never_exceeded(lab: DatabaseLab) -> None:
    database = lab.database()
    database.rows(LIMIT[lab.scheme].format(count=2))
    holder = backend_on(database, database_engine_options={"pool_size": 2})
    backend = backend_on(
        database, result_backend_max_retries=100, result_backend_max_sleep_between_retries_ms=100
    )
    errors = retried(backend)
    gate, entered = threading.Event(), threading.Semaphore(0)

    def hold(session: Any) -> None:
        session.execute("SELECT 1")
        entered.release()
        gate.wait(20)

    holders = [threading.Thread(target=holder._pool.run, args=(hold,)) for _ in range(2)]
    for thread in holders:
        thread.start()
    for _ in holders:
        assert entered.acquire(timeout=20)
    thread = threading.Thread(target=backend.store_result, args=("t", 1, "SUCCESS"))
    thread.start()
    until(lambda: errors, "the server refused")
    gate.set()
    for held in holders:
        held.join(20)
    holder._pool.close_idle()
    thread.join(20)
    assert backend.get_result("t") == 1


def test_a_process_never_has_more_connections_than_its_pool(lab: DatabaseLab) -> None:
    database = lab.database()
    backends = [backend_on(database, database_engine_options={"pool_size": 3}) for _ in range(5)]
    seen: list[int] = []
    threads = [
        threading.Thread(
            target=lambda b=b, n=n: [b.store_result(f"{n}-{i}", i, "SUCCESS") for i in range(20)]
        )
        for n, b in enumerate(backends * 3)
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        seen.append(database.rows(CONNECTIONS[lab.scheme])[0][0])
    assert max(seen) <= 3
    assert database.rows("SELECT count(*) FROM celery_taskmeta") == [(300,)]


def test_a_statement_timeout_is_retried_and_leaves_the_connection_usable(lab: DatabaseLab) -> None:
    database = lab.database()
    backend_on(database).store_result("t", 0, "STARTED")
    database.rows(TIMEOUT[lab.scheme])
    # Another pool, whose connections know the limit.
    backend = backend_on(database, database_engine_options={"pool_size": 1}, result_backend_max_retries=100)
    errors = retried(backend)
    with database.admin() as connection:
        cursor = connection.cursor()
        cursor.execute("BEGIN")
        cursor.execute("SELECT 1 FROM celery_taskmeta WHERE task_id = 't' FOR UPDATE")
        thread = threading.Thread(target=backend.store_result, args=("t", 1, "SUCCESS"))
        thread.start()
        until(lambda: errors, "the statement timed out")
        cursor.execute("COMMIT")
    thread.join(20)
    assert backend.get_result("t") == 1


def test_a_read_only_server_is_named_at_once(lab: DatabaseLab) -> None:
    database = lab.database()
    backend = backend_on(database)
    backend.store_result("t", 0, "STARTED")
    errors = retried(backend)
    database.rows(READ_ONLY[lab.scheme].format(name=database.name))
    backend._pool.close_idle()
    began = time.monotonic()
    with pytest.raises(ReadOnlyServerError, match="primary"):
        backend.store_result("t", 1, "SUCCESS")
    assert time.monotonic() - began < 5
    assert errors == []
    assert backend.get_state("t") == "STARTED"
    with contextlib.closing(lab.connect(lab.maintenance)) as connection:
        connection.cursor().execute(WRITABLE[lab.scheme].format(name=database.name))
    backend._pool.close_idle()
    backend.store_result("t", 1, "SUCCESS")
    assert backend.get_result("t") == 1


def forked(work: Callable[[], None]) -> int:
    """Do `work` in a child, and give its pid; it exits with 0 only if the work ends well."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    finally:
        os._exit(code)


def exits(pids: list[int]) -> list[int]:
    """Give the exit codes of children: -9 for one that did not end and was killed."""
    running, codes = set(pids), {}

    def ended() -> bool:
        for pid in sorted(running):
            reaped, status = os.waitpid(pid, os.WNOHANG)
            if reaped:
                running.discard(pid)
                codes[pid] = os.waitstatus_to_exitcode(status)
        return not running

    try:
        until(ended, "the children ended", seconds=60)
    except AssertionError:
        for pid in running:
            os.kill(pid, signal.SIGKILL)
            codes[pid] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return [codes[pid] for pid in pids]


def test_a_forked_child_uses_no_connection_of_its_parent(lab: DatabaseLab) -> None:
    database = lab.database()
    backend = backend_on(database)
    backend.store_result("parent", 1, "SUCCESS")
    parents = backend._pool._idle[0].session
    waiting = threading.Thread(target=backend.wait_for, args=("late",))
    waiting.start()

    def work(number: int) -> None:
        for i in range(20):
            backend.store_result(f"{number}-{i}", i, "SUCCESS")
            assert backend.get_task_meta(f"{number}-{i}")["result"] == i

    children = []
    for number in range(4):
        children.append(forked(partial(work, number)))
        backend.store_result(f"parent{number}", 1, "SUCCESS")
    assert exits(children) == [0] * 4
    assert backend.get_result("3-19") == 19
    assert parents in {pooled.session for pooled in backend._pool._all}
    backend.store_result("late", 1, "SUCCESS")
    waiting.join(20)
    assert not waiting.is_alive()


def test_a_child_forked_while_a_thread_waits_for_an_answer_goes_on(lab: DatabaseLab) -> None:
    backend = backend_on(lab.database())
    answers: list[Any] = []
    waiting = threading.Thread(
        target=lambda: answers.extend(backend._pool.run(lambda session: session.execute(ASLEEP[lab.scheme])))
    )
    waiting.start()
    until(lambda: backend._pool._all, "the thread is connected")
    time.sleep(0.5)
    assert exits([forked(lambda: backend.store_result("child", 1, "SUCCESS"))]) == [0]
    assert answers == [], "the thread was still waiting when the child was made"
    assert backend.get_result("child") == 1
    waiting.join(20)
    assert answers == [(7,)]


def test_children_forked_while_threads_connect_go_on(lab: DatabaseLab) -> None:
    backend = backend_on(lab.database())
    ended = threading.Event()

    def connect() -> None:
        while not ended.is_set():
            backend.get_state("t")
            backend._pool.close_idle()

    threads = [threading.Thread(target=connect) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        children = [forked(lambda: backend.store_result("t", 1, "STARTED")) for _ in range(40)]
        assert exits(children) == [0] * 40
    finally:
        ended.set()
        for thread in threads:
            thread.join(20)


def test_an_interrupted_statement_does_not_poison_the_pool(lab: DatabaseLab) -> None:
    backend = backend_on(lab.database())
    backend.store_result("t", 1, "SUCCESS")

    def work(session: Any) -> None:
        session.execute("SELECT 7")
        raise KeyboardInterrupt

    before = backend._pool._idle[0].session
    with pytest.raises(KeyboardInterrupt):
        backend._pool.run(work)
    assert backend.get_result("t") == 1
    assert backend._pool._idle[0].session is not before


def test_a_database_that_is_not_there_is_retried_as_often_as_told() -> None:
    with PostgresLab() as lab:
        url = lab.database().url()
        lab.kill()
        backend = app_on(url, result_backend_max_retries=2).backend
        errors = retried(backend)
        with pytest.raises(BackendStoreError):
            backend.store_result("t", 1, "SUCCESS")
        assert len(errors) == 2
        backend = app_on(url, result_backend_always_retry=False).backend
        errors = retried(backend)
        with pytest.raises(Exception, match="refused"):
            backend.store_result("t", 1, "SUCCESS")
        assert errors == []
        assert "@" not in repr(backend._address)


def test_a_migration_under_prepared_statements_is_not_seen() -> None:
    with PostgresLab() as lab:
        database = lab.database(tables="stock")
        backend = backend_on(database)
        errors = retried(backend)
        backend.store_result("t", 1, "STARTED")
        assert backend.get_state("t") == "STARTED"
        for change in ("name TYPE text", "traceback TYPE varchar(9999)", "id TYPE bigint"):
            database.rows(f"ALTER TABLE celery_taskmeta ALTER {change}")
            assert backend.get_state("t") == "STARTED"
            backend.store_result("t", 1, "STARTED")
        backend._pool._idle[0].session.execute("DEALLOCATE ALL")
        assert backend.get_state("t") == "STARTED"
        assert errors == []
