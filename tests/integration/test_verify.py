"""Verify finds each fault, and finds none where there is none; it does not read as the copy does."""

from __future__ import annotations

import datetime as dt
import json
import random
import threading

import pytest
from tests.integration.copy_case import EXPIRES, Copying, bulk, fill, save_groups

TASK = "celery-task-meta-"
WAYS = (
    ("redis", "postgresql"),
    ("postgresql", "redis"),
    ("redis", "mysql"),
    ("sqlite", "postgresql"),
    ("redis", "redis"),
)


@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_a_copy_is_the_same(stores, tmp_path, way):
    source, target = (stores.new(scheme) for scheme in way)
    stored = fill(source, **({"result_compression": "gzip"} if way[0] == "redis" else {}))
    save_groups(source)
    copying = Copying(tmp_path, source, target)
    assert copying.run().code == 0
    ran = copying.run("--html", str(tmp_path / "page.html"), verb="verify")
    assert ran.code == 0, ran
    document = ran.document
    assert document["source"]["results"] == document["target"]["results"] == len(stored)
    assert document["source"]["states"] == document["target"]["states"]
    assert (document["source"]["groups"], document["target"]["groups"]) == (2, 2)
    assert document["findings"] == []
    page = (tmp_path / "page.html").read_text()
    assert "Both sides are the same" in page
    assert "<svg" in page
    assert "http" not in page.replace("http-equiv", "")


def fault_database(place, identifiers):
    """Give each id one fault; tell which verdict and field it must get."""
    rows = place.database.rows
    expected: dict[str, tuple[str, tuple[str, ...]]] = {}
    changes = {
        "result": "result = '\"x\"'",
        "status": "status = 'FAILURE'",
        "date_done": "date_done = date_done - interval '20 s'",
        "name": "name = 'other'",
    }
    for number, identifier in enumerate(identifiers):
        kind = ("missing", *changes)[number % 5]
        if kind == "missing":
            rows(f"DELETE FROM celery_taskmeta WHERE task_id = '{identifier}'")  # noqa: S608
            expected[identifier] = ("missing", ())
        else:
            rows(f"UPDATE celery_taskmeta SET {changes[kind]} WHERE task_id = '{identifier}'")  # noqa: S608
            expected[identifier] = ("different", (kind,))
    return expected


def found(document):
    return {finding["id"]: (finding["verdict"], tuple(finding["fields"])) for finding in document["findings"]}


def test_every_fault_in_a_database_is_found_and_nothing_else(stores, tmp_path):
    source, target = stores.new("redis"), stores.new("postgresql")
    ids = sorted(bulk(source, 2_000))
    copying = Copying(tmp_path, source, target)
    assert copying.run().code == 0
    expected = fault_database(target, random.Random(3).sample(ids, 100))  # noqa: S311 - repeatable
    target.database.rows("INSERT INTO celery_taskmeta (task_id, status) VALUES ('extra', 'STARTED')")
    expected["extra"] = ("extra", ())
    # A result ends by its age in a database.
    ran = copying.run("--html", str(tmp_path / "page.html"), verb="verify")
    assert ran.code == 1
    assert found(ran.document) == expected
    assert "do not cut over" in (tmp_path / "page.html").read_text()
    assert ran.document["missing"] == 20


def test_every_fault_in_redis_is_found_and_nothing_else(stores, tmp_path):
    source, target = stores.new("postgresql"), stores.new("redis")
    first = stores.new("redis")
    ids = sorted(bulk(first, 2_000))
    assert Copying(tmp_path / "first", first, source).run().code == 0
    copying = Copying(tmp_path / "second", source, target)
    assert copying.run().code == 0
    expected: dict[str, tuple[str, tuple[str, ...]]] = {}
    for number, identifier in enumerate(random.Random(4).sample(ids, 60)):  # noqa: S311 - repeatable
        key = TASK + identifier
        document = json.loads(target.redis.get(key))
        kind = number % 6
        if kind == 0:
            target.redis.delete(key)
            expected[identifier] = ("missing", ())
        elif kind == 1:
            target.redis.expire(key, EXPIRES - 3600)
            expected[identifier] = ("different", ("expiry",))
        elif kind == 2:
            target.redis.persist(key)
            expected[identifier] = ("different", ("expiry",))
        elif kind == 3:
            target.redis.set(key, b'{"stat', keepttl=True)
            expected[identifier] = ("different", ("unreadable",))
        else:
            field, value = (("status", "REVOKED"), ("result", [1]))[kind - 4]
            target.redis.set(key, json.dumps({**document, field: value}), keepttl=True)
            expected[identifier] = ("different", (field,))
    group = save_groups(target, 1)[0]
    expected[group.id] = ("extra", ())
    ran = copying.run(verb="verify")
    assert ran.code == 1
    assert found(ran.document) == expected


