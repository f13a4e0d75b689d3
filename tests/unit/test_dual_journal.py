"""The journal of owed writes: many processes, torn lines, kill -9, a full disk; and its repair."""

from __future__ import annotations

import datetime as dt
import multiprocessing
import os
import signal
import stat
import threading
import time
from typing import Any

import pytest
from celery import Celery
from celery.result import AsyncResult, GroupResult

from celery_results.backends.dual import mirror
from celery_results.backends.dual.points import point_of, remaining_seconds
from celery_results.migration import alike
from celery_results.migration import repair as module
from celery_results.migration.given import Found
from celery_results.migration.journal import (
    CHORD_PART,
    CHORD_PART_DONE,
    DELETE_GROUP,
    FORGET,
    GROUP,
    TASK,
    Entry,
    Journal,
    JournalError,
    now_entry,
    owed,
)
from celery_results.migration.repair import repair

FORKED = multiprocessing.get_context("fork")
OLD_SECONDS = 1000.0  # long enough ago to be final


def entry(identifier: str, operation: str = TASK, side: str = "new", **more: Any) -> Entry:
    return Entry(operation, identifier, side, time.time() - OLD_SECONDS, **more)


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path / "journal")


def write_many(journal: Journal, name: str, count: int) -> None:
    for number in range(count):
        journal.append([now_entry(TASK, f"{name}-{number}", "new")])


def test_lines_of_many_processes_never_mix_nor_get_lost_while_a_repair_takes_them(journal):
    writers = [FORKED.Process(target=write_many, args=(journal, str(n), 500)) for n in range(4)]
    for writer in writers:
        writer.start()
    seen: list[str] = []
    with journal.repairing():
        while any(writer.is_alive() for writer in writers) or len(journal):
            seen += [taken.id for taken in journal.claim()]
            journal.settle([])
    assert sorted(seen) == sorted(f"{n}-{number}" for n in range(4) for number in range(500))
    assert not journal.overflowed


def test_any_id_is_kept_as_it_is(journal):
    ids = ["plain", 'with "quotes"', "a\nnew line", "tab\t", "ä€\x00", "x" * 300]
    journal.append(entry(identifier) for identifier in ids)
    assert [line.id for line in journal.entries()] == ids


def test_a_torn_line_spoils_no_other_and_is_not_forgotten(journal):
    journal.append([entry("a")])
    with (journal.directory / "journal").open("ab") as file:
        file.write(entry("torn").line()[:-9])
    journal.append([entry("b")])
    assert [line.id for line in journal.entries()] == ["a", "b"]
    assert journal.overflowed


def test_the_size_is_bounded_and_the_rest_is_not_forgotten(tmp_path):
    journal = Journal(tmp_path / "journal", limit_bytes=2000)
    write_many(journal, "t", 200)
    assert (journal.directory / "journal").stat().st_size <= 2000
    assert 0 < len(journal) < 200
    assert journal.overflowed
    journal.clear_overflow()
    assert not journal.overflowed


def test_a_full_disk_is_not_forgotten(journal, monkeypatch):
    journal.append([entry("a")])

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    journal.append([entry("b")])
    assert journal.overflowed


def test_its_group_writes_it_too_and_others_cannot_read_it(journal):
    before = os.umask(0o022)
    try:
        journal.append([entry("a")])
        journal.note_overflow()
    finally:
        os.umask(before)
    for path in (journal.directory, journal.directory / "journal", journal.directory / "overflow"):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode & stat.S_IWGRP
        assert not mode & stat.S_IRWXO


def test_what_a_killed_repair_had_taken_is_taken_again(journal):
    journal.append([entry("a"), entry("b")])

    def die() -> None:
        with journal.repairing():
            journal.claim()
            os.kill(os.getpid(), signal.SIGKILL)

    killed = FORKED.Process(target=die)
    killed.start()
    killed.join()
    journal.append([entry("c")])
    assert [line.id for line in journal.entries()] == ["a", "b", "c"]
    with journal.repairing():
        assert [taken.id for taken in journal.claim()] == ["a", "b"]
        journal.settle([entry("b")])
        assert [taken.id for taken in journal.claim()] == ["c", "b"]


def test_one_repair_at_a_time(journal):
    with journal.repairing(), pytest.raises(JournalError, match="another one"), journal.repairing():
        pass


def test_each_id_is_owed_once_for_each_side_and_a_reported_part_not_at_all():
    entries = [
        entry("t", TASK),
        entry("t", FORGET),
        entry("t", TASK, "old"),
        entry("t", GROUP),
        entry("p", CHORD_PART, group="g", index=1),
        entry("q", CHORD_PART, group="g", index=2),
        entry("p", CHORD_PART_DONE, group="g"),
    ]
    left = owed(entries).values()
    assert [(line.operation, line.id, line.side) for line in left] == [
        (FORGET, "t", "new"),
        (TASK, "t", "old"),
        (GROUP, "t", "new"),
        (CHORD_PART, "q", "new"),
    ]
    assert Entry.of_line(entries[5].line()) == Entry(
        CHORD_PART, "q", "new", round(entries[5].seconds, 3), "g", 2
    )


