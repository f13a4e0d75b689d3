"""Doctor as an operator runs it, in this process, for the tests of every server that it examines."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from celery_results.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path


def doctor(
    config: Path, *arguments: str, capsys: Any, secrets: Iterable[str] = (), ends: Callable[[Any], bool]
) -> Any:
    """Run it and give its report; `ends` says of the report whether the exit code must be 1.

    Whatever goes wrong, no output holds a secret.
    """
    code = main(["doctor", "--config-directory", str(config), *arguments, "--json"])
    output = capsys.readouterr().out
    for secret in secrets:
        assert secret not in output
        assert quote(secret, safe="") not in output
    report = json.loads(output)
    assert code == int(ends(report)), report
    return report


def by_code(report: Any) -> dict[str, Any]:
    """Give the findings by code; what several of one code have found is joined, a line each."""
    found: dict[str, Any] = {}
    for finding in report["findings"]:
        text = found.get(finding["code"], {"found": ""})["found"]
        found[finding["code"]] = finding | {"found": f"{text}{finding['found']}\n"}
    return found


def serious(found: dict[str, Any]) -> set[str]:
    """Give the codes of errors and warnings among findings by code."""
    return {code for code, finding in found.items() if finding["severity"] != "info"}
