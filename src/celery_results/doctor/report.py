"""Findings for a person, and for a machine."""

from __future__ import annotations

import json
import textwrap
from typing import TYPE_CHECKING, Final

from rich.text import Text

from celery_results.doctor.findings import Finding, Severity

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from celery_results.redaction import Redactor

_STYLES: Final = {Severity.ERROR: "bold red", Severity.WARNING: "bold yellow", Severity.INFO: "bold cyan"}
_WIDEST: Final = 110
_INDENT: Final = " " * 10


def counts(findings: Sequence[Finding]) -> dict[str, int]:
    """Count the findings of each severity."""
    return {severity.value: sum(f.severity is severity for f in findings) for severity in Severity}


def as_json(findings: Sequence[Finding], examined: str, *, ok: bool, redactor: Redactor) -> str:
    """Render one JSON document."""
    document = {
        "ok": ok,
        "examined": redactor.clean(examined),
        "counts": counts(findings),
        "findings": [
            {
                "code": finding.code,
                "severity": finding.severity.value,
                "title": finding.title,
                "found": redactor.clean(finding.found),
                "remedy": redactor.clean(finding.remedy),
                "docs": finding.docs,
            }
            for finding in findings
        ],
    }
    return json.dumps(document, indent=2)


def print_report(findings: Sequence[Finding], examined: str, redactor: Redactor, console: Console) -> None:
    """Print the findings by severity, then one line with their number."""
    console.print(Text(f"examined {redactor.clean(examined)}"), soft_wrap=True)
    for severity in Severity:
        group = [finding for finding in findings if finding.severity is severity]
        if group:
            console.print()
            console.print(Text(severity.name, style=_STYLES[severity]))
        for finding in group:
            _print_finding(finding, redactor, console)
    console.print()
    numbers = [f"{number} {name}{_plural(name, number)}" for name, number in counts(findings).items()]
    console.print(Text(f"doctor: {', '.join(numbers)}"))


def _print_finding(finding: Finding, redactor: Redactor, console: Console) -> None:
    heading = Text.assemble("  ", (finding.code, _STYLES[finding.severity]), "  ", (finding.title, "bold"))
    console.print(heading, soft_wrap=True)
    width = min(console.width, _WIDEST)
    for label, text in (("found", finding.found), ("do", finding.remedy)):
        # Names and paths stay in one piece, to be copied.
        lines = textwrap.fill(
            redactor.clean(text),
            width,
            initial_indent=f"  {label:<8}",
            subsequent_indent=_INDENT,
            break_long_words=False,
            break_on_hyphens=False,
        )
        console.print(Text(lines), soft_wrap=True)
    console.print(Text(f"{_INDENT}{finding.docs}", style="dim"), soft_wrap=True)


def _plural(name: str, number: int) -> str:
    return "" if number == 1 or name == Severity.INFO else "s"
