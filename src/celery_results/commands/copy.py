"""``celery-results copy``: every result and saved group of one store into another."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from celery_results.options import Common, common_options

if TYPE_CHECKING:
    from celery_results.migration.checkpoint import Progress
    from celery_results.migration.pace import Brake
    from celery_results.stores.endpoint import Endpoint

STATE = Path("/var/lib/celery")
INTERRUPTED = 130


@click.command(
    epilog="Exit codes: 0 all is on the target, 1 something could not be copied or a store does not answer, "
    "2 usage, 130 interrupted: run it again, it goes on."
)
@click.option("--from", "source", required=True, metavar="STORE", help="Where results are.")
@click.option("--to", "target", required=True, metavar="STORE", help="Where they go.")
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path, dir_okay=False),
    help=f"The file that says how far the copy is.  [default: {STATE}/copy-<of the two stores>.json]",
)
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="At most so many results a second.")
@click.option(
    "--latency",
    type=click.FloatRange(min=0, min_open=True),
    metavar="MILLISECONDS",
    help="Slow down while a store answers more slowly.  [default: 3 times its usual, at least 10 ms]",
)
@click.option("--no-brake", is_flag=True, help="Never slow down: nobody else uses the two stores.")
@click.option(
    "--load-data",
    is_flag=True,
    help="MySQL and MariaDB: LOAD DATA LOCAL where the server allows it. It must be one to trust.",
)
@click.option(
    "--batch",
    type=click.IntRange(1, 100_000),
    default=5000,
    show_default=True,
    help="Results to a transaction of a database, of 4 MiB at most, and to a note in the checkpoint.",
)
@click.option(
    "--patience",
    type=click.FloatRange(0),
    default=120,
    show_default=True,
    help="Seconds for which a store may be away.",
)
@common_options
def command(  # noqa: PLR0913 - click passes one argument for each option
    *,
    common: Common,
    source: str,
    target: str,
    checkpoint: Path | None,
    rate: float | None,
    latency: float | None,
    no_brake: bool,
    load_data: bool,
    batch: int,
    patience: float,
) -> int:
    """Copy results between Redis, PostgreSQL, MySQL, MariaDB and SQLite, byte by byte, under live load.

    STORE is an env file of the celery role, a URL without a password, or env:VARIABLE for one with it. What
    the target has stays as it is. Interrupted or killed at any point, the next run goes on; nothing is lost.
    """
    from celery_results.deployed import OrderlyEnd  # noqa: PLC0415
    from celery_results.migration import interpreter  # noqa: PLC0415
    from celery_results.migration.checkpoint import Checkpoint  # noqa: PLC0415
    from celery_results.migration.display import shown  # noqa: PLC0415
    from celery_results.migration.engine import Copy, Options  # noqa: PLC0415
    from celery_results.migration.pace import Pace, give_way  # noqa: PLC0415
    from celery_results.stores.endpoint import endpoint  # noqa: PLC0415

    if common.env_file is not None:
        raise click.UsageError("two stores have two env files: --from and --to")
    origin, goal = endpoint(source, common), endpoint(target, common).precise()
    if origin.place == goal.place:
        raise click.UsageError(f"--from and --to are the same store: {origin.place}")
    goal = replace(goal, load_data=load_data)
    os.umask(0o077)
    interpreter.set_up()
    file = Checkpoint(checkpoint or _default(origin.place, goal.place), origin.place, goal.place)
    stop = OrderlyEnd().install()
    with ExitStack() as stack:
        stack.enter_context(file.alone())
        brakes = [] if no_brake else _brakes(stack, (origin, goal), latency)
        give_way()  # not those who look how fast the stores answer
        show = stack.enter_context(shown(f"{origin.place} → {goal.place}"))
        copy = Copy(
            origin,
            goal,
            file,
            Pace(rate, brakes),
            Options(rows=batch, patience=patience),
            on_progress=show,
            stop=stop,
        )
        progress = copy.run()
    _print(common, (origin, goal), progress, file.path, brakes)
    if not progress.complete:
        return INTERRUPTED
    return 1 if progress.total.failed else 0


def _default(source: str, target: str) -> Path:
    pair = hashlib.sha256(f"{source}\n{target}".encode()).hexdigest()[:8]
    return STATE / f"copy-{pair}.json"


def _brakes(stack: ExitStack, stores: tuple[Endpoint, ...], latency: float | None) -> list[Brake]:
    from celery_results.migration.pace import Brake  # noqa: PLC0415
    from celery_results.migration.probe import Probe, watchable  # noqa: PLC0415

    watched = [store for store in stores if watchable(store)]
    probes = [stack.enter_context(Probe(store)) for store in watched]
    limit = None if latency is None else latency / 1000
    brakes = [Brake(store.place, probe.answers, limit) for store, probe in zip(watched, probes, strict=True)]
    for brake in brakes:
        brake.settle()
    return brakes


def _print(
    common: Common,
    stores: tuple[Endpoint, Endpoint],
    progress: Progress,
    checkpoint: Path,
    brakes: list[Brake],
) -> None:
    facts: dict[str, Any] = progress.document()
    total = progress.total
    if common.as_json:
        document = {
            "ok": progress.complete and not total.failed,
            "complete": progress.complete,
            "from": stores[0].place,
            "to": stores[1].place,
            "checkpoint": str(checkpoint),
            **facts,
            "brakes": {
                brake.name: {
                    "limit_ms": round((brake.limit or 0) * 1000, 1),
                    "lowest_share": round(brake.lowest, 2),
                }
                for brake in brakes
            },
        }
        sys.stdout.write(json.dumps(document) + "\n")
        return
    for kind in ("results", "groups"):
        counts = facts[kind]
        sys.stdout.write(
            f"{counts['read']} {kind} read: {counts['copied']} copied, {counts['present']} already there, "
            f"{counts['expired']} expired meanwhile, {counts['failed']} failed\n"
        )
    if progress.passes > 1:
        sys.stdout.write(
            f"pass {progress.passes}, a server was restarted; {progress.copied_before} were copied before\n"
        )
    for field, count in facts["lossy"].items():
        sys.stdout.write(f"without {field}: {count}\n")
    for failure in facts["failures"][:20]:
        sys.stdout.write(f"failed: {failure['id']}: {failure['reason']}\n")
    if len(facts["failures"]) > 20:  # noqa: PLR2004 - as above
        sys.stdout.write(f"the others are in {checkpoint}\n")
    if not progress.complete:
        sys.stdout.write("interrupted: run it again for the rest\n")
