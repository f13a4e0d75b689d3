"""``celery-results repair``: copy what one side of the dual backend lacks from the other one."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, TextIO

import click

from celery_results.errors import ConfigurationError
from celery_results.options import Common, common_options

if TYPE_CHECKING:
    from celery_results.migration.given import Given
    from celery_results.migration.journal import Journal
    from celery_results.migration.repair import Report

SHOWN = 20


class ComparisonError(ConfigurationError):
    """A report does not say that the two sides are the same."""


@click.command(
    epilog="Exit codes: 0 nothing is owed, 1 something is left, 2 usage, or no dual backend in the settings."
)
@click.option(
    "--ids",
    type=click.File(encoding="utf-8"),
    metavar="FILE|-",
    help="Bring these to both sides too: ids, one a line, or the report of `celery-results verify --json`.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(0, 86_400),
    default=60,
    show_default=True,
    help="End after so long, with what is left; entries of the last seconds are waited for.",
)
@click.option(
    "--compared",
    type=click.Path(dir_okay=False, allow_dash=True),
    is_flag=False,
    flag_value="",
    metavar="[REPORT]",
    help="Take the mark of an overflow away: a full comparison, begun after it, has found no difference. "
    "With its report, that is checked.",
)
@common_options
def command(common: Common, ids: TextIO | None, seconds: float, compared: str | None) -> int:
    """Pay what the repair journal of this host owes, beside live tasks. Safe to repeat and to kill.

    For hosts whose settings have the dual backend, in any stage. With --ids also what is in no journal.
    """
    from celery_results.deployed import dual_application  # noqa: PLC0415
    from celery_results.migration import given  # noqa: PLC0415
    from celery_results.migration.journal import Journal  # noqa: PLC0415
    from celery_results.migration.repair import repair  # noqa: PLC0415
    from celery_results.terminal import counter  # noqa: PLC0415

    app, options = dual_application(common)
    wanted = given.Given() if ids is None else given.read(ids.read())
    if compared is not None:
        report = None
        if compared:
            with click.open_file(compared, encoding="utf-8") as file:
                report = given.read(file.read())
        _clear(Journal(options.journal), report)
    with counter("repairing", shown=not common.as_json) as show:
        done = repair(app, found=wanted.found, seconds=seconds, progress=show)
    _print(common, done, wanted)
    return 0 if done.clean and not wanted.unnamed else 1


def _clear(journal: Journal, report: Given | None) -> None:
    if report is not None:
        since = journal.overflowed_since
        problem = f"{report.differences} differences" if report.differences else ""
        if report.began is None:
            problem = "a list of ids"
        elif since is not None and report.began <= since:
            problem = "a comparison that began before the overflow"
        if problem:
            raise ComparisonError(
                expected="the report of a comparison that began after the overflow and found nothing",
                found=problem,
                do="run celery-results verify --json, then this with what it prints",
            )
    journal.clear_overflow()


def _print(common: Common, report: Report, wanted: Given) -> None:
    left = [
        {"operation": item.entry.operation, "id": item.entry.id, "reason": item.reason}
        for item in report.left
    ]
    if wanted.unnamed:
        reason = f"the comparison counts {wanted.unnamed} more than it names: compare and repair again"
        left.append({"operation": "verify", "id": "", "reason": reason})
    if common.as_json:
        document = {
            "ok": report.clean and not wanted.unnamed,
            "looked_at": report.looked_at,
            "copied": report.copied,
            "deleted": report.deleted,
            "left": left,
            "overflowed": report.overflowed,
        }
        sys.stdout.write(json.dumps(document) + "\n")
        return
    sys.stdout.write(
        f"{report.looked_at} looked at, {report.copied} copied, {report.deleted} deleted, {len(left)} left\n"
    )
    for item in left[:SHOWN]:
        sys.stdout.write(f"left: {item['operation']} {item['id']}: {item['reason']}\n")
    if report.overflowed:
        sys.stdout.write(
            "the journal has overflowed: compare both sides (celery-results verify), repair what differs, "
            "and then run this with --compared\n"
        )
