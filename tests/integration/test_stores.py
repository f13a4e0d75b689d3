"""Stores as people have them: prefixes, schemas, other names and SQL modes, older tables, restarts."""

from __future__ import annotations

import json

import pytest
from tests.integration.copy_case import (
    Copying,
    bulk,
    database_place,
    fill,
    place_on,
    save_groups,
    seen,
)
from tests.integration.database_case import until
from tests.integration.database_lab import MariaDBLab, PostgresLab
from tests.integration.redis_lab import RedisLab

from celery_results.migration.engine import Copy, Options
from celery_results.stores.endpoint import of_settings

ODD = """
CREATE SCHEMA "odd.one";
CREATE SEQUENCE "odd.one".task_id_sequence;
CREATE SEQUENCE "odd.one".taskset_id_sequence;
CREATE TABLE "odd.one"."results%" (
  id integer PRIMARY KEY, task_id varchar(155) UNIQUE, status varchar(50), result bytea, date_done timestamp,
  traceback text, children bytea, name varchar(155), args bytea, kwargs bytea, worker varchar(155),
  retries integer, queue varchar(155), stamps bytea);
CREATE TABLE "odd.one".groups (
  id integer PRIMARY KEY, taskset_id varchar(155) UNIQUE, result bytea, date_done timestamp);
GRANT USAGE ON SCHEMA "odd.one" TO celery_worker;
GRANT ALL ON ALL TABLES IN SCHEMA "odd.one" TO celery_worker;
GRANT ALL ON ALL SEQUENCES IN SCHEMA "odd.one" TO celery_worker
"""


def settings(place, **more):
    """Give the settings of a place as a library's user does."""
    return {
        "result_backend": place.url,
        "result_expires": 86_400,
        "timezone": "UTC",
        **place.settings,
        **more,
    }


def copied(source, target):
    """Copy as a library's user does."""
    progress = Copy(of_settings(settings(source), "one"), of_settings(settings(target), "two")).run()
    assert progress.complete
    assert progress.failures == []
    return progress


def test_key_prefixes_are_each_sides_own(stores):
    source, target = stores.new("redis"), stores.new("redis")
    source.settings["result_backend_transport_options"] = {"global_keyprefix": "app[1]*"}
    target.settings["result_backend_transport_options"] = {"global_keyprefix": "new"}
    stored = fill(source)
    groups = save_groups(source)
    source.redis.set("app1*_celery-task-meta-other", "of another app")
    progress = copied(source, target)
    assert progress.tallies["results"].copied == len(stored)
    assert progress.tallies["groups"].copied == len(groups)
    assert all(key.startswith("new_celery-task") for key in target.redis.keys("*"))
    for identifier in stored:
        assert seen(target.app(), identifier) == seen(source.app(), identifier)


def test_names_and_schemas_of_tables_are_the_settings(stores):
    source, target = stores.new("redis"), stores.new("postgresql", tables="none")
    with target.database.admin() as connection:
        for statement in ODD.split(";"):
            connection.execute(statement)
    target.settings.update(
        database_table_names={"task": "results%", "group": "groups"},
        database_table_schemas={"task": "odd.one", "group": "odd.one"},
    )
    stored = fill(source)
    groups = save_groups(source)
    assert copied(source, target).total.copied == len(stored) + len(groups)
    for identifier in stored:
        assert seen(target.app(), identifier) == seen(source.app(), identifier)
    back = stores.new("redis")
    assert copied(target, back).total.copied == len(stored) + len(groups)


def test_a_mode_without_backslashes_changes_nothing():
    with MariaDBLab(options={"sql-mode": "NO_BACKSLASH_ESCAPES"}) as lab:
        source, target = database_place(lab), database_place(lab)
        stored = fill(source)
        assert copied(source, target).total.copied == len(stored)
        for identifier in stored:
            assert seen(target.app(), identifier) == seen(source.app(), identifier)


def test_a_row_above_the_servers_packet_fails_alone(stores, tmp_path):
    source = stores.new("redis")
    stored = fill(source)
    with MariaDBLab(options={"max-allowed-packet": "1M"}) as lab:
        target = database_place(lab)
        ran = Copying(tmp_path, source, target).run()
        assert ran.code == 1
        assert [failure["id"].split("-")[0] for failure in ran.document["failures"]] == ["large"]
        assert "max_allowed_packet" in ran.document["failures"][0]["reason"]
        assert ran.document["results"]["copied"] == len(stored) - 1


def test_an_older_table_is_read_and_not_written(stores, tmp_path):
    source, target = stores.new("sqlite"), stores.new("redis")
    fill(source)
    source.database.rows("ALTER TABLE celery_taskmeta DROP COLUMN stamps")
    source.database.rows("ALTER TABLE celery_taskmeta DROP COLUMN children")
    count = source.count()
    assert copied(source, target).total.copied == count
    ran = Copying(tmp_path, target, source).run()
    assert ran.code == 1
    assert "children" in ran.document["error"]["found"]


@pytest.mark.parametrize("origin", ["redis", "postgresql"])
def test_a_source_that_goes_away_in_the_middle_is_read_to_its_end(stores, tmp_path, origin):
    target = stores.new("sqlite")
    filler = stores.new("redis")
    ids = bulk(filler, 20_000)
    with RedisLab(tmp_path / "source") if origin == "redis" else PostgresLab() as lab:
        source = place_on(lab)
        assert copied(filler, source).total.copied == len(ids)
        if isinstance(lab, RedisLab):
            source.redis.config_set("appendonly", "yes")
            until(lambda: source.redis.info("persistence")["aof_rewrite_in_progress"] == 0, "it is written")
            until(lambda: source.redis.info("persistence")["aof_rewrite_scheduled"] == 0, "it is written")
            with (lab.directory / "redis.conf").open("a") as file:
                file.write("appendonly yes\n")
        with Copying(tmp_path / "run", source, target).start("--batch", "500", "--rate", "8000") as process:
            until(lambda: target.count() > 2_000, "it has begun")
            assert process.poll() is None
            lab.kill()
            lab.restart()
            stdout, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stdout + stderr
        assert target.ids() == ids
        # Cursors of another life of a Redis mean nothing; rows have the ids that they had.
        assert json.loads(stdout)["passes"] == (2 if origin == "redis" else 1)


def test_small_batches_change_nothing(stores):
    source, target = stores.new("redis"), stores.new("postgresql")
    stored = fill(source)
    one, two = of_settings(settings(source), "one"), of_settings(settings(target), "two")
    progress = Copy(one, two, options=Options(rows=1, size=1)).run()
    assert progress.total.copied == len(stored)
    back = stores.new("redis")
    progress = Copy(two, of_settings(settings(back), "three"), options=Options(rows=1, size=1)).run()
    assert progress.total.copied == len(stored)
    for identifier in stored:
        assert seen(back.app(), identifier) == seen(source.app(), identifier)


@pytest.mark.parametrize("scheme", ["postgresql", "mysql", "sqlite"])
def test_how_far_a_database_is_read_is_told_by_its_ids(stores, scheme):
    filler, source = stores.new("redis"), stores.new(scheme)
    bulk(filler, 100)
    copied(filler, source)
    read = of_settings(settings(source), "one").source()
    read.connect()
    try:
        told = [batch.fraction for batch in read.batches(None, 10, 1 << 20)]
    finally:
        read.close()
    assert len(told) == 10
    assert told == sorted(told)
    assert told[0] < 0.2
    assert told[-1] > 0.9
