"""Celery's documents are taken apart and put together byte by byte; what does not fit is told."""

from __future__ import annotations

import datetime as dt
import json
import random
from itertools import pairwise
from typing import Any

import pytest

from celery_results.migration.compose import Writer
from celery_results.migration.convert import Converter
from celery_results.migration.document import MalformedError, Reader, members
from celery_results.migration.lossy import Lossy
from celery_results.stores.record import TASK_COLUMNS, Document, Shape, microseconds, moment, now_ms

DONE = "2026-01-31T23:59:59.123456+00:00"
ROWS, DOCUMENTS = Shape("rows"), Shape("documents")
# What could be taken for the document's own members.
TRAPS: tuple[Any, ...] = (
    {"a": 1, "traceback": None, "children": [], "date_done": DONE, "task_id": "x"},
    {"a": 1, "traceback": None, "children": [], "date_done": DONE, "name": "n", "args": [], "kwargs": {}},
    {"a": 1, "kwargs": {"b": 1, "kwargs": {}, "worker": "w", "retries": 1, "queue": "q"}},
    ', "traceback": null, "children": [], "date_done": null, "task_id": "x"}',
    '"traceback": ',
    {'x, "traceback': 1, ', "traceback": ': 2},
    {"status": "FAILURE", "result": {"status": "SUCCESS", "result": 1, "traceback": None}},
    [[], {}, None, {"a": 1, "name": "n", "args": 1, "kwargs": 2, "worker": 3, "retries": 4, "queue": 5}],
)


def document(**changes):
    base = {"status": "SUCCESS", "result": 1, "traceback": None, "children": [], "date_done": DONE}
    return {**base, **changes, "task_id": "t"}


EXTENDED = {"name": "n", "args": [1], "kwargs": {"k": 1}, "worker": "w", "retries": 3, "queue": "q"}


def row_of(value, lossy=None):
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return dict(
        zip(TASK_COLUMNS, Reader().task_row(b"t", text, Lossy() if lossy is None else lossy), strict=True)
    )


@pytest.mark.parametrize("extended", [False, True])
@pytest.mark.parametrize("trap", TRAPS, ids=range(len(TRAPS)))
def test_a_result_is_cut_out_where_it_ends(trap, extended):
    for place in ("result", "args", "kwargs") if extended else ("result",):
        whole = document(**{**(EXTENDED if extended else {}), place: trap})
        row = row_of(whole)
        assert json.loads(row[place]) == trap
        assert row["status"] == b"SUCCESS"
        assert row["date_done"] == microseconds(dt.datetime.fromisoformat(DONE))
        if extended:
            assert (row["name"], row["worker"], row["queue"], row["retries"]) == (b"n", b"w", b"q", 3)
        payload = json.dumps(trap).encode()
        assert row[place] == payload


def test_a_reader_remembers_no_wrong_thing():
    """Names are remembered: the second document of a kind goes another way than the first."""
    reader, lossy = Reader(), Lossy()
    for name in ("n", "ö", "n" * 156, 'q"', "\\", "n\u0000", None, ""):
        whole = json.dumps(document(**{**EXTENDED, "name": name})).encode()
        first, second = (reader.task_row(b"t", whole, lossy) for _ in range(2))
        assert first == second
        expected = None if name is None else name[:155].replace("\0", "\ufffd").encode()
        assert first[TASK_COLUMNS.index("name")] == expected
    assert lossy == {"name": 4}


def test_a_result_that_looks_like_the_rest_of_a_document_is_no_such_thing():
    """Six members of the result, and as many pieces as result_extended makes."""
    trap: dict[str, Any] = {
        "a": 1,
        "traceback": None,
        "children": [],
        "date_done": DONE,
        "name": "n",
        "args": 1,
        "kwargs": 2,
    }
    whole = json.dumps(document(result=trap, children=None)).encode()
    reader, lossy = Reader(), Lossy()
    rows = [reader.task_row(b"t", whole, lossy) for _ in range(3)]
    assert [json.loads(row[2]) for row in rows] == [trap] * 3


