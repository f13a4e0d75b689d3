"""What the tests of copy and verify share: fresh stores of every sort, results of every sort, the verbs."""

from __future__ import annotations

import contextlib
import datetime as dt
import decimal
import json
import os
import subprocess
import sys
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from celery import Celery
from celery.app.task import Context
from celery.result import AsyncResult, GroupResult
from tests.integration.database_lab import LABS, Database, DatabaseLab
from tests.integration.redis_lab import RedisLab
from tests.integration.verbs_support import Ran

if TYPE_CHECKING:
    from collections.abc import Callable

SOURCE = Path(__file__).parents[2] / "src"
OURS = "celery_results.backends.database:DatabaseBackend+"
EXPIRES = 86_400
TRACE = 'Traceback (most recent call last):\n  File "ä.py", line 1\nValueError: "quoted" \\ \t\n'
VALUES: dict[str, Any] = {
    "null": None,
    "true": True,
    "zero": 0,
    "huge": 2**80,
    "float": -1.5e-300,
    "text": 'quo"te \\ back\nline \u2028 \U0001f600 ünïcode \x00 nul',
    "empty": "",
    "list": [1, [2, [3, {}]], None, ""],
    "nested": {
        "traceback": None,
        "children": [],
        "kwargs": {"result": 1},
        ', "traceback": null, "children": []': ', "kwargs": {}, "worker": null}',
    },
    "when": dt.datetime(2026, 1, 31, 23, 59, 59, 123456, tzinfo=dt.UTC),
    "decimal": decimal.Decimal("0.10"),
    "uuid": uuid.UUID("12345678123456781234567812345678"),
    "bytes": b"\x00\xff\x80raw",
    "large": "ä" * 524_288,
}
NAMES = ("name", "args", "kwargs", "worker", "retries", "queue")


@dataclass
class Place:
    """One empty store, and what leads to it."""

    scheme: str
    url: str
    settings: dict[str, Any] = field(default_factory=dict)
    database: Database | None = None
    redis: Any = None

    def app(self, **conf: Any) -> Celery:
        app = Celery("case", set_as_current=False)
        settings = {
            "broker_url": "memory://",
            "result_backend": self.url,
            "result_extended": True,
            "result_expires": EXPIRES,
            "result_backend_always_retry": False,
            "database_create_tables_at_setup": False,
            "timezone": "UTC",
        }
        app.conf.update({**settings, **self.settings, **conf})
        return app

    @property
    def is_redis(self) -> bool:
        return self.redis is not None

    def count(self) -> int:
        """Count results."""
        if self.redis is not None:
            return sum(1 for _ in self.redis.scan_iter("celery-task-meta-*", count=5000))
        assert self.database is not None
        return int(self.database.rows("SELECT count(*) FROM celery_taskmeta")[0][0])

    def ids(self) -> set[str]:
        if self.redis is not None:
            keys = self.redis.scan_iter("celery-task-meta-*", count=5000)
            return {key.removeprefix("celery-task-meta-") for key in keys}
        assert self.database is not None
        return {row[0] for row in self.database.rows("SELECT task_id FROM celery_taskmeta")}


