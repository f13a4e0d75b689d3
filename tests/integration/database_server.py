"""What the servers of database_lab.py have in common: a private directory, an address, databases, logins."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from abc import abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import quote

import psycopg
import pymysql
from celery.backends.database.models import TaskExtended
from celery.backends.database.session import ResultModelBase
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool
from tests.integration.lab_files import Lab, free_port
from tests.integration.redis_lab import Authority

if TYPE_CHECKING:
    from collections.abc import Mapping

START_SECONDS = 30.0
LOGINS = ("worker", "client", "reader", "monitor")
TABLES = ("celery_taskmeta", "celery_tasksetmeta")
SEQUENCES = ("task_id_sequence", "taskset_id_sequence")
WRITE = "SELECT, INSERT, UPDATE, DELETE"
GRANTS = {
    "worker": (WRITE, WRITE),
    "client": ("SELECT, DELETE", WRITE),
    "reader": ("SELECT", "SELECT"),
    "monitor": (None, None),
}
assert TaskExtended.__table__ is not None  # its import completes the columns of Celery's table


@dataclass
class Database:
    """One database of a lab, or one file."""

    lab: DatabaseLab
    name: str

    def url(self, login: str = "worker", driver: str | None = None, **query: str) -> str:
        """Give an SQLAlchemy URL: TLS verified, the password percent-encoded."""
        return self.lab.url(self.name, login, driver, **query)

    def admin(self) -> Any:
        """Connect as the superuser, in autocommit; a context manager that closes the connection."""
        return contextlib.closing(self.lab.connect(self.name))

    def create_tables(self, *, provisioned: bool = True) -> None:
        """Make the tables as Celery 5.7 does, and correct them."""
        engine = create_engine(self.lab.admin_url(self.name), poolclass=NullPool)
        ResultModelBase.metadata.create_all(engine)
        with self.admin() as connection:
            cursor = connection.cursor()
            for statement in self.lab.corrections() if provisioned else ():
                cursor.execute(statement)

    def rows(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Run one statement as the superuser."""
        with self.admin() as connection:
            cursor = connection.cursor()
            cursor.execute(statement, *([parameters] if parameters else []))
            return list(cursor.fetchall()) if cursor.description else []


@dataclass
class DatabaseLab(Lab):
    """One server with its private data directory."""

    options: Mapping[str, Any] = field(default_factory=dict)
    address: str = field(
        default_factory=lambda: f"127.{secrets.randbelow(200) + 20}.{secrets.randbelow(250)}.9"
    )
    passwords: dict[str, str] = field(
        default_factory=lambda: {name: f"{name}:/@#%?{secrets.token_hex(12)}" for name in LOGINS}
    )
    port: int = 0
    process: subprocess.Popen[bytes] | None = None
    scheme: ClassVar[str]
    default_driver: ClassVar[str] = ""

    def start(self) -> None:
        """Make the data directory and start the server."""
        self.directory = Path(tempfile.mkdtemp(prefix="crb-lab-"))
        self.port = free_port(self.address)
        self.authority = Authority(self.directory)
        self.certificate = self.authority.issue(self.address)
        self.initialize()
        self.restart()
        self.create_logins()

    def restart(self) -> None:
        """Start the server again; stop it first if it runs."""
        if self.process is not None:
            self.end(signal.SIGTERM)
        log_file = self.directory / "server.log"
        self._launch(log_file)
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process is not None and self.process.poll() is not None:
                # Children of a killed PostgreSQL may outlive it for a moment; systemd tries again too.
                if "pre-existing shared memory block" not in log_file.read_text():
                    break
                time.sleep(0.2)
                self._launch(log_file)
            try:
                self.connect(self.maintenance).close()
            except (psycopg.Error, pymysql.Error):
                time.sleep(0.05)
            else:
                return
        message = f"the server did not start:\n{log_file.read_text()}"
        raise RuntimeError(message)

    def _launch(self, log_file: Path) -> None:
        with log_file.open("ab") as log:
            self.process = subprocess.Popen(self.command(), stdout=log, stderr=log, start_new_session=True)

    def kill(self) -> None:
        """End the server as a power failure of its process would: SIGKILL, nothing flushed."""
        self.end(signal.SIGKILL)

    def end(self, number: signal.Signals) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.signal(number)
            self.process.wait(START_SECONDS)
            self.process = None

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        os.kill(self.process.pid, number)

    def stop(self) -> None:
        """Kill the server and remove its data."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def database(self, *, tables: str = "provisioned", name: str | None = None) -> Database:
        """Create a database; tables is "provisioned", "stock" or "none"."""
        database = Database(self, name or f"results_{secrets.token_hex(4)}")
        self.create_database(database.name)
        if tables != "none":
            database.create_tables(provisioned=tables == "provisioned")
            self.grant(database)
        return database

    def url(self, database: str, login: str, driver: str | None, **query: str) -> str:
        user, password = f"celery_{login}", quote(self.passwords[login], safe="")
        text = "&".join(f"{name}={quote(value)}" for name, value in {**self.tls_query(), **query}.items())
        return (
            f"{self.scheme}+{driver or self.default_driver}://{user}:{password}"
            f"@{self.address}:{self.port}/{database}?{text}"
        )

    maintenance: ClassVar[str] = ""

    @abstractmethod
    def initialize(self) -> None: ...
    @abstractmethod
    def command(self) -> list[str]: ...
    @abstractmethod
    def connect(self, database: str) -> Any: ...
    @abstractmethod
    def admin_url(self, database: str) -> str: ...
    @abstractmethod
    def tls_query(self) -> dict[str, str]: ...
    @abstractmethod
    def create_logins(self) -> None: ...
    @abstractmethod
    def create_database(self, name: str) -> None: ...
    @abstractmethod
    def grant(self, database: Database) -> None: ...
    @abstractmethod
    def corrections(self) -> list[str]: ...
