"""The short ways of a copy give what the long ones do: documents read from memory, rows packed for COPY."""

# ruff: noqa: S311 # the same cases in every run

from __future__ import annotations

import datetime as dt
import io
import json
import random
import struct
from typing import Any

import pytest
from psycopg.adapt import PyFormat, Transformer

from celery_results.migration import document as documents
from celery_results.migration.convert import Converter
from celery_results.migration.document import MalformedError, Reader
from celery_results.migration.lossy import Lossy
from celery_results.stores import copy_rows
from celery_results.stores.copy_rows import EPOCH, Packer
from celery_results.stores.record import (
    TASK_COLUMNS,
    Document,
    PackedRow,
    Row,
    Shape,
    microseconds,
    now_ms,
)

ID = b"0123-id"
ROWS, DOCUMENTS = Shape("rows"), Shape("documents")
DONE = "2026-01-31T23:59:59.123456+00:00"
NAMES = (
    *("status", "result", "traceback", "children", "date_done", "group_id", "parent_id"),
    *("name", "args", "kwargs", "worker", "retries", "queue", "task_id"),
)
TRAPS = (
    *(', "traceback": null, "children": [], "date_done": "', '"kwargs": ', ', "worker": "w"', '", "args": '),
    *(None, 1, "x", "null", "ä", 'a\\"b', True, 1.5, ""),
)


