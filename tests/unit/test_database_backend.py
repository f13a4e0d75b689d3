"""celery_results.backends.database without a server: what it takes, what it refuses, what it says."""

from __future__ import annotations

import sqlite3
import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pymysql
import pytest
from celery import Celery
from celery.app.backends import by_url
from celery.exceptions import ImproperlyConfigured

from celery_results.backends.database import DatabaseBackend
from celery_results.backends.database.chord import leaves
from celery_results.backends.database.dialect import Tables, driver_for
from celery_results.backends.database.errors import Fault, ReadOnlyServerError, explained
from celery_results.backends.database.pool import Pool, PoolOptions, PoolTimeoutError
from celery_results.backends.database.scan import Scanner
from celery_results.backends.database.url import parse

if TYPE_CHECKING:
    from collections.abc import Sequence

NAME = "celery_results.backends.database:DatabaseBackend"
URLS = {
    "postgresql": "postgresql+psycopg://u:p%40%2F@h:5433/db?sslmode=verify-full",
    "mysql": "mysql+pymysql://u:p%40%2F@h:3307/db?ssl_ca=/ca.crt&ssl_verify_cert=true&ssl_verify_identity=true",
    "sqlite": "sqlite:////var/lib/x/results.sqlite3",
}


def backend_of(url: str = URLS["postgresql"], **conf: Any) -> Any:
    app = Celery("unit", set_as_current=False)
    app.conf.update(result_backend=f"{NAME}+{url}", **conf)
    return app.backend


@pytest.mark.parametrize("url", URLS.values())
def test_celery_finds_the_class_and_hands_over_the_url(url: str) -> None:
    assert by_url(f"{NAME}+{url}") == (DatabaseBackend, url)
    backend = backend_of(url)
    assert backend.url == url
    assert "p%40" not in backend.as_uri()
    assert "p@/" not in repr(backend._address)


