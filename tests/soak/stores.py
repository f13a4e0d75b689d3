"""What a store holds, read by plain SQL or Redis commands: no Celery, nothing of the bundle.

`open_store(env_file)` takes an env file as the celery role writes it, with variables CELERYCONFIG_RESULT_*.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import sqlite3
import subprocess
from typing import TYPE_CHECKING, Any, Protocol

from .judgement import SAVED_GROUP, Held
from .ledger import brief

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

BATCH = 400
ANSWER_SECONDS = 20


class Store(Protocol):
    """One store."""

    name: str
    expires: float

    def results(self, ids: Sequence[str]) -> dict[str, Held]: ...
    def groups(self, ids: Sequence[str]) -> dict[str, Held]: ...


def variables(env_file: Path) -> dict[str, str]:
    """Read an env file as the shell does."""
    script = 'set -a; . "$1"; exec env -0'
    shown = subprocess.run(
        ["/bin/sh", "-euc", script, "sh", str(env_file)], env={}, capture_output=True, check=True
    )
    pairs = (pair.split("=", 1) for pair in shown.stdout.decode().split("\0") if "=" in pair)
    return {name: value for name, value in pairs if name.startswith("CELERYCONFIG_")}


def open_store(env_file: Path) -> Store:
    """Connect; raise KeyError for a backend of another name."""
    values = variables(env_file)
    prefix = "CELERYCONFIG_RESULT_"
    own = {
        name.removeprefix(prefix).lower(): value for name, value in values.items() if name.startswith(prefix)
    }
    made: dict[str, type[_Redis | _Database]] = {
        "redis": _Redis, "postgresql": _PostgreSQL, "mysql": _MySQL, "sqlite": _SQLite
    }  # fmt: skip
    return made[own["name"]](own, float(own["expires_seconds"]))


def _batches(ids: Sequence[str]) -> Iterator[list[str]]:
    for start in range(0, len(ids), BATCH):
        yield list(ids[start : start + BATCH])


def _value(state: str, result: Any) -> Any:  # JSON
    """Give a stored value as the ledger has it."""
    if state == "FAILURE" and isinstance(result, dict):
        return {"error": result["exc_type"], "arguments": [str(each) for each in result["exc_message"]]}
    return brief(result)


def _members(saved: Any) -> Held:  # JSON: [[id, parent], [[[member, parent], children], ...]]
    return Held("SAVED", sorted(member[0][0] for member in saved[1]))


def _host(values: Mapping[str, str], default_port: int) -> dict[str, Any]:
    host, _, port = values["hosts"].split(",")[0].rpartition(":")
    return {"host": host.strip("[]"), "port": int(port or default_port)}


class _Redis:
    def __init__(self, values: Mapping[str, str], expires: float) -> None:
        import redis  # noqa: PLC0415 # only what this store needs

        self.name, self.expires = values["name"], expires
        tls: dict[str, Any] = (
            {"ssl": True, "ssl_ca_certs": values["tls_ca_file"]} if values["tls_enabled"] == "true" else {}
        )
        self._client: Any = redis.Redis(
            **_host(values, 6379), **tls, db=int(values["database"] or 0),
            username=values["username"], password=values["password"], socket_timeout=ANSWER_SECONDS,
        )  # fmt: skip
        self._no_permission = redis.exceptions.NoPermissionError

    def results(self, ids: Sequence[str]) -> dict[str, Held]:
        found = {}
        for batch in _batches(ids):
            keys = [f"celery-task-meta-{each}" for each in batch]
            for each, raw, life in zip(batch, self._client.mget(keys), self._lives(keys), strict=True):
                if raw is not None:
                    document = json.loads(raw)
                    done = document.get("date_done")
                    ended = dt.datetime.fromisoformat(done) if done else None
                    if ended is not None and ended.tzinfo is None:
                        ended = ended.replace(tzinfo=dt.UTC)
                    value = _value(document["status"], document["result"])
                    seconds = ended.timestamp() if ended else None
                    found[each] = Held(document["status"], value, seconds, life)
        return found

    def _lives(self, keys: list[str]) -> list[float | None]:
        """Give seconds, minus infinity for a key without end; None where the login may not ask."""
        pipeline = self._client.pipeline(transaction=False)
        for key in keys:
            pipeline.pttl(key)
        lives = pipeline.execute(raise_on_error=False)
        return [
            None if isinstance(life, self._no_permission) else life / 1000 if life >= 0 else float("-inf")
            for life in lives
        ]

    def groups(self, ids: Sequence[str]) -> dict[str, Held]:
        found: dict[str, Held] = {}
        for batch in _batches(ids):
            raws = self._client.mget([f"celery-taskset-meta-{each}" for each in batch])
            found |= {
                each: _members(json.loads(raw)["result"])
                for each, raw in zip(batch, raws, strict=True)
                if raw is not None
            }
        return found


class _Database:
    """A database by its driver; what differs is the connection and the mark of an argument."""

    mark = "%s"

    def __init__(self, values: Mapping[str, str], expires: float) -> None:
        self.name, self.expires = values["name"], expires
        self._values = values

    def connect(self) -> Any:  # one of three drivers
        raise NotImplementedError

    def _rows(self, columns: str, table: str, key: str, ids: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        with contextlib.closing(self.connect()) as connection:
            cursor = connection.cursor()
            for batch in _batches(ids):
                marks = ",".join([self.mark] * len(batch))
                cursor.execute(f"SELECT {columns} FROM {table} WHERE {key} IN ({marks})", batch)  # noqa: S608
                yield from cursor.fetchall()

    def results(self, ids: Sequence[str]) -> dict[str, Held]:
        rows = self._rows("task_id, status, result, date_done", "celery_taskmeta", "task_id", ids)
        return {
            task_id: Held(status, _value(status, _decoded(result)), _seconds(done))
            for task_id, status, result, done in rows
        }

    def groups(self, ids: Sequence[str]) -> dict[str, Held]:
        rows = self._rows("taskset_id, result", "celery_tasksetmeta", "taskset_id", ids)
        return {group_id: _members(_decoded(result)) for group_id, result in rows}


def _decoded(raw: Any) -> Any:  # bytes, memoryview or text
    return None if raw is None else json.loads(raw if isinstance(raw, str) else bytes(raw))


def _seconds(done: Any) -> float | None:  # a datetime, or SQLite's text
    if isinstance(done, str):
        done = dt.datetime.fromisoformat(done)
    return done.replace(tzinfo=dt.UTC).timestamp() if done else None


class _PostgreSQL(_Database):
    def connect(self) -> Any:
        import psycopg  # noqa: PLC0415

        values = self._values
        tls: dict[str, Any] = {"sslmode": "verify-full", "sslrootcert": values["tls_ca_file"]}
        return psycopg.connect(
            **_host(values, 5432), dbname=values["database"], user=values["username"],
            password=values["password"], connect_timeout=ANSWER_SECONDS,
            **(tls if values["tls_enabled"] == "true" else {}),
        )  # fmt: skip


class _MySQL(_Database):
    def connect(self) -> Any:
        import pymysql  # noqa: PLC0415

        values = self._values
        tls = {"ssl_ca": values["tls_ca_file"], "ssl_verify_cert": True, "ssl_verify_identity": True}
        return pymysql.connect(
            **_host(values, 3306), database=values["database"], user=values["username"],
            password=values["password"], charset="utf8mb4", connect_timeout=ANSWER_SECONDS,
            **(tls if values["tls_enabled"] == "true" else {}),
        )  # fmt: skip


class _SQLite(_Database):
    mark = "?"

    def connect(self) -> Any:
        return sqlite3.connect(f"file:{self._values['database']}?mode=ro", uri=True, timeout=ANSWER_SECONDS)


def read_store(store: Store, kinds: Mapping[str, str]) -> dict[str, Held]:
    """Read the results and saved groups with these ids, given with their kinds."""
    groups = [each for each, kind in kinds.items() if kind == SAVED_GROUP]
    results = [each for each, kind in kinds.items() if kind != SAVED_GROUP]
    return store.results(results) | store.groups(groups)
