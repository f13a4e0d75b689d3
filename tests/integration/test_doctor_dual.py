"""`celery-results doctor` while results go to two stores: each side as a single one, and the journal."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from tests.integration.dual_verbs import run_verb
from tests.integration.lab_files import weaken
from tests.integration.migration_host import write_host
from tests.integration.postgresql_lab import DeployedPostgres

from celery_results.migration.journal import TASK, Journal, now_entry

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def postgres() -> Iterator[DeployedPostgres]:
    with DeployedPostgres() as lab:
        lab.deploy()
        yield lab


def findings(config: Path) -> dict[str, list[dict[str, Any]]]:
    ran = run_verb(config, "doctor")
    found: dict[str, list[dict[str, Any]]] = {}
    for finding in json.loads(ran.stdout)["findings"]:
        found.setdefault(finding["code"], []).append(finding)
    return found


def single(lab: Any, directory: Path) -> set[str]:
    return set(findings(lab.write_config(directory)))


@pytest.mark.parametrize("stage", ["dual_write", "bridge", "cutover", "drain"])
def test_each_side_is_examined_as_a_single_one_and_nothing_is_said_of_being_two(
    redis_lab, postgres, tmp_path, stage
):
    alone = single(redis_lab, tmp_path / "redis") | single(postgres, tmp_path / "postgresql")
    config = write_host(tmp_path / "etc", redis_lab, postgres, stage)
    (config / "monitor.env").unlink()
    found = findings(config)
    # Without the monitor login some of the server's state is not seen, which is said.
    assert set(found) - {"CRB001"} <= alone, found
    assert not [each for finding in found.values() for each in finding if each["severity"] == "error"]


def test_a_fault_of_either_side_is_found_and_the_side_is_named(redis_lab, postgres, tmp_path):
    config = write_host(tmp_path / "etc", redis_lab, postgres, "dual_write")
    weaken(config / "celeryconfig_redis.py", ('"ssl_check_hostname": True', '"ssl_check_hostname": False'))
    weaken(config / "celeryconfig_postgresql.py", ('"verify-full"', '"require"'))
    found = [each["found"] for finding in findings(config).values() for each in finding]
    assert any(text.startswith("old side:") and "ssl_check_hostname" in text for text in found), found
    assert any(text.startswith("new side:") and "TLS that verifies" in text for text in found), found


def test_a_side_that_is_away_is_told(redis_lab, postgres, start_redis, tmp_path):
    gone = start_redis()
    config = write_host(tmp_path / "etc", postgres, gone, "dual_write")
    gone.stop()
    (unreachable,) = findings(config)["CRB003"]
    assert unreachable["found"].startswith("new side:")
    assert redis_lab is not gone


def test_an_owing_journal_and_options_that_cannot_be_used_are_told(redis_lab, postgres, tmp_path):
    config = write_host(tmp_path / "etc", redis_lab, postgres, "dual_write")
    Journal(config / "mirror-journal").append([now_entry(TASK, "a", "new")])
    (owed,) = findings(config)["CRB147"]
    assert "1 entries" in owed["found"]
    weaken(config / "celeryconfig_dual.py", ('"stage": stage', '"stage": "sometime"'))
    (unusable,) = findings(config)["CRB146"]
    assert "sometime" in unusable["found"]
    for lab in (redis_lab, postgres):
        assert not [password for password in lab.passwords.values() if password in json.dumps(unusable)]
