"""The verbs run as a user runs them, on a database of a lab with rows of any age."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery_results.archive.records import COLUMNS

if TYPE_CHECKING:
    from tests.integration.database_lab import Database

SOURCE = Path(__file__).parents[2] / "src"
SETTINGS = """
import os as _os
result_backend = _os.environ["CELERYCONFIG_RESULT_URL"]
result_expires = {expires}
result_extended = True
timezone = "UTC"
"""
RESULTS = (b'{"a": 1}', "ünïcode \u2028 \U0001f600".encode(), b"\x80\x04\x95\xff\x00raw", b"", None, b"\x00")
OURS = "celery_results.backends.database:DatabaseBackend"


def now() -> datetime:
    """Give the time as the tables have it."""
    return datetime.now(UTC).replace(tzinfo=None)


def write_config(
    directory: Path, database: Database, *, expires: str = "86400", login: str = "worker", stock: bool = False
) -> Path:
    """Write settings as small as they can be; the URL with the password is in the env file."""
    directory.mkdir()
    (directory / "celeryconfig.py").write_text(SETTINGS.format(expires=expires))
    url = database.url(login)
    if stock:
        url = url.replace("postgresql+psycopg://", "postgresql+psycopg2://")
    backend = f"db+{url}" if stock else f"{OURS}+{url}"
    (directory / "celery.env").write_text(
        f"CELERYCONFIG_RESULT_NAME=x\nCELERYCONFIG_RESULT_URL='{backend}'\n"
    )
    return directory


@dataclass(frozen=True)
class Ran:
    """What one run gave."""

    code: int
    stdout: str
    stderr: str

    @property
    def document(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.stdout)
        return document


def start(config: Path, verb: str, *arguments: str) -> subprocess.Popen[str]:
    """Start a verb; --json unless the arguments say --text."""
    form = [] if "--text" in arguments else ["--json"]
    rest = [argument for argument in arguments if argument != "--text"]
    return subprocess.Popen(
        [sys.executable, "-m", "celery_results", verb, "--config-directory", str(config), *form, *rest],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(config: Path, verb: str, *arguments: str) -> Ran:
    """Run a verb to its end."""
    with start(config, verb, *arguments) as process:
        stdout, stderr = process.communicate(timeout=120)
    return Ran(process.returncode, stdout, stderr)


def fill(
    database: Database, count: int, age: timedelta, *, prefix: str = "old", status: str = "SUCCESS"
) -> None:
    """Store rows that ended that long ago, one a millisecond later than the other."""
    scheme = database.lab.scheme
    identity = {"postgresql": "nextval('task_id_sequence')", "mysql": "nextval(task_id_sequence)"}.get(
        scheme, "NULL"
    )
    mark = "?" if scheme == "sqlite" else "%s"
    began = now() - age
    ready = status in {"SUCCESS", "FAILURE"}
    rows = []
    for number in range(count):
        done = began + timedelta(milliseconds=number)
        text = done.isoformat(sep=" ", timespec="microseconds") if ready else None
        payload = RESULTS[number % len(RESULTS)]
        core = (f"{prefix}-{number}", status, payload, text, "trace\n" * (number % 3) or None, b"[]")
        rows.append(
            (*core, f"app.task{number % 4}", payload, b"{}", "worker@host", number % 5, "celery", None)
        )
    with database.admin() as connection:
        cursor = connection.cursor()
        cursor.execute("BEGIN")
        cursor.executemany(
            f"INSERT INTO celery_taskmeta ({', '.join(COLUMNS)}) "  # noqa: S608 - the tests' own
            f"VALUES ({identity}, {', '.join([mark] * (len(COLUMNS) - 1))})",
            rows,
        )
        cursor.execute("COMMIT")


def everything(database: Database) -> list[tuple[Any, ...]]:
    """Read all rows, every column."""
    rows = database.rows(f"SELECT {', '.join(COLUMNS)} FROM celery_taskmeta ORDER BY id")  # noqa: S608
    return [tuple(bytes(value) if isinstance(value, memoryview) else value for value in row) for row in rows]


def task_ids(database: Database) -> list[str]:
    """Name the tasks in the database."""
    return [row[0] for row in database.rows("SELECT task_id FROM celery_taskmeta")]
