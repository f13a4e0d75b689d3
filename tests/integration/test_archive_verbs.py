"""archive and restore against real servers: round trip, kill -9 anywhere, damage, a full disk."""

from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path

import pytest
from tests.integration.database_lab import LABS
from tests.integration.verbs_support import SOURCE, everything, fill, run, start, task_ids, write_config

MONTHS = timedelta(days=90)
KILL = Path(__file__).with_name("archive_kill.py")


@pytest.fixture(scope="module", params=sorted(LABS))
def lab(request):
    with LABS[request.param]() as lab:
        yield lab


@pytest.fixture(scope="module")
def postgresql():
    with LABS["postgresql"]() as lab:
        yield lab


@pytest.fixture
def archive(tmp_path):
    return tmp_path / "archive"


def manifest(archive):
    return json.loads((archive / "manifest.json").read_text())


def archived_ids(archive):
    """Read the archive as anybody would: the manifest, gzip, JSON."""
    found = []
    for chunk in manifest(archive)["chunks"]:
        with gzip.open(archive / chunk["file"]) as file:
            rows = [json.loads(line) for line in file]
        assert len(rows) == chunk["rows"]
        found += [row["task_id"] for row in rows if row["id"] not in chunk["not_moved"]]
    return found


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_round_trip_is_byte_by_byte(lab, tmp_path, archive, form):
    database = lab.database()
    fill(database, 60, MONTHS)
    fill(database, 5, timedelta(0), prefix="new")
    fill(database, 5, MONTHS, prefix="unfinished", status="STARTED")
    before = everything(database)
    config = write_config(tmp_path / "config", database)
    done = run(
        config, "archive", "--older-than", "30d", "--to", str(archive), "--format", form, "--chunk-rows", "25"
    )
    assert done.code == 0, done
    assert (done.document["archived"], done.document["deleted"], done.document["chunks"]) == (60, 60, 3)
    assert sorted(task_ids(database)) == sorted(row[1] for row in before if not row[1].startswith("old-"))
    back = run(config, "restore", "--from", str(archive), "--all")
    assert back.code == 0, back
    assert (back.document["restored"], back.document["renumbered"]) == (60, 0)
    assert everything(database) == before
    again = run(config, "restore", "--from", str(archive), "--all")
    assert (again.document["restored"], again.document["present"]) == (0, 60)


def test_files_are_for_their_owner_and_described(lab, tmp_path, archive):
    database = lab.database()
    fill(database, 10, MONTHS)
    config = write_config(tmp_path / "config", database)
    assert run(config, "archive", "--older-than", "30d", "--to", str(archive)).code == 0
    assert archive.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in archive.iterdir()} == {0o600}
    (chunk,) = manifest(archive)["chunks"]
    assert (chunk["rows"], chunk["state"], len(chunk["sha256"])) == (10, "moved", 64)
    assert chunk["first_date_done"] < chunk["last_date_done"]
    text = (archive / "manifest.json").read_text()
    assert not any(password in text for password in lab.passwords.values())


def test_what_a_killed_run_left_unlisted_is_removed(postgresql, tmp_path, archive):
    database = postgresql.database()
    fill(database, 3, MONTHS)
    archive.mkdir()
    config = write_config(tmp_path / "config", database)
    arguments = ("archive", "--older-than", "30d", "--to", str(archive))
    assert run(config, *arguments).code == 0
    for name in ("chunk-00000009.jsonl.gz", "chunk-00000002.jsonl.gz.tmp", "manifest.json.tmp", "notes.txt"):
        (archive / name).write_text("half")
    assert run(config, *arguments).code == 0
    assert {path.name for path in archive.iterdir()} == {
        ".lock",
        "manifest.json",
        "chunk-00000001.jsonl.gz",
        "notes.txt",
    }


def test_one_result_and_a_range_come_back(lab, tmp_path, archive):
    database = lab.database()
    fill(database, 20, MONTHS)
    fill(database, 20, 2 * MONTHS, prefix="older")
    config = write_config(tmp_path / "config", database)
    run(config, "archive", "--older-than", "30d", "--to", str(archive))
    assert run(config, "restore", "--from", str(archive), "--id", "old-7", "--id", "older-3").code == 0
    assert sorted(task_ids(database)) == ["old-7", "older-3"]
    middle = manifest(archive)["chunks"][0]["last_date_done"].replace(" ", "T")[:10]
    assert run(config, "restore", "--from", str(archive), "--until", middle).code == 0
    assert sorted(task_ids(database)) == sorted({"old-7", *(f"older-{number}" for number in range(20))})
    absent = run(config, "restore", "--from", str(archive), "--id", "never")
    assert (absent.code, absent.document["ok"]) == (1, False)


