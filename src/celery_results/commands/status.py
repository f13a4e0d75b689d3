"""``celery-results status``: what is in the result database."""

from __future__ import annotations

import sys

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
    """
    from celery_results.deployed import deployed, now  # noqa: PLC0415
    from celery_results.statistics.collect import collect  # noqa: PLC0415
    from celery_results.statistics.report import as_json, print_text  # noqa: PLC0415

    place = deployed(common)
    with place.errors_explained():
        statistics = collect(
            place.storage,
            now(),
            limit_seconds=timeout,
            names=bool(place.settings.get("result_extended")),
        )
    if common.as_json:
        click.echo(as_json(statistics, place.place))
    else:
        print_text(statistics, f"results in {place}", sys.stdout)
    return 0
