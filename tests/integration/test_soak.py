"""The soak's load and checker: a walk by hand passes, and three builds that break a promise do not."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from tests.integration.dual_case import until
from tests.integration.postgresql_lab import DeployedPostgres
from tests.integration.soak_case import REDIS_RIGHTS, Walk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(scope="module")
def postgres() -> Iterator[DeployedPostgres]:
    with DeployedPostgres() as server:
        server.deploy()
        yield server


@pytest.fixture
def walk(tmp_path, start_redis, postgres) -> Iterator[Callable[[str], Walk]]:
    """Begin with two workers and the load on Redis alone."""
    walks: list[Walk] = []

    def begin(broken: str = "") -> Walk:
        postgres.inside("TRUNCATE celery_taskmeta, celery_tasksetmeta")
        made = Walk(tmp_path / "walk", start_redis(acl=REDIS_RIGHTS), postgres, broken)
        walks.append(made)
        made.roll_workers("old")
        made.roll_clients("old")
        return made

    yield begin
    for made in walks:
        made.end()


def test_nothing_is_lost_from_redis_to_postgresql_under_load(walk):
    """Every stage in its order; the load runs all the time."""
    made = walk()
    # Clients first, this once: what a client forgets on one side alone would stay on the other.
    made.roll_clients("dual_write")
    made.roll_workers("dual_write")
    made.copy()
    made.repair()
    made.verify()
    made.roll_clients("bridge")
    made.roll_workers("cutover")
    made.roll_clients("cutover")
    made.verify()
    report = made.check_both()
    assert report["ok"], json.dumps([report["offences"], report["offenders"]])
    for stage in ("drain", "new"):
        made.roll_workers(stage)
        made.roll_clients(stage)
        until(lambda: made.chords_of_the_old_side() == 0, "chords of the old side do not end")
    made.stop_load()
    report = made.check("target", final=True)
    assert report["ok"], json.dumps([report["offences"], report["offenders"]])
    assert report["on_their_way"] == 0
    assert report["acknowledged"] > 100
    assert {"chord", "broken chord", "chain", "forgotten", "saved group"} <= report["kinds"].keys()


@pytest.mark.parametrize(
    ("broken", "offence"),
    [
        ("drop", "missing in postgresql"),
        ("shift", "shifted in postgresql"),
        ("part", "stranded"),
    ],
)
def test_a_build_that_breaks_a_promise_is_seen(walk, broken, offence):
    made = walk(broken)
    made.roll_clients("dual_write")
    made.roll_workers("dual_write")
    made.copy()
    made.goes_on()
    made.stop_load()
    report = made.check("source", "target", final=True, bound=10.0)
    assert not report["ok"]
    assert offence in report["offences"], report
