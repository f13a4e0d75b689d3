"""The part `live` of migrate.py: copy while two processes write to both stores; what the copy gets, and what they feel.

The writers use the dual backend in the stage dual_write, each one result every PAUSE_SECONDS. The copy runs as the verb
does, with its brakes and a checkpoint; `no brake` without them. The idle figures are of the same writers before each.
"""

# ruff: noqa: ANN401, S301 # Celery has no types; pipes of this file's own

import json
import os
import pickle
import select
import statistics
import subprocess
import sys
import time
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[1]
sys.path[:0] = [str(PROJECT), str(PROJECT / "src")]

from benchmarks.migrate import Arena, empty, run, settings  # noqa: E402
from benchmarks.migrate_contestants import app_of, raw_copy  # noqa: E402
from tests.integration.dual_case import DUAL  # noqa: E402

from celery_results.commands.copy import _brakes  # noqa: E402
from celery_results.migration import interpreter  # noqa: E402
from celery_results.migration.checkpoint import Checkpoint  # noqa: E402
from celery_results.migration.engine import Copy  # noqa: E402
from celery_results.migration.pace import Pace, give_way  # noqa: E402
from celery_results.stores.endpoint import of_settings  # noqa: E402

WRITERS = 2
PAUSE_SECONDS = 0.005
IDLE_SECONDS = 5.0
VALUE = {"user": 123456, "items": list(range(40)), "note": "x" * 400}
CONTESTANTS = ("copy", "copy, no brake", "raw COPY")


def write(dual: dict[str, Any]) -> None:
    """Store results until standard input ends; then print when each began, and how long it took."""
    store = app_of({"result_backend": DUAL, "result_backend_transport_options": dual}).backend.store_result
    for _ in range(200):
        store(str(uuid.uuid4()), VALUE, "SUCCESS")
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    writes: list[tuple[float, float]] = []
    while not select.select([sys.stdin], [], [], 0)[0]:
        began = time.monotonic()
        store(str(uuid.uuid4()), VALUE, "SUCCESS")
        writes.append((began, time.monotonic() - began))
        time.sleep(PAUSE_SECONDS)
    sys.stdout.write(json.dumps(writes))


def copy(name: str, arguments: dict[str, Any]) -> None:
    """Run one contestant; print when it began, when it ended, how many it copied, and how far it was slowed down."""
    if name == "raw COPY":
        began = time.monotonic()
        count = raw_copy(**arguments)
        sys.stdout.write(json.dumps([began, time.monotonic(), count, 1.0]))
        return
    interpreter.set_up()
    source, target = (of_settings(arguments[side], side) for side in ("source", "target"))
    with ExitStack() as stack:
        brakes = _brakes(stack, (source, target), None) if name == "copy" else []
        give_way()
        file = Checkpoint(Path(arguments["checkpoint"]), source.place, target.place)
        began = time.monotonic()
        progress = Copy(source, target, file, Pace(None, brakes)).run()
        ended = time.monotonic()
    assert progress.complete
    lowest = min((brake.lowest for brake in brakes), default=1.0)
    sys.stdout.write(json.dumps([began, ended, progress.total.read, lowest]))


def start(what: str, *arguments: Any) -> subprocess.Popen[bytes]:
    """Run a function of this file in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    assert process.stdin is not None
    pickle.dump((what, arguments), process.stdin)
    process.stdin.flush()
    return process


def once(name: str, dual: dict[str, Any], arguments: dict[str, Any]) -> dict[str, float]:
    """Have the writers write, alone and then beside one contestant."""
    writers = [start("write", dual) for _ in range(WRITERS)]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
    time.sleep(IDLE_SECONDS)
    idle_until = time.monotonic()
    done = start("copy", name, arguments)
    began, ended, count, lowest = json.loads(done.communicate()[0])
    writes = [pair for writer in writers for pair in json.loads(writer.communicate()[0])]
    alone = sorted(took for at, took in writes if at + took < idle_until)
    beside = sorted(took for at, took in writes if began <= at < ended)
    return {
        "rate": count / (ended - began),
        "idle": alone[len(alone) * 99 // 100] * 1e3,
        "p50": beside[len(beside) // 2] * 1e3,
        "p99": beside[len(beside) * 99 // 100] * 1e3,
        "lowest": lowest,
    }


def measure(arena: Arena, rounds: int) -> None:
    """Have contestants take turns; print a table."""
    source, target = arena.source("redis"), arena.target("postgresql")
    sides = {"source": settings(source), "target": settings(target)}
    run("engine", **sides)
    prepared = arena.prepared(target)
    empty(target)
    alone = run("raw COPY", target=sides["target"], prepared=prepared, count=arena.results)
    base = alone["count"] / alone["seconds"]
    dual = {
        "old": sides["source"],
        "new": sides["target"],
        "stage": "dual_write",
        "journal": str(arena.directory),
    }
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in CONTESTANTS}
    for number in range(rounds):
        for name in CONTESTANTS:
            empty(target)
            more: dict[str, Any] = {"checkpoint": str(arena.directory / f"{name}{number}.json")}
            if name == "raw COPY":
                more = {"prepared": prepared, "count": arena.results}
            figures[name].append(once(name, dual, {**sides, **more}))
    print(
        f"\nredis-postgresql beside {WRITERS} writers: {arena.results:,} results, {rounds} rounds; raw COPY alone {base:,.0f}/s"
    )
    print(
        f"{'':16}{'results/s':>12}{'of raw COPY alone':>20}{'write p50 ms':>14}{'p99':>8}{'idle p99':>10}{'ratio':>8}{'lowest share':>14}"
    )
    for name, rows in figures.items():
        middle = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        ratio = statistics.median(row["p99"] / row["idle"] for row in rows)
        print(
            f"{name:16}{middle['rate']:>12,.0f}{middle['rate'] / base:>19.2f}x{middle['p50']:>14.2f}"
            f"{middle['p99']:>8.2f}{middle['idle']:>10.2f}{ratio:>7.1f}x{middle['lowest']:>14.2f}"
        )


if __name__ == "__main__":
    function, given = pickle.load(sys.stdin.buffer)
    if function == "write":
        write(*given)
    else:
        copy(*given)
