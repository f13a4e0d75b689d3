"""The part `verify` of migrate.py: compare two stores as the verb does, against Celery's own loop; find injected faults.

CPU is that of the comparing process and of the two that read, together; the peak is that of the largest of the three.
"""

# ruff: noqa: ANN401, S301 # Celery has no types; pipes of this file's own

import json
import os
import pickle
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[1]
sys.path[:0] = [str(PROJECT), str(PROJECT / "src")]

from benchmarks.migrate import Arena, empty, run, settings  # noqa: E402
from benchmarks.migrate_contestants import app_of, stock  # noqa: E402

from celery_results.migration import interpreter  # noqa: E402
from celery_results.migration.verify.compare import compare  # noqa: E402
from celery_results.stores.endpoint import of_settings  # noqa: E402

FAULTS = 1000
SORTS = ("changed byte", "missing", "extra", "wrong TTL", "wrong state")
KEY = "celery-task-meta-"
PAIRS = (("redis", "postgresql"), ("postgresql", "redis"))


def verify(source: dict[str, Any], target: dict[str, Any], **_: Any) -> dict[str, Any]:
    """Compare everything, without a brake's probes."""
    interpreter.set_up()
    report = compare(of_settings(source, "source"), of_settings(target, "target"))
    surveys = (report.source_survey, report.target_survey)
    return {
        "count": report.source_survey.results,
        "peak": max(survey.peak_bytes for survey in surveys) / (1 << 20),
        "found": {finding.id: [finding.verdict, list(finding.fields)] for finding in report.findings},
        "unexplained": report.unexplained,
    }


def naive(source: dict[str, Any], target: dict[str, Any], ids: list[str], **_: Any) -> dict[str, Any]:
    """Read each result on both sides by Celery and compare."""
    here, there = (app_of(stock(side)).backend for side in (source, target))
    unlike = 0
    for identifier in ids:
        one, two = (backend.get_task_meta(identifier, cache=False) for backend in (here, there))
        unlike += any(one[name] != two[name] for name in ("status", "result", "traceback"))
    return {"count": len(ids), "peak": 0.0, "found": {}, "unexplained": unlike}


CONTESTANTS: dict[str, Callable[..., dict[str, Any]]] = {"verify": verify, "naive": naive}


def child() -> None:
    """Run one contestant; print what it found, seconds, CPU seconds and peak memory."""
    name, arguments = pickle.load(sys.stdin.buffer)
    began, cpu = time.perf_counter(), time.process_time()
    found = CONTESTANTS[name](**arguments)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    others = resource.getrusage(resource.RUSAGE_CHILDREN)
    own = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024
    found |= {
        "seconds": seconds,
        "cpu": cpu + others.ru_utime + others.ru_stime,
        "peak": max(own, found["peak"]),
    }
    sys.stdout.write(json.dumps(found))


def ask(name: str, **arguments: Any) -> dict[str, Any]:
    """Run one contestant in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__],
        input=pickle.dumps((name, arguments)),
        stdout=subprocess.PIPE,
        check=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def inject(redis: Any, ids: list[str]) -> dict[str, tuple[str, str]]:
    """Give each of FAULTS results one fault; tell the sort and what must be found."""
    expected: dict[str, tuple[str, str]] = {}
    for number, identifier in enumerate(random.Random(7).sample(ids, min(FAULTS, len(ids)))):  # noqa: S311 # repeatable
        key, sort = KEY + identifier, SORTS[number % len(SORTS)]
        document = redis.get(key)
        if sort == "missing":
            redis.delete(key)
            expected[identifier] = (sort, "missing")
        elif sort == "extra":
            redis.set(f"{key}-extra", document, ex=3600)
            expected[f"{identifier}-extra"] = (sort, "extra")
        elif sort == "wrong TTL":
            redis.pexpire(key, redis.pttl(key) - 60_000)
            expected[identifier] = (sort, "different")
        else:
            old, new = ("xxxx", "xxyx") if sort == "changed byte" else ("SUCCESS", "REVOKED")
            redis.set(key, document.replace(old, new, 1), keepttl=True)
            expected[identifier] = (sort, "different")
    return expected


def measure(arena: Arena, rounds: int, sample: int) -> None:
    """Verify both ways in turns with the naive loop; then with faults on Redis, where a life is each key's own."""
    for origin, goal in PAIRS:
        source, target = arena.source(origin), arena.target(goal)
        empty(target)
        common = {"source": settings(source), "target": settings(target), "ids": arena.ids[:sample]}
        run("engine", source=common["source"], target=common["target"])
        figures: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTESTANTS}
        for _ in range(rounds):
            for name in CONTESTANTS:
                figures[name].append(ask(name, **common))
        print(f"\nverify {origin}-{goal}: {arena.results:,} results on both sides, {rounds} rounds")
        for name, rows in figures.items():
            assert not any(row["unexplained"] for row in rows)
            rates = [row["count"] / row["seconds"] for row in rows]
            cpu = statistics.median(row["cpu"] / row["count"] * 1e6 for row in rows)
            print(
                f"{name:12}{statistics.median(rates):>12,.0f} results/s ({min(rates):,.0f}..{max(rates):,.0f}),"
                f" {cpu:.1f} µs CPU a result, peak {max(row['peak'] for row in rows):.0f} MB"
            )
        ours, theirs = (
            statistics.median(row["seconds"] / row["count"] for row in rows) for rows in figures.values()
        )
        print(f"verify is {theirs / ours:.0f}x; 1M would take {ours * 1e6:.1f} s")
        if goal == "redis":
            expected = inject(target.redis, arena.ids)
            row = ask("verify", **common)
            found = {name: verdict for name, (verdict, _fields) in row["found"].items()}
            counts = {sort: [0, 0] for sort in SORTS}
            for name, (sort, verdict) in expected.items():
                counts[sort][0] += found.get(name) == verdict
                counts[sort][1] += 1
            said = ", ".join(f"{sort} {seen} of {all_}" for sort, (seen, all_) in counts.items())
            print(f"faults found: {said}; {len(found.keys() - expected.keys())} that are none; {row['seconds']:.1f} s,"
                  f" peak {row['peak']:.0f} MB")  # fmt: skip


if __name__ == "__main__":
    child()