class Stores:
    """Servers that start when first asked for, and a new store for whoever asks."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._labs: dict[str, Any] = {}
        self._running = contextlib.ExitStack()
        self._databases = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def lab(self, scheme: str) -> Any:
        if scheme not in self._labs:
            lab = RedisLab(self._directory / "redis") if scheme == "redis" else LABS[scheme]()
            self._labs[scheme] = self._running.enter_context(lab)
        return self._labs[scheme]

    def new(self, scheme: str, **database: Any) -> Place:
        lab = self.lab(scheme)
        if scheme == "redis":
            self._databases += 1
            return redis_place(lab, self._databases % 16)
        return database_place(lab, **database)

    def stop(self) -> None:
        self._running.close()


def redis_place(lab: RedisLab, number: int = 0, login: str = "admin") -> Place:
    client = lab.admin()
    client.connection_pool.connection_kwargs["db"] = number
    client.flushdb()
    return Place("redis", lab.url(login, number), redis=client)


def database_place(lab: DatabaseLab, **database: Any) -> Place:
    made = lab.database(**database)
    return Place(lab.scheme, OURS + made.url("worker"), database=made)


def place_on(lab: RedisLab | DatabaseLab) -> Place:
    """Make a store on a server of its own."""
    return redis_place(lab) if isinstance(lab, RedisLab) else database_place(lab)


def request(identifier: str, **changes: Any) -> Context:
    children = changes.pop("children", [])
    context = Context(
        {
            "id": identifier,
            "task": "proj.ädd",
            "args": [1, {"a": None, "kwargs": {}}],
            "kwargs": {"k": "ä", "traceback": None},
            "hostname": "worker@host",
            "retries": 2,
            "delivery_info": {"routing_key": "fast"},
            **changes,
        }
    )
    context.children.extend(children)
    return context


def fill(place: Place, **conf: Any) -> dict[str, str]:
    """Store a result of every sort through Celery; give id and state of each."""
    app = place.app(**conf)
    backend: Any = app.backend
    stored: dict[str, str] = {}

    def store(name: str, value: Any, state: str, **more: Any) -> None:
        identifier = f"{name}-{uuid.uuid4()}"
        changes = more.pop("request", {})
        if more.pop("bare", False):
            plain = place.app(**{**conf, "result_extended": False}).backend
            plain.store_result(identifier, value, state, **more)
        else:
            backend.store_result(identifier, value, state, request=request(identifier, **changes), **more)
        stored[identifier] = state

    for name, value in VALUES.items():
        store(name, value, "SUCCESS")
    store("bare", {"a": [1, "ö"]}, "SUCCESS", bare=True)
    store("failed", ValueError("ä", 'quo"te'), "FAILURE", traceback=TRACE)
    store("plainfail", KeyError("k"), "FAILURE", traceback=TRACE, bare=True)
    store("retry", RuntimeError("again"), "RETRY", traceback=TRACE)
    store("revoked", Exception("terminated"), "REVOKED")
    store("started", {"pid": 1, "hostname": "h"}, "STARTED")
    store("pending", None, "PENDING")
    store("progress", {"done": 0.5}, "PROGRESS")
    store("lower-case", [1], "halfway-there")
    children = [AsyncResult(str(uuid.uuid4()), app=app), AsyncResult(str(uuid.uuid4()), app=app)]
    store("children", 1, "SUCCESS", request={"children": children})
    store("member", 1, "SUCCESS", request={"group": str(uuid.uuid4()), "parent_id": str(uuid.uuid4())})
    store("stamped", 1, "SUCCESS", request={"stamped_headers": ["trace"], "stamps": {"trace": "äbc"}})
    store("odd id: {ü} \\ 'quoted\" 100%", 1, "SUCCESS")
    return stored


def save_groups(place: Place, count: int = 2, **conf: Any) -> list[GroupResult]:
    app = place.app(**conf)
    groups = []
    for number in range(count):
        parent = AsyncResult(f"parent-{number}", app=app) if number else None
        results = [AsyncResult(str(uuid.uuid4()), app=app) for _ in range(3)]
        groups.append(GroupResult(f"group-ü-{uuid.uuid4()}", results, parent=parent, app=app))
        groups[-1].save()
    return groups


def seen(app: Celery, identifier: str) -> dict[str, Any]:
    """Give what Celery says of a result."""
    result = AsyncResult(identifier, app=app)
    meta: Any = app.backend.get_task_meta(identifier)
    done = result.date_done
    if isinstance(done, str):
        done = dt.datetime.fromisoformat(done)
    if done is not None and done.tzinfo is not None:
        done = done.astimezone(dt.UTC).replace(tzinfo=None)
    value = result.result
    if isinstance(value, BaseException):
        value = (type(value).__name__, value.args)
    return {
        "state": result.state,
        "value": value,
        "traceback": result.traceback,
        "date_done": done,
        "children": [child.id for child in result.children or []],
        "stamps": (meta.get("stamped_headers"), meta.get("trace")),
        **{name: meta.get(name) for name in NAMES},
    }


class Copying:
    """The verb between two places, as a user runs it, with one checkpoint."""

    def __init__(self, directory: Path, source: Place, target: Place) -> None:
        directory.mkdir(exist_ok=True)
        self.checkpoint = directory / "copy.json"
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(SOURCE),
            "COPY_FROM": source.url,
            "COPY_TO": target.url,
        }

    def command(self, *arguments: str, verb: str = "copy") -> list[str]:
        own = ["--checkpoint", str(self.checkpoint)] if verb == "copy" else []
        both = ["--from", "env:COPY_FROM", "--to", "env:COPY_TO"]
        return [sys.executable, "-m", "celery_results", verb, *both, *own, *arguments]

    def start(self, *arguments: str, verb: str = "copy", text: bool = False) -> subprocess.Popen[str]:
        own = ["--no-brake"] if verb == "copy" else []
        return subprocess.Popen(
            self.command(*own, *([] if text else ["--json"]), *arguments, verb=verb),
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, verb: str = "copy", text: bool = False) -> Ran:
        with self.start(*arguments, verb=verb, text=text) as process:
            stdout, stderr = process.communicate(timeout=180)
        return Ran(process.returncode, stdout, stderr)


def bulk(place: Place, count: int, make: Callable[[int], Any] = lambda number: {"n": number}) -> set[str]:
    """Store many results in Redis fast, as Celery writes them."""
    assert place.redis is not None
    now = dt.datetime.now(dt.UTC)
    ids = []
    pipeline = place.redis.pipeline(transaction=False)
    for number in range(count):
        identifier = str(uuid.uuid4())
        ids.append(identifier)
        document = {
            "status": "SUCCESS",
            "result": make(number),
            "traceback": None,
            "children": [],
            "date_done": now.isoformat(),
            "task_id": identifier,
        }
        pipeline.set(f"celery-task-meta-{identifier}", json.dumps(document), ex=EXPIRES)
        if number % 5000 == 4999:
            pipeline.execute()
    pipeline.execute()
    return set(ids)
