"""What a copy promises beside values: lives, what is there stays, what is lost is told, no kill hurts."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import signal
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from tests.integration.copy_case import (
    EXPIRES,
    Copying,
    bulk,
    database_place,
    fill,
    place_on,
    request,
    save_groups,
    seen,
)
from tests.integration.database_case import until
from tests.integration.database_lab import PostgresLab
from tests.integration.redis_lab import RedisLab
from tests.integration.small_disk import small_disk
from tests.integration.test_copy_directions import counts

TASK = "celery-task-meta-"


def put(place, identifier, document, **life):
    place.redis.set(
        TASK + identifier, document if isinstance(document, bytes) else json.dumps(document), **life
    )


def meta(identifier, **changes):
    done = dt.datetime.now(dt.UTC).isoformat()
    base = {"status": "SUCCESS", "result": 1, "traceback": None, "children": [], "date_done": done}
    return {**base, **changes, "task_id": identifier}


# ---- lives


@pytest.mark.parametrize("goal", ["redis", "postgresql"])
def test_the_remaining_life_is_kept(stores, tmp_path, goal):
    source, target = stores.new("redis"), stores.new(goal)
    put(source, "short", meta("short"), ex=300)
    put(source, "kept", meta("kept"))
    put(source, "unfinished", meta("unfinished", status="STARTED", date_done=None), ex=5000)
    put(source, "gone", meta("gone"), px=1)
    until(lambda: source.redis.get(TASK + "gone") is None, "it expires")
    ran = Copying(tmp_path, source, target).run()
    assert ran.document["results"] == counts(read=3, copied=3)
    if goal == "redis":
        for name in ("short", "unfinished"):
            assert abs(source.redis.pttl(TASK + name) - target.redis.pttl(TASK + name)) < 1000
        assert target.redis.pttl(TASK + "kept") == -1
        assert ran.document["lossy"] == {}
    else:
        assert ran.document["lossy"] == {"expiry": 1, "never_expires": 1}
        rows = dict(target.database.rows("SELECT task_id, date_done FROM celery_taskmeta"))
        stored = json.loads(source.redis.get(TASK + "short"))["date_done"]
        assert rows["short"] == dt.datetime.fromisoformat(stored).replace(tzinfo=None)
        assert rows["unfinished"] is None


@pytest.mark.parametrize("origin", ["postgresql", "sqlite"])
def test_a_row_lives_on_as_long_as_its_age_leaves_it(stores, tmp_path, origin):
    source, target = stores.new(origin), stores.new("redis")
    backend = source.app().backend
    now = dt.datetime.now(dt.UTC).replace(tzinfo=None)
    ages = {"new": 0, "old": EXPIRES - 120, "expired": EXPIRES + 5}
    for identifier, age in ages.items():
        backend.store_result(identifier, 1, "SUCCESS")
        moment = (now - dt.timedelta(seconds=age)).isoformat(sep=" ", timespec="microseconds")
        source.database.rows(
            f"UPDATE celery_taskmeta SET date_done = '{moment}' WHERE task_id = '{identifier}'"  # noqa: S608
        )
    backend.store_result("unfinished", 1, "STARTED")
    groups = save_groups(source, 1)
    ran = Copying(tmp_path, source, target).run()
    assert ran.document["results"] == counts(read=4, copied=3, expired=1)
    assert target.redis.get(TASK + "expired") is None
    for identifier, left in {"new": EXPIRES, "old": 120, "unfinished": EXPIRES}.items():
        passed = (dt.datetime.now(dt.UTC).replace(tzinfo=None) - now).total_seconds()
        assert abs(target.redis.pttl(TASK + identifier) / 1000 - (left - passed)) < (
            20 if identifier == "unfinished" else 1
        )
    assert abs(target.redis.ttl(f"celery-taskset-meta-{groups[0].id}") - EXPIRES) < 20


def test_a_group_in_a_table_keeps_what_its_key_had_left(stores, tmp_path):
    source, target = stores.new("redis"), stores.new("postgresql")
    group = save_groups(source, 1)[0]
    source.redis.expire(f"celery-taskset-meta-{group.id}", 3600)
    assert Copying(tmp_path, source, target).run().code == 0
    ((date,),) = target.database.rows("SELECT date_done FROM celery_tasksetmeta")
    expected = dt.datetime.now(dt.UTC).replace(tzinfo=None) + dt.timedelta(seconds=3600 - EXPIRES)
    assert abs((date - expected).total_seconds()) < 15


# ---- what is there stays


@pytest.mark.parametrize("goal", ["redis", "postgresql", "mysql", "sqlite"])
def test_what_is_there_stays_and_the_rest_comes(stores, tmp_path, goal):
    source, target = stores.new("redis"), stores.new(goal)
    stored = fill(source)
    groups = save_groups(source)
    newer = next(iter(stored))
    target.app().backend.store_result(
        newer, OSError("newer"), "FAILURE", traceback="newer", request=request(newer)
    )
    before = seen(target.app(), newer)
    copying = Copying(tmp_path, source, target)
    first = copying.run().document
    assert first["results"] == counts(read=len(stored), copied=len(stored) - 1, present=1)
    assert seen(target.app(), newer) == before
    again = copying.run().document
    assert again["results"] == counts(read=len(stored), present=len(stored))
    assert again["groups"] == counts(read=2, present=2)
    assert target.count() == len(stored)
    assert len(groups) == 2


def test_ids_come_from_the_sequence_and_celery_goes_on_after_them(stores, tmp_path):
    source, target = stores.new("sqlite"), stores.new("postgresql", tables="stock")
    source.database.rows("INSERT INTO celery_taskmeta (id, task_id, status) VALUES (1, 'one', 'STARTED')")
    source.database.rows(
        "INSERT INTO celery_taskmeta (id, task_id, status) VALUES (999999, 'two', 'STARTED')"
    )
    assert Copying(tmp_path, source, target).run().document["results"] == counts(read=2, copied=2)
    assert target.database.rows("SELECT id, task_id FROM celery_taskmeta ORDER BY id") == [
        (1, "one"),
        (2, "two"),
    ]
    target.app().backend.store_result("three", 1, "SUCCESS")
    assert target.count() == 3


@pytest.mark.parametrize("goal", ["postgresql", "mysql"])
def test_a_sequence_that_is_behind_is_refused_and_nothing_is_lost(stores, tmp_path, goal):
    source, target = stores.new("redis"), stores.new(goal)
    bulk(source, 10)
    for number in range(1, 4):
        target.database.rows(f"INSERT INTO celery_taskmeta (id, task_id) VALUES ({number + 2}, 'r{number}')")  # noqa: S608
    ran = Copying(tmp_path, source, target).run()
    assert ran.code == 1
    assert "task_id_sequence" in ran.document["error"]["expected"]
    assert target.count() == 3


# ---- what is lost is told


def test_what_has_no_column_is_counted_field_by_field(stores, tmp_path):
    source, target = stores.new("redis"), stores.new("postgresql")
    odd: dict[str, dict[str, Any]] = {
        "member": {"group_id": "g", "parent_id": "p"},
        "child": {"parent_id": "p"},
        "foreign": {"group_id": None, "extra": 1},
        "wide": {
            "name": "n" * 156,
            "worker": "w" * 155,
            "args": [],
            "kwargs": {},
            "retries": 0,
            "queue": "q",
        },
        "nul": {"traceback": "a\0b \ud800"},
        "bad": {"retries": 2**40},
        "x" * 156: {},
    }
    for identifier, changes in odd.items():
        put(source, identifier, meta(identifier, **changes), ex=EXPIRES)
    put(source, "broken", b'{"status": "SUCCESS", "resu', ex=EXPIRES)
    put(source, "binary", b"\xff\x00", ex=EXPIRES)
    ran = Copying(tmp_path, source, target).run()
    assert ran.code == 1
    assert ran.document["lossy"] == {
        "field:extra": 1,
        "group_id": 1,
        "name": 1,
        "parent_id": 2,
        "traceback": 2,
    }
    assert ran.document["results"] == counts(read=9, copied=5, failed=4)
    assert {failure["id"] for failure in ran.document["failures"]} == {"bad", "x" * 156, "broken", "binary"}
    assert target.ids() == set(odd) - {"bad", "x" * 156}
    ((name, worker, trace),) = target.database.rows(
        "SELECT max(name), max(worker), max(traceback) FROM celery_taskmeta"
    )
    assert (len(name), len(worker), trace) == (155, 155, "a\ufffdb ?")


def test_a_value_that_a_narrow_column_cannot_hold_fails_alone(stores, tmp_path):
    """Celery's own table on MariaDB holds 64 KiB: nothing may be cut off silently."""
    source, target = stores.new("redis"), stores.new("mysql", tables="stock")
    ids = bulk(source, 40)
    put(source, "large", meta("large", result="x" * 70_000), ex=EXPIRES)
    ran = Copying(tmp_path, source, target).run()
    assert ran.document["results"] == counts(read=41, copied=40, failed=1)
    assert ran.document["failures"][0]["id"] == "large"
    assert "too long" in ran.document["failures"][0]["reason"]
    assert ran.document["lossy"]["date_done"] >= 39  # its DATETIME has no microseconds
    assert target.ids() == ids