def test_the_short_way_and_the_long_one_give_the_same():
    chance = random.Random(5)  # noqa: S311 - repeatable
    reader = Reader()
    for _ in range(300):
        changes = dict(EXTENDED) if chance.random() < 0.7 else {}
        changes["result"] = chance.choice([*TRAPS, None, 1.5, "ü\n", [], {}])
        changes["date_done"] = chance.choice(
            [DONE, None, "2026-01-31T23:59:59+00:00", "2026-02-01T01:59:59+02:00"]
        )
        if chance.random() < 0.3:
            changes["group_id"] = chance.choice([None, "g"])
        if chance.random() < 0.3:
            changes["parent_id"] = "p"
        whole = document(**changes)
        compact = json.dumps(whole, separators=(",", ":")).encode()  # never the short way
        lossy, other = Lossy(), Lossy()
        row = reader.task_row(b"t", json.dumps(whole).encode(), lossy)
        slow = reader.task_row(b"t", compact, other)
        assert lossy == other
        for name, one, two in zip(TASK_COLUMNS, row, slow, strict=True):
            if name in {"result", "args", "kwargs"} and one is not None and two is not None:
                assert json.loads(one) == json.loads(two)
            else:
                assert one == two, name


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b"\xff\xfe",
        b'{"status": "SUCCESS", "result": ',
        b'{"status": "SUCCESS"} x',
        b'{"result": 1}',
        b'{"status": 5}',
        b'{"status": "SUCCESS", "date_done": "yesterday"}',
        b'{"status": "SUCCESS", "retries": 99999999999}',
        b'{"status": "SUCCESS",, "result": 1}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_document_is_refused(broken):
    with pytest.raises(MalformedError):
        row_of(broken)


def test_members_keep_their_bytes():
    found = members(b' { "a" : {"x":  1.50}, "b":[ ] }')
    assert {name: raw for name, (_, raw) in found.items()} == {"a": '{"x":  1.50}', "b": "[ ]"}


@pytest.mark.parametrize(
    "text",
    [
        DONE,
        "2026-01-31T23:59:59+00:00",
        "2026-02-01T08:59:59.123456+09:00",
        "2026-01-31T23:59:59.123456",
        "2026-01-31T00:00:00Z",
    ],
)
def test_times_are_utc_to_the_microsecond(text):
    when = dt.datetime.fromisoformat(text)
    when = when.astimezone(dt.UTC).replace(tzinfo=None) if when.tzinfo else when
    row = row_of(document(date_done=text))
    assert moment(row["date_done"]) == when
    back = json.loads(Writer().task_document(tuple(row.values())))
    assert dt.datetime.fromisoformat(back["date_done"]) == when.replace(tzinfo=dt.UTC)


def test_a_document_comes_back_as_it_was():
    writer, reader = Writer(), Reader()
    for changes in (
        {},
        EXTENDED,
        {"result": TRAPS[0], "traceback": 'a"\n\\ä'},
        {**EXTENDED, "name": "ä", "queue": None},
    ):
        whole = document(**changes)
        row = reader.task_row('ü "t'.encode(), json.dumps(whole).encode(), Lossy())
        back = json.loads(writer.task_document(row))
        assert back == {**whole, "task_id": 'ü "t', "children": None}


@pytest.mark.parametrize("payload", [b"\x80\x04N.", b"{", b"nul", b"1 2", b"\xff", b""])
@pytest.mark.parametrize("column", ["result", "args"])
def test_a_payload_that_is_no_json_makes_no_document(payload, column):
    row = {**dict.fromkeys(TASK_COLUMNS), "task_id": b"t", "status": b"SUCCESS", column: payload}
    with pytest.raises(MalformedError, match=column):
        Writer().task_document(tuple(row.values()))
    good = tuple({**row, "task_id": b"g", column: b"[1, 2]"}.values())
    documents, failures = Converter(ROWS, DOCUMENTS).convert("results", [good, tuple(row.values()), good])
    assert [json.loads(document.value)[column] for document in documents] == [[1, 2]] * 2
    assert [failure.id for failure in failures] == ["t"]


AS_USUAL = {"date_done": 1, "traceback": None, "children": None, "args": None, "kwargs": None, "stamps": None}

# Each is no JSON, and all of them in an array would be.
HALVES = (
    [b"[1", b"2]"],
    [b"[1", b"2], 3, 4"],
    [b"[1", b'"x"', b"2], 3"],
    [b"1, 2", b"[3", b"4]"],
    [b'"a', b'b"'],
    [b"1 ", b""],
)


