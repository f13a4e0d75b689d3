"""Print a report: a table for people, JSON for machines."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from celery_results.smoke.outcome import Status

if TYPE_CHECKING:
    from typing import TextIO

    from celery_results.smoke.runner import Report

_WORDS = {
    Status.PASSED: "passed",
    Status.FAILED: "FAILED",
    Status.NOT_RUN: "not run",
    Status.NOT_OFFERED: "not offered",
}
_STYLES = {
    Status.PASSED: "green",
    Status.FAILED: "bold red",
    Status.NOT_RUN: "dim",
    Status.NOT_OFFERED: "dim",
}


def as_json(report: Report) -> str:
    """Give the document that --json prints; its keys do not change."""
    document = {
        "ok": report.ok,
        "backend": report.backend,
        "broker": report.broker,
        "login": report.login,
        "checks": [
            {
                "name": outcome.name,
                "status": str(outcome.status),
                "milliseconds": outcome.milliseconds,
                "note": outcome.note,
                "remedy": outcome.remedy,
            }
            for outcome in report.outcomes
        ],
        "leftovers": list(report.leftovers),
        "worker_log": report.log_tail.splitlines(),
    }
    if report.witness:
        document["witness"] = report.witness
    if report.migration:
        document["migration"] = dict(report.migration)
    return json.dumps(document, ensure_ascii=False)


def print_text(report: Report, stream: TextIO) -> None:
    """Print the table, then what to do about each failure, then what was proven in one line."""
    heading = f"result store: {report.backend}   broker: {report.broker}   login: {report.login}"
    if report.migration:
        both = {True: "yes", False: "NO", None: "not asked"}[report.migration["on_both"]]
        heading += (
            f"\nmigration: {report.migration['stage']}   refusals tried on its primary, {report.backend}   "
            f"result also in {report.migration['mirror']}: {both}"
        )
    if stream.isatty():
        console = Console(file=stream, highlight=False)
        table = Table(title=heading, title_justify="left")
        for column, justify in (("check", "left"), ("result", "left"), ("ms", "right"), ("note", "left")):
            table.add_column(column, justify="right" if justify == "right" else "left")
        for outcome in report.outcomes:
            word = f"[{_STYLES[outcome.status]}]{_WORDS[outcome.status]}[/]"
            table.add_row(outcome.name, word, str(outcome.milliseconds), _literal(outcome.note))
        console.print(table)
    else:
        stream.write(f"{heading}\n")
        for outcome in report.outcomes:
            word = f"{outcome.name:<19} {_WORDS[outcome.status]:<11}"
            stream.write(f"{word} {outcome.milliseconds:>6} ms  {outcome.note}\n")
    stream.write(_after_the_table(report))
    stream.flush()


def _literal(text: str) -> str:
    return text.replace("[", r"\[")


def _after_the_table(report: Report) -> str:
    lines = []
    # A cause that many checks share is told once.
    failures: dict[tuple[str, str], list[str]] = {}
    for outcome in report.outcomes:
        if outcome.status is Status.FAILED:
            failures.setdefault((outcome.note, outcome.remedy), []).append(outcome.name)
    for (note, remedy), names in failures.items():
        lines += [f"\n{', '.join(names)}: {note}", f"  do: {remedy}"]
    if report.log_tail:
        lines += ["\nThe worker's log ends:", *(f"  {line}" for line in report.log_tail.splitlines())]
    lines += [f"\nnot removed, expires by itself: {line}" for line in report.leftovers]
    if report.witness:
        lines.append(f"\nwitness kept: {report.witness}")
    count = {status: sum(outcome.status is status for outcome in report.outcomes) for status in Status}
    verdict = "all that was run holds" if report.ok else "NOT proven"
    lines.append(
        f"\n{verdict}: {count[Status.PASSED]} passed, {count[Status.FAILED]} failed, "
        f"{count[Status.NOT_RUN]} not run"
        + (f", {count[Status.NOT_OFFERED]} not offered" if count[Status.NOT_OFFERED] else ""),
    )
    return "\n".join(lines) + "\n"
