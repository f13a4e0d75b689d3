"""Parts of plan, stage and repair that need no server."""

from __future__ import annotations

import json

import pytest
from celery.app.utils import filter_hidden_settings

from celery_results.migration.census import Census
from celery_results.migration.drain import from_rpc, to_rpc
from celery_results.migration.given import Found, GivenError, read
from celery_results.migration.journal import GROUP, TASK
from celery_results.migration.plan import Plan
from celery_results.migration.stages import Runs, place, problems

SECRET = "p%40ss"
OLD = (
    f"celery_results.backends.redis:RedisBackend+rediss://celery-worker:{SECRET}@a:6379/0?ssl_cert_reqs=none"
)
NEW = (
    "celery_results.backends.database:DatabaseBackend+postgresql+psycopg://"
    f"u:{SECRET}@b/db?sslmode=x&password={SECRET}"
)
DUAL = "celery_results.backends.dual:DualBackend"


@pytest.mark.parametrize(
    ("backend", "told"),
    [
        (OLD, "rediss://a:6379/0"),
        (NEW, "postgresql+psycopg://b/db"),
        (f"db+mysql+pymysql://u:{SECRET}@h:3306/x", "mysql+pymysql://h:3306/x"),
        (f"sentinel://:{SECRET}@a:1/0;sentinel://:{SECRET}@b:2/0", "sentinel://a:1/0;sentinel://b:2/0"),
        (f"redis+socket://:{SECRET}@/run/redis.sock", "redis+socket:///run/redis.sock"),
        ("celery_results.backends.database:DatabaseBackend+sqlite:////var/r.db", "sqlite:////var/r.db"),
        ("rpc://", "rpc://"),
        ("celery_results.backends.rpc:RPCBackend+rpc://", "rpc://"),
        ("none", "none"),
    ],
)
def test_a_place_is_told_without_login_and_query(backend, told):
    assert place(backend) == told


def test_what_a_worker_answers_is_read_as_the_settings_are():
    settings = {
        "result_backend": DUAL,
        "result_backend_transport_options": {
            "stage": "cutover",
            "old": {"result_backend": OLD},
            "new": {"result_backend": NEW, "database_engine_options": {"password": SECRET}},
            "journal": "/j",
        },
    }
    answered = filter_hidden_settings(settings)
    assert SECRET not in json.dumps(answered["result_backend_transport_options"]["old"])
    runs = Runs.of_settings("w", answered)
    assert runs == Runs.of_settings("w", settings)
    assert runs == Runs("w", "postgresql+psycopg://b/db -> rediss://a:6379/0", "cutover")
    assert SECRET not in runs.words()


@pytest.mark.parametrize("options", [None, {}, {"stage": "sometime"}, "********"])
def test_a_dual_backend_whose_stage_is_not_told_is_in_no_known_stage(options):
    runs = Runs.of_settings("w", {"result_backend": DUAL, "result_backend_transport_options": options})
    assert runs.stage == "unknown"
    for stage in ("dual_write", "none"):
        assert problems([runs], stage, ())


def test_a_report_gives_what_can_be_repaired():
    def finding(verdict, kind, name, fields=()):
        return {"verdict": verdict, "kind": kind, "id": name, "bucket": 1, "fields": list(fields)}

    report = {
        "began": 12.5,
        "missing": 3,
        "extra": 1,
        "different": 1,
        "moving": 0,
        "expired": 1,
        "findings": [
            finding("missing", "result", "a"),
            finding("missing", "group", "a"),
            finding("different", "result", "b", ["queue"]),
            finding("extra", "result", "c"),
            finding("expired", "result", "d"),
        ],
    }
    given = read(json.dumps(report))
    assert given.found == (
        Found(TASK, "a"),
        Found(GROUP, "a"),
        Found(TASK, "b", ("queue",)),
        Found(TASK, "c"),
    )
    assert (given.unnamed, given.began, given.differences) == (1, 12.5, 5)


def test_ids_are_lines_and_a_broken_report_is_no_id():
    assert read("a\n b \n\na\n").found == (Found(TASK, "a"), Found(TASK, "b"))
    assert read("").found == ()
    with pytest.raises(GivenError):
        read(' {"findings": [{"verdict": "missing"}]}')


def test_steps_of_a_drain_are_single_lines_and_name_what_is_there():
    steps = (*from_rpc(), *to_rpc(Census(results=7, longest=5400, chords=2)))
    assert all("\n" not in step and "{" not in step for step in steps)
    assert "The 7 that are stored" in steps[5]
    assert "in 1.5 hours" in steps[5]
    assert "(2 now" in steps[7]


def test_an_empty_store_needs_nothing_and_takes_no_time():
    plan = Plan("redis://a", "postgresql", Census(chords=0), form="documents")
    document = plan.document()
    assert (document["target_bytes"], document["bytes"], document["exact"]) == (0, 0, True)
    assert document["seconds"][0] == 0
