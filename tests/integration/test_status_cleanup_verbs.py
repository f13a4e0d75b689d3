"""status and cleanup against real servers: what they count, delete, refuse, and where they stop."""

from __future__ import annotations

import signal
import time
from datetime import timedelta

import pytest
from tests.integration.database_lab import LABS
from tests.integration.verbs_support import fill, now, run, start, task_ids, write_config

DAYS = timedelta(days=3)


@pytest.fixture(scope="module", params=sorted(LABS))
def lab(request):
    with LABS[request.param]() as lab:
        yield lab


@pytest.fixture
def mixed(lab):
    """Give a database with 40 successes of three days ago, 8 failures of now, 4 that are unfinished."""
    database = lab.database()
    fill(database, 4, DAYS, prefix="lost", status="STARTED")
    fill(database, 40, DAYS)
    fill(database, 8, timedelta(seconds=5), prefix="new", status="FAILURE")
    return database


# status


@pytest.mark.parametrize("login", ["worker", "reader"])
def test_status_counts(mixed, tmp_path, login):
    told = run(write_config(tmp_path / "config", mixed, login=login), "status")
    assert told.code == 0, told
    document = told.document
    assert (document["exact"], document["rows"], document["groups"]) == (True, 52, 0)
    assert document["states"] == {"FAILURE": 8, "STARTED": 4, "SUCCESS": 40}
    assert document["names"] == {f"app.task{number}": 13 for number in range(4)}
    assert (document["ages"]["up to 7 days"], document["ages"]["unfinished"]) == (40, 4)
    assert document["ages"]["up to 1 hour"] == 8
    assert document["days"][(now() - DAYS).date().isoformat()] in {40, *range(1, 40)}
    assert sum(document["days"].values()) == 48
    (stored,) = mixed.rows("SELECT sum(length(result)), max(length(result)) FROM celery_taskmeta")
    assert document["result_bytes"]["sum"] == int(stored[0])
    assert document["result_bytes"]["largest"] == int(stored[1])
    assert document["result_bytes"]["average"] == int(stored[0]) / 52
    assert document["oldest_unfinished"]["task_id"] == "lost-0"
    assert document["oldest_unfinished"]["stored_before"][:10] == (now() - DAYS).date().isoformat()
    assert document["table_bytes"] > 0


def test_status_is_text_for_people_and_shows_no_password(mixed, tmp_path):
    told = run(write_config(tmp_path / "config", mixed), "status", "--text")
    assert told.code == 0
    assert "SUCCESS" in told.stdout
    assert "app.task3" in told.stdout
    assert not any(password in told.stdout + told.stderr for password in mixed.lab.passwords.values())


def test_status_of_nothing(lab, tmp_path):
    document = run(write_config(tmp_path / "config", lab.database()), "status").document
    assert (document["exact"], document["rows"], document["oldest_unfinished"]) == (True, 0, None)
    assert document["result_bytes"]["average"] is None


def test_status_ends_at_its_time_limit(lab, tmp_path):
    database = lab.database()
    generator = {
        "postgresql": "SELECT nextval('task_id_sequence'), 'many' || g FROM generate_series(1, 200000) g",
        "mysql": "SELECT seq, CONCAT('many', seq) FROM seq_1_to_200000",
        "sqlite": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 400000)"
        " SELECT i, 'many' || i FROM n",
    }[lab.scheme]
    database.rows(f"INSERT INTO celery_taskmeta (id, task_id) {generator}")
    told = run(write_config(tmp_path / "config", database), "status", "--timeout", "0.01")
    assert told.code == 0, told
    assert told.document["exact"] is False
    assert told.document["table_bytes"] > 0


def test_status_refuses_what_is_no_database(tmp_path):
    config = tmp_path / "config"
    config.mkdir()
    (config / "celeryconfig.py").write_text('result_backend = "rediss://:s3cret@127.0.0.1/0"\n')
    (config / "celery.env").write_text("CELERYCONFIG_RESULT_NAME=redis\n")
    for verb in (
        ("status",),
        ("cleanup",),
        ("archive", "--older-than", "1d", "--to", str(tmp_path / "a")),
        ("restore", "--from", str(config), "--all"),
    ):
        ran = run(config, *verb)
        assert ran.code == 2, ran
        assert "rediss" in ran.document["error"]["found"]
        assert "s3cret" not in ran.stdout + ran.stderr


def test_a_server_that_is_down_is_told_without_the_password(tmp_path):
    with LABS["postgresql"]() as lab:
        config = write_config(tmp_path / "config", lab.database())
        lab.kill()
        for verb in (
            ("status",),
            ("cleanup",),
            ("archive", "--older-than", "1d", "--to", str(tmp_path / "a")),
        ):
            ran = run(config, *verb)
            assert ran.code == 1, ran
            assert lab.passwords["worker"] not in ran.stdout + ran.stderr
            assert ran.document["error"]["do"]


# cleanup


@pytest.mark.parametrize("stock", [False, True])
def test_cleanup_deletes_what_is_expired(mixed, tmp_path, stock):
    config = write_config(tmp_path / "config", mixed, stock=stock)
    counted = run(config, "cleanup", "--dry-run")
    assert (counted.code, counted.document["results"]) == (0, 40), counted
    assert len(task_ids(mixed)) == 52
    done = run(config, "cleanup")
    assert (done.code, done.document["results"], done.document["complete"]) == (0, 40, True), done
    assert {task_id.partition("-")[0] for task_id in task_ids(mixed)} >= {"new"}
    assert not [task_id for task_id in task_ids(mixed) if task_id.startswith("old")]
    assert run(config, "cleanup").document["results"] == 0


def test_cleanup_takes_another_age(mixed, tmp_path):
    config = write_config(tmp_path / "config", mixed)
    assert run(config, "cleanup", "--older-than", "1w").document["results"] == 0
    assert run(config, "cleanup", "--older-than", "2d").document["results"] == 40


@pytest.mark.parametrize("expires", ["None", "0", "-5"])
def test_cleanup_refuses_an_expiry_that_takes_everything(mixed, tmp_path, expires):
    config = write_config(tmp_path / "config", mixed, expires=expires)
    ran = run(config, "cleanup")
    assert ran.code == 2
    assert f"result_expires = {expires}" in ran.document["error"]["found"]
    assert run(config, "cleanup", "--older-than", "0d").code == 2
    assert len(task_ids(mixed)) == 52


def test_cleanup_ends_after_its_batch_and_tells(lab, tmp_path):
    database = lab.database()
    fill(database, 3000, DAYS)
    config = write_config(tmp_path / "config", database)
    with start(config, "cleanup", "--batch", "10", "--pause", "0.05") as process:
        deadline = time.monotonic() + 20
        while len(task_ids(database)) == 3000:
            assert time.monotonic() < deadline
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=20)
    assert process.returncode == 130, stderr
    assert '"complete": false' in stdout
    left = len(task_ids(database))
    assert 0 < left < 3000
    assert f'"results": {3000 - left}' in stdout
    assert run(config, "cleanup").document["results"] == left
