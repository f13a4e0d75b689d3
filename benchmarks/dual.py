"""Compare a write to two stores by the dual backend with writes to each alone; print ratios.

    .venv/bin/python benchmarks/dual.py [--results 1000] [--rounds 8] [--pause 0 5] [--stages dual_write cutover]

It starts a Redis and a PostgreSQL of its own on loopback (those of tests/integration), TLS on, the servers' own defaults
kept. Contestants take turns in every round, in one process and through one connection to each server, as in a child of
a prefork worker. One write is store_result() of about 600 bytes in the state SUCCESS, so many milliseconds after the one
before: 0 is what a loop does, where every cache is warm; a worker's tasks take some time. A figure is the median of the
rounds' percentiles, a ratio is of two figures of this run; CPU is that of this process, all threads.
"""

# ruff: noqa: ANN401 # Celery has no types

import argparse
import statistics
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[1]
sys.path[:0] = [str(PROJECT), str(PROJECT / "src")]

from celery import Celery  # noqa: E402
from tests.integration.database_lab import PostgresLab  # noqa: E402
from tests.integration.dual_case import DUAL, database_side, redis_side  # noqa: E402
from tests.integration.redis_lab import RedisLab  # noqa: E402

STAGES = ("dual_write", "bridge", "cutover", "drain")
VALUE = {"user": 123456, "items": list(range(40)), "note": "x" * 400}


def backend_of(settings: dict[str, Any]) -> Any:
    """Give the backend of an application of its own."""
    app = Celery("bench", set_as_current=False)
    app.conf.update({"result_expires": 3600, "timezone": "UTC", **settings})
    return app.backend


def measure(backend: Any, count: int, pause: float) -> tuple[float, float, float]:
    """Write so many results, `pause` seconds apart; give p50 and p99 in ms, and CPU ms of one."""
    took: list[float] = []
    cpu = 0.0
    for _ in range(count):
        identifier = str(uuid.uuid4())
        time.sleep(pause)
        busy, began = time.process_time(), time.perf_counter()
        backend.store_result(identifier, VALUE, "SUCCESS")
        took.append(time.perf_counter() - began)
        cpu += time.process_time() - busy
    took.sort()
    return took[count // 2] * 1e3, took[count * 99 // 100] * 1e3, cpu / count * 1e3


def main() -> None:
    """Read the arguments; run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--pause", type=float, nargs="+", default=[0.0, 5.0], help="milliseconds")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=["dual_write", "cutover"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="crb-bench-") as directory, PostgresLab() as postgres:
        redis = RedisLab(Path(directory) / "redis")
        redis.start()
        try:
            sides = {"old": redis_side(redis), "new": database_side(postgres.database())}
            backends = {"Redis alone": backend_of(sides["old"]), "PostgreSQL alone": backend_of(sides["new"])}
            for stage in options.stages:
                dual = {**sides, "stage": stage, "journal": f"{directory}/journal"}
                backends[stage] = backend_of(
                    {"result_backend": DUAL, "result_backend_transport_options": dual}
                )
            for backend in backends.values():
                measure(backend, 300, 0.0)
            for pause in options.pause:
                compete(backends, options.results, options.rounds, pause)
        finally:
            redis.stop()


def compete(backends: dict[str, Any], count: int, rounds: int, pause: float) -> None:
    """Have them write in turns; print a table."""
    figures: dict[str, list[tuple[float, float, float]]] = {name: [] for name in backends}
    for _ in range(rounds):
        for name, backend in backends.items():
            figures[name].append(measure(backend, count, pause / 1e3))
    medians = {
        name: [statistics.median(column) for column in zip(*rows, strict=True)]
        for name, rows in figures.items()
    }
    base = medians["Redis alone"][0]
    print(f"\n{count} results, {rounds} rounds, {pause:g} ms between two writes")
    print(f"{'':18}{'p50 ms':>10}{'min..max':>16}{'p99 ms':>10}{'CPU ms':>10}{'of Redis':>10}")
    for name, (p50, p99, cpu) in medians.items():
        low, high = min(row[0] for row in figures[name]), max(row[0] for row in figures[name])
        print(f"{name:18}{p50:10.3f}{f'{low:.3f}..{high:.3f}':>16}{p99:10.3f}{cpu:10.3f}{p50 / base:9.2f}x")


if __name__ == "__main__":
    main()
