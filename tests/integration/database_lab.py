"""PostgreSQL and MariaDB of the tests' own on loopback with TLS, and SQLite files, as the bundle has them.

    with PostgresLab() as lab:                     # or MariaDBLab(), SQLiteLab()
        database = lab.database()                  # a fresh one with Celery's tables and the bundle's logins
        database.url("worker")                     # an SQLAlchemy URL; for SQLite the login is ignored
        with database.admin() as connection: ...   # a DB-API connection of the superuser, autocommit
        lab.kill(); lab.restart()                  # kill -9 of the whole server; both keep port and data

`database(tables="stock")` makes the tables as Celery 5.7 does, `"provisioned"` (the default) corrects what
the bundle corrects (LONGBLOB, DATETIME(6), utf8mb4_bin, BIGINT), `"none"` makes none. Each lab takes
`options={name: value}` of the server, and has `directory`, `address`, `port`, `scheme` and `authority`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import quote

import psycopg
import pymysql
from tests.integration.database_server import (
    GRANTS,
    LOGINS,
    SEQUENCES,
    START_SECONDS,
    TABLES,
    WRITE,
    Database,
    DatabaseLab,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "GRANTS",
    "LABS",
    "LOGINS",
    "SEQUENCES",
    "START_SECONDS",
    "TABLES",
    "WRITE",
    "Database",
    "DatabaseLab",
    "MariaDBLab",
    "PostgresLab",
    "SQLiteLab",
]


@dataclass
class PostgresLab(DatabaseLab):
    """PostgreSQL: hostssl and scram for the logins, the superuser by the unix socket."""

    scheme: ClassVar[str] = "postgresql"
    default_driver: ClassVar[str] = "psycopg"
    maintenance: ClassVar[str] = "postgres"

    def initialize(self) -> None:
        self.data = self.directory / "data"
        for path in self.certificate:
            path.chmod(0o600)
        if os.getuid() == 0:
            shutil.chown(self.directory, "postgres", "postgres")
            for path in self.directory.iterdir():
                shutil.chown(path, "postgres", "postgres")
        self._run(
            [
                self._program("initdb"),
                "--pgdata",
                str(self.data),
                "--no-sync",
                "--encoding=UTF8",
                "--locale=C.UTF-8",
                "--username=postgres",
                "--auth=trust",
            ]
        )
        (self.data / "pg_hba.conf").write_text(
            "local all postgres trust\nhostssl all all 127.0.0.0/8 scram-sha-256\n"
        )
        settings = {
            "listen_addresses": self.address,
            "port": self.port,
            "unix_socket_directories": self.directory,
            "ssl": "on",
            "ssl_cert_file": self.certificate[0],
            "ssl_key_file": self.certificate[1],
            "timezone": "UTC",
            **self.options,
        }
        with (self.data / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())

    def command(self) -> list[str]:
        # It ends with the thread that starts it: a test process that is killed leaves nothing behind.
        owner = self._as_owner() or ["setpriv"]
        return [*owner, "--pdeathsig=INT", self._program("postgres"), "-D", str(self.data)]

    def signal(self, number: signal.Signals) -> None:
        """Reach the postmaster and, for SIGKILL, every one of its children; SIGTERM becomes "fast"."""
        assert self.process is not None
        if number is signal.SIGKILL:
            os.killpg(self.process.pid, number)
        for pid in () if number is not signal.SIGKILL else self._pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        if number is signal.SIGTERM:
            os.kill(self._pids()[0], signal.SIGINT)

    def _pids(self) -> list[int]:
        file = self.data / "postmaster.pid"
        if not file.exists():
            assert self.process is not None
            return [self.process.pid]
        parent = int(file.read_text().split()[0])
        found = [parent]
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, IndexError, ValueError):
                stat = (entry / "stat").read_text()
                if entry.name.isdigit() and int(stat.rsplit(")", 1)[1].split()[1]) == parent:
                    found.append(int(entry.name))
        return found

    def connect(self, database: str) -> Any:
        return psycopg.connect(
            host=str(self.directory),
            port=self.port,
            user="postgres",
            dbname=database,
            autocommit=True,
            connect_timeout=5,
        )

    def admin_url(self, database: str) -> str:
        return f"postgresql+psycopg://postgres@/{database}?host={self.directory}&port={self.port}"

    def tls_query(self) -> dict[str, str]:
        return {"sslmode": "verify-full", "sslrootcert": str(self.authority.file)}

    def create_logins(self) -> None:
        with contextlib.closing(self.connect("postgres")) as connection:
            for name in LOGINS:
                connection.execute(f"CREATE ROLE celery_{name} LOGIN PASSWORD '{self.passwords[name]}'")

    def create_database(self, name: str) -> None:
        with contextlib.closing(self.connect("postgres")) as connection:
            connection.execute(f"CREATE DATABASE {name}")

    def grant(self, database: Database) -> None:
        with database.admin() as connection:
            for login, rights in GRANTS.items():
                for table, sequence, right in zip(TABLES, SEQUENCES, rights, strict=True):
                    if right is not None:
                        connection.execute(f"GRANT {right} ON {table} TO celery_{login}")
                    if right == WRITE:
                        connection.execute(f"GRANT USAGE ON SEQUENCE {sequence} TO celery_{login}")

    def corrections(self) -> list[str]:
        defaults = [
            f"ALTER TABLE {table} ALTER id TYPE bigint, ALTER id SET DEFAULT nextval('{sequence}')"
            for table, sequence in zip(TABLES, SEQUENCES, strict=True)
        ]
        return [*defaults, "ALTER TABLE celery_taskmeta SET (fillfactor = 70)"]

    def _run(self, command: list[str]) -> None:
        subprocess.run(
            [*self._as_owner(), *command], check=True, cwd=self.directory, stdout=subprocess.DEVNULL
        )

    def _as_owner(self) -> list[str]:
        """Leave root: the server refuses to run as it."""
        return (
            ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if not os.getuid() else []
        )

    @staticmethod
    def _program(name: str) -> str:
        found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
        if not found:
            message = "these tests need a real server: apt-get install --yes postgresql"
            raise FileNotFoundError(message)
        return str(found[-1])


@dataclass
class MariaDBLab(DatabaseLab):
    """MariaDB: TLS only for the logins, root by the unix socket."""

    scheme: ClassVar[str] = "mysql"
    default_driver: ClassVar[str] = "pymysql"
    maintenance: ClassVar[str] = "mysql"

    def initialize(self) -> None:
        self.data = self.directory / "data"
        self.socket = self.directory / "server.sock"
        program = shutil.which("mariadb-install-db")
        if program is None:
            message = "these tests need a real server: apt-get install --yes mariadb-server"
            raise FileNotFoundError(message)
        subprocess.run(
            [
                program,
                "--no-defaults",
                f"--datadir={self.data}",
                f"--tmpdir={self.directory}",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
                *self._user(),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        settings = {
            "datadir": self.data,
            "tmpdir": self.directory,
            "socket": self.socket,
            "pid-file": self.directory / "server.pid",
            "bind-address": self.address,
            "port": self.port,
            "ssl-cert": self.certificate[0],
            "ssl-key": self.certificate[1],
            "ssl-ca": self.authority.file,
            "require-secure-transport": "ON",
            "transaction-isolation": "READ-COMMITTED",
            "character-set-server": "utf8mb4",
            "max-allowed-packet": "64M",
            "skip-name-resolve": "ON",
            "innodb-log-file-size": "256M",
            **self.options,
        }
        lines = "".join(f"{name} = {value}\n" for name, value in settings.items())
        (self.directory / "server.cnf").write_text(f"[mariadbd]\n{lines}")

    def command(self) -> list[str]:
        program = shutil.which("mariadbd") or "/usr/sbin/mariadbd"
        ends_with_us = ["setpriv", "--pdeathsig=KILL"]
        return [*ends_with_us, program, f"--defaults-file={self.directory / 'server.cnf'}", *self._user()]

    def connect(self, database: str) -> Any:
        return pymysql.connect(
            unix_socket=str(self.socket), user="root", database=database, autocommit=True, connect_timeout=5
        )

    def admin_url(self, database: str) -> str:
        return f"mysql+pymysql://root@localhost/{database}?unix_socket={self.socket}"

    def tls_query(self) -> dict[str, str]:
        # Not ssl_verify_cert and ssl_verify_identity: given these by SQLAlchemy, PyMySQL forgets the CA.
        return {"ssl_ca": str(self.authority.file), "ssl_check_hostname": "true"}

    def create_logins(self) -> None:
        with contextlib.closing(self.connect("mysql")) as connection:
            cursor = connection.cursor()
            for name in LOGINS:
                cursor.execute(
                    f"CREATE USER celery_{name} IDENTIFIED BY %s REQUIRE SSL", (self.passwords[name],)
                )

    def create_database(self, name: str) -> None:
        with contextlib.closing(self.connect("mysql")) as connection:
            connection.cursor().execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")

    def grant(self, database: Database) -> None:
        with database.admin() as connection:
            cursor = connection.cursor()
            for login, rights in GRANTS.items():
                for table, sequence, right in zip(TABLES, SEQUENCES, rights, strict=True):
                    if right is not None:
                        cursor.execute(f"GRANT {right} ON {table} TO celery_{login}")
                    if right == WRITE:
                        cursor.execute(f"GRANT SELECT, INSERT ON {sequence} TO celery_{login}")

    def corrections(self) -> list[str]:
        return [
            (
                "ALTER TABLE celery_taskmeta"
                " MODIFY id BIGINT NOT NULL DEFAULT (NEXT VALUE FOR task_id_sequence),"
                " MODIFY task_id VARCHAR(155) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin,"
                " MODIFY result LONGBLOB, MODIFY children LONGBLOB, MODIFY args LONGBLOB,"
                " MODIFY kwargs LONGBLOB, MODIFY stamps LONGBLOB, MODIFY traceback LONGTEXT,"
                " MODIFY date_done DATETIME(6)"
            ),
            (
                "ALTER TABLE celery_tasksetmeta"
                " MODIFY id BIGINT NOT NULL DEFAULT (NEXT VALUE FOR taskset_id_sequence),"
                " MODIFY taskset_id VARCHAR(155) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin,"
                " MODIFY result LONGBLOB, MODIFY date_done DATETIME(6)"
            ),
        ]

    @staticmethod
    def _user() -> list[str]:
        return ["--user=root"] if os.getuid() == 0 else []


@dataclass
class SQLiteLab(DatabaseLab):
    """A directory of SQLite files in WAL mode; kill and restart have nothing to do."""

    scheme: ClassVar[str] = "sqlite"

    def start(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="crb-lab-"))

    def restart(self) -> None:
        """Do nothing: there is no server."""

    def kill(self) -> None:
        """Do nothing: there is no server."""

    def url(self, database: str, login: str = "", driver: str | None = None, **query: str) -> str:
        del login, driver  # a file has neither
        text = "&".join(f"{name}={quote(value)}" for name, value in query.items())
        return f"sqlite:///{self._file(database)}" + (f"?{text}" if text else "")

    def connect(self, database: str) -> Any:
        return sqlite3.connect(self._file(database), timeout=30, isolation_level=None)

    def admin_url(self, database: str) -> str:
        return self.url(database)

    def create_database(self, name: str) -> None:
        with contextlib.closing(self.connect(name)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")

    def _file(self, name: str) -> Path:
        return self.directory / f"{name}.sqlite3"

    def initialize(self) -> None: ...
    def command(self) -> list[str]:
        return []

    def tls_query(self) -> dict[str, str]:
        return {}

    def create_logins(self) -> None: ...
    def grant(self, database: Database) -> None: ...
    def corrections(self) -> list[str]:
        return []


LABS: Mapping[str, type[DatabaseLab]] = {
    "postgresql": PostgresLab,
    "mysql": MariaDBLab,
    "sqlite": SQLiteLab,
}
