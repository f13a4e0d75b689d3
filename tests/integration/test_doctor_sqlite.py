"""Doctor on a SQLite database: each finding provoked once, and a good database that gives none."""

from __future__ import annotations

import re
import sqlite3

import pytest
from tests.integration.doctor_case import by_code, doctor, serious
from tests.integration.sqlite_case import SqliteCase

from celery_results.doctor.servers import sqlite


@pytest.fixture
def examine(capsys):
    """Run the command as an operator does; give the findings by code."""

    def run(case):
        report = doctor(
            case.config,
            *("--fail-on", "warning"),
            capsys=capsys,
            ends=lambda report: bool(serious(by_code(report))),
        )
        return {finding["code"]: finding["found"] for finding in report["findings"]}

    return run


def execute(case, *statements):
    connection = sqlite3.connect(case.database, isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    connection.close()


@pytest.mark.parametrize("implementation", ["bundled", "stock"])
def test_a_deployed_database_gives_no_finding(tmp_path, examine, implementation):
    assert examine(SqliteCase(tmp_path, implementation)) == {}


INSERT = "INSERT INTO celery_taskmeta (task_id, result, worker) VALUES"
HARMS = {
    "CRB620": ["PRAGMA journal_mode = DELETE"],
    "CRB624": ["DROP INDEX ix_celery_taskmeta_date_done"],
    "CRB628": [f"{INSERT} ('a', 'x', 'celery@one'), ('b', 'x', 'celery@two')"],
}


@pytest.mark.parametrize("code", HARMS)
def test_what_sqlite_says_is_judged(tmp_path, examine, code):
    case = SqliteCase(tmp_path)
    execute(case, *HARMS[code])
    assert set(examine(case)) == {code}


def test_rows_like_pickles_matter_to_celerys_own_class_only(tmp_path, examine):
    for implementation, expected in (("stock", {"CRB629"}), ("bundled", set())):
        (tmp_path / implementation).mkdir()
        case = SqliteCase(tmp_path / implementation, implementation)
        execute(case, f"{INSERT} ('a', x'80049500', NULL)", f"{INSERT} ('b', '\"text\"', NULL)")
        assert set(examine(case)) == expected


OFF = ('"full": "FULL"', '"full": "OFF"')
IMPATIENT = ('"timeout": float(server.options.get("busy_timeout_seconds", 30))', '"timeout": 0')


@pytest.mark.parametrize("implementation", ["bundled", "stock"])
@pytest.mark.parametrize(("code", "change"), [("CRB625", OFF), ("CRB626", IMPATIENT)])
def test_the_connection_is_judged_as_the_settings_make_it(tmp_path, examine, implementation, code, change):
    case = SqliteCase(tmp_path, implementation)
    case.weaken(*change)
    assert set(examine(case)) == {code}


def test_modes_are_judged(tmp_path, examine):
    case = SqliteCase(tmp_path)
    case.database.chmod(0o640)
    assert "mode 0640" in examine(case)["CRB622"]


def test_a_network_file_system_is_judged_by_its_mount(tmp_path, examine, monkeypatch):
    case = SqliteCase(tmp_path)
    mounts = tmp_path / "mountinfo"
    place = re.sub(r"\s", r"\\040", str(case.directory))
    mounts.write_text(f"22 1 8:1 / / rw - ext4 /dev/vda1 rw\n30 22 0:40 / {place} rw - nfs4 server:/x rw\n")
    monkeypatch.setattr(sqlite, "_MOUNTS", mounts)
    assert "nfs4" in examine(case)["CRB621"]


def test_a_disk_that_is_all_but_full_is_told(tmp_path, examine, monkeypatch):
    case = SqliteCase(tmp_path)
    monkeypatch.setattr(sqlite, "_LEAST_FREE_BYTES", 2**60)
    assert "are free" in examine(case)["CRB623"]


def test_a_log_that_a_reader_holds_is_told(tmp_path, examine, monkeypatch):
    case = SqliteCase(tmp_path)
    monkeypatch.setattr(sqlite, "_LARGEST_WAL_BYTES", 2**20)
    reader = sqlite3.connect(case.database, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM celery_taskmeta").fetchone()
    writer = sqlite3.connect(case.database, isolation_level=None)
    for number in range(400):
        writer.execute(f"{INSERT} (?, zeroblob(8000), NULL)", (f"id-{number}",))
    assert set(examine(case)) == {"CRB627"}
    reader.close()
    # One more commit finds the gap, and takes the log over.
    writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert examine(case) == {}
    writer.close()


@pytest.mark.parametrize(
    "harm",
    [
        lambda case: case.database.unlink(),
        lambda case: case.database.write_text("nonsense" * 1000),
        lambda case: execute(case, "DROP TABLE celery_tasksetmeta"),
    ],
)
def test_a_database_that_cannot_be_used_is_told(tmp_path, examine, harm):
    case = SqliteCase(tmp_path)
    harm(case)
    assert "CRB003" in examine(case)