def test_a_newer_row_is_never_overwritten(lab, tmp_path, archive):
    database = lab.database()
    fill(database, 3, MONTHS)
    config = write_config(tmp_path / "config", database)
    run(config, "archive", "--older-than", "30d", "--to", str(archive))
    fill(database, 1, timedelta(0), status="FAILURE")
    newer = everything(database)
    back = run(config, "restore", "--from", str(archive), "--all").document
    assert (back["restored"], back["present"]) == (2, 1)
    assert newer[0] in everything(database)


def test_another_database_gets_ids_that_collide_with_nothing(lab, tmp_path, archive):
    database, other = lab.database(), lab.database()
    fill(database, 10, MONTHS)
    run(write_config(tmp_path / "config", database), "archive", "--older-than", "30d", "--to", str(archive))
    config = write_config(tmp_path / "other", other)
    assert run(config, "restore", "--from", str(archive), "--all").document["restored"] == 10
    fill(other, 30, timedelta(0), prefix="new")
    assert len(task_ids(other)) == 40


def test_killed_at_every_point_it_loses_and_doubles_nothing(lab, archive):
    database = lab.database()
    fill(database, 2000, MONTHS)
    fill(database, 10, timedelta(0), prefix="new")
    wanted = sorted(task_ids(database))
    seen: Counter[str] = Counter()
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    for number in range(1, 100):
        command = [sys.executable, str(KILL), database.url("worker"), str(archive), str(number)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        inside = set(task_ids(database))
        listed = set(archived_ids(archive)) if (archive / "manifest.json").exists() else set()
        assert inside | listed == set(wanted), (number, done)
        if done.returncode == 0:
            break
        assert done.returncode == -9, done
        seen[done.stdout] += 1
        if not number % 3:  # now and then go on to the end of a chunk, so that later points are met
            fill(database, 800, MONTHS, prefix=f"more{number}")
            wanted = sorted(set(wanted) | set(task_ids(database)))
    assert done.returncode == 0
    assert set(seen) == {"reading", "named", "listed", "deleting", "deleted", "moved"}
    assert sorted(archived_ids(archive) + task_ids(database)) == wanted
    assert not list(archive.glob("*.tmp"))


def test_killed_under_load_it_loses_and_doubles_nothing(lab, tmp_path, archive):
    database = lab.database()
    fill(database, 6000, MONTHS)
    old = {f"old-{number}" for number in range(6000)}
    config = write_config(tmp_path / "config", database)
    arguments = ("archive", "--older-than", "30d", "--to", str(archive), "--chunk-rows", "100")
    ended, live = threading.Event(), 0

    def load():
        nonlocal live
        while not ended.is_set():
            fill(database, 20, timedelta(0), prefix=f"live{live}")
            live += 1

    thread = threading.Thread(target=load)
    thread.start()
    kills, chance = 0, random.Random(5)  # noqa: S311 - when to kill
    try:
        for _ in range(60):
            before = len(list(archive.glob("*")))
            with start(config, *arguments) as process:
                # As soon as it has begun a chunk, and at any moment of the next few.
                while process.poll() is None and len(list(archive.glob("*"))) == before:
                    time.sleep(0.001)
                try:
                    process.wait(chance.random() * 0.1)
                except subprocess.TimeoutExpired:
                    process.kill()
                    kills += 1
            assert old <= set(task_ids(database)) | (
                set(archived_ids(archive)) if (archive / "manifest.json").exists() else set()
            )
            if process.returncode == 0:
                break
        final = run(config, *arguments)
    finally:
        ended.set()
        thread.join()
    assert final.code == 0, final
    assert kills > 3
    assert Counter(archived_ids(archive)) == Counter(old)
    assert not old & set(task_ids(database))
    assert len(task_ids(database)) == live * 20


def test_a_row_that_changes_meanwhile_stays(postgresql, tmp_path, archive):
    database = postgresql.database()
    fill(database, 10, MONTHS)
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    # Killed once the chunk is listed: reading 1, named 2, listed 3.
    command = [sys.executable, str(KILL), database.url("worker"), str(archive)]
    assert subprocess.run([*command, "3"], env=environment, check=False).returncode == -9
    database.rows("UPDATE celery_taskmeta SET date_done = now(), status = 'FAILURE' WHERE task_id = 'old-4'")
    changed = everything(database)[4]
    assert subprocess.run([*command, "99"], env=environment, check=False).returncode == 0
    assert everything(database) == [changed]
    (chunk,) = manifest(archive)["chunks"]
    assert chunk["not_moved"] == [changed[0]]
    database.rows("DELETE FROM celery_taskmeta")
    run(write_config(tmp_path / "config", database), "restore", "--from", str(archive), "--all")
    assert "old-4" not in task_ids(database)


def test_a_damaged_chunk_is_not_restored_and_nothing_is_deleted_for_it(postgresql, tmp_path, archive):
    database = postgresql.database()
    fill(database, 30, MONTHS)
    config = write_config(tmp_path / "config", database)
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    command = [sys.executable, str(KILL), database.url("worker"), str(archive), "3"]
    assert subprocess.run(command, env=environment, check=False).returncode == -9
    (chunk,) = archive.glob("chunk-*")
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[:-9] + b"x" + whole[-8:])
    document = manifest(archive)
    document["source"]["database"] = database.name
    (archive / "manifest.json").write_text(json.dumps(document))
    for verb in (
        ("archive", "--older-than", "30d", "--to", str(archive)),
        ("restore", "--from", str(archive), "--all"),
    ):
        ran = run(config, *verb)
        assert ran.code == 1
        assert ran.document["error"]["found"] == "another checksum"
    assert len(task_ids(database)) == 30
    chunk.unlink()
    assert run(config, "restore", "--from", str(archive), "--all").code == 1
    chunk.write_bytes(whole)
    assert run(config, "archive", "--older-than", "30d", "--to", str(archive)).code == 0
    assert task_ids(database) == []


