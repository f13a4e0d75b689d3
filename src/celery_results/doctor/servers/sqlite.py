"""SQLite: one file on one host, and everything that breaks that."""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from celery_results.doctor.findings import UNREACHABLE, Finding, error, warning
from celery_results.doctor.servers import database

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from celery_results.doctor.subject import Subject

NOT_WAL = warning(
    "CRB620",
    "Readers and writers of the database stop each other",
    "Run PRAGMA journal_mode=WAL once on the file, as site.yml does; the file keeps it.",
)
REMOTE = error(
    "CRB621",
    "The database is on a network file system",
    "Move it to a local disk, or use a server (PostgreSQL): write-ahead log and locks do not hold there, and "
    "results are lost or the file is damaged.",
)
OPEN_TO_OTHERS = error(
    "CRB622",
    "Other users of this host may get at the results",
    "Give directory (0700) and files (0600) to the user of the workers alone: whoever writes a result "
    "decides what its readers get.",
)
DISK = warning(
    "CRB623",
    "The disk of the database is all but full",
    "Free space, or lower result_expires: results are refused when it is full. Deleted results leave room "
    "in the file, not on the disk.",
)
NO_INDEX = warning(
    "CRB624",
    "The clean-up reads every result",
    "Run site.yml again, which makes the index on date_done; without it the clean-up holds the only write "
    "lock for as long as it reads.",
)
NOT_DURABLE = error(
    "CRB625",
    "A crash of the machine can damage the database",
    "Leave out synchronous = OFF: FULL loses nothing, NORMAL at most the last moments.",
)
NO_PATIENCE = warning(
    "CRB626",
    "Results fail as soon as another process writes",
    "Set database_engine_options = {'connect_args': {'timeout': 30}}: there is one writer at a time, and the "
    "others have to wait.",
)
LARGE_WAL = warning(
    "CRB627",
    "The write-ahead log is not taken over into the database",
    "Find the program that keeps a read transaction open (fuser on the file), and end it: until then the "
    "log grows, and reading gets slower.",
)
NOT_ONE_FILE = error(
    "CRB628",
    "The database is not one file on one host",
    "Name it by an absolute path (four slashes), in programs of one host; for several hosts use a server "
    "(PostgreSQL).",
)
PICKLED = warning(
    "CRB629",
    "Celery would unpickle results of this database",
    "Delete these rows once you know where they come from, or use celery_results.backends.database, which "
    "refuses them: unpickling runs code of whoever wrote them.",
)

ALIASES: Final = database.ALIASES
DIALECTS: Final = frozenset({"sqlite"})
# As in roles/sqlite/vars/main.yml.
REMOTE_FILE_SYSTEMS: Final = (
    r"^(nfs[0-9]*|cifs|smb.*|afs|coda|9p|virtiofs|ceph|glusterfs|lustre|gpfs|ocfs2|gfs2|beegfs"
    r"|fuse(?!\.fuse-overlayfs)(\..*)?)$"
)
_SHORTEST_WAIT_SECONDS: Final = 1.0
_LEAST_FREE_BYTES: Final = 16 * 2**20
_LEAST_FREE_SHARE: Final = 0.05
# A checkpoint comes at 4 MB; more stays only where readers never leave a gap.
_LARGEST_WAL_BYTES: Final = 64 * 2**20
# The newest rows: doctor reads no whole table.
_SAMPLE_ROWS: Final = 10_000
_TABLES: Final = ("celery_taskmeta", "celery_tasksetmeta")
_BESIDE: Final = ("", "-wal", "-shm")
_MOUNTS: Final = Path("/proc/self/mountinfo")


def check_settings(subject: Subject) -> Iterator[Finding]:
    """Judge what the settings say."""
    yield from database.check_settings(subject)
    name = _name(subject)
    if not name.startswith("/"):
        where = f"the path {name} depends on each process's directory" if name else "a database in memory"
        yield NOT_ONE_FILE.finding(where)


def check_server(subject: Subject) -> Iterator[Finding]:
    """Judge the file, and what SQLite says of it through the connection that the settings make."""
    name = _name(subject)
    if not name.startswith("/"):
        return
    path = Path(name)
    try:
        size = path.stat().st_size
        yield from _files(path)
        yield from _disk(path.parent)
        with contextlib.closing(_open(subject, path)) as connection:
            yield from judge(connection, stock=subject.alias in {"db", "database"})
    except (OSError, sqlite3.Error) as failure:
        yield UNREACHABLE.finding(
            f"{path}: {getattr(failure, 'strerror', None) or failure}",
            "Run doctor as the user of the workers (runuser -u celery -- ...); if it cannot either, "
            "run site.yml again, or restore a backup.",
        )
        return
    wal = Path(f"{path}-wal")
    log = wal.stat().st_size if wal.exists() else 0
    if log > _LARGEST_WAL_BYTES:
        yield LARGE_WAL.finding(f"{log / 2**20:,.0f} MiB beside a database of {size / 2**20:,.0f} MiB")


