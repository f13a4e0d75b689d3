"""Files: who can read the secrets, who can change the settings, which certificates have run out."""

from __future__ import annotations

import ast
import re
import stat
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from cryptography import x509

from celery_results.doctor.findings import Finding, could_not_check, error, warning

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from celery_results.doctor.subject import Subject

SECRET_IN_SOURCE = warning(
    "CRB160",
    "A password is written in the settings",
    "Read it from the environment: settings end up in version control.",
)
SECRET_READABLE = error(
    "CRB161",
    "Every user of this host can read the password",
    "Keep secrets in an env file with mode 0640, owned by root and the group of the workers.",
)
WRITABLE = error(
    "CRB162",
    "Others can change what the workers run",
    "Settings are code: chown root and chmod 0644 (env files: 0640).",
)
FILE_MISSING = error(
    "CRB163",
    "A TLS file is missing or cannot be read",
    "Name files that this user can read; run doctor as the user of the workers to see what they see.",
)
AUTHORITY_EXPIRED = error(
    "CRB164",
    "A certificate in the settings has expired",
    "Issue it again (site.yml renews what it issued), then restart the workers.",
)
AUTHORITY_EXPIRES = warning(
    "CRB165",
    "A certificate in the settings expires soon",
    "Issue it again (site.yml renews what it issued), then restart the workers.",
)

WARNING_BEFORE: Final = timedelta(days=30)
_SECRET_SETTING: Final = re.compile(r"password|passwd|secret|token", re.IGNORECASE)
_URL_WITH_PASSWORD: Final = re.compile(r"\w://[^/@\s:]*:[^@\s]+@")


def check(subject: Subject) -> Iterator[Finding]:
    """Judge the modes of the files, and passwords in their text."""
    for path in subject.sources:
        yield from _source(path)
    for env_file in (subject.env_file, subject.monitor_env_file):
        if env_file:
            yield from _env_file(env_file)


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def _source(path: Path) -> Iterator[Finding]:
    mode = _mode(path)
    if mode & 0o022:
        yield WRITABLE.finding(f"{path} has mode {mode:04o}")
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError) as failure:
        yield could_not_check(f"{path} for passwords", type(failure).__name__)
        return
    for line in sorted(_secret_lines(tree)):
        kind = SECRET_READABLE if mode & stat.S_IROTH else SECRET_IN_SOURCE
        yield kind.finding(f"{path}, line {line} (mode {mode:04o})")


def _secret_lines(tree: ast.Module) -> set[int]:
    lines = set()
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and _URL_WITH_PASSWORD.search(node.value)
        ):
            lines.add(node.lineno)
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value and _is_text(node.value):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Name) and _SECRET_SETTING.search(target.id) for target in targets):
                lines.add(node.lineno)
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if (
                    isinstance(key, ast.Constant)
                    and _SECRET_SETTING.search(str(key.value))
                    and _is_text(value)
                ):
                    lines.add(value.lineno)
    return lines


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and bool(node.value)


def _env_file(path: Path) -> Iterator[Finding]:
    mode = _mode(path)
    if mode & stat.S_IROTH:
        yield SECRET_READABLE.finding(f"{path} has mode {mode:04o}")
    if mode & 0o022:
        yield WRITABLE.finding(f"{path} has mode {mode:04o}")


def check_certificate_file(path: Path, setting: str, now: datetime) -> Iterator[Finding]:
    """Judge a CA or client certificate; a bundle is as good as its best certificate."""
    try:
        certificates = x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError) as failure:
        yield FILE_MISSING.finding(f"{setting} = {path}: {_reason(failure)}")
        return
    latest = max(certificate.not_valid_after_utc for certificate in certificates)
    if latest <= now:
        yield AUTHORITY_EXPIRED.finding(f"{setting} = {path} expired on {latest:%Y-%m-%d}")
    elif latest - now < WARNING_BEFORE:
        yield AUTHORITY_EXPIRES.finding(f"{setting} = {path} expires on {latest:%Y-%m-%d}")


def check_readable(path: Path, setting: str) -> Iterator[Finding]:
    """Judge a file whose content is none of our business."""
    try:
        path.open("rb").close()
    except OSError as failure:
        yield FILE_MISSING.finding(f"{setting} = {path}: {_reason(failure)}")


def _reason(failure: Exception) -> str:
    return (
        (failure.strerror or type(failure).__name__)
        if isinstance(failure, OSError)
        else "no certificate in PEM form"
    )
