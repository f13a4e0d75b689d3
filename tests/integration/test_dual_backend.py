"""celery_results.backends.dual with real servers and workers: what a client gets, what both sides hold."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest
from celery import chain, chord, group
from celery.result import AsyncResult
from tests.integration.database_lab import LABS, PostgresLab
from tests.integration.dual_case import (
    EXPECTED,
    Case,
    database_side,
    durable,
    keys,
    redis_side,
    run_canvas,
    stopped,
    until,
)
from tests.integration.redis_lab import ACL, RedisLab
from tests.integration.small_disk import small_disk

from celery_results.migration.repair import repair

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator

WAIT_SECONDS = 90.0
# What one late answer of the mirror costs here, and how long it is left alone then.
BOUNDS = {"mirror_seconds": 3.0, "breaker_seconds": 600.0}
EAGER = {"mirror_seconds": 3.0, "breaker_seconds": 0.2}


@pytest.fixture(scope="module")
def broker(tmp_path_factory) -> Iterator[RedisLab]:
    with RedisLab(tmp_path_factory.mktemp("broker")) as lab:
        yield lab


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresLab]:
    with PostgresLab() as lab:
        yield lab


@pytest.fixture(scope="module")
def labs(postgres) -> Iterator[Callable[[str], Any]]:
    """Give a lab by name, started when it is first asked for."""
    started: dict[str, Any] = {"postgresql": postgres}
    with contextlib.ExitStack() as running:

        def lab(name: str) -> Any:
            if name not in started:
                started[name] = running.enter_context(LABS[name]())
            return started[name]

        yield lab


@pytest.fixture
def results(start_redis) -> RedisLab:
    """Give a Redis of this test's own, which it may kill."""
    # Redis 7.0 reads the transactions of its own file with the rights of "default", though that is off.
    lab: RedisLab = durable(start_redis(acl={"default": "off resetpass ~* &* +@all"}))
    return lab


@pytest.fixture
def case(tmp_path, broker, results, postgres) -> Iterator[Case]:
    """Give redis to PostgreSQL."""
    made = Case(tmp_path, broker, redis_side(results), database_side(postgres.database()))
    yield made
    made.end()


def backwards(case: Case) -> Case:
    """Turn it round: PostgreSQL to redis."""
    case.old, case.new = case.new, case.old
    return case


def check_canvas(case: Case, stage: str) -> list[str]:
    """Use everything; what the client gets is right, and both sides hold the same."""
    seen = run_canvas(case.app(stage))
    got = {name: value for name, value in seen.values.items() if name in EXPECTED}
    assert got == EXPECTED
    for side in ("old", "new"):
        backend = case.backend(side)
        assert len(backend.restore_group(seen.values["saved"])) == 5
        assert backend.restore_group(seen.values["deleted"]) is None
    return seen.ids


# Every canvas, from both sides


# prefork is what all the others below use.
@pytest.mark.parametrize("pool", ["threads", "gevent", "solo"])
def test_everything_works_in_each_stage_and_is_on_both_sides(case, pool):
    for stage in ("dual_write", "cutover"):
        worker = case.worker(stage, pool=pool, concurrency=8)
        ids = check_canvas(case, stage)
        case.check_equal(ids)
        assert len(case.journal) == 0
        case.stop(worker)


PAIRS = {
    "postgresql-redis": ("postgresql", "redis"),
    "redis-mysql": ("redis", "mysql"),
    "sqlite-postgresql": ("sqlite", "postgresql"),
    "mysql-postgresql": ("mysql", "postgresql"),
    "stock redis-stock postgresql": ("stock redis", "stock postgresql"),
    "stock postgresql-redis": ("stock postgresql", "redis"),
}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_any_two_kinds_of_store(tmp_path, broker, results, labs, pair):
    def side(name: str) -> dict[str, Any]:
        stock = name.startswith("stock ")
        kind = name.removeprefix("stock ")
        if kind == "redis":
            return redis_side(results, stock=stock)
        return database_side(labs(kind).database(), stock=stock)

    case = Case(tmp_path, broker, side(pair[0]), side(pair[1]), more={"result_extended": True})
    try:
        for stage in ("dual_write", "cutover"):
            worker = case.worker(stage)
            ids = check_canvas(case, stage)
            case.check_equal(ids)
            assert len(case.journal) == 0
            stored = case.backend("new").get_task_meta(ids[0])
            assert (stored["name"], stored["retries"]) == ("dual.add", 0)
            case.stop(worker)
    finally:
        case.end()