def test_an_address_is_split_as_it_is_meant() -> None:
    address = parse(URLS["mysql"] + "&legacy_pickle=true&listen=false")
    assert (address.host, address.port, address.user, address.password) == ("h", 3307, "u", "p@/")
    assert address.legacy_pickle
    assert not address.listen
    assert dict(address.query).keys() == {"ssl_ca", "ssl_verify_cert", "ssl_verify_identity"}
    several = parse("postgresql://u:p@a:1,b:2/db?target_session_attrs=read-write")
    assert (several.host, several.port) == ("a:1,b:2", None)


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("postgresql+psycopg2://u:secret@h/db", "postgresql\\+psycopg"),
        ("oracle://u:secret@h/db", "oracle"),
        ("sqlite://", "absolute"),
        ("sqlite:///relative.db", "absolute"),
        ("postgresql://u:secret@h/db?legacy_pickle=perhaps", "legacy_pickle"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused(url: str, text: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=text) as caught:
        parse(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("expires", "reason"), [(None, "never expire"), (0, "every result"), (-5, "every result")]
)
def test_results_must_expire(expires: Any, reason: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=reason):
        backend_of(result_expires=expires)


@pytest.mark.parametrize(
    "conf",
    [
        {"database_engine_options": {"creator": print}},
        {"database_engine_options": {"pool_size": 0}},
        {"database_engine_callback": print},
    ],
)
def test_what_is_not_understood_is_refused(conf: dict[str, Any]) -> None:
    with pytest.raises(ImproperlyConfigured):
        backend_of(**conf)


def test_the_defaults_of_celery_and_its_options_are_taken() -> None:
    backend = backend_of(database_engine_options={"pool_size": 7, "pool_pre_ping": True, "pool_recycle": -1})
    assert backend._pool.options == PoolOptions(size=7, recycle_seconds=float("inf"))
    assert (backend.always_retry, backend.max_retries) == (True, 3)
    assert backend_of().expires == timedelta(days=1)
    told = backend_of(result_backend_always_retry=False, result_backend_max_retries=9)
    assert (told.always_retry, told.max_retries) == (False, 9)


def test_backends_of_one_process_share_a_pool_and_other_urls_have_theirs() -> None:
    assert backend_of()._pool is backend_of()._pool
    assert backend_of()._pool is not backend_of(URLS["postgresql"].replace("u:", "v:"))._pool


ERRORS = {
    "postgresql": [
        (psycopg.OperationalError("gone"), Fault.LOST),
        (psycopg.errors.AdminShutdown("x"), Fault.LOST),
        (psycopg.errors.DeadlockDetected("x"), Fault.BUSY),
        (psycopg.errors.SerializationFailure("x"), Fault.BUSY),
        (psycopg.errors.QueryCanceled("x"), Fault.BUSY),
        (psycopg.errors.TooManyConnections("x"), Fault.BUSY),
        (psycopg.errors.ReadOnlySqlTransaction("x"), Fault.READ_ONLY),
        (psycopg.errors.UndefinedTable("x"), Fault.MISSING),
        (psycopg.errors.InsufficientPrivilege("x"), Fault.REFUSED),
        (psycopg.DataError("x"), Fault.REFUSED),
        (KeyboardInterrupt(), Fault.FOREIGN),
    ],
    "mysql": [
        (pymysql.err.OperationalError(2013, "x"), Fault.LOST),
        (pymysql.err.InterfaceError(0, ""), Fault.LOST),
        (ConnectionResetError(), Fault.LOST),
        (pymysql.err.OperationalError(1213, "x"), Fault.BUSY),
        (pymysql.err.OperationalError(1040, "x"), Fault.BUSY),
        (pymysql.err.OperationalError(1290, "x"), Fault.READ_ONLY),
        (pymysql.err.ProgrammingError(1146, "x"), Fault.MISSING),
        (pymysql.err.DataError(1406, "x"), Fault.REFUSED),
        (ValueError("x"), Fault.FOREIGN),
    ],
    "sqlite": [
        (sqlite3.OperationalError("no such table: t"), Fault.MISSING),
        (sqlite3.IntegrityError("x"), Fault.REFUSED),
        (TypeError("x"), Fault.FOREIGN),
    ],
}


@pytest.mark.parametrize(
    ("name", "error", "fault"), [(name, *case) for name, cases in ERRORS.items() for case in cases]
)
def test_errors_are_told_apart(name: str, error: BaseException, fault: Fault) -> None:
    assert driver_for(parse(URLS[name])).fault(error) is fault
    assert backend_of(URLS[name]).exception_safe_to_retry(error) is (fault in {Fault.LOST, Fault.BUSY})


def test_an_explained_error_says_what_to_do() -> None:
    error = explained(Fault.READ_ONLY, RuntimeError("read-only transaction"))
    assert isinstance(error, ReadOnlyServerError)
    assert "read-only transaction" in error.found
    assert explained(Fault.REFUSED, RuntimeError()) is None


@pytest.mark.parametrize("url", URLS.values())
def test_names_of_tables_cannot_break_out_of_the_statement(url: str) -> None:
    evil = Tables.of_settings({"task": 'a"; DROP TABLE b; --`'}, {"task": "s"})
    statement = driver_for(parse(url)).statements(evil).forget
    name = '`s`.`a"; DROP TABLE b; --```' if url.startswith("mysql") else '"s"."a""; DROP TABLE b; --`"'
    assert name in statement


def test_leaves_of_nested_groups_are_found() -> None:
    nested = [["g", None], [[["a", None], None], [["h", None], [[["b", ["x", None]], None]]]]]
    assert list(leaves(nested)) == ["a", "b"]


class Session:
    def __init__(self) -> None:
        self.dead = False
        self.closed = False
        self.abandoned = False

    def execute(self, statement: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        del parameters
        if self.dead:
            raise psycopg.OperationalError(statement)
        return []

    def stale(self) -> bool:
        return False

    def close(self) -> None:
        self.closed = True

    def abandon(self) -> None:
        self.abandoned = True


def pool_of(**options: Any) -> tuple[Any, list[Session]]:
    driver: Any = driver_for(parse(URLS["postgresql"]))
    made: list[Session] = []

    def connect() -> Session:
        made.append(Session())
        return made[-1]

    driver.connect = connect
    return Pool(driver, PoolOptions(**options)), made


def test_dead_idle_connections_are_replaced_all_at_once() -> None:
    pool, made = pool_of()
    barrier = threading.Barrier(3)
    threads = [threading.Thread(target=pool.run, args=(lambda _: barrier.wait(5),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for session in made:
        session.dead = True
    pool.run(lambda session: session.execute("SELECT 1"))
    assert [session.closed for session in made] == [True, True, True, False]


def test_a_new_connection_that_fails_is_not_tried_again_by_the_pool() -> None:
    pool, made = pool_of()

    def work(session: Any) -> None:
        session.dead = True
        session.execute("SELECT 1")

    with pytest.raises(psycopg.OperationalError):
        pool.run(work)
    assert len(made) == 1


def test_a_full_pool_says_so() -> None:
    pool, _ = pool_of(size=1, timeout_seconds=0.01)
    with pytest.raises(PoolTimeoutError, match="pool_size"):
        pool.run(lambda _: pool.run(lambda _: None))
    pool.run(lambda _: None)


def test_an_old_connection_is_replaced() -> None:
    pool, made = pool_of(recycle_seconds=0.0)
    pool.run(lambda _: None)
    pool.run(lambda _: None)
    assert [session.closed for session in made] == [True, False]


def test_a_child_starts_empty() -> None:
    pool, made = pool_of()
    pool.run(lambda _: None)
    pool.after_fork()
    pool.run(lambda _: None)
    assert [(session.abandoned, session.closed) for session in made] == [(True, False), (False, False)]


def test_a_walk_through_a_group_takes_two_questions() -> None:
    scanner, asked = Scanner(), []
    ids = [str(number) for number in range(50)]
    scanner.learn(ids)

    def read(task_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        asked.append(len(task_ids))
        return {task_id: {"status": "SUCCESS"} for task_id in task_ids}

    def absent(task_id: str) -> dict[str, Any]:
        return {"task_id": task_id, "status": "PENDING"}

    answers = [scanner.meta(task_id, read, absent) for task_id in ids]
    assert answers[0] is None
    assert all(answers[1:])
    assert asked == [50]
    assert scanner.meta("7", read, absent) is not None or asked == [50]
    assert scanner.meta("stranger", read, absent) is None


def test_one_member_asked_for_again_and_again_is_never_answered_from_a_walk() -> None:
    scanner = Scanner()
    scanner.learn(["a", "b", "c"])

    def read(_: Sequence[str]) -> dict[str, dict[str, Any]]:
        return {}

    answers = [scanner.meta("a", read, lambda task_id: {"id": task_id}) for _ in range(5)]
    assert answers == [None] * 5
