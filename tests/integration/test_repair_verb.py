"""`celery-results repair` with real servers: what a comparison finds is brought to both sides, or refused."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from celery.result import AsyncResult, GroupResult
from tests.integration.database_lab import PostgresLab
from tests.integration.dual_case import Case, database_side, keys, redis_side, run_canvas, until
from tests.integration.dual_verbs import compared, deploy, run_verb
from tests.integration.redis_lab import RedisLab

from celery_results.migration.journal import FORGET, TASK, now_entry

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY = "celery-task-meta-"
DOCUMENT = {"ok", "looked_at", "copied", "deleted", "left", "overflowed"}


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[RedisLab]:
    with RedisLab(tmp_path_factory.mktemp("redis")) as lab:
        yield lab


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresLab]:
    with PostgresLab() as lab:
        yield lab


@pytest.fixture
def case(tmp_path, server, postgres) -> Iterator[Case]:
    """Give redis to PostgreSQL, with a login that may list keys, which the comparison needs."""
    more = {"result_extended": True}
    made = Case(tmp_path, server, redis_side(server, "admin"), database_side(postgres.database()), more=more)
    yield made
    made.end()


def store(backend: Any, name: str, value: Any, state: str = "SUCCESS") -> str:
    backend.store_result(name, value, state)
    return name


def found(ran: Any) -> dict[str, str]:
    return {finding["id"]: finding["verdict"] for finding in ran.document["findings"]}


def test_results_that_are_written_to_both_sides_are_the_same_to_the_comparison(case):
    """The times of the two writes are milliseconds apart; groups, errors, retries and chords included."""
    case.worker("dual_write")
    seen = run_canvas(case.app("dual_write"))
    until(lambda: not case.differing(seen.ids), "the mirror lacks some")
    ran = compared(case)
    assert found(ran) == {}
    assert ran.code == 0
    assert ran.document["source"]["results"] >= len(seen.ids) - 2


def test_every_kind_of_finding_is_repaired(case, server):
    old, new = case.backend("old"), case.backend("new")
    for name in (
        "missing",
        "changed",
        "status",
        "broken",
        "broken there",
        "same",
        "newer there",
    ):
        for backend in (old, new):
            store(backend, name, {"of": name})
    for backend, side in ((old, "old"), (new, "new")):
        members = [AsyncResult(name, app=backend.app) for name in ("same", side)]
        GroupResult("group differs", members, app=backend.app).save(backend=backend)
    GroupResult("group missing", members, app=old.app).save(backend=old)
    GroupResult("group extra", members, app=new.app).save(backend=new)
    new.forget("missing")
    store(new, "extra", {"of": "extra"})
    new._rows("UPDATE celery_taskmeta SET result = %s WHERE task_id = 'changed'", b'"other"')
    new._rows("UPDATE celery_taskmeta SET queue = 'elsewhere' WHERE task_id = 'same'")
    new._rows("UPDATE celery_taskmeta SET status = 'STARTED' WHERE task_id = 'status'")
    new._rows("UPDATE celery_taskmeta SET result = %s WHERE task_id = 'broken there'", b"{nothing")
    with server.admin() as admin:
        admin.set(f"{KEY}broken", b'{"stat', ex=600)
        document = json.loads(admin.get(f"{KEY}newer there"))
        admin.set(f"{KEY}newer there", json.dumps({**document, "status": "STARTED"}), ex=600)
    first = compared(case)
    assert first.code == 1
    expected = {"missing", "changed", "status", "broken", "broken there", "newer there", "extra", "same"}
    assert set(found(first)) == expected | {"group differs", "group missing", "group extra"}

    directory = deploy(case, "bridge")
    ran = run_verb(directory, "repair", "--ids", "-", given=first.stdout)
    assert ran.code == 0, ran
    assert set(ran.document) == DOCUMENT
    assert ran.document["ok"] is True
    assert ran.document["looked_at"] == len(found(first))
    assert ran.document["deleted"] == 0
    assert found(compared(case)) == {}
    for name in expected - {"same"}:
        assert new.get_task_meta(name)["result"] == {"of": name}
        assert old.get_task_meta(name)["result"] == {"of": name}
    assert new.get_task_meta("status")["status"] == "SUCCESS"
    assert old.get_task_meta("newer there")["status"] == "SUCCESS"
    assert old.restore_group("group extra").as_tuple() == new.restore_group("group extra").as_tuple()
    assert [result.id for result in new.restore_group("group differs")] == ["same", "old"]

    again = run_verb(directory, "repair", "--ids", "-", given=first.stdout)
    assert (again.code, again.document["copied"]) == (0, 0)


def test_what_the_mirror_alone_has_is_deleted_while_nobody_reads_it(case):
    """A client that was not restarted yet has forgotten it on the source, and knows of no other side."""
    old, new = case.backend("old"), case.backend("new")
    for backend in (old, new):
        store(backend, "kept", 1)
    store(new, "forgotten", 1)
    GroupResult("group forgotten", [AsyncResult("kept", app=new.app)], app=new.app).save(backend=new)
    first = compared(case)
    assert found(first) == {"forgotten": "extra", "group forgotten": "extra"}
    ran = run_verb(deploy(case, "dual_write"), "repair", "--ids", "-", given=first.stdout)
    assert (ran.code, ran.document["deleted"], ran.document["copied"]) == (0, 2, 0)
    assert old.get_task_meta("forgotten")["status"] == "PENDING"
    assert found(compared(case)) == {}


def test_an_odd_end_of_life_is_put_right_on_redis(tmp_path, server, start_redis):
    other = start_redis()
    case = Case(tmp_path, server, redis_side(server, "admin"), redis_side(other, "admin"))
    try:
        for side in ("old", "new"):
            for name in ("kept for ever", "too short"):
                store(case.backend(side), name, 1)
            store(case.backend(side), "unfinished", 1, "STARTED")
        with server.admin() as admin, other.admin() as there:
            admin.persist(f"{KEY}kept for ever")
            there.expire(f"{KEY}too short", 600)
            first = compared(case)
            assert set(found(first)) == {"kept for ever", "too short"}
            report = first.document
            report["findings"].append({**report["findings"][0], "id": "unfinished"})
            ran = run_verb(deploy(case, "dual_write"), "repair", "--ids", "-", given=json.dumps(report))
            assert ran.code == 1
            assert [(item["id"], item["reason"][:10]) for item in ran.document["left"]] == [
                ("unfinished", "unfinished")
            ]
            assert 3500 < there.ttl(f"{KEY}too short") <= 3600
            assert 3500 < admin.ttl(f"{KEY}kept for ever") <= 3600
        assert found(compared(case)) == {}
    finally:
        case.end()


def test_what_no_side_can_hold_is_refused_with_a_reason(case, server):
    store(case.backend("old"), "x" * 200, 1)
    with server.admin() as admin:
        admin.set(f"{KEY}broken", b'{"stat', ex=600)
    first = compared(case)
    assert set(found(first)) == {"x" * 200, "broken"}
    ran = run_verb(deploy(case, "cutover"), "repair", "--ids", "-", given=first.stdout)
    assert ran.code == 1
    reasons = {item["id"]: item["reason"] for item in ran.document["left"]}
    assert "refused by the side new" in reasons["x" * 200]
    assert "no side" in reasons["broken"]
    assert keys(server, f"{KEY}broken") == [f"{KEY}broken"]  # nothing was destroyed


def test_ids_one_a_line_are_results(case, tmp_path):
    store(case.backend("old"), "one", 1)
    store(case.backend("new"), "two", 2)
    listed = tmp_path / "ids"
    listed.write_text("one\n\ntwo\nnobody\n")
    ran = run_verb(deploy(case, "bridge"), "repair", "--ids", str(listed))
    assert (ran.code, ran.document["copied"], ran.document["looked_at"]) == (0, 2, 3)
    assert case.backend("old").get_task_meta("two")["result"] == 2
    text = run_verb(case.directory / "etc", "repair", "--text", "--ids", str(listed))
    assert "0 copied" in text.stdout


def test_a_forgotten_result_whose_deletion_is_owed_is_not_brought_back_by_an_old_report(case):
    store(case.backend("new"), "forgotten", 1)
    report = compared(case)
    assert found(report) == {"forgotten": "extra"}
    case.journal.append([now_entry(FORGET, "forgotten", "new")])
    ran = run_verb(deploy(case, "dual_write"), "repair", "--ids", "-", given=report.stdout)
    assert (ran.code, ran.document["deleted"], ran.document["copied"]) == (0, 1, 0)
    assert found(compared(case)) == {}


def test_the_youngest_entries_are_waited_for_within_the_time(case):
    store(case.backend("old"), "young", 1)
    case.journal.append([now_entry(TASK, "young", "new")])
    directory = deploy(case, "dual_write")
    ran = run_verb(directory, "repair", "--seconds", "0.5")
    assert ran.code == 1
    assert [(item["operation"], item["id"]) for item in ran.document["left"]] == [("task", "young")]
    assert "young" in ran.document["left"][0]["reason"]
    assert run_verb(directory, "repair", "--seconds", "60").code == 0
    assert len(case.journal) == 0
    assert case.backend("new").get_task_meta("young")["result"] == 1


def test_a_side_that_is_away_leaves_it_all_and_takes_no_longer_than_asked(case, start_redis):
    gone = start_redis()
    case.new = redis_side(gone)
    gone.stop()
    for number in range(3):
        store(case.backend("old"), f"t{number}", 1)
    case.journal.append(now_entry(TASK, f"t{number}", "new") for number in range(3))
    began = time.monotonic()
    ran = run_verb(deploy(case, "dual_write"), "repair", "--seconds", "10")
    assert time.monotonic() - began < 60
    assert (ran.code, len(ran.document["left"])) == (1, 3)
    assert "does not answer" in ran.document["left"][0]["reason"]
    assert len(case.journal) == 3


def test_an_overflow_is_cleared_only_by_a_clean_comparison_that_began_after_it(case):
    store(case.backend("old"), "missing", 1)
    directory = deploy(case, "dual_write")
    report = case.directory / "verify.json"
    case.journal.append([now_entry(TASK, "nothing", "new")])
    early = run_verb(directory, "repair")
    assert (early.code, early.document["overflowed"]) == (0, False)
    unclean = compared(case)
    assert run_verb(directory, "repair", "--ids", "-", given=unclean.stdout).code == 0
    before = compared(case)
    case.journal.note_overflow()
    report.write_text(before.stdout)
    for told in (unclean.stdout, before.stdout, "an-id\n"):
        report.write_text(told)
        ran = run_verb(directory, "repair", "--compared", str(report))
        assert ran.code == 2, ran
        assert case.journal.overflowed
    still = run_verb(directory, "repair")
    assert (still.code, still.document["overflowed"], still.document["left"]) == (1, True, [])
    report.write_text(compared(case).stdout)
    ran = run_verb(directory, "repair", "--compared", str(report))
    assert (ran.code, ran.document["overflowed"]) == (0, False)
    case.journal.note_overflow()
    assert run_verb(directory, "repair", "--compared").code == 0


def test_a_report_that_names_fewer_than_it_counts_is_not_all(case):
    report = compared(case).document
    report["missing"] = 7
    ran = run_verb(deploy(case, "dual_write"), "repair", "--ids", "-", given=json.dumps(report))
    assert ran.code == 1
    assert "7 more" in ran.document["left"][0]["reason"]


@pytest.mark.parametrize("given", ['{"ok": true}', "{", '{"findings": [{}]}'])
def test_what_is_no_report_is_refused(case, given):
    ran = run_verb(deploy(case, "dual_write"), "repair", "--ids", "-", given=given)
    assert ran.code == 2
    assert "verify" in ran.document["error"]["expected"]


def test_settings_without_the_dual_backend_are_refused_and_no_password_is_told(case, server):
    ran = run_verb(deploy(case, "old"), "repair")
    assert ran.code == 2
    assert "dual backend" in ran.document["error"]["expected"]
    assert server.passwords["admin"] not in ran.stdout + ran.stderr