def test_what_expires_meanwhile_is_no_difference(stores, tmp_path):
    source, target = stores.new("redis"), stores.new("redis")
    ids = sorted(bulk(source, 100))
    copying = Copying(tmp_path, source, target)
    assert copying.run().code == 0
    source.redis.pexpire(TASK + ids[0], 9_500)  # below the ten seconds, and slow hosts get there
    target.redis.delete(TASK + ids[0])
    ran = copying.run("--no-brake", verb="verify")
    assert ran.code == 0, ran
    assert ran.document["expired"] == 1


def test_a_result_that_keeps_changing_is_told_as_moving(stores, tmp_path):
    source, target = stores.new("redis"), stores.new("redis")
    ids = sorted(bulk(source, 100))
    copying = Copying(tmp_path, source, target)
    assert copying.run().code == 0
    over = threading.Event()

    def move():
        number = 0
        while not over.wait(0.05):
            number += 1
            document = {
                "status": "PROGRESS",
                "result": number,
                "traceback": None,
                "children": [],
                "date_done": None,
            }
            source.redis.set(TASK + ids[5], json.dumps(document), ex=EXPIRES)

    thread = threading.Thread(target=move)
    thread.start()
    try:
        ran = copying.run(verb="verify")
    finally:
        over.set()
        thread.join()
    assert ran.code == 1
    assert found(ran.document)[ids[5]][0] == "moving"


def test_life_in_a_database_goes_by_age_and_that_is_said(stores, tmp_path):
    source, target = stores.new("redis"), stores.new("postgresql")
    ids = sorted(bulk(source, 10))
    source.redis.persist(TASK + ids[0])
    source.redis.expire(TASK + ids[1], 60)
    copying = Copying(tmp_path, source, target)
    assert copying.run().code == 0
    ran = copying.run(verb="verify")
    assert ran.code == 0, ran
    assert ran.document["expiry_by_age"] == 2


def test_a_store_that_does_not_answer_is_told(stores, tmp_path):
    source = stores.new("redis")
    source_gone = stores.new("redis")
    source_gone.url = "redis://127.0.0.1:1/0"
    ran = Copying(tmp_path, source, source_gone).run(verb="verify")
    assert ran.code == 1
    assert "to answer" in ran.document["error"]["expected"]


def test_dates_with_another_zone_are_the_same_time(stores, tmp_path):
    source, target = stores.new("redis"), stores.new("redis")
    now = dt.datetime.now(dt.UTC)
    zone = dt.timezone(dt.timedelta(hours=9))
    for place, when in ((source, now), (target, now.astimezone(zone))):
        document = {
            "status": "SUCCESS",
            "result": 1,
            "traceback": None,
            "children": [],
            "date_done": when.isoformat(),
        }
        place.redis.set(TASK + "one", json.dumps(document), ex=EXPIRES)
    assert Copying(tmp_path, source, target).run(verb="verify").code == 0


@pytest.mark.parametrize(
    ("scheme", "date"),
    [("postgresql", "infinity"), ("mysql", "0000-00-00 00:00:00"), ("sqlite", "tomorrow")],
)
def test_a_date_that_none_has_is_told_and_ends_nothing(stores, tmp_path, scheme, date):
    source, target = stores.new(scheme), stores.new("redis")
    names = list(fill(source))
    copying = Copying(tmp_path, source, target)
    assert copying.run().code == 0
    source.database.rows(f"UPDATE celery_taskmeta SET date_done = '{date}' WHERE task_id = '{names[0]}'")  # noqa: S608
    ran = copying.run(verb="verify")
    assert ran.code == 1, ran
    ((told, verdict),) = found(ran.document).items()
    assert (told, verdict[0]) == (names[0], "different")
    target.redis.delete(TASK + names[0])
    ran = copying.run(verb="verify")
    assert found(ran.document) == {names[0]: ("missing", ())}


def test_a_rate_and_the_brake_hold_it_back_and_the_page_shows_the_rate_over_time(stores, tmp_path):
    source, target = stores.new("redis"), stores.new("postgresql")
    bulk(source, 6_000)
    copying = Copying(tmp_path, source, target)
    assert copying.run().code == 0
    # No store answers within a microsecond: after its first second each survey is held back.
    page = tmp_path / "page.html"
    ran = copying.run("--rate", "1000", "--latency", "0.001", "--html", str(page), verb="verify")
    assert ran.code == 0, ran
    for side in ("source", "target"):
        told = ran.document[side]
        assert told["seconds"] >= 6_000 / 1_000 - 0.6
        assert told["lowest_share"] <= 0.5
        assert len(told["rates"]) > 5
        assert max(rate for _, rate in told["rates"][1:]) < 3_000
        assert sum(told["states"].values()) == 6_000
    assert page.read_text().count("<polyline") == 2
    assert "Rate over time" in page.read_text()
    free = copying.run("--no-brake", verb="verify").document
    assert free["source"]["lowest_share"] == free["target"]["lowest_share"] == 1.0
    assert free["source"]["seconds"] < ran.document["source"]["seconds"]
