"""What the soak's checker calls an offence, and what it does not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from celery import Celery
from tests.soak.checker import Check, document
from tests.soak.judgement import (
    NOTHING,
    Answer,
    Held,
    judge_answers,
    judge_held,
    known,
    open_ids,
    undelivered,
)
from tests.soak.ledger import brief, note, read

BOUND, EXPIRES = 60.0, 86_400.0
FIVE, SIX = Answer("SUCCESS", 5), Answer("SUCCESS", 6)
FAILURE = {"error": "ValueError", "arguments": ["on purpose"]}


def line(event: str, at: float, **more: Any) -> dict[str, Any]:
    return {"event": event, "at": at, "id": "a", **more}


def sent(kind: str = "value", value: Any = 5, state: str = "SUCCESS", **more: Any) -> list[dict[str, Any]]:
    return [line("sent", 100, kind=kind, state=state, value=value, **more), line("queued", 101)]


GOT = line("got", 103, state="SUCCESS", value=5)
BEGAN = line("began", 101.5)
STORED = line("stored", 102, began=101.5, state="SUCCESS", value=5)
AGAIN = line("stored", 142, began=141.5, state="SUCCESS", value=5)
FORGOTTEN = [line("forgetting", 104), line("forgot", 105)]


def answers(lines: list[dict[str, Any]], answer: Answer, now: float = 110.0) -> list[str]:
    return [each.what for each in judge_answers(known(lines)["a"], answer, now, BOUND)]


def held(lines: list[dict[str, Any]], found: Held | None, now: float = 110.0) -> list[str]:
    return [each.what for each in judge_held(known(lines)["a"], found, now, EXPIRES)]


@pytest.mark.parametrize(
    ("lines", "answer", "offences"),
    [
        pytest.param([*sent(), GOT], FIVE, [], id="as it should be"),
        pytest.param([*sent(), GOT], NOTHING, ["lost"], id="a client had it"),
        pytest.param([*sent(), STORED], NOTHING, ["lost"], id="a worker stored it"),
        pytest.param([*sent(), STORED], Answer("STARTED", {"pid": 1}), ["lost"], id="an older state is back"),
        pytest.param([*sent(), GOT], SIX, ["wrong"], id="another value"),
        pytest.param([*sent(), GOT], Answer("FAILURE", FAILURE), ["wrong"], id="another state"),
        pytest.param(
            [*sent(), line("got", 103, state="SUCCESS", value=6)], FIVE, ["wrong"], id="a client got another"
        ),
        pytest.param(
            [*sent(), GOT, line("reread", 104, state="PENDING", value=None)],
            FIVE,
            ["vanished"],
            id="was away",
        ),
        pytest.param(
            [*sent(), GOT, line("reread", 104, state="SUCCESS", value=6)], FIVE, ["wrong"], id="changed"
        ),
        pytest.param([*sent(), BEGAN], NOTHING, [], id="on its way"),
        pytest.param(sent()[:1], NOTHING, [], id="nobody knows whether it was sent"),
        pytest.param(sent()[:1], SIX, ["wrong"], id="nobody knows, but it is wrong"),
        pytest.param([*sent(), GOT, *FORGOTTEN], NOTHING, [], id="forgotten"),
        pytest.param([*sent(), GOT, BEGAN, *FORGOTTEN], FIVE, ["risen"], id="forgotten and there"),
        pytest.param([*sent(), GOT, BEGAN, BEGAN, *FORGOTTEN], FIVE, [], id="run again by another worker"),
        pytest.param([*sent(), GOT, BEGAN, BEGAN, *FORGOTTEN], SIX, ["wrong"], id="run again, and wrong"),
        pytest.param([*sent(), GOT, FORGOTTEN[0]], FIVE, [], id="forget() did not return, there"),
        pytest.param([*sent(), GOT, FORGOTTEN[0]], NOTHING, [], id="forget() did not return, gone"),
        pytest.param(
            [*sent(), GOT, *FORGOTTEN, line("reread", 104.5, state="PENDING", value=None)],
            NOTHING,
            [],
            id="read again while it was forgotten",
        ),
        pytest.param(sent("ignored", None, "PENDING"), NOTHING, [], id="ignored"),
        pytest.param(sent("ignored", None, "PENDING"), FIVE, ["wrong"], id="ignored, and stored"),
    ],
)
def test_answers(lines, answer, offences):
    assert answers(lines, answer) == offences


def test_late_is_an_offence_only_after_the_bound_and_the_task_s_own_time():
    for kind, offence in (("chord", "stranded"), ("broken chord", "stranded"), ("value", "unanswered")):
        lines = sent(kind, seconds=8.0)
        assert answers(lines, NOTHING, now=101 + BOUND + 7) == []
        assert answers(lines, NOTHING, now=101 + BOUND + 9) == [offence]


def test_of_a_broken_chord_only_the_state_is_known():
    lines = [line("sent", 100, kind="broken chord", state="FAILURE"), line("queued", 101)]
    assert answers(lines, Answer("FAILURE", FAILURE)) == []
    assert answers(lines, Answer("FAILURE", {"error": "ChordError", "arguments": ["x"]})) == []
    assert answers(lines, FIVE) == ["wrong"]


GOOD = {"state": "SUCCESS", "value": 5, "ended": 101.9, "lives_seconds": EXPIRES - 8}


@pytest.mark.parametrize(
    ("lines", "changes", "offences"),
    [
        pytest.param([*sent(), STORED], {}, [], id="as it should be"),
        pytest.param([*sent(), STORED], {"value": 6}, ["different"], id="another value"),
        pytest.param([*sent(), STORED], {"state": "STARTED"}, ["different"], id="an older state"),
        pytest.param([*sent(), STORED], {"ended": 101.9 + 3600}, ["shifted"], id="ended an hour later"),
        pytest.param([*sent(), STORED], {"ended": 101.9 - 3600}, ["shifted"], id="ended an hour before"),
        pytest.param([*sent(), STORED], {"ended": None}, ["shifted"], id="without a time"),
        pytest.param([*sent(), STORED], {"lives_seconds": EXPIRES + 60}, ["shifted"], id="lives longer"),
        pytest.param([*sent(), STORED], {"lives_seconds": EXPIRES - 60}, ["shifted"], id="lives less long"),
        pytest.param([*sent(), STORED], {"lives_seconds": float("-inf")}, ["shifted"], id="lives for ever"),
        pytest.param([*sent(), STORED], {"lives_seconds": None}, [], id="a row has no life"),
        pytest.param([*sent(), BEGAN, AGAIN], {}, [], id="stored by a worker that was killed then"),
        pytest.param([*sent(), GOT], {}, [], id="its time is between sent and got"),
        pytest.param([*sent(), GOT], {"ended": 160.0}, ["shifted"], id="ended after the client had it"),
        pytest.param([*sent(), GOT, BEGAN, *FORGOTTEN], {}, ["risen"], id="forgotten and there"),
        pytest.param(sent(), {"value": 6}, [], id="not acknowledged: the answers' business"),
    ],
)
def test_what_a_complete_store_holds(lines, changes, offences):
    assert held(lines, Held(**GOOD | changes)) == offences


def test_what_a_complete_store_lacks():
    assert held([*sent(), STORED], None) == ["missing"]
    assert held([*sent(), BEGAN], None) == []
    assert held([*sent(), GOT, BEGAN, *FORGOTTEN], None) == []
    assert held(sent("ignored", None, "PENDING"), None) == []


def one(name: str, *needs: str, began: bool = False) -> list[dict[str, Any]]:
    lines = sent(kind="chord" if needs else "chord part", needs=list(needs)) + began * [BEGAN]
    return [{**each, "id": name} for each in lines]


CHORD = [*one("part"), *one("body", "part", "other"), *one("after", "body"), *one("other", began=True)]


@pytest.mark.parametrize(
    ("lines", "killed", "late", "excused"),
    [
        pytest.param(CHORD, 1, 110, {"part", "body", "after"}, id="with what waits for it"),
        pytest.param(CHORD, 0, 110, set(), id="nobody was killed"),
        pytest.param(CHORD, 1, 100, set(), id="it may still be in the queue"),
        pytest.param([*CHORD, *one("second")], 1, 110, set(), id="more than killed workers had"),
        pytest.param([*one("other", began=True), *one("body", "other")], 1, 110, set(), id="stranded"),
        pytest.param([*sent(), STORED], 1, 110, set(), id="stored"),
    ],
)
def test_what_a_killed_worker_had_taken_from_the_queue(lines, killed, late, excused):
    assert undelivered(known(lines), killed, late) == excused


@pytest.mark.parametrize(("killed", "offences", "on_their_way"), [(0, {"unanswered": 1}, 1), (1, {}, 0)])
def test_the_report_names_what_is_excused(tmp_path, killed, offences, on_their_way):
    for each in sent():
        note(tmp_path / "client.jsonl", **each)
    check = Check(Celery(backend="cache+memory://", set_as_current=False), tmp_path, [], BOUND, killed)
    report = document(check, check.answers(["a"]), 1, at_least=0)
    assert (report["offences"], report["on_their_way"]) == (offences, on_their_way)
    assert report["undelivered"] == killed


def test_a_saved_group_is_restored_and_a_deleted_one_is_not():
    lines = [line("sent", 100, kind="saved group", state="SAVED", value=["x", "y"]), line("saved", 101)]
    assert answers(lines, Answer("SAVED", ["x", "y"])) == []
    assert answers(lines, Answer("SAVED", ["x"])) == ["wrong"]
    assert answers(lines, NOTHING) == ["lost"]
    assert held(lines, Held("SAVED", ["x", "y"])) == []
    assert held(lines, None) == ["missing"]
    assert answers([*lines, *FORGOTTEN], Answer("SAVED", ["x", "y"])) == ["risen"]
    assert answers([*lines, *FORGOTTEN], NOTHING) == []


def test_open_are_those_that_were_queued_and_nobody_had():
    assert open_ids(known(sent())) == ["a"]
    assert open_ids(known(sent()[:1])) == []
    assert open_ids(known([*sent(), GOT])) == []
    assert open_ids(known(sent("ignored", None, "PENDING"))) == []


def test_a_ledger_gives_what_was_noted_but_for_half_a_line(tmp_path):
    note(tmp_path / "client.jsonl", "sent", durable=True, id="a", kind="value", state="SUCCESS", value=1)
    note(tmp_path / "worker-b.jsonl", "began", id="a")
    with (tmp_path / "client.jsonl").open("a") as file:
        file.write('{"event": "queu')
    assert [each["event"] for each in read(tmp_path)] == ["sent", "began"]
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "nowhere")


def test_brief_values_compare_as_the_stores_give_them_back():
    value = {"text": "ä", "list": [1, None, 2.5], "tuple": (1, 2)}
    assert brief(value) == brief(json.loads(json.dumps(value)))
    assert brief("x" * 1000) == brief("x" * 1000)
    assert brief("x" * 1000) != brief("x" * 999 + "y")
    assert brief(ValueError("on purpose")) == FAILURE