def test_serializers_and_prefixes_of_their_own(tmp_path, broker, results, postgres):
    old = redis_side(results, result_serializer="pickle", result_accept_content=["pickle"])
    case = Case(tmp_path, broker, old, database_side(postgres.database()))
    try:
        for stage in ("dual_write", "cutover"):
            worker = case.worker(stage)
            case.check_equal(check_canvas(case, stage))
            assert len(case.journal) == 0
            case.stop(worker)
    finally:
        case.end()


@pytest.mark.parametrize("turn", [False, True], ids=["redis-postgresql", "postgresql-redis"])
def test_the_logins_of_clients_may_do_what_clients_do(tmp_path, broker, results, postgres, turn):
    database = postgres.database()

    def sides(login: str) -> tuple[dict[str, Any], dict[str, Any]]:
        ours, theirs = redis_side(results, login), database_side(database, login)
        return (theirs, ours) if turn else (ours, theirs)

    case = Case(tmp_path, broker, *sides("worker"))
    try:
        workers = [case.worker(stage) for stage in ("dual_write", "cutover")]
        for stage in ("dual_write", "cutover"):
            case.old, case.new = sides("client")
            seen = run_canvas(case.app(stage))
            assert {name: seen.values[name] for name in EXPECTED} == EXPECTED
            case.old, case.new = sides("worker")
            case.check_equal(seen.ids)
        assert list(case.journal.entries()) == []
        assert all(worker.poll() is None for worker in workers)
        with results.admin() as admin:
            assert admin.acl_log() == []
    finally:
        case.end()


def test_revoked_tasks_are_revoked_on_both_sides(case):
    case.worker("dual_write")
    app = case.app("dual_write")
    result = app.tasks["dual.add"].apply_async((1, 1), countdown=3600)
    until(
        lambda: (
            len(app.control.inspect().scheduled() or ()) and any(app.control.inspect().scheduled().values())
        ),
        "the worker never got it",
    )
    result.revoke()
    until(lambda: result.state == "REVOKED", "not revoked")
    case.check_equal([result.id])
    assert case.backend("new").get_task_meta(result.id)["status"] == "REVOKED"


def test_the_header_of_a_chord_has_the_same_body_context_on_both_sides(case):
    """The helper thread works for the task: root and parent of what it sends are as without it."""
    case.worker("dual_write")
    case.worker("cutover")  # its chords belong to the side that is a mirror for the first
    for stage in ("dual_write", "cutover"):
        app = case.app(stage)
        header = [app.tasks["dual.add"].s(n, n) for n in range(6)]
        body = chord(header, app.tasks["dual.parents"].s(), app=app).apply_async()
        root, parent = body.get(timeout=WAIT_SECONDS)
        assert root
        assert parent


# A mirror that is not there


def test_a_mirror_that_is_dead_from_the_start_stops_nobody_and_is_repaired(case, results):
    backwards(case)  # the mirror is the Redis
    results.stop()
    case.worker("dual_write", **EAGER)
    seen = run_canvas(case.app("dual_write", **EAGER))
    assert {name: seen.values[name] for name in EXPECTED} == EXPECTED
    assert len(case.journal) >= len(set(seen.ids)) - 2
    text = (case.directory / "journal" / "journal").read_text()
    assert "on purpose" not in text
    results.restart()
    report = repair(case.app("dual_write"), seconds=WAIT_SECONDS)
    assert report.clean, report.left
    assert report.copied > 0
    case.check_equal(seen.ids)
    assert len(case.backend("new").restore_group(seen.values["saved"])) == 5


@pytest.mark.parametrize("stage", ["dual_write", "cutover"])
def test_a_mirror_that_is_killed_in_the_middle(case, results, stage):
    if stage == "dual_write":
        backwards(case)
    case.worker(stage, **EAGER)
    app = case.app(stage, **EAGER)
    add = app.tasks["dual.add"]
    sent = [add.delay(n, n) for n in range(60)]
    until(sent[15].ready, "it does not run")
    results.stop()
    sent += [add.delay(n, n) for n in range(60, 90)]
    values = [result.get(timeout=WAIT_SECONDS) for result in sent]
    assert values == [2 * n for n in range(90)]
    assert len(case.journal) > 0
    results.restart()
    sent += [add.delay(n, n) for n in range(90, 100)]
    assert [result.get(timeout=WAIT_SECONDS) for result in sent[90:]] == [2 * n for n in range(90, 100)]
    assert repair(case.app(stage), seconds=WAIT_SECONDS).clean
    case.check_equal([result.id for result in sent])


