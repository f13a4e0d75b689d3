"""A MariaDB set up as role mysql does it, and the files of one Celery host that uses it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.integration.database_lab import Database, MariaDBLab
from tests.integration.lab_files import LOGIN_FILES, RESULTS, write_env, write_settings

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
    write_settings(directory, "mysql")
    for file, login in LOGIN_FILES.items():
        values = database.lab.connection_values(
            "RESULT",
            login,
            name="mysql",
            scheme="mysql",
            database=database.name,
            username=f"celery_{login}",
            options='{"pool_recycle_seconds": 1800}',
        )
        write_env(directory / file, {**values, "CELERYCONFIG_LOGIN": login, **RESULTS, **changes})
    return directory