# Repair, between two SQLite files


@pytest.fixture
def pair(tmp_path):
    """Give an app of stage dual_write, the two sides, and what sets the stage."""
    sides: dict[str, Any] = {}
    backends: dict[str, Any] = {}
    for name in ("old", "new"):
        url = f"sqlite:///{tmp_path}/{name}.sqlite3"
        maker = Celery(set_as_current=False)
        maker.conf.update(result_backend=f"db+{url}", database_create_tables_at_setup=True)
        maker.backend.get_task_meta("make the tables")
        sides[name] = {"result_backend": f"celery_results.backends.database:DatabaseBackend+{url}"}
        single = Celery(set_as_current=False)
        single.conf.update(sides[name])
        backends[name] = single.backend

    def app(stage: str = "dual_write", **more: Any) -> Celery:
        mirror._shared.clear()
        made = Celery("pair", set_as_current=False, broker="memory://")
        made.conf.update(
            result_backend="celery_results.backends.dual:DualBackend",
            result_backend_transport_options={
                "stage": stage,
                **sides,
                "journal": str(tmp_path / "journal"),
                "mirror_seconds": 0.1,
                **more,
            },
        )
        return made

    return app, backends["old"], backends["new"], Journal(tmp_path / "journal")


def test_what_the_mirror_lacks_is_copied_with_its_time(pair):
    app, old, new, journal = pair
    old.store_result("t", {"a": [1, 2.5, None]}, "SUCCESS")
    old.store_result("f", ValueError("bad", 3), "FAILURE", traceback="Traceback")
    old.store_result("s", {"pid": 1}, "STARTED")
    then = dt.datetime.now(dt.UTC).replace(tzinfo=None) - dt.timedelta(hours=5)
    old._rows("UPDATE celery_taskmeta SET date_done = ? WHERE task_id = 't'", str(then))
    journal.append([entry("t"), entry("f"), entry("s"), entry("gone")])
    report = repair(app(), seconds=30)
    assert report.clean
    assert report.copied == 3
    assert len(journal) == 0
    for name in "tfs":
        assert repr(new.get_task_meta(name)) == repr(old.get_task_meta(name))
    again = repair(app(), ids=["t"], seconds=30)
    assert (again.copied, again.clean) == (0, True)


def test_a_forgotten_result_and_a_deleted_group_go_and_a_saved_one_comes(pair):
    app, old, new, journal = pair
    new.store_result("t", 1, "SUCCESS")
    for backend, name in ((old, "saved"), (new, "deleted")):
        GroupResult(name, [AsyncResult("a", app=backend.app)], app=backend.app).save(backend=backend)
    journal.append([entry("t", FORGET), entry("deleted", DELETE_GROUP), entry("saved", GROUP)])
    report = repair(app(), seconds=30)
    assert (report.copied, report.deleted, report.clean) == (1, 2, True)
    assert new.get_task_meta("t")["status"] == "PENDING"
    assert new.restore_group("deleted") is None
    assert new.restore_group("saved").as_tuple() == old.restore_group("saved").as_tuple()


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ("SUCCESS", "STARTED", "SUCCESS"),
        ("SUCCESS", "FAILURE", "SUCCESS"),
        ("FAILURE", "STARTED", "FAILURE"),
        ("STARTED", "SUCCESS", "SUCCESS"),
        ("STARTED", "FAILURE", "FAILURE"),
        ("RETRY", "SUCCESS", "SUCCESS"),
    ],
)
@pytest.mark.parametrize("stage", ["dual_write", "cutover"])
def test_nothing_more_final_is_ever_written_over(pair, stage, source, target, expected):
    app, old, new, journal = pair
    for backend, state in ((old, source), (new, target)):
        backend.store_result("t", ValueError(state) if state in {"FAILURE", "RETRY"} else state, state)
    journal.append([entry("t")])
    report = repair(app(stage), seconds=30)
    assert not report.left
    assert new.get_task_meta("t")["status"] == expected


def test_two_different_successes_end_as_the_primarys(pair):
    app, old, new, journal = pair
    old.store_result("t", "primary", "SUCCESS")
    new.store_result("t", "mirror", "SUCCESS")
    journal.append([entry("t")])
    assert repair(app("cutover"), seconds=30).clean  # the side that lacks it is the primary now
    assert new.get_task_meta("t")["result"] == "mirror"
    journal.append([entry("t")])
    assert repair(app("dual_write"), seconds=30).clean
    assert new.get_task_meta("t")["result"] == "primary"


