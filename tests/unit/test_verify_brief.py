"""Verify's brief look: one number for what is the same, another for what is not, whatever the form."""

from __future__ import annotations

import datetime as dt
import json
import random
from typing import Any

import pytest

from celery_results.migration.convert import Converter
from celery_results.migration.verify import brief as briefs
from celery_results.migration.verify.brief import Brief, Documents, Rows, of_record
from celery_results.migration.verify.record import FIELDS, Terms, of_meta
from celery_results.stores.record import TASK_COLUMNS, Document, Shape, moment

DONE = "2026-01-31T23:59:59.123456+00:00"
ENDS = 1_769_990_399_123_456  # a day later
DAY = 86_400.0
TERMS = Terms(databases=True, json=True)
CALL: dict[str, Any] = {
    "name": "n",
    "args": [1, "ä"],
    "kwargs": {"k": [1.5, None]},
    "worker": "w@h",
    "retries": 3,
    "queue": "q",
}


def meta(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "status": "SUCCESS",
        "result": {"a": [1, "x"]},
        "traceback": None,
        "children": [],
        "date_done": DONE,
    }
    return {**base, **CALL, "task_id": "t", **changes}


def of_document(text: bytes, terms: Terms = TERMS, end: int | None = ENDS) -> Brief | None:
    return Documents(terms, DAY).brief(b"t", text, end)


def decoded(text: bytes, terms: Terms = TERMS, end: int | None = ENDS) -> Brief:
    record = of_meta("t", json.loads(text), terms, None if end is None else end / 1e6, DAY)
    return of_record(record, terms)


def of_row(text: bytes, **changes: Any) -> Brief | None:
    """Let the copy make a row, and read it as the database gives it."""
    rows, _ = Converter(Shape("documents"), Shape("rows")).convert("results", [Document(b"t", text, None)])
    row = dict(zip(TASK_COLUMNS, rows[0], strict=True))
    for name in ("status", "traceback", "name", "worker", "queue", "task_id"):
        row[name] = None if row[name] is None else row[name].decode()
    row |= changes
    when = None if row["date_done"] is None else moment(row["date_done"])
    order = ("task_id", *FIELDS[:-2])
    return Rows(TERMS).brief([row[name] for name in order], when)


BARE = {name: meta()[name] for name in ("status", "result", "traceback", "children", "date_done", "task_id")}


@pytest.mark.parametrize(
    "whole",
    [
        meta(),
        BARE,
        meta(status="REVOKED"),
        meta(result=None, args=None),
        meta(result='"}, "traceback": null'),
    ],
    ids=range(5),
)
def test_a_usual_result_has_one_number_in_every_form(whole):
    text = json.dumps(whole).encode()
    found = of_document(text)
    assert found is not None
    assert found == of_row(text) == decoded(text)
    assert found == of_document(text.replace(b'"children": []', b'"children": null'))
    assert found.done == ENDS - 86_400_000_000


@pytest.mark.parametrize(
    "change",
    [{"name": "n"}, {"args": b"[]"}, {"kwargs": b"{}"}, {"worker": "w"}, {"retries": 0}, {"queue": "q"}],
    ids=str,
)
def test_one_member_of_a_call_is_seen(change):
    text = json.dumps(BARE).encode()
    bare, one = of_row(text), of_row(text, **change)
    assert bare is not None
    assert one is not None
    assert one.number != bare.number


@pytest.mark.parametrize(
    "change",
    [
        {"traceback": "t"},
        {"children": [[["c", None], None]]},
        {"group_id": "g"},
        {"date_done": None},
        {"date_done": DONE[:19] + DONE[26:]},
        {"status": "FAILURE", "traceback": "t"},
    ],
    ids=str,
)
def test_an_unusual_result_is_decoded_on_both_sides_or_has_the_same_number(change):
    whole = meta(**change)
    if "group_id" in change:
        whole = {**meta(), "group_id": "g"}
        names = list(whole)
        whole = {name: whole[name] for name in (*names[:5], "group_id", *names[5:-1])}
    text = json.dumps(whole).encode()
    assert of_document(text) is None
    assert of_row(text) in {None, decoded(text)}


def test_stamps_are_decoded_where_a_row_has_them_and_never_taken_for_none():
    text = json.dumps(meta(stamped_headers=["s"], s=1)).encode()
    assert of_row(text) is None
    others = (of_document(text), decoded(text), decoded(json.dumps(meta()).encode()))
    assert len({found.number for found in others if found is not None}) == 3


def test_every_changed_byte_changes_the_number_or_the_time_or_is_read_by_decoding():
    text = json.dumps(meta()).encode()
    usual = of_document(text)
    assert usual is not None
    for place in range(len(text)):
        for byte in b'x"7 ':
            changed = text[:place] + bytes([byte]) + text[place + 1 :]
            if changed != text:
                found = of_document(changed)
                assert found is None or (found.number, found.done) != (usual.number, usual.done)


def test_a_life_that_is_odd_is_part_of_the_number_unless_age_decides():
    text = json.dumps(meta()).encode()
    by_age = Terms(databases=True, by_age=True, json=True)
    for end in (None, ENDS + 60_000_000):
        assert of_document(text, end=end) is None
        assert decoded(text, end=end).number != decoded(text).number
        found = of_document(text, by_age, end)
        assert found is not None
        assert found == decoded(text, by_age, end)
        assert found.odd
    assert of_document(text, end=ENDS + 4_000_000) == of_document(text)


def test_whole_seconds_are_compared_where_a_side_keeps_no_more():
    text = json.dumps(meta()).encode()
    found = of_document(text, Terms(databases=True, seconds=True, json=True))
    assert found is not None
    assert found.done == int(dt.datetime.fromisoformat(DONE).timestamp()) * 1_000_000


def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr(briefs, "_MOST_CACHED", 5)
    chance = random.Random(2)  # noqa: S311 - repeatable
    documents = Documents(TERMS, DAY)
    for number in range(200):
        when = dt.datetime(2026, 1, 1, chance.randrange(24), chance.randrange(60), 7, 1, dt.UTC)
        whole = meta(name=f"n{number}", retries=number, date_done=when.isoformat())
        text = json.dumps(whole).encode()
        found = documents.brief(b"t", text, int(when.timestamp() + DAY) * 1_000_000)
        assert found == of_row(text)
    assert len(documents._minutes) <= 6