def test_a_pickled_row_is_no_document(stores, tmp_path):
    source, target = stores.new("postgresql"), stores.new("redis")
    source.app().backend.store_result("fine", 1, "SUCCESS")
    source.app().backend.store_result("pickled", 1, "SUCCESS")
    source.database.rows("UPDATE celery_taskmeta SET result = '\\x80049500' WHERE task_id = 'pickled'")
    ran = Copying(tmp_path, source, target).run()
    assert ran.code == 1
    assert "pickle" in ran.document["failures"][0]["reason"]
    assert target.ids() == {"fine"}


def test_keys_of_chords_and_of_others_stay_behind(stores, tmp_path):
    source, target = stores.new("redis"), stores.new("redis")
    for suffix in "jstdc":
        source.redis.set(f"celery-taskset-meta-g.{suffix}", "1")
    source.redis.zadd("celery-taskset-meta-h.j", {"x": 1})
    source.redis.rpush(TASK + "list", "no string")
    source.redis.set("another", "1")
    put(source, "one", meta("one"), ex=EXPIRES)
    ran = Copying(tmp_path, source, target).run()
    assert ran.document["results"] == counts(read=2, copied=1, expired=1)
    assert target.redis.keys("*") == [TASK + "one"]


# ---- bytes


@pytest.mark.parametrize("method", ["gzip", "bzip2"])
@pytest.mark.parametrize("goal", ["postgresql", "redis"])
def test_compressed_results_are_read_on_either_side(stores, tmp_path, method, goal):
    source, target = stores.new("redis"), stores.new(goal)
    stored = fill(source, result_compression=method)
    assert Copying(tmp_path, source, target).run().code == 0
    for identifier in stored:
        assert seen(target.app(), identifier) == seen(source.app(), identifier)
        if goal == "redis":
            assert target.redis.connection_pool is not None


