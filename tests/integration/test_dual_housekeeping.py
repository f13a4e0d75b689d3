"""status and cleanup while results go to two stores: each side that is a database, by name."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from tests.integration.database_lab import LABS
from tests.integration.dual_case import Case, database_side, redis_side
from tests.integration.dual_verbs import deploy, run_verb
from tests.integration.verbs_support import fill

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.database_lab import Database

DAYS = timedelta(days=3)


@pytest.fixture(scope="module")
def databases() -> Iterator[dict[str, Database]]:
    with LABS["postgresql"]() as one, LABS["sqlite"]() as two:
        yield {"old": one.database(), "new": two.database()}


@pytest.fixture
def case(tmp_path, redis_lab, databases) -> Case:
    for database in databases.values():
        database.rows("DELETE FROM celery_taskmeta")
    fill(databases["old"], 7, DAYS)
    fill(databases["new"], 5, DAYS)
    return Case(tmp_path, redis_lab, database_side(databases["old"]), database_side(databases["new"]))


def test_both_databases_are_told_and_cleaned_up(case):
    directory = deploy(case, "cutover")
    told = run_verb(directory, "status")
    assert told.code == 0, told
    assert told.document["stage"] == "cutover"
    assert {side: each["rows"] for side, each in told.document["sides"].items()} == {"old": 7, "new": 5}
    assert told.document["sides"]["new"]["database"]["dialect"] == "sqlite"
    text = run_verb(directory, "status", "--text").stdout
    assert "the old side" in text
    assert "the new side" in text
    for arguments in (("--dry-run",), ()):
        done = run_verb(directory, "cleanup", *arguments)
        assert done.code == 0, done
        assert {side: each["results"] for side, each in done.document["sides"].items()} == {
            "old": 7,
            "new": 5,
        }
    empty = run_verb(directory, "status").document["sides"]
    assert [empty[side]["rows"] for side in ("old", "new")] == [0, 0]


def test_a_side_in_redis_is_left_to_itself(case, redis_lab):
    case.old = redis_side(redis_lab)
    directory = deploy(case, "dual_write")
    sides = run_verb(directory, "status").document["sides"]
    assert (sides["old"], sides["new"]["rows"]) == (None, 5)
    assert "old side: no SQL database" in run_verb(directory, "status", "--text").stdout
    sides = run_verb(directory, "cleanup").document["sides"]
    assert (sides["old"], sides["new"]["results"]) == (None, 5)


def test_two_sides_without_a_database_and_verbs_for_one_store_say_what_to_do(case, redis_lab):
    directory = deploy(case, "dual_write")
    ran = run_verb(directory, "archive", "--to", str(case.directory / "archive"), "--older-than", "1d")
    assert ran.code == 2, ran
    assert "source.env" in ran.document["error"]["do"]
    case.old, case.new = redis_side(redis_lab), redis_side(redis_lab, "client")
    ran = run_verb(deploy(case, "dual_write"), "status")
    assert ran.code == 2
    assert redis_lab.passwords["worker"] not in ran.stdout + ran.stderr
