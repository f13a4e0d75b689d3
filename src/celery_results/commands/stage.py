"""``celery-results stage``: which stage of a migration this host and the workers are in."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from celery_results.options import Common, common_options

if TYPE_CHECKING:
    from collections.abc import Mapping

# Those of celery_results.backends.dual.options, which takes half a second to import; a test compares them.
STAGES = ("dual_write", "bridge", "cutover", "drain", "none")


@click.command(
    epilog="Exit codes: 0 all as expected, 1 a worker is not, or a broker or store does not answer; 2 usage."
)
@click.option(
    "--expect-stage",
    type=click.Choice(STAGES),
    help="The stage that every worker must be in; none: a single backend.",
)
@click.option(
    "--expect-worker",
    "expected",
    multiple=True,
    metavar="NAME",
    help="A worker that must answer, as in celery@host; may be given more than once.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0.5, 600),
    default=5,
    show_default=True,
    help="Seconds for the workers to answer, and for each store.",
)
@click.option(
    "--old", metavar="STORE", help="Count the chords in flight here: the env file of the old store."
)
@click.option("--new", metavar="STORE", help="And here: the new one's.")
@common_options
def command(  # noqa: PLR0913 - click passes one argument for each option
    *,
    common: Common,
    expect_stage: str | None,
    expected: tuple[str, ...],
    timeout: float,
    old: str | None,
    new: str | None,
) -> int:
    """Tell with which backend this host and every worker that answers run, and in which stage.

    Also what the repair journal of this host holds, and, with --old and --new, how many chords are in flight.
    Changes nothing.
    """
    from celery_results.migration import stages  # noqa: PLC0415
    from celery_results.settings import load_settings  # noqa: PLC0415

    settings = load_settings(common.config_directory, common.environment())
    configured = stages.Runs.of_settings("", settings)
    workers = stages.workers(settings, expected, timeout)
    problems = stages.problems(workers or [], expect_stage, expected)
    if workers is None and expect_stage:
        problems.append("no broker in these settings: nobody can be asked; use the env file of a worker")
    chords: dict[str, int | None] = {}
    for side, store in (("old", old), ("new", new)):
        chords[side], problem = (None, "") if store is None else _chords(store, common, timeout)
        if problem:
            problems.append(problem)
    document: dict[str, Any] = {
        "ok": not problems,
        "configured": {"backend": configured.backend, "stage": configured.stage},
        "workers": None
        if workers is None
        else [{"name": one.name, "backend": one.backend, "stage": one.stage} for one in workers],
        "journal": _journal(settings, configured.stage),
        "chords": chords,
        "problems": problems,
    }
    if common.as_json:
        sys.stdout.write(json.dumps(document) + "\n")
    else:
        _print(document)
    return 0 if document["ok"] else 1


def _chords(store: str, common: Common, seconds: float) -> tuple[int | None, str]:
    from celery_results.migration.chords import TooManyKeysError, in_flight  # noqa: PLC0415
    from celery_results.stores.endpoint import endpoint  # noqa: PLC0415

    place = endpoint(store, common)
    try:
        return in_flight(place, seconds), ""
    except TooManyKeysError:
        return None, f"{place.place} has more keys than {seconds:g} s are enough for: set --timeout"
    except Exception as error:  # noqa: BLE001 - whatever redis-py raises
        why = type(error).__name__
        return None, f"{place.place} does not tell its chords ({why}): see its server and this login's SCAN"


def _journal(settings: Mapping[str, Any], stage: str | None) -> dict[str, Any] | None:
    if stage is None:
        return None
    from celery.exceptions import ImproperlyConfigured  # noqa: PLC0415

    from celery_results.backends.dual.options import SETTING, Options  # noqa: PLC0415
    from celery_results.errors import SettingsError  # noqa: PLC0415
    from celery_results.migration.journal import Journal  # noqa: PLC0415

    try:
        journal = Journal(Options.of_settings(settings.get(SETTING) or {}).journal)
        return {"entries": len(journal), "overflowed": journal.overflowed}
    except ImproperlyConfigured as error:
        raise SettingsError(
            expected="settings of the dual backend that can be used",
            found=str(error),
            do="deploy this host again",
        ) from None
    except OSError as error:
        raise SettingsError(
            expected="to read the repair journal of this host",
            found=error.strerror or type(error).__name__,
            do="run as root or as a member of the group celery",
        ) from None


def _print(document: Mapping[str, Any]) -> None:
    def line(name: str, runs: Mapping[str, Any]) -> str:
        return f"{name:<24} {runs['stage'] or 'no stage':<12} {runs['backend']}\n"

    sys.stdout.write(line("these settings", document["configured"]))
    if document["workers"] is None:
        sys.stdout.write("no broker in these settings: workers cannot be asked\n")
    elif not document["workers"]:
        sys.stdout.write("no worker answers\n")
    for worker in document["workers"] or []:
        sys.stdout.write(line(worker["name"], worker))
    if document["journal"] is not None:
        more = ", overflowed" if document["journal"]["overflowed"] else ""
        sys.stdout.write(f"repair journal of this host: {document['journal']['entries']} entries{more}\n")
    for side, count in document["chords"].items():
        if count is not None:
            sys.stdout.write(f"chords in flight on the {side} side: {count}\n")
    for problem in document["problems"]:
        sys.stdout.write(f"problem: {problem}\n")
