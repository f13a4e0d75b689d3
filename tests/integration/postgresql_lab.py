"""A PostgreSQL on loopback as role postgresql leaves it, and the files of a Celery host for it."""

from __future__ import annotations

import contextlib
import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from tests.integration.database_lab import START_SECONDS, PostgresLab
from tests.integration.redis_lab import ROOT, quoted

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

    def __enter__(self) -> Self:
        self.start()
        return self

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
        directory.mkdir(parents=True)
        for name in ("base", "postgresql"):
            deployed = "celeryconfig" if name == "base" else f"celeryconfig_{name}"
            shutil.copy(ROOT / "files" / "celeryconfig" / f"{name}.py", directory / f"{deployed}.py")
        for file, login in (("celery.env", "worker"), ("client.env", "client"), ("monitor.env", "monitor")):
            values = self._values(login) | {"CELERYCONFIG_RESULT_IMPLEMENTATION": implementation} | changes
            path = directory / file
            path.write_text("".join(f"{name}={quoted(value)}\n" for name, value in values.items()))
            path.chmod(0o600)
        return directory

    def _values(self, login: str) -> dict[str, Any]:
        return {
            "CELERYCONFIG_RESULT_NAME": "postgresql",
            "CELERYCONFIG_RESULT_SCHEME": "postgresql",
            "CELERYCONFIG_RESULT_HOSTS": f"{self.address}:{self.port}",
            "CELERYCONFIG_RESULT_DATABASE": NAME,
            "CELERYCONFIG_RESULT_USERNAME": f"celery_{login}",
            "CELERYCONFIG_RESULT_PASSWORD": self.passwords[login],
            "CELERYCONFIG_RESULT_TLS_ENABLED": "true",
            "CELERYCONFIG_RESULT_TLS_CA_FILE": str(self.authority.file),
            "CELERYCONFIG_RESULT_TLS_CERT_FILE": "",
            "CELERYCONFIG_RESULT_TLS_KEY_FILE": "",
            "CELERYCONFIG_RESULT_OPTIONS": '{"synchronous_commit": "on"}',
            "CELERYCONFIG_LOGIN": login,
            "CELERYCONFIG_RESULT_EXPIRES_SECONDS": "86400",
            "CELERYCONFIG_RESULT_EXTENDED": "false",
            "CELERYCONFIG_RESULT_SERIALIZER": "json",
        }
