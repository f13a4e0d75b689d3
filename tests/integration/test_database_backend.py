"""celery_results.backends.database against Celery's own class on the same tables."""

# ruff: noqa: FBT001, S608 # parameters of tests; names of this file's own

from __future__ import annotations

import datetime as dt
import pickle
import time
from typing import Any

import pytest
from celery import states
from celery.exceptions import BackendStoreError
from celery.result import AsyncResult, GroupResult
from tests.integration.database_case import OURS, STOCK, app_on, backend_on, request
from tests.integration.database_lab import LABS, Database, DatabaseLab
from tests.integration.redis_lab import Authority

from celery_results.backends.database.errors import MissingSchemaError, PickledResultError

BOTH = [(OURS, STOCK), (STOCK, OURS)]
COLUMNS = "task_id, status, result, traceback, children, name, args, kwargs, worker, retries, queue, stamps"
STATES = {
    "SUCCESS": {
        "list": [1, 2.5, None],
        "text": "ä€",
        "moment": dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC),
    },
    "FAILURE": ValueError("bad", 3),
    "RETRY": KeyError("again"),
    "REVOKED": RuntimeError("revoked"),
    "STARTED": {"pid": 7, "hostname": "h"},
    "PROGRESS": {"done": 3},
}


@pytest.fixture(scope="module", params=LABS)
def lab(request: Any) -> Any:
    with LABS[request.param]() as lab:
        yield lab


@pytest.fixture(params=["provisioned", "stock"])
def database(request: Any, lab: DatabaseLab) -> Database:
    return lab.database(tables=request.param)


@pytest.fixture
def provisioned(lab: DatabaseLab) -> Database:
    return lab.database()


def comparable(meta: dict[str, Any]) -> dict[str, Any]:
    """Exceptions compare by identity: give their type and text."""
    result = meta["result"]
    if isinstance(result, BaseException):
        return {**meta, "result": (type(result), result.args)}
    return meta


@pytest.mark.parametrize(("writer", "reader"), BOTH)
@pytest.mark.parametrize("extended", [False, True])
def test_what_one_writes_the_other_reads(
    database: Database, writer: str, reader: str, extended: bool
) -> None:
    write = backend_on(database, writer, result_extended=extended)
    read = backend_on(database, reader, result_extended=extended)
    child = AsyncResult("child", app=write.app)
    for state, value in STATES.items():
        write.store_result(
            state, value, state, traceback="Traceback: ä", request=request(id=state, children=[child])
        )
        assert comparable(read.get_task_meta(state)) == comparable(write.get_task_meta(state))
        meta = read.get_task_meta(state)
        assert meta["status"] == state
        assert meta["children"] == [[["child", None], None]]
        assert (meta["date_done"] is None) == (state not in states.READY_STATES)
        assert meta.get("kwargs") == ({"k": "ä"} if extended else None)
        assert meta.get("trace") == ("abc" if extended else None)


@pytest.mark.parametrize("extended", [False, True])
def test_rows_are_equal_byte_for_byte(database: Database, extended: bool) -> None:
    rows = []
    for prefix in (OURS, STOCK):
        backend = backend_on(database, prefix, result_extended=extended)
        for state, value in STATES.items():
            backend.store_result(state, value, state, traceback="tb", request=request(id=state))
        found = database.rows(f"SELECT {COLUMNS}, date_done IS NULL FROM celery_taskmeta ORDER BY task_id")
        rows.append([tuple(bytes(v) if isinstance(v, memoryview) else v for v in row) for row in found])
        database.rows("DELETE FROM celery_taskmeta")
    assert rows[0] == rows[1]


@pytest.mark.parametrize(("writer", "reader"), BOTH)
def test_a_group_is_saved_twice_restored_and_deleted(database: Database, writer: str, reader: str) -> None:
    write, read = backend_on(database, writer), backend_on(database, reader)
    results = [AsyncResult(name, app=write.app) for name in "abc"]
    nested = GroupResult("g", [*results, GroupResult("inner", results, app=write.app)], app=write.app)
    nested.save(backend=write)
    restored = read.restore_group("g", cache=False)
    assert restored.as_tuple() == nested.as_tuple()
    ours = backend_on(database)
    GroupResult("g", results[:1], app=ours.app).save(backend=ours)
    assert len(read.restore_group("g", cache=False)) == 1
    read.delete_group("g")
    assert write.restore_group("g", cache=False) is None


