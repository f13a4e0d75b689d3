"""``celery-results restore``: bring results back from an archive."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import click

from celery_results.options import Common, common_options

INTERRUPTED = 130


@click.command(
    epilog="Exit codes: 0 done, 1 a damaged archive, a result that is not there, or no answer, 2 usage, "
    "130 interrupted."
)
@click.option(
    "--from",
    "directory",
    required=True,
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="The directory of the archive.",
)
@click.option("--id", "task_ids", multiple=True, metavar="ID", help="This task; may be given more than once.")
@click.option("--since", metavar="TIME", help="What ended at this time or later, as in 2026-01-31 (UTC).")
@click.option("--until", metavar="TIME", help="What ended before this time.")
@click.option("--all", "everything", is_flag=True, help="All that is in the archive.")
@common_options
def command(  # noqa: PLR0913 - click passes one argument for each option
    *,
    common: Common,
    directory: Path,
    task_ids: tuple[str, ...],
    since: str | None,
    until: str | None,
    everything: bool,
) -> int:
    """Store archived results again, each column byte by byte as it was.

    All checksums are verified first. A result of which the database has a row stays as it is there.
    """
    from celery_results.archive.restorer import Restored, Selection, restore  # noqa: PLC0415
    from celery_results.archive.rows import Rows  # noqa: PLC0415
    from celery_results.deployed import OrderlyEnd, deployed, moment  # noqa: PLC0415
    from celery_results.terminal import counter  # noqa: PLC0415

    chosen = bool(task_ids or since or until)
    if chosen == everything:
        raise click.UsageError("say which: --id, --since and --until, or --all")
    selection = Selection(
        frozenset(task_ids),
        None if since is None else moment(since),
        None if until is None else moment(until),
    )
    place = deployed(common)
    stop = OrderlyEnd().install()
    with (
        counter(f"restoring to {place}", shown=not common.as_json) as show,
        place.errors_explained(),
        place.storage.session() as session,
    ):

        def progress(done: Restored) -> None:
            show(done.selected)

        done = restore(directory, selection, Rows(place.storage, session), progress, stop)
    missing = done.complete and bool(task_ids) and not done.selected
    if common.as_json:
        sys.stdout.write(json.dumps({"ok": not missing, "directory": str(directory), **asdict(done)}) + "\n")
    else:
        sys.stdout.write(
            f"{place}: {done.restored} of {done.selected} selected results restored"
            f" ({done.renumbered} under a new row number), {done.present} were there\n"
        )
        if done.restored:
            sys.stdout.write("the next cleanup deletes them again if they are older than result_expires\n")
        if not done.complete:
            sys.stdout.write("interrupted: run it again for the rest\n")
    if not done.complete:
        return INTERRUPTED
    return 1 if missing else 0