@pytest.mark.parametrize(
    ("mirror", "pool"),
    [("redis", "prefork"), ("postgresql", "gevent"), ("stock postgresql", "prefork")],
)
def test_a_mirror_that_hangs_costs_one_bound_for_each_process(case, results, postgres, mirror, pool):
    if mirror == "redis":
        backwards(case)
    if mirror.startswith("stock"):
        case.new = database_side(postgres.database(), stock=True)
    case.worker("dual_write", pool=pool, concurrency=1, **BOUNDS)
    app = case.app("dual_write", **BOUNDS)
    add = app.tasks["dual.add"]
    first = add.delay(1, 1)
    assert first.get(timeout=WAIT_SECONDS) == 2  # connected
    case.check_equal([first.id])
    with stopped((results if mirror == "redis" else postgres).process.pid):
        began = time.monotonic()
        sent = [add.delay(n, n) for n in range(40)]
        assert [result.get(timeout=WAIT_SECONDS) for result in sent] == [2 * n for n in range(40)]
        took = time.monotonic() - began
        # One write of the one child was too late, then nobody asked the mirror any more.
        assert case.log().count("did not take") == 1
        assert took < 60  # each of the 40 waiting out the bound of 2 s: 80
        assert {entry.id for entry in case.journal.entries()} == {result.id for result in sent}
    report = repair(case.app("dual_write"), seconds=WAIT_SECONDS)
    assert report.clean, report.left
    case.check_equal([result.id for result in sent])


def test_a_mirror_whose_disk_is_full_fails_nobody_and_is_repaired_when_there_is_room(case, postgres):
    database = postgres.database()
    case.new = database_side(database)
    with small_disk(database) as disk:
        case.worker("dual_write", **EAGER)
        app = case.app("dual_write", **EAGER)
        add, fail = app.tasks["dual.add"], app.tasks["dual.fail"]
        disk.fill()
        sent = [add.delay(n, n) for n in range(20)]
        assert [result.get(timeout=WAIT_SECONDS) for result in sent] == [2 * n for n in range(20)]
        failed = fail.delay()
        assert isinstance(failed.get(timeout=WAIT_SECONDS, propagate=False), ValueError)
        saved = group(add.s(n, 1) for n in range(3)).apply_async()
        saved.save()
        assert saved.get(timeout=WAIT_SECONDS) == [1, 2, 3]
        ids = [result.id for result in (*sent, failed, *saved.results)]
        until(lambda: {entry.id for entry in case.journal.entries()} >= {*ids, saved.id}, "not journalled")
        assert database.rows("SELECT count(*) FROM celery_taskmeta") == [(0,)]
        report = repair(case.app("dual_write"), seconds=WAIT_SECONDS)
        assert {left.entry.id for left in report.left} >= {*ids, saved.id}
        assert report.left[0].reason == "a side has no room: DiskFull"
        disk.make_room()
        report = repair(case.app("dual_write"), seconds=WAIT_SECONDS)
        assert report.clean, report.left
        case.check_equal(ids)
        assert len(case.backend("new").restore_group(saved.id)) == 3


def test_a_primary_that_is_down_is_the_tasks_store_error(case, results):
    """As with one backend: the worker retries, gives up, and says so; the mirror gets nothing."""
    case.worker("dual_write", concurrency=1)
    app = case.app("dual_write")
    held = app.tasks["dual.hold"].delay(str(case.directory), "go", 5)
    until((case.directory / "go.runs").exists, "it does not run")
    results.stop()
    (case.directory / "go").touch()
    until(lambda: "BackendStoreError" in case.log() or "ConnectionError" in case.log(), "no store error")
    time_limit = time.monotonic() + 3
    until(lambda: time.monotonic() > time_limit, "")
    assert case.backend("new").get_task_meta(held.id)["status"] != "SUCCESS"
    assert held.id not in {entry.id for entry in case.journal.entries()}


# Killed workers


def test_a_worker_killed_between_its_two_writes_is_found_by_comparing_not_by_the_journal(case, results):
    backwards(case)
    worker = case.worker("dual_write", concurrency=1, mirror_seconds=60.0)
    app = case.app("dual_write")
    add = app.tasks["dual.add"]
    first = add.delay(1, 1)
    assert first.get(timeout=WAIT_SECONDS) == 2
    held = app.tasks["dual.hold"].delay(str(case.directory), "go", 5)
    until((case.directory / "go.runs").exists, "it does not run")
    case.check_equal([held.id])
    with stopped(results.process.pid):
        (case.directory / "go").touch()
        assert held.get(timeout=WAIT_SECONDS) == 5  # the primary has it; the worker writes the mirror
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
    assert len(case.journal) == 0
    lacking = case.differing([first.id, held.id])
    # The server may yet have read what the worker sent before it died.
    assert lacking in ([held.id], [])
    report = repair(case.app("dual_write"), ids=[first.id, held.id], seconds=WAIT_SECONDS)
    assert report.clean
    assert report.copied == len(lacking)
    case.check_equal([first.id, held.id])


