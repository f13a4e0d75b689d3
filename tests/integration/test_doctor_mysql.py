"""Doctor against a real MariaDB: what it sees there, and a good server that gives no warning."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pymysql
import pytest
from tests.integration.doctor_case import by_code, doctor, serious
from tests.integration.mysql_case import database_of, lab_with, write_config
from tests.integration.redis_lab import Authority

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.database_lab import MariaDBLab


@pytest.fixture(scope="module")
def lab() -> Iterator[MariaDBLab]:
    with lab_with() as lab:
        yield lab


@pytest.fixture
def examine(lab, tmp_path, capsys):
    """Run the command as an operator does; give the findings by code, infos too."""

    def run(database, expect, *, monitor=True, **changes) -> dict[str, Any]:
        directory = write_config(tmp_path / "etc", database, **changes)
        if not monitor:
            (directory / "monitor.env").unlink()
        # The lab's certificate is for a day: the one warning that every run has.
        secrets = lab.passwords.values()
        report = doctor(
            directory, "--fail-on", "warning", capsys=capsys, secrets=secrets, ends=lambda _: True
        )
        assert bool(serious(by_code(report)) - {"CRB553"}) is bool(expect), report
        return {finding["code"]: finding["found"] for finding in report["findings"]}

    return run


@contextlib.contextmanager
def settings(lab: MariaDBLab, **values: str) -> Iterator[None]:
    """Set global variables for one test."""
    with contextlib.closing(lab.connect("mysql")) as connection:
        cursor = connection.cursor()
        cursor.execute(f"SELECT {', '.join(f'@@GLOBAL.{name}' for name in values)}")
        before = dict(zip(values, cursor.fetchone(), strict=True))
        for name, value in values.items():
            cursor.execute(f"SET GLOBAL {name} = {value}")
        try:
            yield
        finally:
            for name, old in before.items():
                cursor.execute(f"SET GLOBAL {name} = %s", (old,))


@pytest.mark.parametrize("implementation", ["bundled", "stock"])
def test_a_good_server_gives_neither_error_nor_warning(lab, examine, implementation):
    found = examine(database_of(lab), 0, CELERYCONFIG_RESULT_IMPLEMENTATION=implementation)
    assert "CRB001" not in found, "the monitor's rights suffice for every check"


def test_each_unsafe_setting_is_seen_on_the_live_server(lab, examine):
    unsafe = {
        "require_secure_transport": "OFF",
        "tx_isolation": "'REPEATABLE-READ'",
        "innodb_flush_log_at_trx_commit": "0",
        "local_infile": "ON",
        "max_allowed_packet": "1048576",
        "wait_timeout": "1800",
        "binlog_expire_logs_seconds": "0",
        "time_zone": "'+02:00'",
    }
    with settings(lab, **unsafe):
        found = examine(database_of(lab), 1)
    assert set(found) >= {"CRB561", "CRB563", "CRB564", "CRB567", "CRB576", "CRB577", "CRB578", "CRB583"}, (
        found
    )


def test_tables_that_celery_made_are_seen(lab, examine):
    found = examine(database_of(lab, tables="stock"), 1)
    assert set(found) >= {"CRB568", "CRB569", "CRB570", "CRB573"}, found


def test_a_missing_index_and_results_that_nobody_removed_are_seen(lab, examine):
    database = database_of(lab)
    database.rows("ALTER TABLE celery_taskmeta DROP INDEX ix_celery_taskmeta_date_done")
    database.rows("INSERT INTO celery_taskmeta (id, task_id, date_done) VALUES (1, 'old', '2020-01-01')")
    assert set(examine(database, 1)) >= {"CRB571", "CRB581"}


def test_missing_tables_are_seen(lab, examine):
    database = database_of(lab)
    database.rows("RENAME TABLE celery_tasksetmeta TO gone")
    assert "CRB572" in examine(database, 1)


def test_a_login_that_may_too_much_is_seen(lab, examine):
    database = database_of(lab)
    with contextlib.closing(lab.connect("mysql")) as connection:
        connection.cursor().execute("GRANT FILE ON *.* TO celery_worker")
        try:
            found = examine(database, 1)
        finally:
            connection.cursor().execute("REVOKE FILE ON *.* FROM celery_worker")
    assert "FILE on *.*" in found["CRB554"]


def test_without_a_monitor_login_it_says_what_it_could_not_see(lab, examine):
    found = examine(database_of(lab), 0, monitor=False)
    assert "binary logs" in found["CRB001"]


def test_a_full_server_is_said_plainly(lab, examine):
    database = database_of(lab)
    with contextlib.closing(lab.connect("mysql")) as connection:
        connection.cursor().execute("ALTER USER celery_worker WITH MAX_USER_CONNECTIONS 1")
        try:
            held = pymysql.connect(
                host=lab.address, port=lab.port, user="celery_worker", password=lab.passwords["worker"],
                ssl_ca=str(lab.authority.file), ssl_verify_cert=True,
            )  # fmt: skip
            with contextlib.closing(held):
                assert "CRB555" in examine(database, 1)
        finally:
            connection.cursor().execute("ALTER USER celery_worker WITH MAX_USER_CONNECTIONS 0")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({}, "CRB553"),
        ({"CELERYCONFIG_RESULT_PASSWORD": "wrong:/@password"}, "CRB004"),
        ({"CELERYCONFIG_RESULT_HOSTS": "127.0.0.1:1"}, "CRB003"),
    ],
)
def test_what_keeps_it_out_is_said(lab, examine, changes, code):
    assert code in examine(database_of(lab), int(bool(changes)), **changes)


def test_an_authority_that_is_not_the_servers_is_said_and_no_password_sent(lab, examine, tmp_path):
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other").file
    found = examine(database_of(lab), 1, CELERYCONFIG_RESULT_TLS_CA_FILE=str(other))
    assert "CRB551" in found
    assert "CRB001" in found
