"""What a SQLite database must refuse: whoever is not the account that owns it.

There is no server, hence no address, no login and no certificate to attack: those checks are not run, and the
table says so.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import sqlite3
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from celery_results.smoke.diagnosis import Hint
from celery_results.smoke.outcome import NotRun
from celery_results.smoke.refusals import Accepted, Target

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from celery_results.settings import Connection
    from celery_results.smoke.refusals import Attempt

_SECONDS = 5.0
_STRANGER = "nobody"
_ACCESS_LISTS = ("system.posix_acl_access", "system.posix_acl_default")
_BESIDE = ("", "-wal", "-shm")

HINTS = (
    Hint(
        r"unable to open database file",
        "the database or its directory (CELERYCONFIG_RESULT_DATABASE) is not there, or this user may not "
        "enter it: run as the user of the workers (runuser -u celery -- ...), or run site.yml again",
    ),
    Hint(
        r"attempt to write a readonly database",
        "this user may not write the database: run as the user of the workers; a unit of your own needs its "
        "directory in ReadWritePaths",
    ),
    Hint(
        r"database is locked",
        "another program writes for longer than sqlite_busy_timeout_seconds: find it (fuser on the file), "
        "or raise that variable",
    ),
    Hint(
        r"database or disk is full", "free space on the disk of the database: until then it refuses results"
    ),
    Hint(
        r"no such table|no such column",
        "the tables are not those of this version: run site.yml for this host again",
    ),
    Hint(
        r"file is not a database|disk image is malformed",
        "the database is damaged: restore a backup (playbooks/restore.yml)",
    ),
)


def _show_that_it_works(login: Connection) -> None:
    """Read and take the write lock, as a worker does; nothing is changed."""
    uri = f"file:{quote(login.database)}?mode=rw"
    with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=_SECONDS, isolation_level=None)) as own:
        own.execute("SELECT count(*) FROM celery_tasksetmeta").fetchone()
        own.execute("BEGIN IMMEDIATE")
        own.execute("ROLLBACK")


def foreign_key(target: Target) -> str:
    """Read and write the database as another user of this host."""
    _show_that_it_works(target.login)
    database = Path(target.login.database)
    paths = [database.parent, *(Path(f"{database}{suffix}") for suffix in _BESIDE)]
    there = [path for path in paths if path.exists()]
    open_to_others = [text for path in there for text in _openings(path)]
    if open_to_others:
        raise Accepted("; ".join(open_to_others))
    if os.geteuid() != 0:
        return f"{len(there)} paths are open to {_name(database.stat().st_uid)} alone, by owner and mode"
    done = _as_stranger(lambda: [str(path) for path in there if _opens(path)])
    if done:
        raise Accepted(f"{_STRANGER} opens {', '.join(done)}")
    return f"{_STRANGER} tried {len(there)} paths, all refused"


def _openings(path: Path) -> list[str]:
    """Say what lets others in: mode bits, and access lists, which modes do not show."""
    mode = stat.S_IMODE(path.stat().st_mode)
    found = [f"{path} has mode {mode:04o}"] if mode & 0o077 else []
    for name in _ACCESS_LISTS:
        with contextlib.suppress(OSError):
            os.getxattr(path, name)
            found.append(f"{path} has an access list ({name})")
    return found


def _name(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"user {user}"


def _opens(path: Path) -> bool:
    for flag in (os.O_RDONLY, os.O_RDWR):
        with contextlib.suppress(PermissionError, IsADirectoryError):
            os.close(os.open(path, flag))
            return True
    return False


def _as_stranger(look: Callable[[], list[str]]) -> list[str]:
    """Run in a child that has given up root; raises OSError where it could not, so that nothing is proven."""
    stranger = pwd.getpwnam(_STRANGER)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        answer = b"failed"
        try:
            os.setgroups([])
            os.setresgid(stranger.pw_gid, stranger.pw_gid, stranger.pw_gid)
            os.setresuid(stranger.pw_uid, stranger.pw_uid, stranger.pw_uid)
            answer = "\n".join(["done", *look()]).encode()
        finally:
            os.write(write, answer)
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        first, *found = pipe.read().decode().splitlines()
    os.waitpid(child, 0)
    if first != "done":
        raise OSError(f"this process cannot become {_STRANGER}, though it is root")
    return found


def client_write(target: Target) -> str:
    """Have the client's login write a result: there is no such login."""
    del target
    raise NotRun("SQLite has no logins: who reads results is the same user, and may write them")


def _no_server(target: Target) -> str:
    del target
    raise NotRun("SQLite has no server: nothing listens on any address, and nothing leaves this host")


def _no_login(target: Target) -> str:
    del target
    raise NotRun("SQLite has no logins: who may open the file may use it (see foreign_key)")


def forget_chord(backend: Any, group_id: str) -> None:  # noqa: ANN401 - Celery has no types
    """Leave nothing: a chord's group is a row, which the session deletes."""
    del backend, group_id


BROKER_ATTEMPTS: Mapping[str, Attempt] = {}
NOT_OFFERED: Mapping[str, str] = {}

ATTEMPTS: Mapping[str, Attempt] = {
    "plain_text": _no_server,
    "wrong_password": _no_login,
    "no_password": _no_login,
    "untrusted_ca": _no_server,
    "wrong_name": _no_server,
    "foreign_key": foreign_key,
    "client_write": client_write,
}
