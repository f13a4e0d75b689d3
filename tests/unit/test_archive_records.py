"""Records keep every byte, manifests keep every fact, ages are read as they are meant."""

from __future__ import annotations

import importlib
import json
from datetime import datetime, timedelta

import click
import pytest

from celery_results import deployed
from celery_results.archive import formats, manifest
from celery_results.archive.errors import ArchiveError, ArchiveUsageError
from celery_results.archive.manifest import Chunk, Manifest
from celery_results.archive.records import Record
from celery_results.archive.restorer import Selection

DONE = datetime(2026, 1, 2, 3, 4, 5, 678)  # noqa: DTZ001 - naive UTC as stored
PAYLOADS = [
    None,
    b"",
    b"\x00",
    bytes(range(256)),
    '"ü\u2028\ud7ff'.encode(),
    b'{"base64": "eA=="}',
    b"\xef\xbb\xbf",
]
CHUNK = Chunk(
    "chunk-00000001.jsonl.gz", "jsonl", "0" * 64, 9, 1, 5, 5, "2026-01-02", "2026-01-03", "moved", (5,)
)


def record(payload, number=1):
    row = (
        number,
        f"task-{number}",
        "SUCCESS",
        payload,
        DONE,
        'a\n"\u2028b',
        payload,
        "app.ü",
        payload,
        payload,
    )
    return Record.of_row((*row, "worker", 3, None, payload))


@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_line_keeps_every_byte(payload):
    line = record(payload).to_json()
    assert line.count(b"\n") == 1
    assert Record.of_json(line) == record(payload)


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_a_file_keeps_every_record(tmp_path, form):
    records = [record(payload, number) for number, payload in enumerate(PAYLOADS)]
    path = tmp_path / f"chunk{formats.SUFFIXES[form]}"
    keys = formats.write_chunk(path, form, [records[:3], records[3:]])
    assert keys == [item.key for item in records]
    assert list(formats.read_chunk(path, form)) == records
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_the_same_records_give_the_same_bytes(tmp_path):
    sums = set()
    for name in ("a", "b"):
        formats.write_chunk(tmp_path / name, "jsonl", [[record(b"x")]])
        sums.add(formats.sha256(tmp_path / name))
    assert len(sums) == 1


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
@pytest.mark.parametrize("cut", [1, 20])
def test_a_cut_file_is_damaged(tmp_path, form, cut):
    path = tmp_path / "chunk"
    formats.write_chunk(path, form, [[record(b"x")]])
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(ArchiveError):
        assert list(formats.read_chunk(path, form)) == [record(b"x")]


def test_an_interrupted_write_leaves_nothing(tmp_path):
    def broken():
        yield [record(b"x")]
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        formats.write_chunk(tmp_path / "chunk", "jsonl", broken())
    assert not list(tmp_path.iterdir())


def test_parquet_without_its_package_is_refused(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    formats.require("jsonl")
    with pytest.raises(ArchiveUsageError, match="pyarrow"):
        formats.require("parquet")


def test_a_manifest_comes_back_as_it_was(tmp_path):
    assert manifest.load(tmp_path) is None
    whole = Manifest({"database": "d"}, "move", "0001", cutoff="2026-01-01T00:00:00").with_chunk(CHUNK)
    whole.save(tmp_path)
    assert manifest.load(tmp_path) == whole


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"chunks": [{}]},
        {"unknown": 1},
        {"chunks": [{**CHUNK.__dict__, "file": "../x.jsonl.gz"}]},
        {"chunks": [{**CHUNK.__dict__, "state": "half"}]},
    ],
)
def test_a_manifest_that_is_not_ours_is_refused(tmp_path, change):
    Manifest({"database": "d"}, "move").save(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ArchiveError):
        manifest.load(tmp_path)


def test_one_works_on_a_directory(tmp_path):
    with manifest.alone(tmp_path), pytest.raises(ArchiveUsageError), manifest.alone(tmp_path):
        pass
    with manifest.alone(tmp_path):
        pass


def test_a_selection_is_half_open():
    item = record(b"x")
    assert Selection(since=DONE).takes(item)
    assert not Selection(until=DONE).takes(item)
    assert Selection(until=DONE + timedelta(microseconds=1)).takes(item)
    assert not Selection(task_ids=frozenset({"other"})).takes(item)
    assert not Selection(since=datetime(2027, 1, 1)).may_be_in(CHUNK)  # noqa: DTZ001 - naive UTC as stored
    assert not Selection(until=datetime(2026, 1, 1)).may_be_in(CHUNK)  # noqa: DTZ001 - naive UTC as stored


@pytest.mark.parametrize(
    ("text", "seconds"), [("45s", 45), ("90m", 5400), ("12h", 43200), ("30d", 2592000), ("2w", 1209600)]
)
def test_ages(text, seconds):
    assert deployed.age(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["0d", "-1d", "1", "d", "1y", "1.5d", "99999999999d", ""])
def test_what_is_no_age(text):
    with pytest.raises(click.BadParameter):
        deployed.age(text)


def test_moments_are_utc():
    assert deployed.moment("2026-01-31") == datetime(2026, 1, 31)  # noqa: DTZ001 - naive UTC as stored
    assert deployed.moment("2026-01-31T12:00:00+02:00") == datetime(2026, 1, 31, 10)  # noqa: DTZ001
    with pytest.raises(click.BadParameter):
        deployed.moment("today")
