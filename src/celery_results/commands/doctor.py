"""``celery-results doctor``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from celery_results.doctor.examine import examine
from celery_results.doctor.findings import Severity
from celery_results.doctor.report import as_json, print_report
from celery_results.doctor.subject import read_subject, secrets
from celery_results.options import Common, common_options
from celery_results.redaction import Redactor

if TYPE_CHECKING:
    from celery_results.doctor.subject import Subject


@click.command(
    name="doctor", epilog="Exit codes: 0 nothing at or above --fail-on, 1 findings, 2 nothing to read."
)
@click.option("--module", default="celeryconfig", show_default=True, help="The settings module to examine.")
@click.option(
    "--monitor-env-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The read-only login for the server's state; by default CONFIG_DIRECTORY/monitor.env if it exists.",
)
@click.option(
    "--fail-on",
    type=click.Choice([Severity.ERROR.value, Severity.WARNING.value]),
    default=Severity.ERROR.value,
    show_default=True,
    help="The severity from which on the exit code is 1.",
)
@common_options
def command(common: Common, module: str, monitor_env_file: Path | None, fail_on: str) -> int:
    """Name what is wrong with the settings and the live server, and what to do.

    Reads the deployed settings, or any others that can be imported from CONFIG_DIRECTORY. Changes nothing,
    and prints no secret.
    """
    directory = common.config_directory
    subject = read_subject(
        directory,
        module,
        common.env_file or _existing(directory / "celery.env"),
        monitor_env_file or _existing(directory / "monitor.env"),
    )
    findings = examine(subject)
    ok = not any(finding.severity.reaches(Severity(fail_on)) for finding in findings)
    redactor = Redactor(secrets(subject))
    examined = _examined(subject, directory, module)
    if common.as_json:
        click.echo(as_json(findings, examined, ok=ok, redactor=redactor))
    else:
        print_report(findings, examined, redactor, Console(file=sys.stdout, highlight=False, markup=False))
    return 0 if ok else 1


def _existing(path: Path) -> Path | None:
    # Asked of the directory: a file that is there but may not be read is an error, not an absence.
    return path if os.path.lexists(path) else None


def _examined(subject: Subject, directory: Path, module: str) -> str:
    source = subject.sources[0] if subject.sources else directory / module
    login = "the monitor login" if subject.monitor_settings else "the login of the settings"
    backend = subject.backend_name if subject.alias else "no"
    scheme = subject.broker_scheme
    broker = f", {scheme if scheme.isidentifier() else 'unreadable'} broker" if scheme else ""
    return f"{source}; {backend} result backend{broker}; server state read with {login}"