def test_bytes_are_not_touched_between_equals(stores, tmp_path):
    source, target = stores.new("redis"), stores.new("redis")
    odd = b'{ "status":"SUCCESS",  "result":{"b":1,"a":[NaN]},"date_done":"x","whatever":0}'
    put(source, "odd", odd, ex=EXPIRES)
    assert Copying(tmp_path, source, target).run().document["lossy"] == {}
    raw = target.redis.execute_command("GET", TASK + "odd")
    assert raw == odd.decode()


# ---- kills, absences, ends


def test_a_kill_at_any_moment_loses_nothing(stores, tmp_path):
    source, target = stores.new("redis"), stores.new("postgresql")
    ids = bulk(source, 30_000)
    copying = Copying(tmp_path, source, target)
    kills = 0
    for share in (0.02, 0.3, 0.55, 0.8):
        with copying.start("--batch", "500") as process:
            wanted = share * len(ids)
            while target.count() < wanted and process.poll() is None:
                pass
            kills += process.poll() is None
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
        # A SCAN gives more than a batch asks for: the first kill may come before the first batch is noted.
        if share > 0.02 or copying.checkpoint.exists():
            position = json.loads(copying.checkpoint.read_bytes())
            noted = sum(position["results"][name] for name in ("copied", "present"))
            assert noted <= target.count()
    assert kills >= 3
    ran = copying.run("--batch", "500")
    assert ran.code == 0
    assert ran.document["passes"] == 1
    assert target.ids() == ids
    found = ran.document["results"]
    assert found["copied"] + found["present"] == found["read"] >= len(ids)
    # It went on from where it was: of what was done before, a batch for each kill was read again.
    assert found["present"] <= 2_000 * 4


@pytest.mark.parametrize("goal", ["postgresql", "redis"])
def test_a_target_that_goes_away_in_the_middle_gets_everything(stores, tmp_path, goal):
    source = stores.new("redis")
    ids = bulk(source, 30_000)
    with RedisLab(tmp_path / "target") if goal == "redis" else PostgresLab() as lab:
        target = place_on(lab)
        with Copying(tmp_path / "run", source, target).start("--batch", "500", "--patience", "60") as process:
            until(lambda: target.count() > 3_000, "it has begun")
            assert process.poll() is None
            # Without persistence a Redis forgets everything, and only a new pass brings it back.
            lab.kill()
            lab.restart()
            stdout, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stderr
        assert target.ids() == ids
        assert json.loads(stdout)["passes"] == (2 if goal == "redis" else 1)


