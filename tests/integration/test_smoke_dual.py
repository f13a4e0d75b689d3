"""`celery-results smoke` while results go to two stores: what runs, what is attacked, what is left."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest
from tests.integration.migration_host import write_host
from tests.integration.postgresql_lab import DeployedPostgres
from tests.integration.redis_lab import only, smoke

from celery_results.smoke.catalog import NAMES

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def postgres() -> Iterator[DeployedPostgres]:
    with DeployedPostgres() as lab:
        lab.deploy()
        yield lab


# The server drops nothing by itself where one of the two is a database.
RUN = [name for name in NAMES if name not in {"witness", "expiry"} and not name.startswith("broker_")]


@pytest.mark.parametrize("stage", ["dual_write", "cutover", "drain"])
@pytest.mark.parametrize("way", ["redis-postgresql", "postgresql-redis"])
def test_everything_holds_in_each_stage_and_nothing_is_left(redis_lab, postgres, tmp_path, stage, way):
    labs = {"redis": redis_lab, "postgresql": postgres}
    old, new = way.split("-")
    client_stage = "bridge" if stage == "cutover" else stage
    config = write_host(tmp_path / "etc", labs[old], labs[new], stage, client_stage)
    answer = smoke(config, "--json", "--timeout", "60")
    assert answer.code == 0, answer.stdout + answer.stderr
    primary, mirror = (old, new) if stage == "dual_write" else (new, old)
    assert answer.names("passed") == RUN
    assert answer.document["backend"] == primary
    assert answer.document["migration"] == {
        "stage": stage,
        "primary": primary,
        "mirror": mirror,
        "on_both": None if stage == "drain" else True,
    }
    for lab in labs.values():
        assert not [name for name, password in lab.passwords.items() if password in answer.stdout]
    with redis_lab.admin() as admin:
        assert admin.info("keyspace") == {}
    assert (config / "mirror-journal" / "journal").exists() is False


def test_the_table_names_the_stage_and_the_side(redis_lab, postgres, tmp_path):
    config = write_host(tmp_path / "etc", redis_lab, postgres, "dual_write")
    text = smoke(config, *only("value", "wrong_password")).stdout
    assert "migration: dual_write   refusals tried on its primary, redis" in text
    assert "result also in postgresql: yes" in text


def test_a_dead_mirror_fails_no_task_and_is_told(start_redis, postgres, tmp_path):
    dead = start_redis()
    config = write_host(tmp_path / "etc", postgres, dead, "dual_write")
    dead.process.send_signal(signal.SIGKILL)
    dead.process.wait()
    answer = smoke(config, "--json", "--timeout", "60", *only("value", "exception", "wrong_password"))
    assert answer.code == 0, answer.stdout + answer.stderr
    assert answer.names("passed") == ["value", "exception", "wrong_password"]
    assert answer.document["migration"]["on_both"] is False


def test_a_primary_that_lets_anybody_in_is_found(start_redis, postgres, tmp_path):
    weak = start_redis(acl={"default": "on nopass ~* &* +@all"})
    for stage, old, new in (("dual_write", weak, postgres), ("cutover", postgres, weak)):
        config = write_host(tmp_path / stage, old, new, stage)
        answer = smoke(config, "--json", *only("no_password"))
        assert answer.code == 1
        assert answer.names("failed") == ["no_password"]