@pytest.mark.parametrize("payloads", HALVES, ids=range(len(HALVES)))
def test_payloads_that_are_json_only_together_are_none(payloads):
    rows = [
        tuple({**dict.fromkeys(TASK_COLUMNS, b"x"), "retries": 0, **AS_USUAL, "result": payload}.values())
        for payload in payloads
    ]
    documents, failures = Converter(ROWS, DOCUMENTS).convert("results", rows)
    good = [payload for payload in payloads if payload in {b"1 ", b'"x"'}]
    assert [json.loads(document.value)["result"] for document in documents] == [
        json.loads(one) for one in good
    ]
    assert len(failures) == len(rows) - len(good)


def test_rows_put_together_at_once_are_those_put_together_one_by_one():
    chance = random.Random(8)  # noqa: S311 - repeatable
    done = microseconds(dt.datetime.fromisoformat(DONE))

    def some(*values: Any) -> Any:
        return chance.choice((None, *values))

    rows = [
        (
            *(b"id-%d" % number if number % 9 else b'\xc3\xbc "%d' % number, b"SUCCESS"),
            *(some(b"1", b" [1]", b'{"a": 1.50}'), some(done, done - done % 1_000_000)),
            *(chance.choice([None] * 9 + [b"trace"]), chance.choice([None] * 9 + [b"[[]]"])),
            *(some(b"n", b'"', b""), some(b"[1]"), some(b"{}", b'{"k": 2}')),
            *(
                some(b"w"),
                some(0, 1, -1),
                some(b"q"),
                chance.choice([None] * 9 + [b'{"stamped_headers": []}']),
            ),
        )
        for number in range(3_000)
    ]
    documents, failures = Converter(ROWS, DOCUMENTS).convert("results", rows)
    assert failures == []
    assert [document.id for document in documents] == [row[0] for row in rows]
    for row, document in zip(rows, documents, strict=True):
        assert document.value == Writer().task_document(row)
        written = json.loads(document.value)
        assert written.get("retries") == row[10]
        assert written.get("queue") == (row[11] and row[11].decode())
        if row[3] is not None:
            assert document.deadline == row[3] // 1000 + 86_400_000


@pytest.mark.parametrize("pair", [("json", "pickle"), ("pickle", "json"), ("yaml", "json"), ("json", "yaml")])
@pytest.mark.parametrize(
    "forms", [("documents", "rows"), ("rows", "documents"), ("documents", "documents"), ("rows", "rows")]
)
def test_serializers_that_differ_are_translated(pair, forms):
    """From a JSON document to the pair's source, to its target, and back to JSON: the same values."""
    value = {"n": 1, "t": "ü", "l": [1, {}]}
    start = [Document(b"t", json.dumps(document(**EXTENDED, result=value)).encode(), now_ms() + 86_000_000)]
    shapes = [
        DOCUMENTS,
        Shape(forms[0], pair[0]),
        Shape(forms[1], pair[1]),
        DOCUMENTS,
    ]
    records: list[Any] = start
    for source, target in pairwise(shapes):
        records, failures = Converter(source, target).convert("results", records)
        assert failures == []
    found = json.loads(records[0].value)
    expected = document(**EXTENDED, result=value)
    assert {**found, "children": []} == expected
    groups: list[Any] = [Document(b"g", b'{"result": [["g", null], []]}', now_ms() + 5_000_000)]
    for source, target in pairwise(shapes):
        groups, failures = Converter(source, target).convert("groups", groups)
        assert failures == []
    assert json.loads(groups[0].value) == {"result": [["g", None], []]}
    assert abs(groups[0].deadline - now_ms() - 5_000_000) < 5_000


def test_a_value_without_a_form_on_the_other_side_fails_alone():
    source, target = Shape("documents", "pickle"), Shape("rows", "json")
    encode = Converter(DOCUMENTS, source)._writer.encode
    records = [
        Document(name, encode(document(result=value)), None) for name, value in ((b"set", {1}), (b"one", 1))
    ]
    rows, failures = Converter(source, target).convert("results", records)
    assert [row[0] for row in rows] == [b"one"]
    assert [(failure.id, failure.reason) for failure in failures] == [
        ("set", "not writable as json: EncodeError")
    ]
