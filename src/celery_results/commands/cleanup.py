"""``celery-results cleanup``: delete expired results in small batches beside live stores."""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from celery_results.errors import SettingsError
from celery_results.options import Common, common_options

if TYPE_CHECKING:
    from datetime import datetime

    from celery_results.backends.database.cleanup import Deleted
    from celery_results.deployed import Deployed, OrderlyEnd

INTERRUPTED = 130


@click.command(
    epilog="Exit codes: 0 done, 1 no answer, 2 not in an SQL database or no expiry, 130 interrupted."
)
@click.option(
    "--older-than",
    metavar="AGE",
    help="Delete what is older than this, as in 36h or 7d.  [default: result_expires of the settings]",
)
@click.option("--dry-run", is_flag=True, help="Count, and delete nothing.")
@click.option(
    "--batch", type=click.IntRange(1, 50_000), default=2000, show_default=True, help="Rows at a time."
)
@click.option(
    "--pause",
    type=click.FloatRange(0, 10),
    default=0.02,
    show_default=True,
    help="Seconds after each batch, for the others.",
)
@common_options
def command(common: Common, older_than: str | None, dry_run: bool, batch: int, pause: float) -> int:  # noqa: FBT001
    """Delete results that are older than result_expires, as the nightly celery.backend_cleanup does.

    Interrupted, it ends after the batch at hand and tells what it has done; run again, it does the rest.
    While results move to another store, each side that is a database is cleaned up.
    """
    from celery_results.deployed import OrderlyEnd, age, deployed_sides  # noqa: PLC0415
    from celery_results.deployed import cutoff as before  # noqa: PLC0415

    given = None if older_than is None else age(older_than)
    stage, sides = deployed_sides(common)
    cutoffs = {side: before(_expiry(place, given)) for side, place in sides.items() if place is not None}
    stop = None if dry_run else OrderlyEnd().install()
    documents: dict[str, dict[str, Any] | None] = {}
    complete = True
    for side, place in sides.items():
        documents[side] = None
        if place is None or (stop is not None and stop()):
            complete = complete and place is None
            continue
        cutoff = cutoffs[side]
        done = _count(place, cutoff) if stop is None else _delete(common, place, cutoff, (batch, pause), stop)
        complete = complete and done.complete
        documents[side] = _document(place, cutoff, done, dry_run=dry_run)
        if not common.as_json:
            _print(place, cutoff, done, dry_run=dry_run)
    if common.as_json:
        told = documents[""] if not stage else {"ok": True, "stage": stage, "sides": documents}
        sys.stdout.write(json.dumps(told) + "\n")
    elif not complete:
        sys.stdout.write("interrupted: run it again for the rest\n")
    return 0 if complete else INTERRUPTED


def _delete(
    common: Common, place: Deployed, cutoff: datetime, steps: tuple[int, float], stop: OrderlyEnd
) -> Deleted:
    from celery_results.backends.database.cleanup import Deleted, delete_expired  # noqa: PLC0415
    from celery_results.terminal import counter  # noqa: PLC0415

    batch, pause = steps
    done = Deleted()
    with counter(f"deleting from {place}", shown=not common.as_json) as show:

        def progress(deleted: Deleted) -> None:
            nonlocal done
            done = deleted
            show(deleted.total)

        with place.errors_explained():
            done = delete_expired(
                place.storage, cutoff, batch=batch, pause=pause, on_progress=progress, stop=stop
            )
    return done


def _expiry(place: Deployed, given: timedelta | None) -> timedelta:
    """Take the age that is asked for, or the settings'; refuse what Celery takes for "all" or fails on."""
    if given is not None:
        return given
    value = place.settings.get("result_expires", timedelta(days=1))
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if not isinstance(seconds, int | float) or seconds <= 0:
        raise SettingsError(
            expected="result_expires above 0",
            found=f"result_expires = {value!r}: results never expire, or all of them at once",
            do="set it, or say how old with --older-than",
        )
    return timedelta(seconds=seconds)


def _count(place: Deployed, cutoff: datetime) -> Deleted:
    from celery_results.backends.database.cleanup import Deleted  # noqa: PLC0415
    from celery_results.backends.database.dialect import qualified  # noqa: PLC0415

    storage = place.storage
    tables = storage.tables
    quote = "`" if storage.driver.name == "mysql" else '"'
    mark = "?" if storage.driver.name == "sqlite" else "%s"
    counts = []
    with place.errors_explained(), storage.session() as session:
        for schema, table in ((tables.task_schema, tables.task), (tables.group_schema, tables.group)):
            statement = f"SELECT count(*) FROM {qualified(schema, table, quote)} WHERE date_done < {mark}"  # noqa: S608
            counts.append(int(session.execute(statement, (storage.driver.moment(cutoff),))[0][0]))
    return Deleted(results=counts[0], groups=counts[1], complete=True)


def _document(place: Deployed, cutoff: datetime, done: Deleted, *, dry_run: bool) -> dict[str, Any]:
    return {
        "ok": True,
        "database": place.place,
        "cutoff": f"{cutoff.isoformat(timespec='seconds')}Z",
        "dry_run": dry_run,
        "complete": done.complete,
        "results": done.results,
        "groups": done.groups,
        # Which unfinished rows are surely older is only known while deleting.
        "unfinished": None if dry_run else done.unfinished,
    }


def _print(place: Deployed, cutoff: datetime, done: Deleted, *, dry_run: bool) -> None:
    verb = "would delete" if dry_run else "deleted"
    sys.stdout.write(
        f"{place}: {verb} {done.results} results and {done.groups} groups that ended before "
        f"{cutoff.isoformat(sep=' ', timespec='seconds')} UTC"
        + ("\n" if dry_run else f", {done.unfinished} unfinished that are older\n")
    )