def judge(connection: sqlite3.Connection, *, stock: bool) -> Iterator[Finding]:
    """Judge what SQLite itself says; raises sqlite3.Error where the file is no database of results."""

    def pragma(name: str) -> Any:  # noqa: ANN401 - a text or a number
        return connection.execute(f"PRAGMA {name}").fetchone()[0]

    mode = pragma("journal_mode")
    if mode != "wal":
        yield NOT_WAL.finding(f"journal_mode {mode}")
    if pragma("synchronous") == 0:
        yield NOT_DURABLE.finding("synchronous OFF, through the settings' connection")
    wait = pragma("busy_timeout") / 1000
    if wait < _SHORTEST_WAIT_SECONDS:
        yield NO_PATIENCE.finding(f"a connection of the settings waits {wait:g} s for another writer")
    for table in _TABLES:
        connection.execute(f"SELECT 1 FROM {table} LIMIT 1")  # noqa: S608 - a name of ours
        indexes = connection.execute(f"PRAGMA index_list({table})").fetchall()
        first = {connection.execute(f"PRAGMA index_info('{index[1]}')").fetchone()[2] for index in indexes}
        if "date_done" not in first:
            yield NO_INDEX.finding(f"no index on {table}.date_done")
    yield from _rows(connection, stock=stock)


def _rows(connection: sqlite3.Connection, *, stock: bool) -> Iterator[Finding]:
    newest = f"SELECT * FROM celery_taskmeta ORDER BY id DESC LIMIT {_SAMPLE_ROWS}"  # noqa: S608 - constants
    if stock:
        query = f"SELECT count(*) FROM ({newest}) WHERE substr(CAST(result AS BLOB), 1, 1) = x'80'"  # noqa: S608
        pickled = connection.execute(query).fetchone()[0]
        if pickled:
            yield PICKLED.finding(f"{pickled} of the newest {_SAMPLE_ROWS:,} results start like a pickle")
    columns = {row[1] for row in connection.execute("PRAGMA table_info(celery_taskmeta)")}
    if "worker" in columns:
        query = f"SELECT DISTINCT worker FROM ({newest}) WHERE worker LIKE '%@%'"  # noqa: S608
        hosts = {str(row[0]).rpartition("@")[2] for row in connection.execute(query)}
        if len(hosts) > 1:
            yield NOT_ONE_FILE.finding(f"workers on {', '.join(sorted(hosts))} have stored results")


def file_system(path: Path, mounts: str) -> str:
    """Find the type of the file system that a path is on, from the text of mountinfo."""
    found, length = "", -1
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        mounted = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), before.split()[4])
        if path.is_relative_to(mounted) and len(mounted) >= length:
            found, length = after.split()[0], len(mounted)
    return found


def _files(path: Path) -> Iterator[Finding]:
    for each in (path.parent, *(Path(f"{path}{suffix}") for suffix in _BESIDE)):
        if each.exists() and stat.S_IMODE(each.stat().st_mode) & 0o077:
            yield OPEN_TO_OTHERS.finding(f"{each} has mode {stat.S_IMODE(each.stat().st_mode):04o}")
    kind = file_system(path.resolve(), _MOUNTS.read_text(encoding="utf-8"))
    if re.match(REMOTE_FILE_SYSTEMS, kind):
        yield REMOTE.finding(f"{path} is on {kind}")


def _disk(directory: Path) -> Iterator[Finding]:
    disk = os.statvfs(directory)
    free, whole = disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
    if free < max(_LEAST_FREE_BYTES, whole * _LEAST_FREE_SHARE):
        yield DISK.finding(f"{free / 2**20:,.0f} of {whole / 2**20:,.0f} MiB are free")


def _name(subject: Subject) -> str:
    """Give the path as SQLAlchemy reads it: what follows the third slash."""
    return subject.url.partition("://")[2].partition("?")[0].removeprefix("/").replace(":memory:", "")


def _open(subject: Subject, path: Path) -> sqlite3.Connection:
    """Connect as the settings do, but read-only."""
    options: Mapping[str, Any] = subject.settings.get("database_engine_options") or {}
    arguments = {name: options["connect_args"][name] for name in options.get("connect_args") or {}}
    arguments |= {"uri": True, "isolation_level": None}
    synchronous = arguments.pop(
        "synchronous", None
    )  # an argument of the bundled class, not of Python's module
    connection: sqlite3.Connection = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", **arguments)
    if synchronous:
        connection.execute(f"PRAGMA synchronous = {synchronous}")
    return connection
