"""The engine without a server: pace and brake, checkpoints, threads, and stores that only exist here."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from typing import Any

import psycopg
import pymysql
import pytest
from redis.exceptions import OutOfMemoryError, ResponseError
from sqlalchemy.exc import OperationalError

from celery_results.backends.database.errors import Fault
from celery_results.migration.ahead import Ahead
from celery_results.migration.checkpoint import Checkpoint, Progress
from celery_results.migration.display import Speed
from celery_results.migration.errors import CheckpointError, CopyError
from celery_results.migration.pace import Brake, Pace
from celery_results.migration.patience import Patience, StoppedError
from celery_results.stores.record import Failure
from celery_results.stores.redis import _common_prefix, _escaped, fraction, pack
from celery_results.stores.sequential import DuplicateError, RefusedRowsError, SqlTarget


class Clock:
    """A time that only passes where somebody sleeps."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


# ---- pace


@pytest.mark.parametrize("chosen", [0, 5])
def test_it_gives_way_unless_somebody_chose_a_niceness(chosen):
    before = os.nice(0) + chosen  # these tests may have been given one too
    code = "import os; from celery_results.migration.pace import give_way; give_way(); print(os.nice(0))"
    ran = subprocess.run(
        ["nice", "-n", str(chosen), sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(ran.stdout) == (before or 10)


def test_a_rate_is_a_limit_and_not_an_average():
    clock = Clock()
    pace = Pace(100, clock=clock, sleep=clock.sleep)
    clock.now += 60  # a pause that nobody may catch up with
    began = clock.now
    for _ in range(10):
        pace.begin()
        pace.after(50, lambda: False)
    assert clock.now - began == pytest.approx(5, abs=0.3)


def test_who_wants_the_end_does_not_wait():
    clock = Clock()
    pace = Pace(1, clock=clock, sleep=clock.sleep)
    pace.begin()
    pace.after(1000, lambda: clock.now > 101)
    assert clock.now < 102


def test_a_brake_goes_down_fast_and_up_slowly():
    answers: list[float] = []
    brake = Brake("it", lambda: [answers.pop(0) for _ in range(min(10, len(answers)))])
    answers += [0.004] * 40
    brake.settle(lambda _: None)
    assert brake.limit == pytest.approx(0.012)
    answers[:] = [0.05] * 30
    assert [brake.judge() for _ in range(3)] == [0.5, 0.25, 0.125]
    answers[:] = [0.001] * 200
    shares = [brake.judge() for _ in range(12)]
    assert shares == sorted(shares)
    assert shares[0] == pytest.approx(0.225)
    assert shares[-1] == 1
    assert brake.lowest == 0.125


def test_a_brake_waits_in_proportion_to_the_work():
    clock = Clock()
    brake = Brake("it", lambda: [1.0] * 10, limit=0.01)
    pace = Pace(brakes=[brake], clock=clock, sleep=clock.sleep)
    pace.begin()
    clock.now += 2
    before = clock.now
    pace.after(1, lambda: False)
    assert clock.now - before == pytest.approx(2, abs=0.3)  # a share of one half


def test_without_an_answer_nothing_is_judged():
    brake = Brake("it", list, limit=0.01)
    assert brake.judge() == 1


# ---- checkpoints


def test_a_checkpoint_gives_back_what_it_took(tmp_path):
    file = Checkpoint(tmp_path / "c", "a", "b")
    progress = Progress(position={"cursor": 7}, fraction=0.5, source_identity="x", passes=2, copied_before=3)
    progress.tallies["results"].read = 9
    progress.lossy["group_id"] = 4
    progress.failures.append(Failure("groups", "g", "why"))
    file.save(progress)
    assert file.load() == progress
    assert list(tmp_path.iterdir()) == [tmp_path / "c"]
    progress.complete = True
    file.save(progress)
    assert file.load() == Progress()


def test_a_checkpoint_of_others_or_none_is_refused(tmp_path):
    Checkpoint(tmp_path / "c", "a", "b").save(Progress())
    with pytest.raises(CheckpointError, match="--checkpoint"):
        Checkpoint(tmp_path / "c", "a", "z").load()
    for text in ("", "[]", "{}", '{"format": 1, "pair": {"source": "a", "target": "b"}}'):
        (tmp_path / "c").write_text(text)
        with pytest.raises(CheckpointError, match="remove it"):
            Checkpoint(tmp_path / "c", "a", "b").load()
    with pytest.raises(CheckpointError, match="directory of your own"):
        Checkpoint(tmp_path / "none" / "c", "a", "b").save(Progress())


def test_only_one_holds_a_checkpoint(tmp_path):
    file = Checkpoint(tmp_path / "c", "a", "b")
    with (
        file.alone(),
        pytest.raises(CheckpointError, match="another copy"),
        Checkpoint(file.path, "a", "b").alone(),
    ):
        pass
    with file.alone():
        pass


def test_a_new_pass_forgets_all_but_what_was_copied():
    progress = Progress(position={"cursor": 1})
    progress.tallies["results"].copied = 5
    progress.tallies["groups"].copied = 1
    progress.begin_anew()
    assert (progress.position, progress.copied_before, progress.passes) == (None, 6, 2)
    assert progress.total.copied == 0
    assert json.dumps(progress.document())


# ---- a thread that reads ahead


def test_what_the_reader_raises_is_raised_here():
    def items():
        yield 1
        raise OSError("read")

    ahead = Ahead(items(), 2)
    seen: list[int] = []
    with pytest.raises(OSError, match="read"):
        seen.extend(ahead)
    ahead.end()


def test_a_reader_that_is_not_wanted_any_more_ends_and_tidies_up():
    tidied: list[bool] = []

    def items():
        try:
            while True:
                yield 1
        finally:
            tidied.append(True)

    ahead = Ahead(items(), 1)
    assert next(iter(ahead)) == 1
    ahead.end()
    assert tidied == [True]


# ---- stores that go away


class Flaky:
    """A store that is away for some calls."""

    def __init__(self, kind=Fault.LOST):
        self.kind = kind
        self.connects = 0

    def connect(self):
        self.connects += 1

    def identity(self):
        return f"life {self.connects}"

    def fault(self, error):
        return self.kind if isinstance(error, OSError) else Fault.FOREIGN


def patience(store: Any, *rest: Any) -> Patience:
    return Patience(store, *rest)


def failing(times):
    left = [OSError("away")] * times

    def work():
        if left:
            raise left.pop()
        return "done"

    return work


def test_a_lost_store_is_tried_again_and_seen_anew():
    store = Flaky()
    lives: list[str] = []
    assert patience(store, "it", 30, lambda: False).run(failing(2), lives.append) == "done"
    assert lives == ["life 1", "life 2"]


@pytest.mark.parametrize("kind", [Fault.REFUSED, Fault.READ_ONLY, Fault.MISSING])
def test_what_would_fail_again_is_not_tried_again(kind):
    store = Flaky(kind)
    with pytest.raises(Exception, match="away"):
        patience(store, "it", 30, lambda: False).run(failing(1), lambda _: None)
    assert store.connects == 0


def test_patience_ends():
    began = time.monotonic()
    with pytest.raises(CopyError, match="it to answer"):
        patience(Flaky(), "it", 0.3, lambda: False).run(failing(99), lambda _: None)
    assert time.monotonic() - began < 5


def sqlite_full() -> sqlite3.OperationalError:
    with sqlite3.connect(":memory:") as connection:
        connection.execute("PRAGMA max_page_count = 2")
        connection.execute("CREATE TABLE t (a)")
        with pytest.raises(sqlite3.OperationalError) as refusal:
            connection.execute("INSERT INTO t VALUES (zeroblob(100000))")
    return refusal.value


FULL = {
    "postgresql": psycopg.errors.DiskFull("could not extend file"),
    "mysql": pymysql.err.OperationalError(1114, "The table 'celery_taskmeta' is full"),
    "sqlite": sqlite_full(),
    "redis": OutOfMemoryError("OOM command not allowed when used memory > 'maxmemory'."),
    "redis's disk": ResponseError("MISCONF Errors writing to the AOF file: No space left on device"),
    "stock": OperationalError("INSERT", {}, psycopg.errors.DiskFull("could not extend file")),
}


@pytest.mark.parametrize("error", FULL.values(), ids=FULL)
def test_a_store_without_room_is_told_with_what_to_do(error):
    class Full(Flaky):
        def fault(self, _error):
            return Fault.BUSY

    def work():
        raise error

    with pytest.raises(CopyError) as ended:
        patience(Full(), "it", 0, lambda: False).run(work, lambda _: None)
    assert ended.value.expected == "room in it"
    assert ended.value.do.startswith("make room there")


def test_a_defect_of_ours_is_no_absence():
    def work():
        raise KeyError("x")

    with pytest.raises(KeyError):
        patience(Flaky(), "it", 30, lambda: False).run(work, lambda _: None)


def test_who_wants_the_end_does_not_wait_for_a_store():
    with pytest.raises(StoppedError):
        patience(Flaky(), "it", 30, lambda: True).run(failing(9), lambda _: None)


# ---- insert what is absent


class Table:
    """One table; a row called bad is refused, and others may write before each insert."""

    packer = None

    def __init__(self, there=(), before=()):
        self.rows = dict.fromkeys(there, "theirs")
        self.before = list(before)
        self.inserts = 0
        self.asked = []

    def present(self, kind, ids):
        del kind
        self.asked.append(list(ids))
        return {identifier for identifier in ids if identifier in self.rows}

    def insert(self, kind, rows):
        del kind
        self.inserts += 1
        if self.before:
            self.rows.update(dict.fromkeys(self.before.pop(0), "theirs"))
        ids = [row[0] for row in rows]
        if b"bad" in ids:
            raise RefusedRowsError("too long")
        if len(set(ids)) < len(ids) or any(identifier in self.rows for identifier in ids):
            raise DuplicateError
        self.rows.update(dict.fromkeys(ids, "ours"))


def target_of(table: Any) -> SqlTarget:
    return SqlTarget(table)


def some(*ids, age=0.0):
    """Packed rows that ended so many seconds ago; unfinished ones if that is None."""
    date = None if age is None else int((time.time() - age) * 1e6)
    return [(identifier, b"packed", date) for identifier in ids]


def test_a_row_that_is_there_stays_also_if_it_comes_between():
    table = Table(there=[b"a"], before=[[], [b"c"], [b"d"]])
    done = target_of(table).write("results", some(b"a", b"b", b"c", b"d", b"e"))
    assert (done.copied, done.present, done.failures) == (2, 3, [])
    assert table.rows == {b"a": "theirs", b"b": "ours", b"c": "theirs", b"d": "theirs", b"e": "ours"}


def test_a_refused_row_is_found_and_the_others_are_stored():
    table = Table(there=[b"7"])
    ids = [b"%d" % number for number in range(100)]
    ids[42] = b"bad"
    done = target_of(table).write("results", some(*ids))
    assert (done.copied, done.present) == (98, 1)
    assert done.failures == [Failure("results", "bad", "too long")]


def test_a_key_that_a_scan_gives_twice_is_stored_once():
    done = target_of(Table()).write("results", some(b"a", b"b", b"a"))
    assert (done.copied, done.present) == (2, 1)


def test_where_something_was_there_the_next_batch_looks_first():
    table = Table(there=[b"a"])
    target = target_of(table)
    target.write("results", some(b"a", b"b"))
    table.inserts = 0
    target.write("results", some(b"a", b"b"))
    assert table.inserts == 0


def test_only_what_is_as_young_as_what_was_there_is_looked_for():
    table = Table(there=[b"theirs"])
    target = target_of(table)
    target.write("results", some(b"old", age=9_000) + some(b"theirs", age=300))
    table.rows[b"more"] = "theirs"
    table.asked.clear()
    table.inserts = 0
    batch = (
        some(b"older", age=9_000) + some(b"more", age=100) + some(b"young", age=500) + some(b"new", age=None)
    )
    done = target.write("results", batch)
    assert table.asked == [[b"more", b"young", b"new"]]
    assert (table.inserts, done.copied, done.present) == (1, 3, 1)


def test_what_is_older_than_all_that_was_there_stays_too():
    table = Table(there=[b"theirs", b"ancient"])
    target = target_of(table)
    target.write("results", some(b"a", age=9_000) + some(b"theirs", age=3))
    done = target.write("results", some(b"b") + some(b"ancient", age=90_000))
    assert (done.copied, done.present) == (1, 1)
    assert table.rows[b"ancient"] == "theirs"
    table.asked.clear()
    target.write("results", some(b"c", age=80_000))
    assert table.asked == [[b"c"]], "it has learnt that what is there is old"


def test_where_nothing_was_there_for_long_nothing_is_looked_for():
    table = Table(there=[b"a"])
    target = target_of(table)
    target.write("results", some(b"a"))
    for number in range(8):
        target.write("results", some(b"%d" % number))
    table.asked.clear()
    target.write("results", some(b"last"))
    assert table.asked == []


# ---- small things


def test_a_cursor_tells_how_far_a_scan_is():
    """Cursors of a table of 8 buckets, in the order in which SCAN gives them."""
    assert [fraction(cursor) for cursor in (0, 4, 2, 6, 1, 5, 3, 7)] == [number / 8 for number in range(8)]


def test_keys_are_matched_as_they_are():
    assert _common_prefix([b"celery-task-meta-", b"celery-taskset-meta-"]) == b"celery-task"
    assert _common_prefix([b"ab", b"ab"]) == b"ab"
    assert _escaped(b"a*[b]?\\") == b"a\\*\\[b\\]\\?\\\\"
    assert pack([b"GET", b"\r\n"]) == b"*2\r\n$3\r\nGET\r\n$2\r\n\r\n\r\n"


def test_speed_is_of_this_run():
    clock = Clock()
    speed = Speed(clock)
    progress = Progress(fraction=0.5)
    progress.tallies["results"].read = 500
    assert speed.of(progress)[1] is None
    clock.now += 10
    progress.fraction = 0.75
    progress.tallies["results"].read = 1000
    rate, left = speed.of(progress)
    assert rate == pytest.approx(50)
    assert left == pytest.approx(10)