def test_a_store_that_stays_away_ends_it_and_the_next_run_goes_on(stores, tmp_path):
    source = stores.new("redis")
    ids = bulk(source, 20_000)
    with PostgresLab() as lab:
        target = database_place(lab)
        copying = Copying(tmp_path, source, target)
        with copying.start("--batch", "500", "--patience", "1") as process:
            until(lambda: target.count() > 3_000, "it has begun")
            lab.kill()
            stdout, _ = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "postgresql://" in json.loads(stdout)["error"]["expected"]
        lab.restart()
        assert target.count() < len(ids)
        assert copying.run().document["results"]["present"] < len(ids)
        assert target.ids() == ids


def test_a_full_target_is_told_with_what_to_do_and_the_next_run_goes_on(stores, tmp_path):
    source, target = stores.new("redis"), stores.new("postgresql")
    ids = bulk(source, 10_000)
    copying = Copying(tmp_path, source, target)
    with small_disk(target.database) as disk:
        ran = copying.run("--batch", "500", "--patience", "1")
        assert ran.code == 1
        error = ran.document["error"]
        assert error["expected"].startswith("room in postgresql://")
        assert "No space left on device" in error["found"]
        assert "make room there" in error["do"]
        noted = json.loads(copying.checkpoint.read_bytes())["results"]["copied"]
        assert 0 < noted == target.count() < len(ids)
        disk.make_room()
        ran = copying.run("--batch", "500")
        assert (ran.code, ran.document["passes"]) == (0, 1)
        assert ran.document["results"]["copied"] == len(ids)
        assert target.ids() == ids


def test_ctrl_c_ends_it_after_the_batch_and_the_next_run_goes_on(stores, tmp_path):
    source, target = stores.new("redis"), stores.new("mysql")
    ids = bulk(source, 10_000)
    copying = Copying(tmp_path, source, target)
    with copying.start("--batch", "200", "--rate", "2000") as process:
        until(lambda: target.count() > 400, "it has begun")
        process.send_signal(signal.SIGINT)
        stdout, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    document = json.loads(stdout)
    assert not document["complete"]
    assert document["results"]["copied"] == target.count() < len(ids)
    ran = copying.run()
    assert ran.document["results"]["copied"] == len(ids)
    assert target.ids() == ids


def test_a_rate_is_kept(stores, tmp_path):
    source, target = stores.new("redis"), stores.new("sqlite")
    bulk(source, 3_000)
    began = time.monotonic()
    assert Copying(tmp_path, source, target).run("--rate", "1500", "--batch", "100").code == 0
    assert 2 <= time.monotonic() - began < 15


def test_another_pair_or_a_second_copy_does_not_use_the_checkpoint(stores, tmp_path):
    source, target = stores.new("redis"), stores.new("sqlite")
    bulk(source, 5_000)
    copying = Copying(tmp_path, source, target)
    with copying.start("--rate", "500", "--batch", "100") as process:
        until(copying.checkpoint.exists, "it has begun")
        second = copying.run()
        assert second.code == 2
        assert "another copy at work" in second.document["error"]["found"]
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    other = Copying(tmp_path, source, stores.new("sqlite")).run()
    assert other.code == 2
    assert "--checkpoint" in other.document["error"]["do"]
    copying.checkpoint.write_text("{")
    damaged = copying.run()
    assert damaged.code == 2
    assert "remove it" in damaged.document["error"]["do"]


def test_one_megabyte_results_stay_within_bounded_memory(stores, tmp_path):
    source, target = stores.new("redis"), stores.new("postgresql")
    source.redis.config_set("maxmemory", "0")
    for number in range(150):
        put(source, f"large{number}", meta(f"large{number}", result=str(uuid.uuid4()) * 28_000), ex=EXPIRES)
    highest = 0
    with Copying(tmp_path, source, target).start() as process:
        # Not what wait4 tells: that begins with the memory of this process.
        while process.poll() is None:
            with contextlib.suppress(OSError, IndexError):
                status = Path(f"/proc/{process.pid}/status").read_text()
                highest = max(highest, int(status.partition("VmHWM:")[2].split()[0]))
            time.sleep(0.01)
    assert process.returncode == 0
    assert target.count() == 150
    assert 40 * 1024 < highest < 180 * 1024, highest
