"""``celery-results smoke``: prove the deployed settings by real tasks and by attacks that must fail."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from celery_results import interruption
from celery_results.options import Common, common_options
from celery_results.settings import OVERRIDES


def _beside(common: Common, name: str) -> dict[str, str] | None:
    """Read an env file that need not be there; one that this user may not read counts as not there."""
    path = common.config_directory / name
    return common.read(path) if os.access(path, os.R_OK) else None


@click.command()
@common_options
@click.option(
    "--client-env-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The environment of the side that sends and reads.  [default: CONFIG_DIRECTORY/client.env, if any]",
)
@click.option(
    "--timeout",
    type=click.FloatRange(1, 3600),
    default=15,
    show_default=True,
    help="Seconds for all results to arrive, once the worker has started.",
)
@click.option(
    "--only", multiple=True, metavar="NAME", help="Run this check only; may be given more than once."
)
@click.option("--list", "list_checks", is_flag=True, help="List the checks and end.")
@click.option("--keep-witness", is_flag=True, help="Leave one result on the server and print its id.")
@click.option("--witness", default="", metavar="ID", help="Read this result, kept by another host.")
def command(  # noqa: PLR0913 - click passes one argument for each option
    *,
    common: Common,
    client_env_file: Path | None,
    timeout: float,
    only: tuple[str, ...],
    list_checks: bool,
    keep_witness: bool,
    witness: str,
) -> int:
    """Run real tasks through the deployed settings, and attacks that must be refused.

    Exit code 0: everything that was run holds. Checks that make no sense on this host are listed as not run.
    """
    # Celery takes half a second to import: not for --help.
    from celery_results.smoke import report  # noqa: PLC0415
    from celery_results.smoke.catalog import CATALOG, NAMES  # noqa: PLC0415
    from celery_results.smoke.runner import Plan, Smoke  # noqa: PLC0415

    if list_checks:
        for entry in CATALOG:
            click.echo(f"{entry.name:<19} {entry.title}")
        return 0
    unknown = sorted(set(only) - set(NAMES))
    if unknown:
        raise click.BadParameter(f"no check is called {', '.join(unknown)}; see --list", param_hint="--only")
    interruption.install()  # an end in order for the worker too
    environ = common.environment()
    for name in OVERRIDES:
        os.environ.pop(name, None)  # Celery would take them here, in the client, before the settings
    plan = Plan(
        config_directory=common.config_directory,
        environ=environ,
        client_environ=common.read(client_env_file) if client_env_file else _beside(common, "client.env"),
        monitor_environ=_beside(common, "monitor.env"),
        timeout_seconds=timeout,
        names=frozenset(only or NAMES),
        keep_witness=keep_witness,
        witness=witness,
    )
    result = Smoke(plan).run()
    if common.as_json:
        click.echo(report.as_json(result))
    else:
        report.print_text(result, sys.stdout)
    return 0 if result.ok else 1
