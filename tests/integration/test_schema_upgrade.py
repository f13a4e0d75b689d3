"""The schema command against real servers: from nothing, from tables of any age, live, twice at once."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

import psycopg
import pytest
from celery.result import GroupResult
from tests.integration.database_lab import LABS
from tests.integration.schema_support import (
    AGES,
    Writer,
    contents,
    make_old_tables,
    schema,
    start_schema,
    stock_app,
)

from celery_results.schema.postgresql import PostgreSQL
from celery_results.schema.upgrade import Options, run

if TYPE_CHECKING:
    from datetime import datetime

SCHEMES = sorted(LABS)


@pytest.fixture(scope="module", params=SCHEMES)
def lab(request):
    with LABS[request.param]() as lab:
        yield lab


@pytest.fixture(scope="module")
def postgresql():
    with LABS["postgresql"]() as lab:
        yield lab


@pytest.fixture(scope="module")
def mariadb():
    with LABS["mysql"]() as lab:
        yield lab


@pytest.fixture
def upgrade(tmp_path):
    """Upgrade a database as the superuser does on the server."""

    def run(database, *arguments, command="upgrade"):
        ran = schema(tmp_path, command, database.lab.admin_url(database.name), *arguments)
        assert ran.code == 0, ran
        return ran.document

    return run


def stock_works(database):
    """Store, read and group with Celery's own class and the worker's login."""
    if database.lab.scheme != "sqlite":
        database.lab.grant(database)
    app = stock_app(database.url("worker", "psycopg2" if database.lab.scheme == "postgresql" else None))
    backend = app.backend
    backend.store_result("Stock-1", {"big": "x" * 100_000}, "SUCCESS", traceback="t")
    backend.store_result("stock-1", "other case, other task", "STARTED")
    assert backend.get_result("Stock-1") == {"big": "x" * 100_000}
    group = GroupResult("stock-group", [app.AsyncResult("Stock-1")])
    group.save(backend=backend)
    assert GroupResult.restore("stock-group", backend=backend, app=app).results[0].id == "Stock-1"
    backend.delete_group("stock-group")
    backend.forget("Stock-1")
    assert backend.get_status("Stock-1") == "PENDING"
    assert backend.get_status("stock-1") == "STARTED"


def test_from_nothing_to_tables_that_stock_celery_uses(lab, upgrade):
    database = lab.database(tables="none")
    planned = upgrade(database, command="check")
    done = upgrade(database)
    assert planned["changed"]
    assert done == planned | {"steps": done["steps"]}
    assert (done["from"], done["adopted"]) == (None, False)
    assert [step for step in done["steps"] if step == "create celery_taskmeta"]
    again = upgrade(database)
    assert (again["changed"], again["from"], again["steps"]) == (False, done["to"], [])
    stock_works(database)


@pytest.mark.parametrize("age", sorted(AGES))
def test_old_tables_lose_nothing(lab, upgrade, age):
    database = lab.database(tables="none")
    before = make_old_tables(database, age)
    planned = upgrade(database, command="check")
    assert contents(database) == before
    done = upgrade(database)
    assert done["steps"] == planned["steps"]
    assert done["adopted"]
    assert contents(database) == before
    assert not upgrade(database, command="check")["changed"]
    stock_works(database)


def test_tables_of_celery_5_7_lose_nothing(lab, upgrade):
    database = lab.database(tables="stock")
    app = stock_app(lab.admin_url(database.name))
    app.backend.store_result("kept", [1, 2], "SUCCESS")
    done = upgrade(database)
    assert done["adopted"]
    assert not upgrade(database)["changed"]
    assert app.backend.get_result("kept") == [1, 2]
    stock_works(database)


@pytest.mark.parametrize("age", sorted(AGES))
def test_a_live_writer_loses_nothing(lab, upgrade, age):
    database = lab.database(tables="none")
    before = make_old_tables(database, age)
    if lab.scheme == "mysql":
        # SQLAlchemy takes ids from this sequence: Celery of today makes it beside the old table.
        database.rows("CREATE SEQUENCE task_id_sequence START 1000")
    # 5.7, which is the writer here, adds the columns that it writes on its first call.
    stock_app(lab.admin_url(database.name)).backend.get_status("any")
    with Writer(lab.admin_url(database.name)) as writer:
        writer.wait_for(20)
        done = upgrade(database)
        writer.wait_for(20)
    assert not writer.failures
    assert done["changed"]
    assert contents(database) == before
    stored = {row[0] for row in database.rows("SELECT task_id FROM celery_taskmeta")}
    assert set(writer.stored) <= stored


def test_two_upgrades_at_once_both_succeed(lab, tmp_path):
    database = lab.database(tables="none")
    make_old_tables(database, "without an index")
    url = lab.admin_url(database.name)
    directories = [tmp_path / name for name in ("one", "two", "three")]
    for directory in directories:
        directory.mkdir()
    processes = [start_schema(directory, "upgrade", url) for directory in directories]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    assert sum('"changed": true' in stdout for stdout, _ in outputs) == 1


def test_a_database_of_a_later_release_is_left_alone(lab, upgrade, tmp_path):
    database = lab.database(tables="none")
    upgrade(database)
    database.rows("UPDATE celery_results_schema_version SET version_num = '9999'")
    for command in ("check", "upgrade"):
        ran = schema(tmp_path, command, lab.admin_url(database.name))
        assert ran.code == 3
        assert "revision 9999" in ran.document["error"]["found"]
    assert database.rows("SELECT version_num FROM celery_results_schema_version")[0][0] == "9999"


def test_a_table_that_no_celery_made_is_left_alone(lab, tmp_path):
    database = lab.database(tables="none")
    database.rows("CREATE TABLE celery_taskmeta (id INTEGER, something VARCHAR(10))")
    ran = schema(tmp_path, "upgrade", lab.admin_url(database.name))
    assert ran.code == 4
    assert (
        "no column task_id" in ran.document["error"]["found"] or "without" in ran.document["error"]["found"]
    )


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("nonsense", 2),
        ("oracle://x", 2),
        ("postgresql+psycopg2://u:s3cret@127.0.0.1:1/x", 1),
        ("mysql+nodriver://", 2),
    ],
)
def test_an_unusable_url_is_refused_without_showing_its_password(tmp_path, url, code):
    ran = schema(tmp_path, "check", url)
    assert ran.code == code, ran
    assert "s3cret" not in ran.stdout + ran.stderr
    assert ran.document["error"]["do"]


# PostgreSQL


def test_postgresql_tables_belong_to_the_owner(postgresql, upgrade):
    database = postgresql.database(tables="stock")
    if not database.rows("SELECT 1 FROM pg_roles WHERE rolname = 'celery_results_owner'"):
        database.rows("CREATE ROLE celery_results_owner NOLOGIN")
    database.rows("GRANT USAGE, CREATE ON SCHEMA public TO celery_results_owner")
    upgrade(database, "--owner", "celery_results_owner")
    owners = database.rows(
        "SELECT DISTINCT pg_get_userbyid(relowner) FROM pg_class WHERE relnamespace = 'public'::regnamespace"
    )
    assert owners == [("celery_results_owner",)]
    assert not upgrade(database, "--owner", "celery_results_owner", command="check")["changed"]


def test_postgresql_says_what_an_owner_lacks(postgresql, tmp_path):
    database = postgresql.database(tables="none")
    database.rows("CREATE ROLE poor NOLOGIN")
    ran = schema(tmp_path, "upgrade", postgresql.admin_url(database.name), "--owner", "poor")
    assert ran.code == 1
    assert "GRANT USAGE, CREATE ON SCHEMA public TO poor" in ran.document["error"]["do"]
    ran = schema(tmp_path, "upgrade", postgresql.admin_url(database.name), "--owner", "nobody-there")
    assert ran.document["error"]["found"] == "no such role on this server"


def test_postgresql_replaces_the_index_that_an_interrupted_build_left(postgresql, upgrade):
    database = postgresql.database(tables="none")
    make_old_tables(database, "without an index")
    with database.admin() as blocker, database.admin() as builder:
        blocker.execute("BEGIN")
        blocker.execute("UPDATE celery_taskmeta SET status = status WHERE id = 1")
        builder.execute("SET statement_timeout = 300")
        with pytest.raises(psycopg.errors.QueryCanceled):
            builder.execute(
                "CREATE INDEX CONCURRENTLY ix_celery_taskmeta_date_done_new ON celery_taskmeta (date_done)"
            )
    invalid = "SELECT relname FROM pg_index JOIN pg_class ON oid = indexrelid WHERE NOT indisvalid"
    assert database.rows(invalid) == [("ix_celery_taskmeta_date_done_new",)]
    done = upgrade(database)
    assert any("interrupted build" in step for step in done["steps"])
    assert database.rows(invalid) == []
    assert database.rows("SELECT 1 FROM pg_indexes WHERE indexname = 'ix_celery_taskmeta_date_done'")


def test_postgresql_ids_widen_online_beside_a_live_writer(postgresql, upgrade):
    database = postgresql.database(tables="none")
    before = make_old_tables(database, "without an index")
    url = postgresql.admin_url(database.name)
    stock_app(url).backend.get_status("any")
    # As SERIAL makes it: such a sequence would go with the old column.
    database.rows("ALTER SEQUENCE task_id_sequence OWNED BY celery_taskmeta.id")
    with Writer(url) as writer:
        writer.wait_for(20)
        done = upgrade(database, "--rewrite-limit", "0")
        writer.wait_for(20)
    assert not writer.failures
    assert any("online: it becomes id" in step for step in done["steps"])
    assert contents(database) == before
    assert set(writer.stored) <= {row[0] for row in database.rows("SELECT task_id FROM celery_taskmeta")}
    kept = "SELECT data_type FROM information_schema.columns WHERE column_name = 'id' AND table_name = %s"
    assert (
        database.rows(kept, "celery_taskmeta") == database.rows(kept, "celery_tasksetmeta") == [("bigint",)]
    )
    assert database.rows("SELECT count(*) FROM pg_proc WHERE proname = 'celery_taskmeta_copy_id'") == [(0,)]
    assert not upgrade(database, "--rewrite-limit", "0", command="check")["changed"]
    stock_works(database)


def test_postgresql_widening_goes_on_from_every_step(postgresql, upgrade, monkeypatch):
    """Each step is one statement or one transaction of the server: an end between two stands for kill -9."""
    database = postgresql.database(tables="none")
    before = make_old_tables(database, "without an index")
    options = Options(url=postgresql.admin_url(database.name), rewrite_bytes=0)
    execute = PostgreSQL.execute
    most, left = 1, 0

    def some(self, step):
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        execute(self, step)

    monkeypatch.setattr(PostgreSQL, "execute", some)
    ended = False
    while not ended:
        assert most < 30
        left = most
        try:
            run(options, change=True)
        except KeyboardInterrupt:
            # What is done again each time costs steps: go a little further each time.
            most += 1
        else:
            ended = True
        assert contents(database) == before
    assert most > 4
    assert not upgrade(database, command="check")["changed"]
    stock_works(database)


def test_postgresql_goes_on_where_kill_9_ended_it(postgresql, upgrade, tmp_path):
    database = postgresql.database(tables="none")
    before = make_old_tables(database, "without extended columns")
    url = postgresql.admin_url(database.name)
    with database.admin() as blocker:
        blocker.execute("BEGIN")
        blocker.execute("UPDATE celery_taskmeta SET status = status WHERE id = 1")
        with start_schema(tmp_path, "upgrade", url, "--lock-timeout", "0.2") as process:
            waiting = "SELECT 1 FROM pg_locks WHERE NOT granted AND relation = 'celery_taskmeta'::regclass"
            deadline = time.monotonic() + 20
            while not database.rows(waiting):
                assert time.monotonic() < deadline
            process.kill()
    assert upgrade(database)["changed"]
    assert contents(database) == before


def test_postgresql_upgrade_steps_back_for_others(postgresql, tmp_path):
    """A long transaction keeps the upgrade waiting; stores behind it wait for one short attempt."""
    database = postgresql.database(tables="none")
    make_old_tables(database, "without an index")
    url = postgresql.admin_url(database.name)
    stock_app(url).backend.get_status("any")
    with database.admin() as reader, Writer(url) as writer:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM celery_taskmeta")
        with start_schema(tmp_path, "upgrade", url, "--lock-timeout", "0.3") as process:
            waiting = "SELECT 1 FROM pg_locks WHERE NOT granted AND relation = 'celery_taskmeta'::regclass"
            seen, deadline = 0, time.monotonic() + 20
            while seen < 3:
                assert time.monotonic() < deadline
                seen += bool(database.rows(waiting))
                writer.wait_for(1)
            assert process.poll() is None
            reader.execute("ROLLBACK")
            assert process.wait(30) == 0
    assert not writer.failures
    assert writer.longest_seconds < 2


def test_postgresql_upgrade_ends_where_an_old_transaction_does_not(postgresql, upgrade, tmp_path):
    database = postgresql.database(tables="none")
    upgrade(database)
    database.rows("DROP INDEX ix_celery_taskmeta_date_done")
    with database.admin() as old:
        old.execute("BEGIN")
        old.execute("INSERT INTO celery_taskmeta (task_id) VALUES ('old')")
        ran = schema(tmp_path, "upgrade", postgresql.admin_url(database.name), "--wait", "1")
        assert ran.code == 1
        assert "--wait" in ran.document["error"]["do"]
        old.execute("COMMIT")
    assert any("interrupted build" in step for step in upgrade(database)["steps"])


def test_postgresql_storage_is_tuned(postgresql, upgrade):
    database = postgresql.database(tables="none")
    upgrade(database)
    options = database.rows("SELECT unnest(reloptions) FROM pg_class WHERE relname = 'celery_taskmeta'")
    assert {("fillfactor=70",), ("autovacuum_vacuum_scale_factor=0.02",)} <= set(options)
    compression = database.rows(
        "SELECT DISTINCT attcompression::text FROM pg_attribute WHERE attrelid = 'celery_taskmeta'::regclass"
        " AND attname IN ('result', 'args', 'kwargs', 'children', 'stamps', 'traceback')"
    )
    assert compression == [("l",)]
    database.rows("ALTER TABLE celery_taskmeta SET (fillfactor = 100)")
    assert upgrade(database)["steps"] == ["celery_taskmeta: set fillfactor = 70"]


def test_postgresql_ids_pass_2_to_the_31(postgresql, upgrade):
    database = postgresql.database(tables="stock")
    upgrade(database)
    database.rows("SELECT setval('task_id_sequence', 2147483650)")
    stock_works(database)
    assert database.rows("SELECT max(id) > 2147483650 FROM celery_taskmeta") == [(True,)]


def test_postgresql_sequence_goes_on_after_ids_that_were_copied(postgresql, upgrade):
    database = postgresql.database(tables="none")
    make_old_tables(database, "without an index")
    database.rows("SELECT setval('task_id_sequence', 1, false)")
    upgrade(database)
    stock_works(database)


# MariaDB


def test_mariadb_columns_hold_any_result(mariadb, upgrade):
    database = mariadb.database(tables="stock")
    upgrade(database)
    types = dict(
        database.rows(
            "SELECT column_name, column_type FROM information_schema.columns "
            "WHERE table_schema = DATABASE() AND table_name = 'celery_taskmeta'"
        )
    )
    assert types["result"] == "longblob"
    assert types["date_done"] == "datetime(6)"
    assert re.match("bigint", types["id"])
    backend = stock_app(mariadb.admin_url(database.name)).backend
    backend.store_result("five megabytes", "x" * 5_000_000, "SUCCESS")
    assert len(backend.get_result("five megabytes")) == 5_000_000
    stored: datetime = database.rows("SELECT date_done FROM celery_taskmeta")[0][0]
    assert stored.microsecond


def test_mariadb_ids_go_on_after_those_that_the_table_counted(mariadb, upgrade):
    database = mariadb.database(tables="none")
    make_old_tables(database, "without an index")
    upgrade(database)
    database.rows("INSERT INTO celery_taskmeta (task_id) VALUES ('by default')")
    assert database.rows("SELECT id FROM celery_taskmeta WHERE task_id = 'by default'")[0][0] > 200
    stock_works(database)


# SQLite


def test_sqlite_check_makes_no_file(tmp_path):
    path = tmp_path / "results.sqlite3"
    assert schema(tmp_path, "check", f"sqlite:///{path}").document["changed"]
    assert not path.exists()
