#!/usr/bin/python3
"""Look at, copy, verify and restore a SQLite database of Celery results.

    check DATABASE             print {"problems": [...], ...} as JSON; exit code 1 if there are any
    backup DATABASE FILE       copy what is there at this moment, while others read and write
    verify FILE                refuse a copy that is damaged or holds no results
    restore DATABASE FILE      replace the data, in one transaction; the old ones stay beside

To be run as the owner of the database, never as root: its directory belongs to the workers.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sqlite3
import stat
import sys
import time
from pathlib import Path
from urllib.parse import quote

# SQLite's own files beside the database.
BESIDE = ("", "-wal", "-shm")
TABLES = {"celery_taskmeta", "celery_tasksetmeta"}
# A backup or a look may wait: nobody is waiting for it.
PATIENCE_SECONDS = 60.0


def connect(path: Path, query: str = "mode=rw") -> sqlite3.Connection:
    """Open a database that is there; raises sqlite3.OperationalError where it is not."""
    return sqlite3.connect(
        f"file:{quote(str(path))}?{query}", uri=True, timeout=PATIENCE_SECONDS, isolation_level=None
    )


def private(path: Path) -> list[str]:
    """Say what lets others than the owner at a file or directory."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return []
    problems = []
    if stat.S_IMODE(found.st_mode) & 0o077:
        problems.append(f"{path} has mode {stat.S_IMODE(found.st_mode):04o}: others may get at the results.")
    if found.st_uid != os.getuid():
        problems.append(f"{path} belongs to user {found.st_uid}, not to {os.getuid()}: no worker can use it.")
    return problems


def damage(connection: sqlite3.Connection, how: str) -> str:
    """Have SQLite read the database; give what it finds wrong, nothing if all is well."""
    found = [str(row[0]) for row in connection.execute(f"PRAGMA {how}(3)")]
    return "" if found == ["ok"] else "; ".join(found)


def lack(connection: sqlite3.Connection) -> str:
    """Name the tables of Celery that are not there."""
    missing = TABLES - {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}
    return f"it has no table {', '.join(sorted(missing))}" if missing else ""


def check(database: Path) -> int:
    """Print what is not as it should be."""
    problems = [text for path in (database.parent, *beside(database)) for text in private(path)]
    mode = ""
    try:
        with contextlib.closing(connect(database)) as connection:
            mode = connection.execute("PRAGMA journal_mode").fetchone()[0]
            if found := damage(connection, "quick_check"):
                problems.append(f"{database} is damaged: {found}. Restore a backup.")
            elif found := lack(connection):
                problems.append(f"{database}: {found}. Deploy again.")
    except sqlite3.Error as error:
        problems.append(f"{database}: {error}.")
    else:
        if mode != "wal":
            problems.append(f"{database} has journal mode {mode}, not wal. Deploy again.")
    json.dump({"problems": problems, "journal_mode": mode}, sys.stdout)
    sys.stdout.write("\n")
    return 1 if problems else 0


def backup(database: Path, file: Path) -> int:
    """Copy one moment's data. A single step: it holds one snapshot, and stops neither readers nor writers."""
    with contextlib.closing(connect(database)) as source, contextlib.closing(sqlite3.connect(file)) as copy:
        source.backup(copy)
        # So that a copy is one file, which can be read where nothing can be written.
        copy.execute("PRAGMA journal_mode = DELETE")
    return 0


def verify(file: Path) -> int:
    """Read every page of a copy."""
    with contextlib.closing(connect(file, "mode=ro&immutable=1")) as connection:
        if found := damage(connection, "integrity_check") or lack(connection):
            raise SystemExit(f"{file} is no backup of results: {found}")
        count = connection.execute("SELECT count(*) FROM celery_taskmeta").fetchone()[0]
    sys.stdout.write(f"{file}: {count} results\n")
    return 0


def restore(database: Path, file: Path) -> int:
    """Replace the data by a copy's; what was there goes beside the database first."""
    verify(file)
    aside = database.with_name(f"before-restore-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.sqlite3")
    if is_sound(database):
        unfinished = aside.with_suffix(".part")
        unfinished.unlink(missing_ok=True)
        backup(database, unfinished)
        unfinished.replace(aside)
        with (
            contextlib.closing(connect(file, "mode=ro&immutable=1")) as source,
            contextlib.closing(connect(database)) as live,
        ):
            live.execute("PRAGMA synchronous = FULL")
            source.backup(live)
            live.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    else:
        replace_damaged(database, file, aside)
    sys.stdout.write(f"The data of before are in {aside}; remove it when you are sure.\n")
    return 0


def is_sound(database: Path) -> bool:
    """Say whether SQLite can still work with a database."""
    try:
        with contextlib.closing(connect(database)) as connection:
            return not damage(connection, "quick_check")
    except sqlite3.DatabaseError:
        return False


def replace_damaged(database: Path, file: Path, aside: Path) -> None:
    """Put a new file in place. A process that has the old one open would go on writing to that, unseen."""
    using = users_of(database)
    if using:
        raise SystemExit(
            f"{database} is damaged, and is in use by the processes {', '.join(map(str, using))}: "
            "stop celery-worker, celery-beat and every other program that reads results, then restore again"
        )
    unfinished = database.with_suffix(".part")
    unfinished.unlink(missing_ok=True)
    backup(file, unfinished)
    with unfinished.open("rb") as written:
        os.fsync(written.fileno())
    for suffix in BESIDE:
        with contextlib.suppress(FileNotFoundError):
            Path(f"{database}{suffix}").replace(f"{aside}{suffix}")
    unfinished.replace(database)
    with contextlib.closing(connect(database)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")


def users_of(database: Path) -> list[int]:
    """Find the processes of this account that have one of the files open."""
    wanted = {(s.st_dev, s.st_ino) for path in beside(database) if path.exists() for s in [path.stat()]}
    found = set()
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            opened = descriptor.stat()
            if (opened.st_dev, opened.st_ino) in wanted:
                found.add(int(descriptor.parts[2]))
    return sorted(found)


def beside(database: Path) -> list[Path]:
    """Name the database and SQLite's files beside it."""
    return [Path(f"{database}{suffix}") for suffix in BESIDE]


def main() -> int:
    """Run one command; exit code 1 with one line on stderr where it cannot be done, 2 for wrong usage."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    commands = parser.add_subparsers(dest="command", required=True)
    for function in (check, backup, verify, restore):
        command = commands.add_parser(function.__name__, help=(function.__doc__ or "").splitlines()[0])
        command.set_defaults(function=function)
        for name in {"verify": ["file"], "check": ["database"]}.get(function.__name__, ["database", "file"]):
            command.add_argument(name, type=Path)
    arguments = vars(parser.parse_args())
    function = arguments.pop("function")
    del arguments["command"]
    os.umask(0o077)
    try:
        return int(function(**arguments))
    except (OSError, sqlite3.Error) as error:
        places = ", ".join(map(str, arguments.values()))
        raise SystemExit(f"celery-results-sqlite: {error} ({places}, as user {os.getuid()})") from None


if __name__ == "__main__":
    sys.exit(main())
