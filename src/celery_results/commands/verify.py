"""``celery-results verify``: tell whether two stores are the same, result by result."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from celery_results.options import Common, common_options

if TYPE_CHECKING:
    from celery_results.migration.verify.survey import Limits
    from celery_results.stores.endpoint import Endpoint


@click.command(
    epilog="Exit codes: 0 the same, and nothing waits for repair; 1 differences, or a store does not answer; "
    "2 usage, 130 interrupted."
)
@click.option("--from", "source", required=True, metavar="STORE", help="Where results are.")
@click.option("--to", "target", required=True, metavar="STORE", help="Where they should be too.")
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    help="Write the report as one page with plots, too.",
)
@click.option(
    "--journal",
    type=click.Path(path_type=Path, file_okay=False),
    help="The directory of the repair journal, which must be empty.",
)
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    help="Read at most so many results a second from each side.",
)
@click.option(
    "--latency",
    type=click.FloatRange(min=0, min_open=True),
    metavar="MILLISECONDS",
    help="Read less while a store answers more slowly.  [default: 3 times its usual, at least 10 ms]",
)
@click.option("--no-brake", is_flag=True, help="Never slow down: nobody else uses the two stores.")
@common_options
def command(  # noqa: PLR0913 - click passes one argument for each option
    *,
    common: Common,
    source: str,
    target: str,
    html: Path | None,
    journal: Path | None,
    rate: float | None,
    latency: float | None,
    no_brake: bool,
) -> int:
    """Compare every result and saved group of two stores, and tell what is missing, extra or different.

    STORE is an env file of the celery role, a URL without a password, or env:VARIABLE for one with it. Both
    may be in use: what differs is read again until it is clear whether it still moves. Nothing is changed.
    """
    from celery_results.errors import UnreachableError  # noqa: PLC0415
    from celery_results.migration import interpreter  # noqa: PLC0415
    from celery_results.migration.verify.compare import compare  # noqa: PLC0415
    from celery_results.migration.verify.page import page  # noqa: PLC0415
    from celery_results.stores.endpoint import endpoint  # noqa: PLC0415
    from celery_results.terminal import counter  # noqa: PLC0415

    if common.env_file is not None:
        raise click.UsageError("two stores have two env files: --from and --to")
    interpreter.set_up()
    origin, goal = endpoint(source, common), endpoint(target, common).precise()
    try:
        with counter(f"reading {origin.place}", shown=not common.as_json) as show:
            stores = (origin.precise(), goal)
            limits = _limits(stores, rate, latency, brake=not no_brake)
            report = compare(*stores, show, limits=limits)
    except (OSError, RuntimeError) as error:
        raise UnreachableError(
            expected=f"{origin.place} and {goal.place} to answer",
            found=str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__,
            do="see docs/copy.md for the rights that it needs, and run it again",
        ) from error
    if journal is not None:
        from celery_results.migration.journal import Journal  # noqa: PLC0415

        report.journal = len(Journal(journal))
    facts = report.document()
    if html is not None:
        html.write_text(page(report), encoding="utf-8")
    if common.as_json:
        sys.stdout.write(json.dumps(facts) + "\n")
    else:
        for side in ("source", "target"):
            sys.stdout.write(f"{side}: {facts[side]['results']} results, {facts[side]['groups']} groups\n")
        sys.stdout.write(
            f"{facts['missing']} missing, {facts['extra']} extra, {facts['different']} different, "
            f"{facts['moving']} still moving, {facts['expired']} expired meanwhile\n"
        )
        for finding in facts["findings"][:20]:
            fields = f" ({', '.join(finding['fields'])})" if finding["fields"] else ""
            sys.stdout.write(f"{finding['verdict']}: {finding['id']}{fields}\n")
    return 0 if report.gate else 1


def _limits(
    stores: tuple[Endpoint, Endpoint], rate: float | None, latency: float | None, *, brake: bool
) -> tuple[Limits, Limits]:
    """Find what is usual for the answers of each store before anything is read."""
    from celery_results.migration.pace import Brake  # noqa: PLC0415
    from celery_results.migration.probe import Probe, watchable  # noqa: PLC0415
    from celery_results.migration.verify.survey import Limits  # noqa: PLC0415

    found: list[float | None] = [None, None]
    with ExitStack() as stack:
        brakes = {
            place: Brake(
                store.place,
                stack.enter_context(Probe(store)).answers,
                None if latency is None else latency / 1000,
            )
            for place, store in enumerate(stores)
            if brake and watchable(store)
        }
        for place, each in brakes.items():
            each.settle()
            found[place] = each.limit
    return Limits(rate, found[0]), Limits(rate, found[1])