class Made:
    """Documents as Celery writes them, and such as nobody should."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)

    def value(self, depth: int = 0) -> Any:
        chance = self._chance
        kind = chance.random()
        if depth > 3 or kind < 0.7:
            return chance.choice(TRAPS)
        if kind < 0.9:
            return {chance.choice((*NAMES, "a")): self.value(depth + 1) for _ in range(chance.randrange(4))}
        return [self.value(depth + 1) for _ in range(chance.randrange(3))]

    def meta(self) -> dict[str, Any]:
        chance = self._chance
        meta: dict[str, Any] = {
            "status": chance.choice(["SUCCESS"] * 5 + ["FAILURE", "STARTED", "custom"]),
            "result": self.value(),
            "traceback": chance.choice([None] * 9 + ["text"]),
            "children": chance.choice([[]] * 9 + [[[["id", None], None]]]),
            "date_done": chance.choice(
                [DONE] * 20 + [DONE[:19] + DONE[26:], "x", None, DONE.replace(".", "x")]
            ),
        }
        if chance.random() < 0.7:
            meta |= {
                "name": chance.choice(["proj.t", "a b", "ä", None, "x" * 200]),
                "args": chance.choice([[], [1], None, self.value(1)]),
                "kwargs": chance.choice([{}, None, self.value(1)]),
                "worker": chance.choice(["w@h", None, "ü"]),
                "retries": chance.choice([0, 1, None, 2**40, -1]),
                "queue": chance.choice(["celery", None]),
            }
        for name in ("group_id", "extra"):
            if chance.random() < 0.03:
                meta[name] = "g"
        meta["task_id"] = ID.decode()
        if chance.random() < 0.05:
            del meta[chance.choice(list(meta))]
        return meta


def long_way(document: bytes) -> tuple[Row | None, Lossy]:
    lossy = Lossy()
    try:
        return documents._task_row_of_any(ID, document, lossy), lossy
    except MalformedError:
        return None, Lossy()


def test_a_reader_that_has_seen_much_reads_as_json_does(monkeypatch):
    made, reader = Made(5), Reader()
    texts = [json.dumps(made.meta()).encode() for _ in range(20_000)]
    for text in texts[:2000]:
        expected, lost = long_way(text)
        lossy = Lossy()
        if expected is None:
            with pytest.raises(MalformedError):
                reader.task_row(ID, text, lossy)
        else:
            assert (reader.task_row(ID, text, lossy), lossy) == (expected, lost)
    slow: list[bytes] = []
    whole = documents._task_row_of_any

    def noted(identifier: bytes, document: bytes, lossy: Lossy) -> Row:
        slow.append(document)
        return whole(identifier, document, lossy)

    monkeypatch.setattr(documents, "_task_row_of_any", noted)
    short = 0
    for text in texts[2000:]:
        before, lossy = len(slow), Lossy()
        try:
            found: Row | None = reader.task_row(ID, text, lossy)
        except MalformedError:
            found = None
        if len(slow) == before:
            short += 1
            assert lossy == Lossy()
            assert found == whole(ID, text, Lossy())
    assert short > 1000


@pytest.mark.parametrize("extended", [False, True])
def test_what_celery_writes_goes_the_short_way(monkeypatch, extended):
    reader = Reader()
    call = {"name": "n", "args": [1], "kwargs": {"k": 1}, "worker": "w", "retries": 3, "queue": "q"}
    meta: dict[str, Any] = {
        "status": "SUCCESS",
        "result": {"a": '"}'},
        "traceback": None,
        "children": [],
        "date_done": DONE,
    }
    text = json.dumps({**meta, **(call if extended else {}), "task_id": ID.decode()}).encode()
    first = reader.task_row(ID, text, Lossy())
    monkeypatch.delattr(documents, "_task_row_of_any")
    assert reader.task_row(ID, text, Lossy()) == first
    assert dict(zip(TASK_COLUMNS, first, strict=True))["kwargs"] == (b'{"k": 1}' if extended else None)


CALL: dict[str, Any] = {
    "name": "n", "args": [1], "kwargs": {"k": 1}, "worker": "w", "retries": 3, "queue": "q"
}  # fmt: skip
HEAD: dict[str, Any] = {"traceback": None, "children": [], "date_done": DONE}


def as_seen_before(text: bytes) -> Row:
    """Read with a reader that knows both usual forms."""
    reader = Reader()
    for call in ({}, CALL):
        usual = {"status": "SUCCESS", "result": 1, **HEAD, **call, "task_id": ID.decode()}
        reader.task_row(ID, json.dumps(usual).encode(), Lossy())
    return reader.task_row(ID, text, Lossy())


@pytest.mark.parametrize(
    "result",
    [
        {"a": 1, **HEAD, "name": "n", "args": 1},  # what follows the real ones would be an argument
        {"a": 1, **HEAD, **CALL},
        {"a": 1, **CALL},
        {"a": 1, "traceback": "x"},
    ],
    ids=range(4),
)
@pytest.mark.parametrize("place", ["result", "args", "kwargs"])
def test_a_value_that_looks_like_the_rest_of_a_document_is_a_value(place, result):
    text = json.dumps(
        {"status": "SUCCESS", "result": 1, **HEAD, **CALL, "task_id": ID.decode(), place: result}
    )
    found = as_seen_before(text.encode())
    row = dict(zip(TASK_COLUMNS, found, strict=True))
    assert json.loads(row[place]) == result
    assert json.loads(row["args"]) == (result if place == "args" else [1])
    assert row["worker"] == b"w"
    usual = {"status": "SUCCESS", "result": 1, **HEAD, **CALL, "task_id": ID.decode()}
    packer = Packer("results")
    records = [Document(ID, value.encode(), None) for value in (json.dumps(usual), json.dumps(usual), text)]
    packed, failures = Converter(DOCUMENTS, ROWS, packer).convert("results", records)
    assert (packed[2], failures) == (packer.row(found), [])


@pytest.mark.parametrize("end", [b"xx", b'"]', b"}}", b' "'])
def test_a_document_with_another_end_is_none(end):
    text = json.dumps({"status": "SUCCESS", "result": 1, **HEAD, **CALL, "task_id": ID.decode()}).encode()
    with pytest.raises(MalformedError):
        as_seen_before(text[:-2] + end)


def test_a_document_without_kwargs_has_none():
    call = {name: value for name, value in CALL.items() if name != "kwargs"}
    text = json.dumps({"status": "SUCCESS", "result": 1, **HEAD, **call, "task_id": ID.decode()}).encode()
    row = dict(zip(TASK_COLUMNS, as_seen_before(text), strict=True))
    assert (row["args"], row["kwargs"], row["worker"]) == (b"[1]", None, b"w")


@pytest.mark.parametrize("cut", range(1, 60))
def test_a_document_that_is_cut_off_is_none(cut):
    reader = Reader()
    meta: dict[str, Any] = {
        "status": "SUCCESS",
        "result": 1,
        "traceback": None,
        "children": [],
        "date_done": DONE,
    }
    text = json.dumps({**meta, "task_id": ID.decode()}).encode()
    reader.task_row(ID, text, Lossy())
    with pytest.raises(MalformedError):
        reader.task_row(ID, text[:-cut], Lossy())


# Packed at once: one loop makes of documents what the reader and then the packer make.


def both_ways(records: list[Document]) -> tuple[tuple[list[PackedRow], list[str], Lossy], ...]:
    packer = Packer("results")
    long, short = Converter(DOCUMENTS, ROWS), Converter(DOCUMENTS, ROWS, packer)
    rows, failures = long.convert("results", records)
    packed, failed = short.convert("results", records)
    return (
        ([packer.row(row) for row in rows], [failure.id for failure in failures], long.take_lossy()),
        (packed, [failure.id for failure in failed], short.take_lossy()),
    )


def test_documents_are_packed_at_once_as_one_after_the_other():
    made, chance, now = Made(11), random.Random(12), now_ms()
    done = microseconds(dt.datetime.fromisoformat(DONE)) // 1000
    records = [
        Document(
            b"%d-id" % number,
            json.dumps({**made.meta(), "task_id": f"{number}-id"}).encode(),
            chance.choice([None, now, done + 86_400_000, done + 86_390_000]),
        )
        for number in range(10_000)
    ]
    records[5] = records[5]._replace(value=b'\0 "result"')
    expected, found = both_ways(records)
    assert found == expected
    lossy = found[2]
    assert min(lossy[name] for name in ("never_expires", "expiry", "group_id", "name", "field:extra")) > 0
    assert found[1]


@pytest.mark.parametrize("extended", [False, True])
def test_what_celery_writes_is_packed_at_once(monkeypatch, extended):
    whole = {"status": "SUCCESS", "result": "x" * 70_000, **HEAD, **(CALL if extended else {})}
    text = json.dumps({**whole, "task_id": ID.decode()}).encode()
    records = [Document(ID, text, now_ms()), Document(ID, text.replace(b"[1]", b"null"), None)]
    converter = Converter(DOCUMENTS, ROWS, Packer("results"))
    first = converter.convert("results", records)
    assert first[0] == both_ways(records)[0][0]
    monkeypatch.delattr(Reader, "task_row")
    assert converter.convert("results", records) == first


@pytest.mark.parametrize("cut", range(1, 120))
def test_a_document_that_is_cut_off_fails_and_no_other(cut):
    whole = json.dumps({"status": "SUCCESS", "result": 1, **HEAD, **CALL, "task_id": ID.decode()}).encode()
    for end in (b"", b'"}', b"}"):
        records = [Document(ID, whole, None), Document(b"cut", whole[:-cut] + end, None)]
        expected, found = both_ways(records)
        assert found == expected
        assert found[0][0][0] == ID


# Rows for COPY


def as_psycopg_packs(rows: list[Row], types: list[str], dates: int) -> bytes:
    """Pack by psycopg's dumpers, field by field."""
    out = io.BytesIO()
    oids = {"int8": 20, "int4": 23, "bytea": 17}
    for row in rows:
        transformer = Transformer()
        transformer.set_dumper_types([oids[name] for name in types], 1)  # type: ignore[arg-type]
        values = [v - EPOCH if n == dates and v is not None else v for n, v in enumerate(row)]
        out.write(struct.pack(">h", len(values)))
        for value in transformer.dump_sequence(values, [PyFormat.BINARY] * len(values)):
            out.write(
                struct.pack(">i", -1) if value is None else struct.pack(">i", len(value)) + bytes(value)
            )
    return out.getvalue()


