"""`celery-results plan` with real servers: what it tells is what a copy then does; it changes nothing."""

from __future__ import annotations

import datetime as dt
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from tests.integration.copy_case import EXPIRES, SOURCE, Copying, Place, Stores, bulk, fill, save_groups
from tests.integration.verbs_support import Ran

from celery_results.commands import plan as verb
from celery_results.migration.plan import TARGETS

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY = "celery-task-meta-"


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> Iterator[Stores]:
    with Stores(tmp_path_factory.mktemp("stores")) as made:
        yield made


def run(place: Place, target: str, *arguments: str, text: bool = False, **environment: str) -> Ran:
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "celery_results", "plan", "--from", "env:PLAN_FROM", "--to", target),
            *([] if text else ["--json"]),
            *arguments,
        ],
        env={**os.environ, "PYTHONPATH": str(SOURCE), "PLAN_FROM": place.url, **environment},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    return Ran(ran.returncode, ran.stdout, ran.stderr)


def snapshot(place: Place) -> Any:
    if place.redis is not None:
        return {
            key: place.redis.dump(key) for key in place.redis.scan_iter() if place.redis.type(key) != "none"
        }
    assert place.database is not None
    return place.database.rows("SELECT * FROM celery_taskmeta ORDER BY id")


def test_the_targets_are_those_of_the_plan():
    assert verb.TARGETS == TARGETS


@pytest.mark.parametrize(
    "way",
    [("redis", "postgresql"), ("redis", "redis"), ("postgresql", "redis"), ("mysql", "sqlite")],
    ids="-".join,
)
def test_what_it_tells_is_what_a_copy_then_does(stores, tmp_path, way):
    source, target = (stores.new(scheme) for scheme in way)
    stored = fill(source)
    save_groups(source)
    if source.redis is not None:
        source.redis.persist(KEY + next(name for name in stored if name.startswith("true")))
        source.redis.set(f"{KEY}nothing", b"{broken", ex=EXPIRES)
        source.redis.set(f"{KEY}{'x' * 156}", source.redis.get(KEY + next(iter(stored))), ex=EXPIRES)
        source.redis.set("celery-taskset-meta-in-flight.s", 3)
        source.redis.zadd("celery-taskset-meta-in-flight.j", {"part": 1})
    before = snapshot(source)
    ran = run(source, way[1])
    assert ran.code == 0, ran
    told = ran.document
    assert snapshot(source) == before
    copied = Copying(tmp_path, source, target).run().document
    assert told["exact"] is True
    assert told["results"] == copied["results"]["read"]
    assert told["groups"] == copied["groups"]["read"] == 2
    assert told["lossy"] == copied["lossy"]
    assert told["failed"] == len(copied["failures"])
    assert told["chords"] == (1 if source.redis is not None else None)
    states = {state: list(stored.values()).count(state) for state in stored.values()}
    for state in ("STARTED", "RETRY", "REVOKED", "halfway-there"):
        assert told["states"][state] == states[state]
    assert told["unfinished"] >= 5
    assert sum(told["life"].values()) == told["results"]
    assert told["rate"] > 0
    assert told["seconds"][0] <= told["seconds"][1]


def test_lives_fall_into_their_bins(stores):
    source = stores.new("redis")
    ids = sorted(bulk(source, 12))
    for place, seconds in enumerate((60, 7200, 7200, 80_000, 500_000, 700_000)):
        source.redis.expire(KEY + ids[place], seconds)
    source.redis.persist(KEY + ids[11])
    told = run(source, "postgresql").document
    assert told["life_by"] == "ttl"
    # The other five are stored for a day, of which a moment has passed.
    assert told["life"] == {
        "<1 h": 1,
        "<6 h": 2,
        "<1 d": 6,
        "<7 d": 1,
        "longer": 1,
        "never": 1,
        "unfinished": 0,
    }
    assert told["lossy"] == {"expiry": 6, "never_expires": 1}
    assert told["longest_seconds"] > 690_000


def test_lives_of_a_database_go_by_age(stores):
    source = stores.new("postgresql")
    fill(source)
    now = dt.datetime.now(dt.UTC).replace(tzinfo=None)
    (row,) = source.database.rows("SELECT min(id) FROM celery_taskmeta WHERE date_done IS NOT NULL")
    source.database.rows(
        f"UPDATE celery_taskmeta SET date_done = '{now - dt.timedelta(hours=20)}' WHERE id = {row[0]}"  # noqa: S608
    )
    told = run(source, "redis").document
    assert told["life_by"] == "age"
    assert told["life"]["<6 h"] == 1
    assert told["life"]["unfinished"] > 0
    assert told["life"]["never"] == 0


