"""``celery-results archive``: move old results into compressed files; delete only what is durably there."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import click

from celery_results.options import Common, common_options

INTERRUPTED = 130


@click.command(
    epilog="Exit codes: 0 done, 1 the archive or the server is not as it must be, 2 usage, 130 interrupted."
)
@click.option(
    "--older-than", required=True, metavar="AGE", help="What ended longer ago than this, as in 30d."
)
@click.option(
    "--to",
    "directory",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="The directory of this archive; made if it is not there, added to if it is.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["jsonl", "parquet"]),
    default="jsonl",
    show_default=True,
    help="JSON lines with gzip, or Parquet (needs pyarrow).",
)
@click.option("--keep", is_flag=True, help="Copy: delete nothing from the database.")
@click.option(
    "--chunk-rows",
    type=click.IntRange(1, 1_000_000),
    default=50_000,
    show_default=True,
    help="At most that many rows to a file, and at most 256 MB before compression.",
)
@common_options
def command(  # noqa: PLR0913 - click passes one argument for each option
    *, common: Common, older_than: str, directory: Path, form: str, keep: bool, chunk_rows: int
) -> int:
    """Move finished results that are older into files with checksums and a manifest.

    A row leaves the database when its file is on the disk, verified, and the row is as it was read. Killed at
    any point, the next run goes on: no row is lost, and none is in two files.
    """
    from celery_results.archive import manifest  # noqa: PLC0415
    from celery_results.archive.errors import ArchiveError  # noqa: PLC0415
    from celery_results.archive.formats import force_directory  # noqa: PLC0415
    from celery_results.archive.mover import Mover, Plan, Progress  # noqa: PLC0415
    from celery_results.archive.rows import Rows  # noqa: PLC0415
    from celery_results.deployed import OrderlyEnd, age, cutoff, deployed  # noqa: PLC0415
    from celery_results.terminal import counter  # noqa: PLC0415

    before = cutoff(age(older_than))
    place = deployed(common)
    os.umask(0o077)  # results may be anything
    stop = OrderlyEnd().install()
    done = Progress()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        force_directory(directory.parent)
        with (
            manifest.alone(directory),
            counter(f"archiving from {place}", shown=not common.as_json) as show,
            place.errors_explained(),
            place.storage.session() as session,
        ):

            def progress(now_done: Progress) -> None:
                nonlocal done
                done = now_done
                show(done.archived)

            plan = Plan(directory, before, place.place, form, keep, chunk_rows)
            done = Mover(plan, Rows(place.storage, session), progress, stop).run()
    except OSError as error:
        # A full disk, a directory of somebody else: what is not durable was not deleted.
        raise ArchiveError(
            expected=f"to write into {directory}",
            found=error.strerror or type(error).__name__,
            do="see to the disk and its owner, then run this again; only what is in the archive was deleted",
        ) from error
    if common.as_json:
        document = {"ok": True, "directory": str(directory), "keep": keep, **asdict(done)}
        sys.stdout.write(json.dumps(document) + "\n")
    else:
        _print(directory, done, keep=keep)
    return 0 if done.complete else INTERRUPTED


def _print(directory: Path, done: object, *, keep: bool) -> None:
    facts = asdict(done)  # type: ignore[call-overload] # a Progress, which is not imported for --help
    sys.stdout.write(f"{directory}: {facts['archived']} results archived in {facts['chunks']} files")
    sys.stdout.write(
        ", none deleted (--keep)\n" if keep else f", {facts['deleted']} deleted from the database\n"
    )
    if facts["resumed"]:
        sys.stdout.write(f"an earlier run was ended for {facts['resumed']} files\n")
    if facts["not_moved"]:
        sys.stdout.write(f"{facts['not_moved']} results had changed meanwhile and stay in the database\n")
    if not facts["complete"]:
        sys.stdout.write("interrupted: run it again for the rest\n")
