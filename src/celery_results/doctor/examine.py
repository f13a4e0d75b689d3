"""All checks, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from celery_results.doctor import address, files, names, sides, values
from celery_results.doctor.findings import SERVER_NOT_CHECKED, Finding, Severity, could_not_check
from celery_results.doctor.servers import for_broker, for_subject
from celery_results.doctor.subject import Subject

Check = Callable[[Subject], Iterator[Finding]]


def examine(subject: Subject) -> list[Finding]:
    """Return every finding, the gravest first; the same one is told once."""
    checks: list[tuple[str, Check]] = [
        ("the names of the settings", names.check),
        ("the values of the settings", values.check),
        ("the result_backend", address.check),
        ("the files", files.check),
    ]
    dual = sides.is_dual(subject)
    if dual:
        checks.append(("the dual backend", sides.check))
    server = None if dual else for_subject(subject)
    if server:
        checks += [
            ("the backend's settings", server.check_settings),
            ("the live server", server.check_server),
        ]
    broker = for_broker(subject)
    if broker:
        checks += [
            ("the broker's settings", broker.check_broker_settings),
            ("the live broker", broker.check_broker),
        ]
    findings = [finding for what, check in checks for finding in _guarded(what, check, subject)]
    if dual:
        findings += _of_sides(subject)
    elif not server and not any(finding.code in address.UNUSABLE for finding in findings):
        findings.append(SERVER_NOT_CHECKED.finding(f"doctor has no checks for {subject.backend_name}"))
    if subject.broker and not broker:
        scheme = subject.broker_scheme
        named = scheme if scheme.isidentifier() else "an unreadable"
        findings.append(SERVER_NOT_CHECKED.finding(f"doctor has no checks for {named} broker"))
    if subject.monitor_problem:
        findings.append(
            could_not_check(
                "with the monitor login",
                subject.monitor_problem,
                f"Correct {subject.monitor_env_file}, or name another with --monitor-env-file.",
            )
        )
    ranks = list(Severity)
    return sorted(dict.fromkeys(findings), key=lambda finding: (ranks.index(finding.severity), finding.code))


def _of_sides(subject: Subject) -> list[Finding]:
    """Examine each of two stores as if it were the only one."""
    found: list[Finding] = []
    for name, side in sides.sides(subject):
        checks: list[tuple[str, Check]] = [("its result_backend", address.check)]
        server = for_subject(side)
        if server:
            checks += [("its settings", server.check_settings), ("its live server", server.check_server)]
        else:
            found.append(
                SERVER_NOT_CHECKED.finding(f"{name} side: doctor has no checks for {side.backend_name}")
            )
        found += [
            sides.named(name, finding) for what, check in checks for finding in _guarded(what, check, side)
        ]
    return found


def _guarded(what: str, check: Check, subject: Subject) -> list[Finding]:
    """Let a check that stumbles over unusual settings not hide the others."""
    findings: list[Finding] = []
    try:
        findings.extend(check(subject))
    except Exception as failure:  # noqa: BLE001 - settings hold anything; reported, never passed over
        findings.append(
            could_not_check(
                what,
                f"{type(failure).__name__} while reading them",
                "A setting has an unusual type; look at the values of this group, and please report it.",
            )
        )
    return findings