# Switches and chords in flight


def ended(case: Case, worker: subprocess.Popen[bytes]) -> bool:
    """Let the tasks that run come to their end, and say whether the worker has."""
    for file in case.directory.glob("*.runs"):
        file.with_suffix("").touch()
    return worker.poll() is not None


@pytest.mark.parametrize("turn", [False, True], ids=["redis-postgresql", "postgresql-redis"])
@pytest.mark.parametrize(
    "stages", [("dual_write", "cutover"), ("cutover", "bridge"), ("cutover", "dual_write")]
)
def test_a_chord_in_flight_survives_the_switch(case, turn, stages):
    if turn:
        backwards(case)
    before, after = stages
    worker = case.worker(before, concurrency=3)
    app = case.app(before)
    hold, total = app.tasks["dual.hold"], app.tasks["dual.total"]
    names = [f"part{n}" for n in range(6)]
    header = [hold.s(str(case.directory), name, 2**n) for n, name in enumerate(names)]
    # A header of groups is saved by Redis, on the side that owns the chord.
    add = app.tasks["dual.add"]
    pair = group(add.si(1, 1), hold.si(str(case.directory), "inner", 5))
    nested = [chain(add.si(0, 0), pair, app=app), hold.s(str(case.directory), "outer", 7)]
    body = chord(header, total.s(), app=app).apply_async()
    other = chord(nested, app.tasks["dual.shape"].s(), app=app).apply_async()
    for name in names[:3]:
        until((case.directory / f"{name}.runs").exists, "the parts do not run")
        (case.directory / name).touch()
    worker.send_signal(signal.SIGTERM)
    # It finishes what runs, and leaves the rest to the next one.
    until(lambda: ended(case, worker), "the worker does not end")
    assert not (case.directory / "outer.runs").exists()
    case.worker(after, concurrency=3)
    for name in [*names[3:], "inner", "outer"]:
        (case.directory / name).touch()
    # A client of either stage gets it.
    for stage in (before, after):
        client = case.app(stage)
        assert AsyncResult(body.id, app=client).get(timeout=WAIT_SECONDS) == 63
        assert AsyncResult(other.id, app=client).get(timeout=WAIT_SECONDS) == [[2, 5], 7]
    members = [part.id for part in body.parent]
    case.check_equal([*members, body.id, other.id])
    assert len(case.journal) == 0


@pytest.mark.parametrize("turn", [False, True], ids=["redis-postgresql", "redis-redis"])
def test_a_task_added_to_a_chord_after_the_switch_counts_on_the_side_that_owns_it(
    tmp_path, broker, postgres, start_redis, turn
):
    acl = {"worker": f"{ACL['worker']} +incr +incrby"}
    new = redis_side(start_redis(acl=acl)) if turn else database_side(postgres.database())
    case = Case(tmp_path, broker, redis_side(start_redis(acl=acl)), new)
    try:
        worker = case.worker("dual_write", concurrency=1)
        app = case.app("dual_write")
        hold, grow, total = (app.tasks[f"dual.{name}"] for name in ("hold", "grow", "total"))
        body = chord([hold.s(str(tmp_path), "first", 2), grow.s()], total.s(), app=app).apply_async()
        until((tmp_path / "first.runs").exists, "the part does not run")
        worker.send_signal(signal.SIGTERM)
        (tmp_path / "first").touch()
        worker.wait(WAIT_SECONDS)
        case.worker("cutover")
        assert AsyncResult(body.id, app=case.app("cutover")).get(timeout=WAIT_SECONDS) == 103
    finally:
        case.end()


def test_workers_of_two_stages_serve_clients_of_two_stages(case):
    """In the middle of a roll: nobody waits for ever, nothing differs."""
    case.worker("dual_write", concurrency=1)
    case.worker("cutover", concurrency=1)
    ids: list[str] = []
    for stage in ("bridge", "cutover"):
        for _ in range(2):
            app = case.app(stage)
            add, total = app.tasks["dual.add"], app.tasks["dual.total"]
            body = chord([add.s(n, n) for n in range(8)], total.s(), app=app).apply_async()
            assert body.get(timeout=WAIT_SECONDS) == 56
            steps = chain(add.s(1, 1), add.s(2), add.s(3), app=app).apply_async()
            assert steps.get(timeout=WAIT_SECONDS) == 7
            ids += [body.id, steps.id, *(part.id for part in body.parent)]
    case.check_equal(ids)


