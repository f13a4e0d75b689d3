"""`celery-results stage` with real workers of several stages, and one that was left on the old settings."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from celery import chord
from tests.integration.database_lab import PostgresLab
from tests.integration.dual_case import Case, database_side, redis_side, stopped, until
from tests.integration.dual_verbs import deploy, run_verb
from tests.integration.redis_lab import RedisLab

from celery_results.backends.dual.options import STAGES
from celery_results.commands import stage as verb
from celery_results.migration.journal import TASK, now_entry

if TYPE_CHECKING:
    from collections.abc import Iterator

WAIT_SECONDS = 60.0


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[RedisLab]:
    with RedisLab(tmp_path_factory.mktemp("redis")) as lab:
        yield lab


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresLab]:
    with PostgresLab() as lab:
        yield lab


@pytest.fixture
def case(tmp_path, server, postgres) -> Iterator[Case]:
    made = Case(tmp_path, server, redis_side(server, "admin"), database_side(postgres.database()))
    yield made
    made.end()


def told(ran: Any) -> dict[str, str | None]:
    return {worker["name"]: worker["stage"] for worker in ran.document["workers"]}


def test_the_stages_are_those_of_the_backend():
    assert (*STAGES, "none") == verb.STAGES


def test_each_worker_is_told_with_its_stage_and_no_password(case, server, postgres):
    for stage in ("dual_write", "cutover", "old"):
        case.worker(stage, concurrency=1)
    directory = deploy(case, "cutover")
    ran = run_verb(directory, "stage")
    assert ran.code == 0, ran
    assert told(ran) == {"w0@here": "dual_write", "w1@here": "cutover", "w2@here": None}
    redis = f"rediss://{server.address}:{server.port}/0"
    backends = [worker["backend"] for worker in ran.document["workers"]]
    assert backends[0].startswith(f"{redis} -> postgresql")
    assert backends[1].endswith(f" -> {redis}")
    assert backends[2] == redis
    assert ran.document["configured"] == {"backend": backends[1], "stage": "cutover"}
    assert ran.document["journal"] == {"entries": 0, "overflowed": False}
    assert ran.document["chords"] == {"old": None, "new": None}
    text = run_verb(directory, "stage", "--text")
    assert "w2@here" in text.stdout
    passwords = [*server.passwords.values(), *postgres.passwords.values()]
    for output in (ran.stdout, ran.stderr, text.stdout, text.stderr):
        assert not any(password in output for password in passwords)


def test_a_worker_in_another_stage_or_on_the_old_settings_is_a_problem_with_its_name(case):
    for stage in ("dual_write", "old"):
        case.worker(stage, concurrency=1)
    directory = deploy(case, "dual_write")
    ran = run_verb(directory, "stage", "--expect-stage", "dual_write")
    assert ran.code == 1
    (problem,) = ran.document["problems"]
    assert problem.startswith("w1@here runs in no stage (rediss://")
    assert "restart it" in problem
    case.stop(case.workers[1])
    assert run_verb(directory, "stage", "--expect-stage", "dual_write").code == 0
    ran = run_verb(directory, "stage", "--expect-stage", "cutover")
    assert "w0@here runs in the stage dual_write" in ran.document["problems"][0]
    assert run_verb(directory, "stage", "--expect-stage", "none").code == 1


def test_a_worker_that_should_answer_and_does_not_is_a_problem(case):
    process = case.worker("dual_write", pool="solo")
    directory = deploy(case, "dual_write")
    asked = ("stage", "--expect-stage", "dual_write", "--expect-worker", "w0@here")
    assert run_verb(directory, *asked).code == 0
    with stopped(process.pid):
        ran = run_verb(directory, *asked, "--timeout", "3")
    assert ran.code == 1
    assert ran.document["problems"][0].startswith("w0@here does not answer")
    ran = run_verb(directory, *asked, "--expect-worker", "w7@here", "--timeout", "3")
    assert [problem.split()[0] for problem in ran.document["problems"]] == ["w7@here"]


def test_chords_in_flight_are_counted_where_they_were_created_until_they_end(case, server):
    case.worker("dual_write", concurrency=2)
    app = case.app("dual_write")
    hold, total = app.tasks["dual.hold"], app.tasks["dual.total"]
    started = [
        chord(
            [hold.s(str(case.directory), f"{number}", 1), app.tasks["dual.add"].s(1, 1)], total.s(), app=app
        ).apply_async()
        for number in range(2)
    ]
    directory = deploy(case, "old", "source.env")
    deploy(case, "new", "target.env")
    deploy(case, "dual_write")
    stores = ("--old", str(directory / "source.env"), "--new", str(directory / "target.env"))
    until((case.directory / "1.runs").exists, "the chord does not run")
    assert run_verb(directory, "stage", *stores).document["chords"] == {"old": 2, "new": None}
    with server.admin() as admin:  # parts alone, as a side has them that does not own the chord
        admin.zadd("celery-taskset-meta-other.j", {"part": 1})
        admin.sadd("celery-taskset-meta-other.d", "part")
        admin.set("celery-taskset-meta-other.c", "done")
    for number in range(2):
        (case.directory / f"{number}").touch()
    assert [body.get(timeout=WAIT_SECONDS) for body in started] == [3, 3]
    # The counter goes after the body was sent.
    until(
        lambda: run_verb(directory, "stage", *stores).document["chords"] == {"old": 0, "new": None},
        "chords are still counted",
    )


def test_the_journal_is_counted(case):
    case.journal.append([now_entry(TASK, "a", "new"), now_entry(TASK, "b", "new")])
    case.journal.note_overflow()
    ran = run_verb(deploy(case, "dual_write"), "stage")
    assert ran.document["journal"] == {"entries": 2, "overflowed": True}
    assert ran.document["workers"] == []


def test_without_a_broker_nobody_can_be_asked_and_that_is_said(case):
    directory = deploy(case, "dual_write", broker_url=None)
    ran = run_verb(directory, "stage")
    assert (ran.code, ran.document["workers"]) == (0, None)
    assert "no broker" in run_verb(directory, "stage", "--text").stdout
    for asked in (("--expect-worker", "w0@here"), ("--expect-stage", "dual_write")):
        assert run_verb(directory, "stage", *asked).code == 1


def test_a_broker_or_a_store_that_hangs_or_is_gone_is_told_within_the_time(case, start_redis):
    other = start_redis()
    directory = deploy(case, "dual_write", broker_url=other.url("admin", 1))
    case.old = redis_side(other, "admin")
    deploy(case, "old", "source.env")
    no_broker = deploy(case, "dual_write", "client.env", broker_url=None)
    asked = ("stage", "--env-file", str(no_broker / "client.env"), "--timeout", "2")
    asked_store = (*asked, "--old", str(directory / "source.env"))
    for outage in ("hangs", "gone"):
        if outage == "gone":
            other.stop()
        with stopped(*([other.process.pid] if outage == "hangs" else [])):
            began = time.monotonic()
            ran = run_verb(directory, "stage", "--timeout", "2")
            assert ran.code == 1, ran
            assert "the broker" in ran.document["error"]["expected"]
            ran = run_verb(directory, *asked_store)
            assert ran.code == 1, ran
            assert ran.document["chords"]["old"] is None
            assert "does not tell its chords" in ran.document["problems"][0]
            assert time.monotonic() - began < 25
