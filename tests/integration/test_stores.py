"""Stores as people have them: prefixes, schemas, other names and SQL modes, older tables, restarts."""

from __future__ import annotations

import json
import time

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

from celery_results.migration.checkpoint import Checkpoint
from celery_results.migration.engine import Copy, Options
from celery_results.migration.errors import CopyError
from celery_results.stores.endpoint import of_settings
from celery_results.stores.redis import RedisTarget

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


def row(identifier, result):
    """Give a row of `TASK_COLUMNS` of a result that ended now."""
    return (identifier, b"SUCCESS", result, int(time.time() * 1e6), *[None] * 9)


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


@pytest.mark.parametrize("tables", ["provisioned", "stock"])
def test_what_a_server_refuses_between_two_statements_leaves_none_half_stored(tables):
    with MariaDBLab(options={"max-allowed-packet": "1M"}) as lab:
        place = database_place(lab, tables=tables)
        target = of_settings(settings(place), "two").target()
        target.connect()
        small = {b"%04d" % number: b'"%b"' % (b"x" * 600) for number in range(3_000)}
        rows = [row(identifier, value) for identifier, value in small.items()]
        large = row(b"large", b'"%b"' % (b"x" * (2 << 20)))
        # Several statements before it; the one under way has a row that is there, and so has a later one.
        assert target.write("results", [rows[840], rows[1_500]]).copied == 2
        done = target.write("results", [*rows[:1_000], large, *rows[1_000:]])
        assert (done.copied, done.present) == (2_998, 2)
        assert [failure.id for failure in done.failures] == ["large"]
        assert place.ids() == {identifier.decode() for identifier in small}
        assert place.database is not None
        numbers = place.database.rows("SELECT min(id) > 0, count(DISTINCT id) FROM celery_taskmeta")
        assert numbers == [(1, 3_000)]
        target.close()


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


def test_a_table_that_fails_in_the_middle_is_told_with_the_servers_reason(stores):
    source, target, filler = stores.new("postgresql"), stores.new("redis"), stores.new("redis")
    bulk(filler, 2_000)
    copied(filler, source)
    last = source.database.rows("SELECT max(id) FROM celery_taskmeta")[0][0]
    columns = (
        "id, task_id, status, result, date_done, children, name, args, kwargs, worker, retries, queue, stamps"
    )
    failing = f"SELECT {columns}, (7 / (id - {last}))::text AS traceback FROM celery_taskmeta"  # noqa: S608
    with source.database.admin() as connection:
        # So that the rows before it are on their way when the server meets it.
        connection.execute("ANALYZE celery_taskmeta")
        connection.execute(f"CREATE VIEW failing AS {failing}")
        connection.execute("GRANT SELECT ON failing TO celery_worker")
    source.settings["database_table_names"] = {"task": "failing", "group": "celery_tasksetmeta"}
    with pytest.raises(CopyError, match="division by zero"):
        copied(source, target)


@pytest.mark.parametrize("goal", ["redis", "postgresql", "mysql"])
def test_a_date_that_none_has_fails_alone(stores, goal):
    source, target = stores.new("postgresql"), stores.new(goal)
    stored = fill(source)
    dates = ("infinity", "-infinity", "294270-01-01", "0044-03-15 BC", "9999-12-31 23:59:59.5")
    names = list(stored)[: len(dates)]
    for name, date in zip(names, dates, strict=True):
        source.database.rows(f"UPDATE celery_taskmeta SET date_done = '{date}' WHERE task_id = '{name}'")  # noqa: S608
    progress = Copy(of_settings(settings(source), "one"), of_settings(settings(target), "two")).run()
    assert progress.complete
    assert {failure.id for failure in progress.failures} == set(names[:4])
    assert {failure.reason for failure in progress.failures} == {
        "date_done is no date between the years 1 and 9999"
    }
    assert seen(target.app(), names[4])["date_done"] == seen(source.app(), names[4])["date_done"]


@pytest.mark.parametrize(("origin", "date"), [("mysql", "0000-00-00 00:00:00"), ("sqlite", "tomorrow")])
def test_a_date_that_a_lenient_database_has_taken_fails_alone(stores, origin, date):
    source, target = stores.new(origin), stores.new("redis")
    name, *others = fill(source)
    source.database.rows(f"UPDATE celery_taskmeta SET date_done = '{date}' WHERE task_id = '{name}'")  # noqa: S608
    progress = Copy(of_settings(settings(source), "one"), of_settings(settings(target), "two")).run()
    assert progress.complete
    assert [failure.id for failure in progress.failures] == [name]
    assert progress.tallies["results"].copied == len(others)


def test_a_life_is_counted_from_when_it_was_asked_for(stores):
    place = stores.new("redis")
    ids = bulk(place, 3_000)
    source = of_settings(settings(place), "one").source()
    source.connect()
    prefix = "celery-task-meta-"
    found = {}
    # Small batches, most of which end between two answers; the next one is asked for late.
    for number, batch in enumerate(source.batches(None, 10_000, 50_000)):
        found.update({document.id.decode(): document.deadline for document in batch.results})
        if number < 4:
            time.sleep(0.5)
    source.close()
    assert set(found) == ids
    late = [found[name] - place.redis.pexpiretime(prefix + name) for name in ids]
    assert max(map(abs, late)) < 300


def test_what_one_script_does_not_read_is_asked_for_again(stores):
    place = stores.new("redis")
    text = "x" * 300_000
    ids = bulk(place, 60, lambda number: {"n": number, "text": text})
    source = of_settings(settings(place), "one").source()
    source.connect()
    sizes = []
    found = []
    for batch in source.batches(None, 10_000, 4 << 20):
        found += [document.id.decode() for document in batch.results]
        sizes.append(batch.size)
    assert sorted(found) == sorted(ids)
    again = [document for batch in source.batches(None, 10_000, 4 << 20) for document in batch.results]
    assert len(again) == len(ids), "nothing was left to be read of the first walk"
    # A batch, and what was under way when it was full.
    assert max(sizes) < (4 << 20) + 3 * ((1 << 20) + 2 * len(text))
    source.close()


def test_what_was_stored_before_an_error_is_noted(stores, tmp_path, monkeypatch):
    source, target = stores.new("postgresql"), stores.new("redis")
    filler = stores.new("redis")
    bulk(filler, 4_500)
    copied(filler, source)
    goal = of_settings(settings(target), "two")
    file = Checkpoint(tmp_path / "copy.json", "one", "two")
    writes = []
    write = RedisTarget.write

    def failing(self, kind, records):
        writes.append(len(records))
        if len(writes) == 4:
            raise ZeroDivisionError
        return write(self, kind, records)

    monkeypatch.setattr(RedisTarget, "write", failing)
    with pytest.raises(ZeroDivisionError):
        Copy(of_settings(settings(source), "one"), goal, file).run()
    assert target.count() == 3_000
    noted = file.load().total
    assert (noted.read, noted.copied) == (3_000, 3_000)
    progress = Copy(of_settings(settings(source), "one"), goal, file).run()
    total = progress.total
    assert (total.read, total.copied, total.present) == (4_500, 4_500, 0)
    assert sum(writes[4:]) == 1_500