def test_a_part_that_the_owner_missed_is_reported_when_it_is_back(case, results):
    """After the cutover the old Redis owns a chord, and is killed while parts of it end."""
    worker = case.worker("dual_write", concurrency=2, **EAGER)
    app = case.app("dual_write")
    hold, total = app.tasks["dual.hold"], app.tasks["dual.total"]
    header = [hold.s(str(case.directory), f"part{n}", 2**n) for n in range(4)]
    body = chord(header, total.s(), app=app).apply_async()
    for number in (0, 1):
        until((case.directory / f"part{number}.runs").exists, "the parts do not run")
    # It finishes what runs and begins nothing else.
    worker.send_signal(signal.SIGTERM)
    for number in (0, 1):
        (case.directory / f"part{number}").touch()
    worker.wait(WAIT_SECONDS)
    assert not (case.directory / "part2.runs").exists()
    case.check_equal([part.id for part in body.parent[:2]])
    case.worker("cutover", concurrency=2, **EAGER)
    results.stop()
    for number in (2, 3):
        (case.directory / f"part{number}").touch()
    client = case.app("cutover", **EAGER)
    for part in body.parent:
        AsyncResult(part.id, app=client).get(timeout=WAIT_SECONDS)
    until(lambda: any(entry.operation == "chord_part" for entry in case.journal.entries()), "not journalled")
    results.restart()
    assert AsyncResult(body.id, app=client).get(timeout=WAIT_SECONDS) == 15
    until(lambda: repair(case.app("cutover"), seconds=WAIT_SECONDS).clean, "it is not clean")
    assert len(case.journal) == 0


def test_a_part_that_died_with_its_process_is_named_by_the_repair(case, results):
    worker = case.worker("dual_write", concurrency=1, **EAGER)
    app = case.app("dual_write")
    hold, total = app.tasks["dual.hold"], app.tasks["dual.total"]
    body = chord(
        [hold.s(str(case.directory), "a", 1), hold.s(str(case.directory), "b", 2)], total.s(), app=app
    ).apply_async()
    until((case.directory / "a.runs").exists, "the part does not run")
    worker.send_signal(signal.SIGTERM)
    (case.directory / "a").touch()
    worker.wait(WAIT_SECONDS)
    second = case.worker("cutover", concurrency=1, **EAGER)
    until((case.directory / "b.runs").exists, "the part does not run")
    results.stop()
    (case.directory / "b").touch()
    until(lambda: any(entry.operation == "chord_part" for entry in case.journal.entries()), "not journalled")
    os.killpg(second.pid, signal.SIGKILL)
    second.wait()
    results.restart()
    report = repair(case.app("cutover"), seconds=WAIT_SECONDS)
    assert not report.clean
    (left,) = report.left
    assert body.parent.id in left.reason
    assert keys(results, f"celery-taskset-meta-{body.parent.id}.s")
    with results.admin() as admin:
        admin.delete(f"celery-taskset-meta-{body.parent.id}.s")
    assert repair(case.app("cutover"), seconds=WAIT_SECONDS).clean


# Rollback


def test_a_rollback_loses_nothing(case):
    """What was stored in each stage is read in each, and is on the old side in the end."""
    ids: dict[str, int] = {}
    for stage in ("dual_write", "cutover", "bridge", "dual_write"):
        worker = case.worker(stage)
        app = case.app(stage)
        for value in range(10):
            result = app.tasks["dual.add"].delay(value, 0)
            assert result.get(timeout=WAIT_SECONDS) == value
            ids[result.id] = value
        for task_id, value in ids.items():
            assert AsyncResult(task_id, app=app).get(timeout=WAIT_SECONDS) == value
        case.stop(worker)
    single = case.app("old")
    assert {task_id: AsyncResult(task_id, app=single).get(timeout=5) for task_id in ids} == ids
    case.check_equal(list(ids))


def test_no_secret_is_in_the_worker_s_log_or_the_journal(case, results):
    backwards(case)
    results.stop()
    case.worker("dual_write", **EAGER)
    app = case.app("dual_write", **EAGER)
    assert app.tasks["dual.add"].delay(1, 1).get(timeout=WAIT_SECONDS) == 2
    shown = case.log() + (case.directory / "journal" / "journal").read_text()
    shown += json.dumps(app.control.inspect().conf())
    for lab in (results,):
        assert not [name for name, password in lab.passwords.items() if password in shown]
