"""celery-results-sqlite: looks, copies, verifies and restores, and refuses what is damaged."""

import json
import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from celery_results.doctor.servers.sqlite import REMOTE_FILE_SYSTEMS

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "roles/sqlite/files/celery_results_sqlite.py"
TABLES = """
PRAGMA journal_mode = WAL;
CREATE TABLE celery_taskmeta (id INTEGER PRIMARY KEY, task_id TEXT UNIQUE, result BLOB);
CREATE TABLE celery_tasksetmeta (id INTEGER PRIMARY KEY, taskset_id TEXT UNIQUE, result BLOB);
"""


@pytest.fixture
def database(tmp_path):
    """Make a database with a thousand results in a private directory."""
    directory = tmp_path / "results"
    directory.mkdir(mode=0o700)
    path = directory / "results.sqlite3"
    path.touch(mode=0o600)
    with sqlite3.connect(path) as connection:
        connection.executescript(TABLES)
        connection.executemany(
            "INSERT INTO celery_taskmeta (task_id, result) VALUES (?, ?)",
            [(f"id-{i}", b"x" * 100) for i in range(1000)],
        )
    connection.close()
    return path


def run(*arguments):
    return subprocess.run(
        [sys.executable, TOOL, *map(str, arguments)], capture_output=True, text=True, check=False
    )


def check(database):
    done = run("check", database)
    document = json.loads(done.stdout)
    assert done.returncode == bool(document["problems"])
    return " ".join(document["problems"])


def count(path):
    with sqlite3.connect(path) as connection:
        found = connection.execute("SELECT count(*) FROM celery_taskmeta").fetchone()[0]
    connection.close()
    return found


def forget(path, first):
    with sqlite3.connect(path) as connection:
        connection.execute("DELETE FROM celery_taskmeta WHERE id > ?", (first,))
    connection.close()


def test_a_sound_database_has_no_problems(database):
    assert check(database) == ""


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda path: path.parent.chmod(0o755), "mode 0755"),
        (lambda path: path.chmod(0o640), "mode 0640"),
        (lambda path: sqlite3.connect(path).execute("PRAGMA journal_mode = DELETE"), "journal mode delete"),
        (
            lambda path: sqlite3.connect(path).execute("DROP TABLE celery_tasksetmeta"),
            "no table celery_taskset",
        ),
        (lambda path: path.write_text("no database"), "not a database"),
        (lambda path: path.unlink(), "unable to open"),
    ],
)
def test_what_is_wrong_is_named(database, harm, told):
    harm(database)
    assert told in check(database)


def test_a_backup_is_one_moment_while_others_write(database, tmp_path):
    writer = sqlite3.connect(database)
    writer.execute("DELETE FROM celery_taskmeta")  # not committed
    copy = tmp_path / "copy.sqlite3"
    assert run("backup", database, copy).returncode == 0
    writer.rollback()
    writer.close()
    assert run("verify", copy).stdout == f"{copy}: 1000 results\n"
    assert copy.stat().st_mode & 0o077 == 0
    # By the file format: no write-ahead log, so it is read where nothing can be written.
    assert copy.read_bytes()[18:20] == b"\x01\x01"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("copy")] == ["copy.sqlite3"]


def damaged(path):
    raw = bytearray(path.read_bytes())
    raw[8192:16384] = b"\xff" * 8192
    path.write_bytes(raw)


@pytest.mark.parametrize(
    "harm",
    [
        damaged,
        lambda path: path.write_bytes(path.read_bytes()[:-4096]),
        lambda path: path.write_bytes(b""),
        lambda path: path.unlink(),
    ],
)
def test_a_damaged_backup_is_refused_and_nothing_is_changed(database, tmp_path, harm):
    copy = tmp_path / "copy.sqlite3"
    run("backup", database, copy)
    harm(copy)
    forget(database, 900)
    for arguments in (("verify", copy), ("restore", database, copy)):
        done = run(*arguments)
        assert done.returncode == 1
        assert str(copy) in done.stderr
        assert "Traceback" not in done.stderr
    assert count(database) == 900
    assert not list(database.parent.glob("before-restore-*"))


def test_a_restore_is_seen_by_open_connections_and_keeps_what_was_there(database, tmp_path):
    copy = tmp_path / "copy.sqlite3"
    run("backup", database, copy)
    forget(database, 10)
    reader = sqlite3.connect(database)
    assert reader.execute("SELECT count(*) FROM celery_taskmeta").fetchone()[0] == 10
    done = run("restore", database, copy)
    assert done.returncode == 0, done.stderr
    assert reader.execute("SELECT count(*) FROM celery_taskmeta").fetchone()[0] == 1000
    reader.close()
    assert check(database) == ""
    (aside,) = database.parent.glob("before-restore-*.sqlite3")
    assert count(aside) == 10
    assert str(aside) in done.stdout


def test_a_damaged_database_is_replaced_only_while_nobody_has_it_open(database, tmp_path):
    copy = tmp_path / "copy.sqlite3"
    run("backup", database, copy)
    database.write_bytes(b"nonsense" * 1000)
    with database.open("rb"):
        done = run("restore", database, copy)
        assert done.returncode == 1
        assert "in use by the processes" in done.stderr
        assert database.read_bytes().startswith(b"nonsense")
    assert run("restore", database, copy).returncode == 0
    assert check(database) == ""
    assert count(database) == 1000
    (aside,) = database.parent.glob("before-restore-*.sqlite3")
    assert aside.read_bytes().startswith(b"nonsense")


def test_the_tool_needs_nothing_but_python():
    done = subprocess.run(
        [sys.executable, "-I", "-S", TOOL, "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert shutil.which("sqlite3") is None or "restore" in done.stdout


def test_role_and_doctor_agree_about_network_file_systems():
    role = yaml.safe_load((ROOT / "roles/sqlite/vars/main.yml").read_text())["__sqlite_remote_file_systems"]
    assert role.strip() == REMOTE_FILE_SYSTEMS
    for kind in ("nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "9p", "virtiofs", "ceph", "glusterfs", "fuse"):
        assert re.match(role, kind), kind
    for kind in ("ext4", "xfs", "btrfs", "zfs", "overlay", "tmpfs", "f2fs", "fuse.fuse-overlayfs", "vfat"):
        assert not re.match(role, kind), kind
