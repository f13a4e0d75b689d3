"""``celery-results status``: what is in the result database."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from celery_results.options import Common, common_options


@click.command(epilog="Exit codes: 0 told, 1 the server did not answer, 2 not in an SQL database.")
@click.option(
    "--timeout",
    type=click.FloatRange(0.01, 3600),
    default=30,
    show_default=True,
    help="Seconds for the one pass over the table; then only estimates are told.",
)
@common_options
def command(common: Common, timeout: float) -> int:
    """Count results by state, name and age; tell sizes, growth by day and the oldest unfinished one.

    Reads the table once, locks nothing, ends after --timeout. Names are there where result_extended is on.
    While results move to another store, each side that is a database is told.
    """
    from celery_results.deployed import deployed_sides, now  # noqa: PLC0415
    from celery_results.statistics.collect import collect  # noqa: PLC0415
    from celery_results.statistics.report import document_of, print_text  # noqa: PLC0415

    stage, sides = deployed_sides(common)
    documents: dict[str, dict[str, Any] | None] = {}
    for side, place in sides.items():
        documents[side] = None
        if place is None:
            if not common.as_json:
                click.echo(f"{side} side: no SQL database, nothing to count")
            continue
        with place.errors_explained():
            statistics = collect(
                place.storage,
                now(),
                limit_seconds=timeout,
                names=bool(place.settings.get("result_extended")),
            )
        documents[side] = document_of(statistics, place.place)
        if not common.as_json:
            print_text(statistics, f"results in {place}" + (f", the {side} side" if side else ""), sys.stdout)
    if common.as_json:
        told = {"ok": True, "stage": stage, "sides": documents} if stage else documents[""]
        click.echo(json.dumps(told, ensure_ascii=False))
    return 0
