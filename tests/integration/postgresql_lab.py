"""A PostgreSQL on loopback as role postgresql leaves it, and the files of a Celery host for it."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.integration.database_lab import START_SECONDS, PostgresLab
from tests.integration.lab_files import LOGIN_FILES, RESULTS, write_env, write_settings

if TYPE_CHECKING:
    from pathlib import Path

NAME = "celery_results"
# Roles of this name are whole-server: logins come from the lab, the owner is ours.
OWNER = "celery_results_owner"
HBA = """\
local     all  postgres  trust
hostnossl all  all       all  reject
host      all  postgres  all  reject
hostssl   celery_results  celery_worker,celery_client,celery_reader,celery_monitor  127.0.0.0/8  scram-sha-256
local     all  all  reject
host      all  all  all  reject
"""
LIMITS = (
    ("search_path", "public"),
    ("timezone", "UTC"),
    ("statement_timeout", "30s"),
    ("lock_timeout", "5s"),
    ("idle_in_transaction_session_timeout", "60s"),
)
COLUMNS = "id, task_id, status, date_done, name, worker, retries, queue"


@dataclass
class DeployedPostgres(PostgresLab):
    """One server with one database; `hba` and `options` are what a test may weaken."""

    hba: str = HBA

    def initialize(self) -> None:
        super().initialize()
        (self.data / "pg_hba.conf").write_text(self.hba)

    def deploy(self) -> None:
        """Make what the role makes: database, owner, tables, rights."""
        self.admin(
            f"CREATE ROLE {OWNER} NOLOGIN",
            "GRANT pg_monitor TO celery_monitor",
            *(
                f"ALTER ROLE celery_{login} SET {name} TO '{value}'"
                for login in ("worker", "client", "monitor")
                for name, value in LIMITS
            ),
        )
        self.database(name=NAME)
        self.inside(
            *(f"ALTER TABLE {table} OWNER TO {OWNER}" for table in ("celery_taskmeta", "celery_tasksetmeta")),
            f"REVOKE ALL ON DATABASE {NAME} FROM PUBLIC",
            "REVOKE ALL ON SCHEMA public FROM PUBLIC",
            *(
                f"GRANT CONNECT ON DATABASE {NAME} TO celery_{login}"
                for login in ("worker", "client", "monitor")
            ),
            *(f"GRANT USAGE ON SCHEMA public TO celery_{login}" for login in ("worker", "client", "monitor")),
            f"GRANT SELECT ({COLUMNS}) ON celery_taskmeta TO celery_monitor",
            "GRANT SELECT ON SEQUENCE task_id_sequence, taskset_id_sequence TO celery_monitor",
        )

    def admin(self, *statements: str, database: str = "postgres") -> None:
        """Run statements as the superuser."""
        with contextlib.closing(self.connect(database)) as connection:
            for statement in statements:
                connection.execute(statement)

    def admit(self, hba: str) -> None:
        """Replace pg_hba.conf, and wait until new connections are judged by it."""
        (self.data / "pg_hba.conf").write_text(hba)
        before = self._loaded()
        self.admin("SELECT pg_reload_conf()")
        deadline = time.monotonic() + START_SECONDS
        while self._loaded() == before:
            assert time.monotonic() < deadline

    def _loaded(self) -> Any:
        with contextlib.closing(self.connect("postgres")) as connection:
            return connection.execute("SELECT pg_conf_load_time()").fetchone()

    def inside(self, *statements: str) -> None:
        """Run statements as the superuser in the database of results."""
        self.admin(*statements, database=NAME)

    def write_config(self, directory: Path, implementation: str = "bundled", **changes: str) -> Path:
        """Write what the celery role writes to /etc/celery; changes go to all env files."""
        write_settings(directory, "postgresql")
        implementations = {"CELERYCONFIG_RESULT_IMPLEMENTATION": implementation}
        for file, login in LOGIN_FILES.items():
            values = self.connection_values(
                "RESULT",
                login,
                name="postgresql",
                scheme="postgresql",
                database=NAME,
                username=f"celery_{login}",
                options='{"synchronous_commit": "on"}',
            )
            more = {"CELERYCONFIG_LOGIN": login, **RESULTS, **implementations, **changes}
            write_env(directory / file, {**values, **more})
        return directory