def test_a_live_task_is_met_while_it_is_repaired(pair, monkeypatch):
    app, old, new, journal = pair
    old.store_result("t", 1, "STARTED")
    journal.append([entry("t")])
    original = remaining_seconds

    def later(backend: Any, meta: dict[str, Any]) -> float | None:
        monkeypatch.setattr(module, "remaining_seconds", original)
        for side in (old, new):  # a worker ends the task between the read and the write
            side.store_result("t", ValueError("x"), "FAILURE")
        return original(backend, meta)

    monkeypatch.setattr(module, "remaining_seconds", later)
    assert repair(app(), seconds=30).clean
    assert new.get_task_meta("t")["status"] == "FAILURE"


def test_a_young_entry_is_looked_at_again_before_it_leaves(pair):
    app, old, new, journal = pair
    old.store_result("t", 1, "SUCCESS")
    journal.append([now_entry(TASK, "t", "new")])
    undone: list[float] = []

    def late() -> None:  # the mirror's late answer
        new._forget("t")
        undone.append(time.monotonic())

    threading.Timer(0.5, late).start()
    assert repair(app(), seconds=30).clean
    assert undone
    assert new.get_task_meta("t")["status"] == "SUCCESS"
    journal.append([now_entry(TASK, "t", "new")])
    assert [item.entry.id for item in repair(app(), seconds=0.1).left] == ["t"]
    assert len(journal) == 1


def test_a_side_that_is_away_leaves_everything_owed(pair):
    app, old, _, journal = pair
    for number in range(5):
        old.store_result(f"t{number}", 1, "SUCCESS")
    journal.append(entry(f"t{number}") for number in range(5))
    broken = app(new={"result_backend": "redis://127.0.0.1:1/0", "result_backend_always_retry": False})
    report = repair(broken, seconds=30)
    assert len(report.left) == len(journal) == 5
    assert "does not answer" in report.left[0].reason


def test_what_a_side_refuses_is_named_and_stays(pair, tmp_path):
    app, _, _, journal = pair
    pickled = {
        "result_backend": f"celery_results.backends.database:DatabaseBackend+sqlite:///{tmp_path}/old.sqlite3",
        "result_serializer": "pickle",
        "result_accept_content": ["pickle"],
    }
    writer = Celery(set_as_current=False)
    writer.conf.update(pickled)
    writer.backend.store_result("set", {1, 2}, "SUCCESS")
    writer.backend.store_result("plain", ValueError("x"), "FAILURE")
    journal.append([entry("set"), entry("plain")])
    report = repair(app(old=pickled), seconds=30)
    assert [(item.entry.id, item.reason) for item in report.left] == [
        ("set", "refused by the side new: EncodeError")
    ]
    assert [line.id for line in journal.entries()] == ["set"]


def test_the_time_of_the_mark_is_that_of_the_last_overflow(journal):
    assert journal.overflowed_since is None
    journal.append([entry("a")])
    journal.note_overflow()
    os.utime(journal.directory / "overflow", (1.0, 1.0))
    before = time.time()
    journal.note_overflow()
    assert journal.overflowed_since is not None
    assert journal.overflowed_since > before - 1
    journal.clear_overflow()
    assert journal.overflowed_since is None


def test_of_two_failures_that_a_comparison_has_found_the_later_one_stays_on_either_side(pair):
    app, old, new, _ = pair
    for first, second in ((old, new), (new, old)):
        first.store_result("t", ValueError("early"), "FAILURE")
        second.store_result("t", ValueError("late"), "FAILURE")
        early = dt.datetime.now(dt.UTC).replace(tzinfo=None) - dt.timedelta(hours=1)
        first._rows("UPDATE celery_taskmeta SET date_done = ? WHERE task_id = 't'", str(early))
        assert repair(app(), found=[Found(TASK, "t", ("result",))], seconds=30).clean
        for side in (old, new):
            assert side.get_task_meta("t")["result"].args == ("late",)


def test_of_two_successes_that_a_comparison_has_found_the_primarys_stays(pair):
    app, old, new, _ = pair
    for stage, winner in (("dual_write", "old"), ("cutover", "new")):
        for side, value in ((old, "old"), (new, "new")):
            side._forget("t")
            side.store_result("t", value, "SUCCESS")
        assert repair(app(stage), found=[Found(TASK, "t", ("result",))], seconds=30).clean
        assert [side.get_task_meta("t")["result"] for side in (old, new)] == [winner, winner]


def test_an_overflow_is_not_clean(pair):
    app, _, _, journal = pair
    journal.directory.mkdir()
    journal.note_overflow()
    report = repair(app(), seconds=30)
    assert not report.left
    assert not report.clean


def test_the_same_result_is_equal_however_it_is_stored(pair):
    _, old, _, _ = pair
    old.store_result("t", (1, 2), "SUCCESS")
    meta = point_of(old).read_task("t")
    assert meta is not None
    assert alike.equal({**meta, "result": (1, 2)}, meta, old)
    assert not alike.equal({**meta, "result": [1, 3]}, meta, old)
    assert not alike.equal({**meta, "children": [[["c", None], None]]}, meta, old)
    assert not alike.equal({**meta, "date_done": None}, meta, old)
    assert not alike.equal({**meta, "date_done": meta["date_done"] - dt.timedelta(minutes=1)}, meta, old)
