"""Compare the copy engine with raw COPY, with scripts as one would write them and with Celery's own loop; print ratios.

    .venv/bin/python benchmarks/migrate.py [--results 200000] [--rounds 3] [--parts copy verify live]
                                           [--ways redis-postgresql postgresql-redis ...]

It starts private servers on loopback (those of tests/integration), TLS on, the servers' own defaults kept. Contestants
take turns in every round, each in a process of its own, on an emptied target; a figure is the median of the rounds with
minimum and maximum, and a ratio is of two figures of this run. CPU is that of the client process. `naive` is Celery's
get_task_meta and store_result, one by one: it runs on a sample of --naive results and is scaled, as nobody waits for the
whole; it also loses fields and restarts every expiry. The contestants are in migrate_contestants.py, the parts `verify`
and `live` in migrate_verify.py and migrate_live.py.
"""

# ruff: noqa: ANN401, S608, S301 # Celery has no types; names and pipes of this file's own

import argparse
import datetime as dt
import json
import os
import pickle
import random
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[1]
sys.path[:0] = [str(PROJECT), str(PROJECT / "src")]

from benchmarks.migrate_contestants import CONTESTANTS, EXPIRES, RIVALS, TABLE  # noqa: E402
from tests.integration.copy_case import Place, Stores, redis_place  # noqa: E402
from tests.integration.redis_lab import RedisLab  # noqa: E402

from celery_results.stores.record import TASK_COLUMNS  # noqa: E402

WAYS = (
    "redis-postgresql",
    "postgresql-redis",
    "redis-redis",
    "postgresql-mysql",
    "redis-mysql",
    "mysql-postgresql",
    "sqlite-postgresql",
)


def documents(count: int, seed: int = 1) -> Any:
    """Make metas of about 620 bytes as Celery writes them under result_extended."""
    chance = random.Random(seed)  # noqa: S311 # the same results in every run
    now = dt.datetime.now(dt.UTC)
    for _ in range(count):
        identifier = str(uuid.UUID(int=chance.getrandbits(128), version=4))
        meta = {
            "status": "SUCCESS",
            "result": {
                "user": chance.randrange(10**6),
                "total": chance.random(),
                "items": [chance.randrange(1000) for _ in range(12)],
                "note": "x" * 60,
            },
            "traceback": None,
            "children": [],
            "date_done": (now - dt.timedelta(seconds=chance.random() * 36_000)).isoformat(),
            "name": "proj.tasks.compute_totals",
            "args": [chance.randrange(10**6), "monthly"],
            "kwargs": {"region": "eu", "dry_run": False},
            "worker": "celery@worker-3.example.org",
            "retries": 0,
            "queue": "celery",
            "task_id": identifier,
        }
        yield identifier, json.dumps(meta)


def child() -> None:
    """Run one contestant; print seconds, CPU seconds and peak memory."""
    name, arguments = pickle.load(sys.stdin.buffer)
    began, cpu = time.perf_counter(), time.process_time()
    count = CONTESTANTS[name](**arguments)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    # Not ru_maxrss, which begins with what the parent had.
    peak = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024
    sys.stdout.write(json.dumps({"count": count, "seconds": seconds, "cpu": cpu, "rss": peak}))


def run(name: str, **arguments: Any) -> dict[str, float]:
    """Run one contestant in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--child"],
        input=pickle.dumps((name, arguments)),
        stdout=subprocess.PIPE,
        check=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


# ---- the arena


def settings(place: Place) -> dict[str, Any]:
    """Give Celery's settings for a place."""
    return {
        "result_backend": place.url,
        "result_expires": EXPIRES,
        "timezone": "UTC",
        "database_create_tables_at_setup": False,
    }


def empty(place: Place) -> None:
    """Empty a target."""
    if place.redis is not None:
        place.redis.flushdb()
    elif place.database is not None and place.scheme != "sqlite":
        place.database.rows(f"TRUNCATE TABLE {TABLE}")
    elif place.database is not None:
        place.database.rows(f"DELETE FROM {TABLE}")