def a_row(chance: random.Random, number: int) -> Row:
    def text() -> bytes | None:
        return chance.choice([None, b"", b"a", b"n%d" % (number % 7), bytes(chance.randrange(300))])

    return (
        *(b"id%d" % number, chance.choice([b"SUCCESS", b"FAILURE", None]), text()),
        chance.choice([None, 0, 1_700_000_000_123_456]),
        *(text() for _ in range(6)),
        chance.choice([None, 0, -1, 2**31 - 1, number]),
        *(text(), text()),
    )


@pytest.mark.parametrize("width", [None, "int4", "int8"])
def test_rows_are_packed_as_psycopg_packs_them(monkeypatch, width):
    monkeypatch.setattr(copy_rows, "_MOST_CACHED", 20)
    chance = random.Random(3)
    rows = [a_row(chance, number) for number in range(500)]
    types = ["int8" if n == "date_done" else "int4" if n == "retries" else "bytea" for n in TASK_COLUMNS]
    date = TASK_COLUMNS.index("date_done")
    ids = None if width is None else list(range(7, 507))
    packer = Packer("results")
    found = packer.stream(rows[:100], ids and ids[:100], wide=width == "int8")
    # Packed before and now, mixed.
    mixed = [packer.row(row) if number % 2 else row for number, row in enumerate(rows[100:])]
    found += packer.stream(mixed, ids and ids[100:], wide=width == "int8")
    if width is not None and ids is not None:
        rows = [(number, *row) for number, row in zip(ids, rows, strict=True)]
        types, date = [width, *types], date + 1
    assert found == as_psycopg_packs(rows, types, date)


def test_groups_are_packed_as_psycopg_packs_them():
    rows: list[Row] = [(b"g", b"[]", 1_700_000_000_000_000), (b"h", None, None), (b"", b"x" * 70_000, 0)]
    found = Packer("groups").stream(rows)
    assert found == as_psycopg_packs(rows, ["bytea", "bytea", "int8"], 2)


def test_a_number_beyond_its_column_is_told():
    row = list(a_row(random.Random(1), 1))
    row[TASK_COLUMNS.index("retries")] = 2**31
    with pytest.raises(struct.error):
        Packer("results").stream([tuple(row)])