@pytest.mark.parametrize("scheme", ["redis", "postgresql", "mysql", "sqlite"])
def test_a_sample_counts_everything_and_estimates_the_rest(stores, tmp_path, scheme):
    first = stores.new("redis")
    bulk(first, 3000)
    source = first if scheme == "redis" else stores.new(scheme)
    if source is not first:
        assert Copying(tmp_path, first, source).run().code == 0
    told = run(source, "postgresql" if scheme == "redis" else "redis", "--sample", "500").document
    whole = run(source, "postgresql" if scheme == "redis" else "redis").document
    assert (told["exact"], whole["exact"]) == (False, True)
    assert told["results"] == whole["results"] == 3000
    assert 450 <= told["sampled"] <= 550
    assert sum(told["states"].values()) == pytest.approx(3000, abs=3)
    assert told["bytes"] == pytest.approx(whole["bytes"], rel=0.02)
    assert "500" in told["notes"][0] or "looks at each" in told["notes"][0]


@pytest.mark.parametrize("target", ["redis", "postgresql", "mysql", "sqlite"])
def test_the_estimated_size_is_near_what_a_copy_needs(stores, tmp_path, target):
    source = stores.new("redis")
    bulk(source, 10_000, lambda number: f"{number:>400}")
    place = stores.new(target)
    before = _size(place)
    told = run(source, target).document
    assert Copying(tmp_path, source, place).run().code == 0
    needed = _size(place) - before
    for used in (source, place):
        if used.redis is not None:
            used.redis.flushdb()
    assert needed / 1.5 < told["target_bytes"] < needed * 1.5


def _size(place: Place) -> int:
    if place.redis is not None:
        return int(place.redis.info("memory")["used_memory"])
    assert place.database is not None
    rows = place.database.rows
    if place.scheme == "postgresql":
        return int(rows("SELECT pg_total_relation_size('celery_taskmeta')")[0][0])
    if place.scheme == "sqlite":
        return int(rows("PRAGMA page_count")[0][0]) * int(rows("PRAGMA page_size")[0][0])
    rows("ANALYZE TABLE celery_taskmeta")
    found = rows(
        "SELECT data_length + index_length FROM information_schema.tables"
        " WHERE table_name = 'celery_taskmeta' AND table_schema = database()"
    )
    return int(found[0][0])


def test_ids_and_lives_by_one_login_values_by_another(stores):
    lab = stores.lab("redis")
    # The logins of the bundle: the worker's has no SCAN, the exporter's no GET.
    source = Place("redis", lab.url("worker", 0), redis=stores.new("redis").redis)
    with lab.admin() as admin:
        admin.flushall()
        admin.acl_setuser(
            "lister",
            enabled=True,
            passwords=["+lister-password"],
            keys=["celery-*"],
            commands=["-@all", "+scan", "+pttl", "+ping", "+select", "+client|setname"],
        )
    source.redis = lab.admin()
    bulk(source, 100)
    refused = run(source, "postgresql")
    assert refused.code == 1
    assert "--list-with" in refused.document["error"]["do"]
    url = lab.url("admin", 0)
    password = lab.passwords["admin"]
    lister = url.replace(f"admin:{quote(password, safe='')}@", "lister:lister-password@")
    assert lister != url
    ran = run(source, "postgresql", "--list-with", "env:PLAN_LIST", PLAN_LIST=lister)
    assert ran.code == 0, ran
    assert (ran.document["results"], ran.document["exact"]) == (100, True)
    assert ran.document["states"] == {"SUCCESS": 100}
    for output in (ran.stdout, ran.stderr, refused.stdout, refused.stderr):
        assert lab.passwords["worker"] not in output
        assert "lister-password" not in output


def test_rabbitmq_is_a_drain_in_words(stores, tmp_path):
    source = stores.new("redis")
    bulk(source, 20)
    told = run(source, "rabbitmq").document
    assert told["results"] == 20
    assert (told["lossy"], told["seconds"], told["target_bytes"]) == (None, None, None)
    assert len(told["drain"]) > 3
    assert "The 20 that are stored" in told["drain"][0]
    text = run(source, "rabbitmq", text=True).stdout
    assert "1. Nothing can be copied" in text
    config = tmp_path / "etc"
    config.mkdir()
    (config / "celeryconfig.py").write_text(
        'result_backend = "celery_results.backends.rpc:RPCBackend+rpc://"\n'
    )
    (config / "rpc.env").write_text("CELERYCONFIG_RESULT_NAME=rabbitmq\n")
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "celery_results", "plan", "--from", str(config / "rpc.env")),
            *("--config-directory", str(config), "--to", "postgresql", "--json"),
            *("--list-with", str(config / "monitor.env")),  # not read: there is nothing to list
        ],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran
    document = json.loads(ran.stdout)
    assert "Nothing can be copied" in document["drain"][0]
    assert "Deploy the new backend: workers first" in document["drain"][3]
    assert "results" not in document


def test_the_table_is_for_people(stores):
    source = stores.new("redis")
    fill(source)
    text = run(source, "postgresql", text=True).stdout
    for words in ("results", "saved groups", "SUCCESS", "left to live, by ttl", "group_id", "(estimate)"):
        assert words in text
    empty = run(stores.new("postgresql"), "redis", text=True)
    assert empty.code == 0
    assert "0 bytes" in empty.stdout


def test_a_store_that_does_not_answer_is_told(stores):
    source = stores.new("redis")
    source.url = "redis://127.0.0.1:1/0"
    ran = run(source, "postgresql")
    assert ran.code == 1
    assert "to answer" in ran.document["error"]["expected"]