class Arena:
    """Servers, and one filled source of each sort."""

    def __init__(self, directory: Path, results: int) -> None:
        """Start nothing yet."""
        self.directory = directory
        self.results = results
        self.stores = Stores(directory)
        self.ids: list[str] = []
        self._sources: dict[str, Place] = {}
        self._second: RedisLab | None = None

    def source(self, scheme: str) -> Place:
        """Give a source with all results: Redis filled by pipelines, the others by the engine."""
        if scheme not in self._sources:
            if scheme == "redis":
                place = self.stores.new("redis")
                assert place.redis is not None
                place.redis.config_set("maxmemory", "0")
                pipeline = place.redis.pipeline(transaction=False)
                for number, (identifier, text) in enumerate(documents(self.results)):
                    self.ids.append(identifier)
                    pipeline.set(f"celery-task-meta-{identifier}", text, ex=EXPIRES)
                    if number % 5000 == 0:
                        pipeline.execute()
                pipeline.execute()
            else:
                place = self.stores.new(scheme)
                run("engine", source=settings(self.source("redis")), target=settings(place))
            self._sources[scheme] = place
        return self._sources[scheme]

    def target(self, scheme: str) -> Place:
        """Give an empty target; a second server where the source is Redis too."""
        if scheme != "redis":
            return self.stores.new(scheme)
        if self._second is None:
            self._second = RedisLab(self.directory / "second", plain_port=True)
            self._second.start()
            self._second.admin().config_set("maxmemory", "0")
        return redis_place(self._second)

    def extras(self, target: Place, sample: int) -> dict[str, Any]:
        """Give what contestants need beside the two places."""
        found: dict[str, Any] = {"ids": self.ids[:sample], "count": self.results}
        if target.scheme == "redis" and self._second is not None:
            port = int(self._second.admin().config_get("port")["port"] or 0)
            found["plain"] = (self._second.address, port, self._second.passwords["admin"])
        return found

    def prepared(self, place: Place) -> str:
        """Write what a filled table gives by COPY, as one file of bytes."""
        path = self.directory / "prepared.copy"
        assert place.database is not None
        with (
            place.database.admin() as connection,
            path.open("wb") as file,
            connection.cursor().copy(
                f"COPY {TABLE} ({', '.join(TASK_COLUMNS)}) TO STDOUT (FORMAT BINARY)"
            ) as copy,
        ):
            for piece in copy:
                file.write(piece)
        assert path.stat().st_size > struct.calcsize("q")
        return str(path)

    def stop(self) -> None:
        """End the servers."""
        self.stores.stop()
        if self._second is not None:
            self._second.stop()


def compete(arena: Arena, way: str, rounds: int, sample: int) -> None:
    """Run all contestants of one way in turns; print a table."""
    origin, goal = way.split("-")
    source, target = arena.source(origin), arena.target(goal)
    common = {"source": settings(source), "target": settings(target), **arena.extras(target, sample)}
    names = ["engine", "engine, all there", *RIVALS.get(way, []), "naive"]
    if "raw COPY" in names:
        run("engine", **common)
        common["prepared"] = arena.prepared(target)
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            if name != "engine, all there":
                empty(target)
            figures[name].append(run(name, **common))
    print(f"\n{way}: {arena.results:,} results, {rounds} rounds")
    print(f"{'':22}{'results/s':>12}{'min..max':>22}{'CPU µs/result':>16}{'peak MB':>10}{'engine is':>12}")
    ours = statistics.median(figure["count"] / figure["seconds"] for figure in figures["engine"])
    for name in names:
        rates = [figure["count"] / figure["seconds"] for figure in figures[name]]
        cpu = statistics.median(figure["cpu"] / figure["count"] * 1e6 for figure in figures[name])
        peak = max(figure["rss"] for figure in figures[name])
        note = f" (of {sample:,})" if name == "naive" else ""
        spread = f"{min(rates):,.0f}..{max(rates):,.0f}"
        print(
            f"{name + note:22}{statistics.median(rates):>12,.0f}{spread:>22}{cpu:>16.1f}{peak:>10.0f}{ours / statistics.median(rates):>11.2f}x"
        )


def main() -> None:
    """Read the arguments; run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--naive", type=int, default=300, help="results for the naive loop")
    parser.add_argument("--parts", nargs="+", choices=("copy", "verify", "live"), default=["copy", "verify"])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child()
        return
    with tempfile.TemporaryDirectory(prefix="crb-bench-") as directory:
        arena = Arena(Path(directory), options.results)
        try:
            sample = min(options.naive, options.results)
            for way in options.ways if "copy" in options.parts else ():
                compete(arena, way, options.rounds, sample)
            if "verify" in options.parts:
                from benchmarks.migrate_verify import measure  # noqa: PLC0415 # it imports this file

                measure(arena, options.rounds, sample)
            if "live" in options.parts:
                from benchmarks.migrate_live import measure as beside_writers  # noqa: PLC0415 # as above

                beside_writers(arena, options.rounds)
        finally:
            arena.stop()


if __name__ == "__main__":
    main()