def test_a_truncated_or_lost_manifest_is_refused(postgresql, tmp_path, archive):
    database = postgresql.database()
    fill(database, 5, MONTHS)
    config = write_config(tmp_path / "config", database)
    run(config, "archive", "--older-than", "30d", "--to", str(archive))
    fill(database, 5, MONTHS, prefix="next")
    path = archive / "manifest.json"
    path.write_bytes(path.read_bytes()[:-40])
    verbs = (
        ("archive", "--older-than", "30d", "--to", str(archive)),
        ("restore", "--from", str(archive), "--all"),
    )
    assert [run(config, *verb).code for verb in verbs] == [1, 1]
    path.unlink()
    assert [run(config, *verb).code for verb in verbs] == [1, 1]
    assert len(task_ids(database)) == 5


def test_a_full_disk_deletes_nothing(postgresql, tmp_path, archive):
    if os.getuid():
        pytest.fail("mounting a small file system needs root")
    database = postgresql.database()
    fill(database, 4000, MONTHS)
    noise = "UPDATE celery_taskmeta SET result = decode(md5(random()::text) || md5(random()::text), 'hex')"
    database.rows(noise)
    config = write_config(tmp_path / "config", database)
    archive.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(archive)], check=True)
    try:
        ran = run(config, "archive", "--older-than", "30d", "--to", str(archive))
        assert ran.code == 1
        assert ran.document["error"]["found"] == "No space left on device"
        assert len(task_ids(database)) == 4000
        assert not list(archive.glob("chunk-*"))
    finally:
        subprocess.run(["umount", str(archive)], check=True)


def test_a_copy_deletes_nothing_and_is_not_mixed_with_a_move(postgresql, tmp_path, archive):
    database = postgresql.database()
    fill(database, 10, MONTHS)
    config = write_config(tmp_path / "config", database)
    arguments = ("archive", "--older-than", "30d", "--to", str(archive))
    copied = run(config, *arguments, "--keep")
    assert (copied.code, copied.document["archived"], copied.document["deleted"]) == (0, 10, 0)
    assert len(task_ids(database)) == 10
    assert run(config, *arguments).code == 2
    assert run(config, *arguments, "--keep").code == 2
    assert len(archived_ids(archive)) == 10


def test_two_archives_at_once_are_refused(postgresql, tmp_path, archive):
    database = postgresql.database()
    fill(database, 4, MONTHS)
    config = write_config(tmp_path / "config", database)
    with database.admin() as other:
        name = 'celery-results archive "celery_taskmeta"'
        other.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", (name,))
        assert run(config, "archive", "--older-than", "30d", "--to", str(archive)).code == 2
    assert len(task_ids(database)) == 4


def test_stock_settings_and_ctrl_c(lab, tmp_path, archive):
    database = lab.database()
    fill(database, 3000, MONTHS)
    config = write_config(tmp_path / "config", database, stock=True)
    with start(
        config, "archive", "--older-than", "30d", "--to", str(archive), "--chunk-rows", "50"
    ) as process:
        while not (archive / "manifest.json").exists():
            assert process.poll() is None
        process.send_signal(2)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, (stdout, stderr)
    assert not json.loads(stdout)["complete"]
    assert run(config, "archive", "--older-than", "30d", "--to", str(archive)).code == 0
    assert sorted(archived_ids(archive)) == sorted(f"old-{number}" for number in range(3000))


def test_wrong_usage_is_refused(postgresql, tmp_path, archive):
    config = write_config(tmp_path / "config", postgresql.database())
    for arguments in (
        ("archive", "--older-than", "0d", "--to", str(archive)),
        ("archive", "--older-than", "many", "--to", str(archive)),
        ("archive", "--older-than", "9999999d", "--to", str(archive)),
        ("restore", "--from", str(tmp_path)),
        ("restore", "--from", str(tmp_path), "--all", "--id", "x"),
        ("restore", "--from", str(tmp_path), "--since", "yesterday"),
    ):
        assert run(config, *arguments).code == 2, arguments
