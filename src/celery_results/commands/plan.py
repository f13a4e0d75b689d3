"""``celery-results plan``: what a migration of this store's results would take along, lose, need and last."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from celery_results.options import Common, common_options

if TYPE_CHECKING:
    from collections.abc import Mapping

TARGETS = ("redis", "postgresql", "mysql", "sqlite", "rabbitmq")
SAMPLE = 100_000


@click.command(epilog="Exit codes: 0 told, 1 the store does not answer or refuses, 2 usage.")
@click.option("--from", "source", required=True, metavar="STORE", help="Where results are.")
@click.option(
    "--list-with",
    metavar="STORE",
    help="The same store with a login that may list ids, where that of --from may not.",
)
@click.option(
    "--to", "target", required=True, type=click.Choice(TARGETS), help="The backend; it need not exist."
)
@click.option(
    "--sample",
    type=click.IntRange(1),
    default=SAMPLE,
    show_default=True,
    help="Look at so many results; the others are only counted.",
)
@common_options
def command(*, common: Common, source: str, list_with: str | None, target: str, sample: int) -> int:
    """Tell what is in a store, and what moving it to another backend means. Changes nothing.

    STORE is an env file of the celery role, a URL without a password, or env:VARIABLE for one with it.
    Sizes at the target and the duration are estimates.
    """
    from celery_results.errors import CeleryResultsError, UnreachableError  # noqa: PLC0415
    from celery_results.migration.plan import plan  # noqa: PLC0415
    from celery_results.settings import load_settings  # noqa: PLC0415
    from celery_results.stores.endpoint import endpoint  # noqa: PLC0415

    if common.env_file is not None:
        raise click.UsageError("a store has an env file of its own: --from")
    if "://" in source or source.startswith("env:"):
        settings = endpoint(source, common).settings
    else:
        settings = load_settings(common.config_directory, common.read(Path(source)))
    lister = None if list_with is None else partial(endpoint, list_with, common)
    try:
        document = plan(settings, source, lister, target, sample).document()
    except (CeleryResultsError, click.ClickException):
        raise
    except Exception as error:
        lines = str(error).strip().splitlines()
        raise UnreachableError(
            expected=f"{source} to answer, and to allow what a plan needs",
            found=lines[0] if lines else type(error).__name__,
            do="see docs/migration-verbs.md for the rights; name a login that may list with --list-with",
        ) from error
    if common.as_json:
        sys.stdout.write(json.dumps(document) + "\n")
    else:
        _print(document)
    return 0


def _print(document: Mapping[str, Any]) -> None:
    write = sys.stdout.write
    write(f"{document['from']} → {document['to']}\n")
    if "results" in document:
        _table(_rows(document))
    for number, step in enumerate(document["drain"] or (), start=1):
        write(f"{number}. {step}\n")
    for note in document["notes"]:
        write(f"note: {note}\n")


def _rows(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    about = "" if document["exact"] else "about "

    def counts(values: Mapping[str, int]) -> str:
        return ", ".join(f"{count:,} {name}" for name, count in values.items() if count) or "none"

    chords = document["chords"]
    rows = [
        ("results", f"{document['results']:,}, {about}{_bytes(document['bytes'])}"),
        ("saved groups", f"{document['groups']:,}"),
        ("chords in flight", "not known: they are polled" if chords is None else f"{chords:,}"),
        ("states", about + counts(document["states"])),
        ("unfinished", f"{about}{document['unfinished']:,}"),
        (f"left to live, by {document['life_by']}", about + counts(document["life"])),
    ]
    if document["drain"]:
        return rows
    low, high = document["seconds"]
    return [
        *rows,
        ("lost or changed", about + counts(document["lossy"])),
        ("cannot be copied", f"{about}{document['failed']:,}"),
        ("needed there", f"about {_bytes(document['target_bytes'])} (estimate)"),
        ("read and converted", f"{document['rate']:,} a second, measured on {document['sampled']:,}"),
        ("copying", f"{_time(low)} to {_time(high)} (estimate)"),
    ]


def _table(rows: list[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        sys.stdout.write(f"  {name:<{width}}  {value}\n")


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:  # noqa: PLR2004 - by definition
            return f"{size:,.0f} {unit}"
        size /= 1024
    return f"{size:,.1f} GiB"


def _time(seconds: int) -> str:
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
