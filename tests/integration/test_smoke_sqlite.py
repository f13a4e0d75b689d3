"""`celery-results smoke` on a SQLite database: all holds as deployed, each weakness is found."""

from __future__ import annotations

import os
import pwd
import sqlite3

import pytest
from tests.integration.redis_lab import smoke
from tests.integration.sqlite_case import SqliteCase

from celery_results.smoke import certificates
from celery_results.smoke.catalog import CATALOG, Kind
from celery_results.smoke.refusals import sqlite

NOT_RUN = {
    "expiry",
    "plain_text",
    "wrong_password",
    "no_password",
    "untrusted_ca",
    "wrong_name",
    "client_write",
}


def test_every_refusal_of_the_catalog_is_tried_or_said_to_make_no_sense():
    wanted = {entry.name for entry in CATALOG if entry.kind in {Kind.REFUSAL, Kind.REFUSAL_OF_A_RESULT}}
    assert wanted <= set(sqlite.ATTEMPTS)
    assert set(certificates.ATTEMPTS) <= set(sqlite.ATTEMPTS)


@pytest.mark.parametrize("implementation", ["bundled", "stock"])
def test_everything_holds_as_deployed_and_nothing_is_left(tmp_path, implementation):
    case = SqliteCase(tmp_path, implementation)
    answer = smoke(case.config, "--json")
    assert answer.code == 0, answer.stdout + answer.stderr
    assert set(answer.names("not_run")) == NOT_RUN
    assert {"value", "group", "chord", "chain", "large_result", "foreign_key"} <= set(answer.names("passed"))
    for name in NOT_RUN - {"expiry"}:
        assert "SQLite has no" in answer.check(name)["note"]
    with sqlite3.connect(case.database) as connection:
        for table in ("celery_taskmeta", "celery_tasksetmeta"):
            assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)  # noqa: S608
    connection.close()


@pytest.mark.parametrize("mode", [0o711, 0o750, 0o755])
def test_a_directory_that_others_may_enter_fails(tmp_path, mode):
    case = SqliteCase(tmp_path)
    case.directory.chmod(mode)
    answer = smoke(case.config, "--json", "--only", "foreign_key")
    assert (answer.code, answer.names("failed")) == (1, ["foreign_key"])
    assert f"{case.directory} has mode {mode:04o}" in answer.check("foreign_key")["note"]


def test_a_file_that_others_may_read_fails(tmp_path):
    case = SqliteCase(tmp_path)
    case.database.chmod(0o604)
    answer = smoke(case.config, "--json", "--only", "foreign_key")
    assert (answer.code, answer.names("failed")) == (1, ["foreign_key"])


def test_root_tries_as_another_user_and_others_say_that_they_judge_by_the_modes(tmp_path, monkeypatch):
    case = SqliteCase(tmp_path)
    note = smoke(case.config, "--json", "--only", "foreign_key").check("foreign_key")["note"]
    assert note.endswith("all refused" if os.geteuid() == 0 else "by owner and mode")
    # The attempt itself, by a user who may: what opens is told, whatever the modes say.
    own = pwd.getpwuid(os.geteuid())
    monkeypatch.setattr(pwd, "getpwnam", lambda _name: own)
    monkeypatch.setattr(os, "setgroups", lambda _groups: None)
    assert sqlite._as_stranger(lambda: ["opened"] if sqlite._opens(case.database) else []) == ["opened"]
    monkeypatch.setattr(os, "setgroups", None)
    with pytest.raises(OSError, match="cannot become"):
        sqlite._as_stranger(list)


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda case: case.database.rename(f"{case.database}.away"), "playbook|site.yml"),
        (lambda case: case.database.write_text("nonsense" * 1000), "restore a backup"),
        (lambda case: sqlite3.connect(case.database).execute("DROP TABLE celery_taskmeta"), "site.yml"),
    ],
)
def test_a_database_that_cannot_be_used_is_said_plainly(tmp_path, harm, told):
    case = SqliteCase(tmp_path)
    harm(case)
    answer = smoke(case.config, "--only", "value")
    assert answer.code == 1
    assert any(text in answer.stderr for text in told.split("|")), answer.stderr
    assert "Traceback" not in answer.stderr
