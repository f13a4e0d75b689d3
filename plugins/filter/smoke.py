"""What `celery-results smoke --json` said, in words: what failed, or what there is now and was proven."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

# The checks that hold when the server, or Celery, says no.
REFUSALS = (
    "plain_text",
    "wrong_password",
    "no_password",
    "untrusted_ca",
    "wrong_name",
    "foreign_key",
    "client_write",
    "broker_plain_text",
    "broker_wrong_password",
    "broker_no_password",
    "broker_untrusted_ca",
    "broker_wrong_name",
    "broker_foreign_key",
)
WORDS = {"passed": "passed", "failed": "FAILED", "not_run": "not run", "not_offered": "not offered"}
LABEL_WIDTH = 16


def report_of(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON document of a run; empty where there is none."""
    try:
        report = json.loads(run.get("stdout") or "{}")
    except ValueError:
        return {}
    return report if isinstance(report, dict) else {}


def smoke_witness(run: Mapping[str, Any]) -> list[str]:
    """Return the option with which another host reads the result that this one has kept."""
    witness = report_of(run).get("witness")
    return ["--witness", str(witness)] if witness else []


def smoke_failure(run: Mapping[str, Any]) -> str:
    """Return what failed, and what to do; empty if all holds."""
    report = report_of(run)
    if run.get("skipped") or (run.get("rc") == 0 and report.get("ok")):
        return ""
    if "error" in report:
        error = report["error"]
        return f"expected: {error['expected']}\nfound:    {error['found']}\ndo:       {error['do']}"
    if not report:
        return f"celery-results smoke ended with {run.get('rc')}: {run.get('stderr') or run.get('msg')}"
    checks = report["checks"]
    width = max(len(check["name"]) for check in checks)
    lines = [f"{check['name']:<{width}}  {WORDS[check['status']]:<11}  {check['note']}" for check in checks]
    for check in checks:
        if check["status"] == "failed":
            lines += ["", f"{check['name']}: {check['note']}", f"  do: {check['remedy']}"]
    if report.get("worker_log"):
        lines += ["", "The worker's log ends:", *(f"  {line}" for line in report["worker_log"])]
    return "\n".join(line.rstrip() for line in lines)


def proven(report: Mapping[str, Any]) -> str:
    """Return what one host has proven."""
    passed = {check["name"] for check in report["checks"] if check["status"] == "passed"}
    refusals = len(passed.intersection(REFUSALS))
    parts = [f"{len(passed) - refusals} checks and {refusals} refusals hold"]
    for status in ("not_run", "not_offered"):
        count = sum(check["status"] == status for check in report["checks"])
        parts += [f"{count} {WORDS[status]}"] if count else []
    return ", ".join(parts)


def smoke_summary(
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    servers: Mapping[str, Sequence[str]],
    state_directory: str,
    applications: Sequence[str] = (),
) -> str:
    """Return the end of site.yml: what runs where, what was proven, what to try."""
    reports = {host: report for host, found in runs.items() for report in map(report_of, found) if report}
    if not reports:
        return "Check mode: these hosts have no deployment yet, so nothing was proven."
    first = next(iter(reports.values()))

    def where(name: str) -> str:
        hosts = servers.get(name)
        return f"{name} on {', '.join(hosts)}" if hosts else name

    brokers = {
        "private": "none; choose ours with -e broker=redis, or yours with celery_broker_url",
        "none": "none; choose ours with -e broker=redis, or yours with celery_broker_url",
        "external": "yours (celery_broker_url)",
    }
    command = "runuser -u celery -- /opt/celery/venv/bin/celery-results"
    rows = [
        ("Result backend", where(first["backend"])),
        ("Broker", brokers.get(first["broker"]) or where(first["broker"])),
        *(("Workers", f"celery-worker.service for {name}") for name in applications),
        *((f"Proven on {host}", f"{proven(report)} ({report['login']})") for host, report in reports.items()),
        ("Settings", '/etc/celery/celeryconfig.py: app.config_from_object("celeryconfig")'),
        ("Environment", "/etc/celery/celery.env (addresses and secrets; root and group celery read it)"),
        ("On this machine", f"{state_directory} (secrets and CA: keep a copy)"),
        ("Try next", f"{command} doctor   (as root, on {next(iter(reports))})"),
    ]
    width = max(LABEL_WIDTH, *(len(label) for label, _ in rows))
    return "\n".join(f"{label:<{width}}  {text}" for label, text in rows)


class FilterModule:
    """The filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return them by name."""
        return {
            "smoke_failure": smoke_failure,
            "smoke_summary": smoke_summary,
            "smoke_witness": smoke_witness,
        }
