"""celery-results-mysql, the role's tool on the server's host, against a real MariaDB."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from tests.integration.lab_files import ROOT
from tests.integration.mysql_case import lab_with

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.database_lab import MariaDBLab

TOOL = ROOT / "roles" / "mysql" / "files" / "celery_results_mysql.py"


@pytest.fixture(scope="module")
def lab() -> Iterator[MariaDBLab]:
    with lab_with() as lab:
        yield lab


@pytest.fixture
def tool(lab, tmp_path):
    """Run the tool with a file of these settings beside those of TLS."""
    certificates = {
        "ssl_ca": lab.authority.file,
        "ssl_cert": lab.certificate[0],
        "ssl_key": lab.certificate[1],
    }
    environment = os.environ | {
        "CELERY_RESULTS_MYSQL_SOCKET": str(lab.socket),
        "CELERY_RESULTS_MYSQL_RECORD": str(tmp_path / "applied"),
    }

    def run(command: str, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        file = tmp_path / "candidate.cnf"
        lines = [f"{name} = {value}\n" for name, value in {**certificates, **settings}.items()]
        file.write_text("[mariadbd]\n" + "".join(lines))
        return subprocess.run(
            [sys.executable, TOOL, command, *(arguments or [str(file)])],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip

    return run


def answer(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("no_such_variable", "1"),
        ("max_allowed_packet", "banana"),
        ("binlog_format", "PAPER"),
        # Of these the server only warns, and takes something else.
        ("max_connections", "many"),
        ("local_infile", "maybe"),
        ("innodb_flush_log_at_trx_commit", "7"),
        ("innodb_flush_method", "bad"),
        ("character_set_server", "klingon"),
        # A prefix of a name is taken by the server, but it cannot be found again.
        ("max_allowed_pack", "1048576"),
    ],
)
def test_what_the_server_does_not_take_as_it_is_is_refused(tool, name, value):
    done = tool("check-config", **{name: value})
    assert done.returncode == 1
    assert "mysql_config" in done.stderr
    assert value in done.stderr or name in done.stderr


@pytest.mark.parametrize(
    "settings",
    [
        {"max_allowed_packet": "64M", "log_bin": "mariadb-bin", "transaction_isolation": "READ-COMMITTED"},
        {"local_infile": "off", "skip_name_resolve": "1", "default_time_zone": "+00:00"},
    ],
)
def test_ways_to_write_what_the_server_has_make_no_difference(tool, settings):
    assert tool("check-config", **settings).returncode == 0
    found = answer(tool("pending", **settings))
    assert (found["running"], found["settings"]) == (True, {})


def test_what_differs_is_set_while_it_runs_and_set_back_when_it_is_taken_out(tool, lab):
    settings = {"max_connect_errors": "77", "long_query_time": "2.5", "init_connect": "'SELECT 1'"}
    assert answer(tool("pending", **settings))["settings"] == {
        "max_connect_errors": "77", "long_query_time": "2.5", "init_connect": "SELECT 1",
    }  # fmt: skip
    done = answer(tool("apply", **settings))
    assert sorted(done["set"]) == sorted(settings)
    assert done["restart"] == []
    found = answer(tool("pending", **settings))
    assert (found["settings"], found["tls"]) == ({}, False)

    assert answer(tool("apply"))["restart"] == []
    with lab.connect("mysql") as connection, connection.cursor() as cursor:
        cursor.execute("SELECT @@GLOBAL.max_connect_errors, @@GLOBAL.long_query_time, @@GLOBAL.init_connect")
        assert [str(value) for value in cursor.fetchone()] == ["100", "10.0", ""]


def test_a_nearly_equal_number_is_another(tool):
    found = answer(tool("pending", max_allowed_packet="67109888"))
    assert found["settings"] == {"max_allowed_packet": "67109888"}


def test_what_only_a_restart_changes_is_named_and_not_recorded_as_done(tool, tmp_path):
    done = answer(tool("apply", back_log="77", innodb_buffer_pool_size="192M"))
    assert sorted(done["restart"]) == ["back_log", "innodb_buffer_pool_size"]
    assert not (tmp_path / "applied").exists()
    assert sorted(answer(tool("pending", back_log="77"))["settings"]) == ["back_log"]


def test_a_new_certificate_is_given_once(tool, lab):
    assert answer(tool("apply"))["tls"] is True
    assert answer(tool("apply"))["tls"] is False
    lab.certificate = lab.authority.issue(lab.address)
    assert answer(tool("pending"))["tls"] is True


def test_a_copy_that_is_not_whole_is_refused(tool, lab, tmp_path):
    database = lab.database()
    database.rows("INSERT INTO celery_taskmeta (id, task_id, result) VALUES (7, 'é', UNHEX('00FF80'))")
    whole, half, empty = tmp_path / "whole.gz", tmp_path / "half.gz", tmp_path / "empty.gz"
    assert tool("dump", database.name, str(whole)).returncode == 0
    assert tool("verify", str(whole)).returncode == 0
    half.write_bytes(whole.read_bytes()[:-20])
    assert tool("verify", str(half)).returncode == 1
    database.rows("CREATE DATABASE nothing_at_all")
    assert tool("dump", "nothing_at_all", str(empty)).returncode == 0
    assert "tables are missing" in tool("verify", str(empty)).stderr

    database.rows("DELETE FROM celery_taskmeta")
    restored = tool("restore", database.name, str(whole))
    assert restored.returncode == 0, restored.stderr
    assert "1 results" in restored.stdout
    assert database.rows("SELECT id, task_id, HEX(result) FROM celery_taskmeta") == [(7, "é", "00FF80")]


def test_a_server_that_is_down_is_told(tmp_path):
    file = tmp_path / "candidate.cnf"
    file.write_text("[mariadbd]\nmax_connections = 50\n")
    environment = os.environ | {"CELERY_RESULTS_MYSQL_SOCKET": str(tmp_path / "none.sock")}
    command = [sys.executable, str(TOOL), "pending", str(file)]
    down = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert answer(down)["running"] is False
