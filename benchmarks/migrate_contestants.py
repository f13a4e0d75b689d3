"""The contestants of migrate.py: each copies all results from one store to another and gives their number."""

# ruff: noqa: ANN401, S608 # Celery has no types; names of this file's own

import datetime as dt
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[1]
sys.path[:0] = [str(PROJECT), str(PROJECT / "src")]

from celery import Celery  # noqa: E402
from tests.integration.copy_case import OURS  # noqa: E402

from celery_results.migration import interpreter  # noqa: E402
from celery_results.migration.engine import Copy  # noqa: E402
from celery_results.stores.endpoint import of_settings  # noqa: E402
from celery_results.stores.record import TASK_COLUMNS  # noqa: E402

EXPIRES = 86_400
MANY = 1000  # keys to a MIGRATE
TABLE = "celery_taskmeta"


def engine(source: dict[str, Any], target: dict[str, Any], **_: Any) -> int:
    """Run the copy as the verb does, without a checkpoint's fsync or a brake's probes."""
    interpreter.set_up()
    progress = Copy(of_settings(source, "source"), of_settings(target, "target")).run()
    assert progress.complete
    assert progress.total.failed == 0
    return progress.total.read


def engine_loading(source: dict[str, Any], target: dict[str, Any], **_: Any) -> int:
    """Run it with LOAD DATA LOCAL."""
    interpreter.set_up()
    goal = replace(of_settings(target, "target"), load_data=True)
    progress = Copy(of_settings(source, "source"), goal).run()
    assert progress.complete
    return progress.total.read


def naive(source: dict[str, Any], target: dict[str, Any], ids: list[str], **_: Any) -> int:
    """Read each result by Celery and store it by Celery."""
    here, there = (app_of(stock(side)).backend for side in (source, target))
    for identifier in ids:
        meta = here.get_task_meta(identifier, cache=False)
        there.store_result(identifier, meta["result"], meta["status"], traceback=meta["traceback"])
    return len(ids)


def raw_copy(target: dict[str, Any], prepared: str, count: int, **_: Any) -> int:
    """Send prepared bytes by one binary COPY over one connection: what the server takes at most."""
    tables: Any = of_settings(target, "target").target()
    tables.connect()
    connection = tables._tables._connection  # noqa: SLF001 # the same connection as the engine's
    with (
        Path(prepared).open("rb") as file,
        connection.cursor().copy(
            f"COPY {TABLE} ({', '.join(TASK_COLUMNS)}) FROM STDIN (FORMAT BINARY)"
        ) as copy,
    ):
        while piece := file.read(1 << 17):
            copy.write(piece)
    return count


def cursor_script(source: dict[str, Any], target: dict[str, Any], **_: Any) -> int:
    """Read by a server-side cursor, put JSON together, SET by redis-py's pipeline."""
    origin: Any = of_settings(source, "source").source()
    origin.connect()
    client = app_of(target).backend.client
    done = 0
    connection = origin._tables._connection  # noqa: SLF001
    with connection.transaction(), connection.cursor("script") as cursor:
        cursor.itersize = 1000
        cursor.execute(f"SELECT {', '.join(TASK_COLUMNS)} FROM {TABLE}")
        pipeline = client.pipeline(transaction=False)
        for row in cursor:
            meta = dict(zip(TASK_COLUMNS, row, strict=True))
            for name in ("result", "args", "kwargs", "children"):
                meta[name] = None if meta[name] is None else json.loads(meta[name])
            left = (
                meta["date_done"]
                + dt.timedelta(seconds=EXPIRES)
                - dt.datetime.now(dt.UTC).replace(tzinfo=None)
            )
            meta["date_done"] = meta["date_done"].isoformat() + "+00:00"
            pipeline.set(
                f"celery-task-meta-{meta['task_id']}", json.dumps(meta), px=int(left.total_seconds() * 1000)
            )
            done += 1
            if done % 1000 == 0:
                pipeline.execute()
        pipeline.execute()
    return done


def migrate_command(
    source: dict[str, Any], target: dict[str, Any], plain: tuple[str, int, str], **_: Any
) -> int:
    """Let the source push a thousand keys at a time, without TLS, over which it cannot."""
    del target
    client = app_of(source).backend.client
    host, port, password = plain
    done = 0
    keys: list[bytes] = []
    for key in client.scan_iter("celery-task-meta-*", count=1000):
        keys.append(key)
        if len(keys) == MANY:
            client.execute_command(
                "MIGRATE", host, port, "", 0, 60_000, "COPY", "AUTH2", "admin", password, "KEYS", *keys
            )
            done += len(keys)
            keys = []
    if keys:
        client.execute_command(
            "MIGRATE", host, port, "", 0, 60_000, "COPY", "AUTH2", "admin", password, "KEYS", *keys
        )
    return done + len(keys)


def upserts(source: dict[str, Any], target: dict[str, Any], **_: Any) -> int:
    """Read by a server-side cursor, write by PyMySQL's executemany, a thousand rows at a time."""
    origin: Any = of_settings(source, "source").source()
    goal: Any = of_settings(target, "target").target()
    origin.connect()
    goal.connect()
    there = goal._tables._connection  # noqa: SLF001
    marks = ", ".join(["%s"] * len(TASK_COLUMNS))
    statement = f"INSERT INTO {TABLE} ({', '.join(TASK_COLUMNS)}) VALUES ({marks}) ON DUPLICATE KEY UPDATE task_id = task_id"
    done = 0
    connection = origin._tables._connection  # noqa: SLF001
    with connection.transaction(), connection.cursor("script") as cursor, there.cursor() as writer:
        cursor.itersize = 1000
        cursor.execute(f"SELECT {', '.join(TASK_COLUMNS)} FROM {TABLE}")
        while rows := cursor.fetchmany(1000):
            writer.executemany(statement, rows)
            done += len(rows)
    return done


def app_of(settings: dict[str, Any]) -> Any:
    """Make an application with one side's settings."""
    app = Celery("bench", set_as_current=False)
    app.conf.update({**settings, "result_backend_always_retry": False})
    return app


def stock(side: dict[str, Any]) -> dict[str, Any]:
    """Have Celery's own class and its usual drivers."""
    url = side["result_backend"].replace(OURS, "db+").replace("postgresql+psycopg:", "postgresql+psycopg2:")
    return {**side, "result_backend": url}


CONTESTANTS: dict[str, Callable[..., int]] = {
    "engine": engine,
    "engine, all there": engine,
    "engine, LOAD DATA": engine_loading,
    "raw COPY": raw_copy,
    "cursor + pipeline": cursor_script,
    "MIGRATE": migrate_command,
    "multi-row upserts": upserts,
    "naive": naive,
}
RIVALS = {
    "redis-postgresql": ["raw COPY"],
    "postgresql-redis": ["cursor + pipeline"],
    "redis-redis": ["MIGRATE"],
    "postgresql-mysql": ["engine, LOAD DATA", "multi-row upserts"],
}