def test_success_is_final_and_nothing_else_is(provisioned: Database) -> None:
    backend = backend_on(provisioned)
    for state in ("STARTED", "RETRY", "FAILURE", "REVOKED", "PROGRESS"):
        backend.store_result("t", {"exc_type": "E", "exc_message": ["m"], "exc_module": "x"}, state)
        assert backend.get_state("t") == state
    backend.store_result("t", 1, "SUCCESS")
    stored = provisioned.rows("SELECT * FROM celery_taskmeta")
    for state in ("FAILURE", "STARTED", "SUCCESS"):
        backend.store_result("t", 2, state, traceback="late")
    assert provisioned.rows("SELECT * FROM celery_taskmeta") == stored
    assert backend.get_task_meta("t") == {**backend.get_task_meta("t"), "result": 1, "traceback": None}


def test_stamps_stay_where_a_later_state_brings_none(provisioned: Database) -> None:
    for prefix in (OURS, STOCK):
        backend = backend_on(provisioned, prefix, result_extended=True)
        backend.store_result(prefix, {}, "STARTED", request=request(id="t"))
        backend.store_result(prefix, 1, "SUCCESS", request=request(id="t", stamps=None, stamped_headers=None))
        meta = backend.get_task_meta(prefix)
        assert (meta["trace"], meta["stamped_headers"], meta["result"]) == ("abc", ["trace"], 1)


def test_forget_and_exists(provisioned: Database) -> None:
    backend = backend_on(provisioned)
    assert not backend.task_result_exists("t")
    backend.store_result("t", None, "PENDING")
    assert backend.task_result_exists("t")
    backend.forget("t")
    assert not backend.task_result_exists("t")
    assert backend.get_task_meta("t") == backend_on(provisioned, STOCK).get_task_meta("t")


def test_ignored_results_are_not_stored(provisioned: Database) -> None:
    backend = backend_on(provisioned)
    backend.mark_as_done("t", 1, request=request(ignore_result=True))
    assert provisioned.rows("SELECT count(*) FROM celery_taskmeta") == [(0,)]


def test_names_of_tables_are_honoured(provisioned: Database) -> None:
    provisioned.rows('ALTER TABLE celery_taskmeta RENAME TO "Meta"'.replace('"', _mark(provisioned)))
    provisioned.rows("ALTER TABLE celery_tasksetmeta RENAME TO sets")
    allow_all(provisioned)
    schema = {"postgresql": "public", "mysql": provisioned.name, "sqlite": "main"}[provisioned.lab.scheme]
    backend = backend_on(
        provisioned,
        database_table_names={"task": "Meta", "group": "sets"},
        database_table_schemas={"task": schema, "group": schema},
    )
    backend.store_result("t", 1, "SUCCESS")
    GroupResult("g", [AsyncResult("t", app=backend.app)], app=backend.app).save(backend=backend)
    assert backend.get_result("t") == 1
    assert len(backend.restore_group("g")) == 1
    backend.cleanup()


def _mark(database: Database) -> str:
    return "`" if database.lab.scheme == "mysql" else '"'


def allow_all(database: Database) -> None:
    """MariaDB denies a table that no grant names, whether it exists or not."""
    if database.lab.scheme == "mysql":
        database.rows(f"GRANT ALL ON {database.name}.* TO celery_worker")


def test_five_megabytes(provisioned: Database) -> None:
    value = "x" * 5_000_000
    ours, stock = backend_on(provisioned), backend_on(provisioned, STOCK)
    ours.store_result("t", value, "SUCCESS")
    assert stock.get_result("t") == ours.get_result("t") == value


def test_an_oversized_result_is_refused_once_where_the_column_is_short() -> None:
    with LABS["mysql"]() as lab:
        backend = backend_on(lab.database(tables="stock"))
        tries: list[int] = []
        backend.on_backend_retryable_error = lambda _: tries.append(1)
        with pytest.raises(Exception, match="Data too long"):
            backend.store_result("t", "x" * 70_000, "SUCCESS")
        assert not tries
        assert backend.get_state("t") == "PENDING"


class Payload:
    def __reduce__(self) -> Any:
        return (open, ("/nonexistent/attack",))


