"""Tables as older releases of Celery made them, rows in them, and the schema command as a role starts it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from celery import Celery
from tests.integration.verbs_support import Ran

if TYPE_CHECKING:
    from tests.integration.database_lab import Database

SCHEMA = Path(__file__).parents[2] / "src" / "celery_results" / "schema"
# Early releases had neither the extended columns nor the index; 5.7 added children and stamps.
CORE = "task_id VARCHAR(155) UNIQUE, status VARCHAR(50), result {bytes}, date_done {time}, traceback TEXT"
EXTENDED = (
    ", name VARCHAR(155), args {bytes}, kwargs {bytes}, worker VARCHAR(155), retries INTEGER,"
    " queue VARCHAR(155)"
)
AGES = {"without extended columns": CORE, "without an index": CORE + EXTENDED}
TYPES = {
    "postgresql": {"bytes": "BYTEA", "time": "TIMESTAMP WITHOUT TIME ZONE"},
    "mysql": {"bytes": "BLOB", "time": "DATETIME"},
    "sqlite": {"bytes": "BLOB", "time": "DATETIME"},
}
# psycopg 2 and SQLAlchemy 1.3 on MariaDB: no sequences there, so ids counted by the table itself.
IDS = {
    "postgresql": "id INTEGER NOT NULL PRIMARY KEY",
    "mysql": "id INTEGER NOT NULL AUTO_INCREMENT PRIMARY KEY",
    "sqlite": "id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT",
}
PAYLOADS = (b'{"a": 1}', b"\x80\x04K\x01.", b"", None, bytes(range(256)) * 50)


def make_old_tables(database: Database, age: str) -> list[tuple[Any, ...]]:
    """Make the tables of that age with rows; gives these as they are read back."""
    scheme = database.lab.scheme
    columns = AGES[age].format(**TYPES[scheme])
    groups = "taskset_id VARCHAR(155) UNIQUE, result {bytes}, date_done {time}".format(**TYPES[scheme])
    marker = "?" if scheme == "sqlite" else "%s"
    with database.admin() as connection:
        cursor = connection.cursor()
        if scheme == "postgresql":
            cursor.execute("CREATE SEQUENCE task_id_sequence")
            cursor.execute("CREATE SEQUENCE taskset_id_sequence")
        cursor.execute(f"CREATE TABLE celery_taskmeta ({IDS[scheme]}, {columns})")
        cursor.execute(f"CREATE TABLE celery_tasksetmeta ({IDS[scheme]}, {groups})")
        for number in range(200):
            values = (f"task-{number}", "SUCCESS", PAYLOADS[number % len(PAYLOADS)], "2026-01-02 03:04:05")
            identity = ("nextval('task_id_sequence')",) if scheme == "postgresql" else ("NULL",)
            cursor.execute(
                "INSERT INTO celery_taskmeta (id, task_id, status, result, date_done) VALUES "  # noqa: S608 - the tests' own
                f"({identity[0]}, {marker}, {marker}, {marker}, {marker})",
                values,
            )
        group_id = "nextval('taskset_id_sequence')" if scheme == "postgresql" else "NULL"
        cursor.execute(
            f"INSERT INTO celery_tasksetmeta (id, taskset_id, result, date_done) VALUES ({group_id}, "  # noqa: S608 - the tests' own
            f"{marker}, {marker}, {marker})",
            ("group-1", b"[1]", "2026-01-02 03:04:05"),
        )
    return contents(database)


def contents(database: Database) -> list[tuple[Any, ...]]:
    """Read the rows that `make_old_tables` made, as far as every age has the columns."""
    rows = database.rows(
        "SELECT id, task_id, status, result, date_done, traceback FROM celery_taskmeta "
        "WHERE task_id LIKE 'task-%' ORDER BY id"
        if database.lab.scheme == "sqlite"
        else "SELECT id, task_id, status, result, date_done, traceback FROM celery_taskmeta "
        "WHERE task_id LIKE 'task-%%' ORDER BY id"
    )
    groups = database.rows("SELECT id, taskset_id, result, date_done FROM celery_tasksetmeta ORDER BY id")
    return [
        tuple(bytes(value) if isinstance(value, memoryview) else value for value in row)
        for row in rows + groups
    ]


def start_schema(directory: Path, command: str, url: str, *arguments: str) -> subprocess.Popen[str]:
    """Start it as a role does: from a copy of the directory alone, where no celery_results is."""
    if not (directory / "schema").exists():
        shutil.copytree(SCHEMA, directory / "schema", ignore=shutil.ignore_patterns("__pycache__"))
    url_file = directory / "url"
    url_file.write_text(url + "\n")
    return subprocess.Popen(
        [sys.executable, "-m", "schema", command, "--url-file", str(url_file), "--json", *arguments],
        env={**os.environ, "PYTHONPATH": str(directory)},
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def schema(directory: Path, command: str, url: str, *arguments: str) -> Ran:
    """Run it to its end."""
    with start_schema(directory, command, url, *arguments) as process:
        stdout, stderr = process.communicate(timeout=120)
    return Ran(process.returncode, stdout, stderr)


def stock_app(url: str) -> Celery:
    """Give an application with Celery's own backend."""
    app = Celery("stock", backend=f"db+{url}", set_as_current=False)
    app.conf.update(database_create_tables_at_setup=False, result_extended=False, timezone="UTC")
    return app


class Writer:
    """Celery's own backend, which stores in a thread until told to stop; every store is acknowledged."""

    def __init__(self, url: str) -> None:
        self.backend = stock_app(url).backend
        # The columns that Celery itself would add on its first store are the upgrade's business here.
        self.backend.session_manager.prepared = True
        self.stored: list[str] = []
        self.failures: list[BaseException] = []
        self.longest_seconds = 0.0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def wait_for(self, count: int) -> None:
        """Wait until that many more were stored."""
        goal, deadline = len(self.stored) + count, time.monotonic() + 30
        while len(self.stored) < goal and not self.failures:
            assert time.monotonic() < deadline, "the writer stands still"
            self._end.wait(0.01)

    def _run(self) -> None:
        while not self._end.is_set():
            began = time.monotonic()
            task_id = f"live-{len(self.stored)}"
            try:
                self.backend.store_result(task_id, {"n": len(self.stored)}, "SUCCESS")
            except Exception as error:  # noqa: BLE001 - told by the test
                self.failures.append(error)
                return
            self.stored.append(task_id)
            self.longest_seconds = max(self.longest_seconds, time.monotonic() - began)
