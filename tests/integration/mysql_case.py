"""A MariaDB set up as role mysql does it, and the files of one Celery host that uses it."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from tests.integration.database_lab import Database, MariaDBLab
from tests.integration.redis_lab import ROOT, quoted

if TYPE_CHECKING:
    from pathlib import Path

# The role's settings that the lab does not have.
OPTIONS = {
    "local-infile": "OFF",
    "log-bin": "mariadb-bin",
    "binlog-format": "ROW",
    "binlog-expire-logs-seconds": "86400",
    "sync-binlog": "1",
    "default-time-zone": "+00:00",
    "wait-timeout": "3600",
}
COLUMNS = {
    "celery_taskmeta": "id, task_id, status, date_done, name, worker, retries, queue",
    "celery_tasksetmeta": "id, taskset_id, date_done",
}


def lab_with(**options: str) -> MariaDBLab:
    return MariaDBLab(options={**OPTIONS, **{name.replace("_", "-"): text for name, text in options.items()}})


def database_of(lab: MariaDBLab, tables: str = "provisioned") -> Database:
    """Make a database with the rights of the role: what the lab grants, and what it does not."""
    database = lab.database(tables=tables)
    with database.admin() as connection:
        cursor = connection.cursor()
        # What MariaDB makes beside: the role removes it.
        cursor.execute(
            "SELECT user, host FROM mysql.user WHERE user = '' OR (user = 'root' AND host <> 'localhost')"
        )
        for account in cursor.fetchall():
            cursor.execute("DROP USER %s@%s", account)
        cursor.execute("GRANT BINLOG MONITOR ON *.* TO celery_monitor")
        for table, columns in COLUMNS.items():
            cursor.execute(f"GRANT SELECT ({columns}) ON {table} TO celery_monitor")
        # Celery's own class looks whether both sequences are there.
        cursor.execute("GRANT SELECT ON task_id_sequence TO celery_client")
    return database


def write_config(directory: Path, database: Database, **changes: str) -> Path:
    """Write what the celery role writes to /etc/celery; changes go to all env files."""
    directory.mkdir(parents=True)
    for name in ("base", "mysql"):
        deployed = "celeryconfig" if name == "base" else f"celeryconfig_{name}"
        shutil.copy(ROOT / "files" / "celeryconfig" / f"{name}.py", directory / f"{deployed}.py")
    lab: Any = database.lab
    for file, login in {"celery.env": "worker", "client.env": "client", "monitor.env": "monitor"}.items():
        values = {
            "CELERYCONFIG_RESULT_NAME": "mysql",
            "CELERYCONFIG_RESULT_SCHEME": "mysql",
            "CELERYCONFIG_RESULT_HOSTS": f"{lab.address}:{lab.port}",
            "CELERYCONFIG_RESULT_DATABASE": database.name,
            "CELERYCONFIG_RESULT_USERNAME": f"celery_{login}",
            "CELERYCONFIG_RESULT_PASSWORD": lab.passwords[login],
            "CELERYCONFIG_RESULT_TLS_ENABLED": "true",
            "CELERYCONFIG_RESULT_TLS_CA_FILE": str(lab.authority.file),
            "CELERYCONFIG_RESULT_OPTIONS": '{"pool_recycle_seconds": 1800}',
            "CELERYCONFIG_LOGIN": login,
            "CELERYCONFIG_RESULT_EXPIRES_SECONDS": "86400",
            "CELERYCONFIG_RESULT_EXTENDED": "false",
            "CELERYCONFIG_RESULT_SERIALIZER": "json",
            **changes,
        }
        path = directory / file
        path.write_text("".join(f"{name}={quoted(value)}\n" for name, value in values.items()))
        path.chmod(0o600)
    return directory
