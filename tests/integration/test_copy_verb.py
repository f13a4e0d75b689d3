"""The verb as it is deployed: env files of the role, logins with little, a brake, what is printed."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.integration.copy_case import EXPIRES, OURS, SOURCE, Copying, Place, bulk, fill, redis_place, seen
from tests.integration.database_case import until
from tests.integration.lab_files import ROOT
from tests.integration.mysql_case import database_of, lab_with
from tests.integration.postgresql_lab import DeployedPostgres
from tests.integration.redis_lab import RedisLab

from celery_results.migration.pace import Brake
from celery_results.migration.probe import Probe
from celery_results.stores.endpoint import of_settings

KEYS = "~celery-task-meta-* ~celery-taskset-meta-*"
# As docs/copy.md has them.
READS = (
    "%R~celery-task-meta-* %R~celery-taskset-meta-* +ping +select +client|setname +info"
    " +scan +get +pttl +evalsha_ro +script|load"
)
LOOKS = "%R~celery-task-meta-* %R~celery-taskset-meta-* +ping +select +client|setname +scan +mget +pttl"
WRITES = f"{KEYS} +ping +select +client|setname +info +get +set +evalsha +script|load"


def copy(config, source, target, *arguments, **more):
    return subprocess.run(
        [
            *(sys.executable, "-m", "celery_results", "copy", "--config-directory", str(config)),
            *("--from", str(source), "--to", str(target), *arguments),
        ],
        env={**os.environ, "PYTHONPATH": str(SOURCE), **more},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def one(tmp_path):
    """Give a Redis of which two logins have what a copy needs, no more."""
    with RedisLab(tmp_path / "redis", acl={"reader": READS, "worker": WRITES}) as lab:
        yield lab


def test_two_env_files_of_the_role_are_all_it_needs(one, tmp_path):
    config = one.write_config(tmp_path / "etc")
    shutil.copy(ROOT / "files" / "celeryconfig" / "postgresql.py", config / "celeryconfig_postgresql.py")
    one.write_env(config / "source.env", "reader")
    source = redis_place(one)
    stored = fill(source)
    with DeployedPostgres() as postgres:
        postgres.deploy()
        shutil.copy(postgres.write_config(tmp_path / "other") / "celery.env", config / "target.env")
        arguments = (
            config,
            config / "source.env",
            config / "target.env",
            "--checkpoint",
            str(tmp_path / "c"),
        )
        ran = copy(*arguments, "--json")
        assert ran.returncode == 0, ran
        assert json.loads(ran.stdout)["results"]["copied"] == len(stored)
        target = Place("postgresql", OURS + postgres.url("celery_results", "worker", None))
        for identifier in stored:
            assert seen(target.app(), identifier) == seen(source.app(), identifier)
        everything = ran.stdout + ran.stderr + (tmp_path / "c").read_text()
        for secret in (*one.passwords.values(), *postgres.passwords.values()):
            assert secret not in everything
        assert (tmp_path / "c").stat().st_mode & 0o777 == 0o600


def test_mariadb_with_the_rights_of_the_worker(tmp_path):
    with lab_with() as lab:
        database = database_of(lab)
        first = Place("mysql", OURS + database.url("worker"), database=database)
        stored = fill(first)
        second = Place("mysql", OURS + database_of(lab).url("worker"))
        ran = Copying(tmp_path, first, second).run()
        assert ran.code == 0, ran
        assert ran.document["results"]["copied"] == len(stored)


@pytest.mark.parametrize("switch", ["ON", "OFF"])
@pytest.mark.parametrize("tables", ["provisioned", "stock"])
def test_load_data_stores_the_same_where_the_server_allows_it(one, tmp_path, switch, tables):
    with lab_with(local_infile=switch) as lab:
        source = redis_place(one)
        stored = fill(source)
        stored.pop(next(name for name in stored if name.startswith("large-")))
        database = lab.database(tables=tables)
        target = Place("mysql", OURS + database.url("worker"), database=database)
        newer = next(iter(stored))
        target.app().backend.store_result(newer, ["newer"], "SUCCESS")
        ran = Copying(tmp_path, source, target).run("--load-data")
        found = ran.document["results"]
        # Celery's own table has no room for a megabyte; nothing may be cut off by the way it comes.
        assert (found["present"], found["failed"]) == (1, int(tables == "stock"))
        assert found["copied"] == len(stored) - (tables == "stock")
        for identifier in stored.keys() - {newer}:
            expected, here = (seen(place.app(), identifier) for place in (source, target))
            if tables == "stock" and expected["date_done"] is not None:
                expected["date_done"] = expected["date_done"].replace(microsecond=0)
            assert here == expected
        assert seen(target.app(), newer)["value"] == ["newer"]
        used = dict(database.rows("SHOW GLOBAL STATUS LIKE 'Com_load'"))["Com_load"]
        assert (int(used) > 0) == (switch == "ON" and tables == "provisioned")


def test_a_login_of_redis_needs_no_more_than_the_docs_say(one, tmp_path):
    stored = fill(redis_place(one, 0))
    redis_place(one, 3)
    source, target = redis_place(one, 5, "reader"), redis_place(one, 3, "worker")
    fill(redis_place(one, 5))
    ran = Copying(tmp_path, source, target).run()
    assert ran.code == 0, ran
    assert target.count() == len(stored)
    with one.admin() as admin:
        assert not [entry for entry in admin.acl_log() if "setinfo" not in entry["object"]]


@pytest.mark.parametrize("more", ["", " +script|load +evalsha_ro"])
def test_verify_needs_no_more_than_the_docs_say(one, tmp_path, more):
    source, target = redis_place(one, 5), redis_place(one, 6)
    stored = fill(source)
    assert Copying(tmp_path, source, target).run().code == 0
    target.redis.pexpire(f"celery-task-meta-{min(stored)}", 3_600_000)
    rules = f"resetkeys -@all {LOOKS}{more}".split()
    with one.admin() as admin:
        admin.execute_command("ACL", "SETUSER", "celery-reader", *rules)
    looking = Copying(tmp_path, *(Place("redis", one.url("reader", number)) for number in (5, 6)))
    ran = looking.run("--no-brake", verb="verify")
    assert [finding["id"] for finding in ran.document["findings"]] == [min(stored)]
    assert ran.document["source"]["results"] == ran.document["target"]["results"] == len(stored)


def test_a_login_that_may_not_read_is_told_so(one, tmp_path):
    source, target = redis_place(one, 5, "client"), redis_place(one, 3)
    ran = Copying(tmp_path, source, target).run()
    assert ran.code == 1
    assert "permission" in ran.document["error"]["found"].lower()
    assert "docs/copy.md" in ran.document["error"]["do"]


def test_a_password_on_the_command_line_is_refused_and_not_repeated(tmp_path):
    ran = copy(tmp_path, "redis://user:s3cret-word@127.0.0.1/0", "sqlite:////tmp/none.sqlite3")
    assert ran.returncode == 2
    assert "s3cret-word" not in ran.stdout + ran.stderr
    assert "env:VARIABLE" in ran.stderr


@pytest.mark.parametrize(
    ("source", "said"),
    [("env:NOTHING_THERE", "NOTHING_THERE"), ("env:RPC", "drain"), ("/nowhere/celery.env", "no such file")],
)
def test_a_store_that_is_none_is_wrong_usage(one, tmp_path, source, said):
    config = one.write_config(tmp_path / "etc")
    ran = copy(config, source, config / "celery.env", RPC="rpc://")
    assert ran.returncode == 2, ran
    assert said in ran.stderr


def test_a_store_is_not_copied_into_itself(one, tmp_path):
    place = redis_place(one)
    ran = Copying(tmp_path, place, place).run()
    assert ran.code == 2
    assert "same store" in ran.stderr


def test_without_a_terminal_progress_is_lines_of_json(one, tmp_path):
    source, target = redis_place(one, 0), redis_place(one, 3)
    bulk(source, 5_000)
    ran = Copying(tmp_path, source, target).run(text=True)
    events = [json.loads(line) for line in ran.stderr.splitlines()]
    assert events[-1]["event"] == "progress"
    assert (events[-1]["read"], events[-1]["fraction"]) == (5_000, 1.0)
    assert "5000 results read: 5000 copied, 0 already there" in ran.stdout


def test_on_a_terminal_progress_is_a_bar(one, tmp_path):
    source, target = redis_place(one, 0), redis_place(one, 3)
    bulk(source, 4_000)
    ours, theirs = pty.openpty()
    copying = Copying(tmp_path, source, target)
    process = subprocess.Popen(
        copying.command("--no-brake", "--rate", "4000", "--batch", "500"),
        env={**copying.environment, "COLUMNS": "160", "TERM": "xterm"},
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            shown += os.read(ours, 65536)
        except OSError:
            break
    os.close(ours)
    assert process.wait(60) == 0
    text = shown.decode()
    for part in ("copied", "/s", "left", "%"):
        assert part in text, part


def test_a_store_that_answers_slowly_slows_the_copy_down(one, tmp_path):
    """DEBUG SLEEP would stop the copy itself: a script that spins is what a busy server looks like."""
    source, target = redis_place(one, 0), redis_place(one, 3)
    bulk(source, 20_000)
    copying = Copying(tmp_path, source, target)
    fast = copying.run()
    assert fast.code == 0
    target.redis.flushdb()
    process = subprocess.Popen(
        copying.command("--latency", "1", "--batch", "50", "--json"),
        env=copying.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    busy = (
        "local function now() local t = redis.call('TIME'); return t[1] * 1e6 + t[2] end;"
        "local till = now() + 20000; repeat until now() > till"
    )
    deadline = time.monotonic() + 10
    while process.poll() is None and time.monotonic() < deadline:
        source.redis.eval(busy, 0)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    brakes = json.loads(stdout)["brakes"]
    assert len(brakes) == 2
    assert min(brake["lowest_share"] for brake in brakes.values()) < 1


def nicenesses(pid: int) -> list[int]:
    """Give those of a process and of all that it has started; one that ends meanwhile has none."""
    try:
        own = os.getpriority(os.PRIO_PROCESS, pid)
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return sorted([own, *(niceness for child in children for niceness in nicenesses(int(child)))])


# The copy itself, or the two that read for verify; not who waits for them, nor who asks how fast a store is.
@pytest.mark.parametrize(("verb", "expected"), [("copy", [0, 0, 10]), ("verify", [0, 0, 0, 10, 10])])
def test_who_works_gives_way_to_what_else_runs_here_and_who_measures_does_not(one, tmp_path, verb, expected):
    if own := os.nice(0):  # somebody chose it, for these tests and for all that they start
        expected = [own] * len(expected)
    source, target = redis_place(one, 0), redis_place(one, 3)
    bulk(source, 2_000)
    batch = ["--batch", "100"] if verb == "copy" else []
    copying = Copying(tmp_path, source, target)
    process = subprocess.Popen(
        copying.command("--rate", "500", *batch, verb=verb),
        env=copying.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until(lambda: nicenesses(process.pid) == expected, f"{verb} works")
    finally:
        process.terminate()
        process.wait(30)


def test_a_probe_measures_a_live_store(one):
    place = redis_place(one, 0)
    store = of_settings({"result_backend": place.url, "result_expires": EXPIRES}, "it")
    with Probe(store) as probe:
        found = until(probe.answers, "the probe answers")
        assert all(0 < seconds < 1 for seconds in found)
        brake = Brake("it", probe.answers)
        brake.settle()
        assert (brake.limit or 0) >= 0.01