@pytest.mark.parametrize("column", ["result", "children", "args"])
def test_a_pickle_is_named_and_never_loaded(
    provisioned: Database, column: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = backend_on(provisioned, result_extended=True)
    backend.store_result("t", 1, "SUCCESS", request=request())
    mark = "?" if provisioned.lab.scheme == "sqlite" else "%s"
    provisioned.rows(f"UPDATE celery_taskmeta SET {column} = {mark}", pickle.dumps(Payload()))
    monkeypatch.setattr(pickle, "loads", lambda *_: pytest.fail("it was loaded"))
    with pytest.raises(PickledResultError if column == "result" else Exception) as caught:
        backend.get_task_meta("t")
    assert not isinstance(caught.value, FileNotFoundError)
    if column == "result":
        assert "legacy_pickle" in str(caught.value)


def test_rows_of_older_celery_are_read_where_it_is_declared(provisioned: Database) -> None:
    backend_on(provisioned).store_result("t", 1, "SUCCESS")
    mark = "?" if provisioned.lab.scheme == "sqlite" else "%s"
    provisioned.rows(f"UPDATE celery_taskmeta SET result = {mark}", pickle.dumps({"old": 1}))
    url = provisioned.url()
    url += ("&" if "?" in url else "?") + "legacy_pickle=true"
    assert app_on(url).backend.get_result("t") == {"old": 1}


def test_no_table_is_ever_made(lab: DatabaseLab) -> None:
    database = lab.database(tables="none")
    allow_all(database)
    backend = backend_on(database)
    for operation in (
        lambda: backend.store_result("t", 1, "SUCCESS"),
        lambda: backend.get_task_meta("t"),
        lambda: backend.restore_group("g"),
    ):
        with pytest.raises(MissingSchemaError, match=r"site\.yml"):
            operation()


def test_an_unknown_column_is_a_missing_schema(provisioned: Database) -> None:
    provisioned.rows("ALTER TABLE celery_taskmeta DROP COLUMN stamps")
    backend_on(provisioned).store_result("t", 1, "SUCCESS")
    with pytest.raises(MissingSchemaError, match="stamps"):
        backend_on(provisioned, result_extended=True).store_result("u", 1, "SUCCESS", request=request())


@pytest.fixture
def process_in_adelaide() -> Any:
    """Put this process's clock 9.5 or 10.5 hours ahead."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "Australia/Adelaide")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/Los_Angeles"])
@pytest.mark.usefixtures("process_in_adelaide")
def test_times_are_utc_whatever_server_session_and_app_say(zone: str) -> None:
    options = {"postgresql": {"timezone": zone}, "mysql": {"default-time-zone": "'+09:00'"}, "sqlite": {}}
    for name, lab_class in LABS.items():
        with lab_class(options=options[name]) as lab:
            database = lab.database()
            backend = backend_on(database, timezone=zone, enable_utc=False)
            before = dt.datetime.now(dt.UTC).replace(tzinfo=None)
            backend.store_result("t", 1, "SUCCESS")
            GroupResult("g", [AsyncResult("t", app=backend.app)], app=backend.app).save(backend=backend)
            after = dt.datetime.now(dt.UTC).replace(tzinfo=None)
            assert before <= backend.get_task_meta("t")["date_done"] <= after
            assert before <= backend.get_group_meta("g")["date_done"] <= after


def test_a_value_that_cannot_be_stored_is_not_retried(provisioned: Database) -> None:
    if provisioned.lab.scheme == "sqlite":
        provisioned.rows(
            "CREATE TRIGGER refuse BEFORE INSERT ON celery_taskmeta BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
    backend = backend_on(provisioned)
    tries: list[int] = []
    backend.on_backend_retryable_error = lambda _: tries.append(1)
    with pytest.raises(Exception, match=r"."):
        backend.store_result("t" * 200, 1, "SUCCESS")
    assert not tries


def test_the_mysql_session_is_what_results_need() -> None:
    with LABS["mysql"](options={"transaction-isolation": "REPEATABLE-READ", "sql-mode": "''"}) as lab:
        url = lab.database().url()
        for text in (url, url.replace("ssl_check_hostname", "ssl_verify_cert=true&ssl_verify_identity")):
            backend = app_on(text).backend
            names = "@@tx_isolation, @@time_zone, @@character_set_connection, @@sql_mode, @@autocommit"
            (row,) = backend._rows(f"SELECT {names}")
            assert row == ("READ-COMMITTED", "+00:00", "utf8mb4", "STRICT_ALL_TABLES", 1)
            assert backend._rows("SHOW SESSION STATUS LIKE 'Ssl_version'")[0][1].startswith("TLSv1.")


def test_a_server_with_another_name_or_authority_is_refused(tmp_path: Any) -> None:
    other = Authority(tmp_path).file
    for name in ("postgresql", "mysql"):
        with LABS[name]() as lab:
            url = lab.database().url()
            wrong = url.replace(str(lab.authority.file), str(other))
            backend = app_on(wrong, result_backend_max_retries=0, result_backend_always_retry=True).backend
            with pytest.raises(BackendStoreError) as caught:
                backend.store_result("t", 1, "SUCCESS")
            assert "certificate verify failed" in str(caught.value.__cause__ or caught.value.__context__)
