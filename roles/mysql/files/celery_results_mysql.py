#!/usr/bin/python3
"""What role mysql needs on the server's host, and no module does; for root, over the unix socket.

check-config FILE   would the server take these settings?
pending FILE        what the running server has otherwise than FILE says: one JSON object, nothing is changed
apply FILE          set what can be set while it runs; the same JSON object, of what was changed
wait                until the server answers
dump DATABASE FILE  a consistent copy, compressed
verify FILE         is this a whole copy?
restore DATABASE FILE  put a copy in place of the tables; those of before are kept in a database beside it
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import pymysql

if TYPE_CHECKING:
    from collections.abc import Callable

SERVER: Final = next((path for path in ("/usr/sbin/mariadbd", "/usr/sbin/mysqld") if Path(path).exists()), "")
IS_MARIADB: Final = SERVER.endswith("mariadbd")
PREFIX: Final = "/usr/bin/mariadb" if IS_MARIADB else "/usr/bin/mysql"
SOCKET: Final = os.environ.get("CELERY_RESULTS_MYSQL_SOCKET", "/run/mysqld/mysqld.sock")
# Without TLS, which newer clients want on a socket too: a backup must not fail with the certificate.
AS_ROOT: Final = (f"--socket={SOCKET}", "--user=root", "--skip-ssl" if IS_MARIADB else "--ssl-mode=DISABLED")
RECORD: Final = Path(os.environ.get("CELERY_RESULTS_MYSQL_RECORD", "/etc/mysql/celery-results.applied"))
CERTIFICATES: Final = ("ssl_ca", "ssl_cert", "ssl_key")
WAIT_SECONDS: Final = 120

# The server only warns of these, and then takes another value than the one that was asked for.
REFUSED: Final = re.compile(
    r"\[ERROR\]|adjusted to|wasn't recognized|unknown (variable|option)|Charset|Character set"
)
# An option's name, where the variable has another one; of several, the one that this server knows.
VARIABLES: Final = {
    "default_time_zone": ("time_zone",),
    "transaction_isolation": ("transaction_isolation", "tx_isolation"),
}
# Set at run time, these do nothing or less than they say (10.11, 11.8).
AT_START: Final = frozenset({"innodb_buffer_pool_size", "log_bin"})
READ_ONLY: Final = 1238  # ER_INCORRECT_GLOBAL_LOCAL_VAR
BLOCK_BYTES: Final = 1 << 20
DUMP_END: Final = b"-- Dump completed"


def main(arguments: list[str]) -> int:
    """Run one command."""
    commands: dict[str, Callable[..., None]] = {
        "check-config": check_config,
        "pending": pending,
        "apply": apply,
        "wait": wait,
        "dump": dump,
        "verify": verify,
        "restore": restore,
    }
    if not arguments or arguments[0] not in commands:
        fail(f"expected one of {', '.join(commands)}", code=2)
    commands[arguments[0]](*arguments[1:])
    return 0


def fail(message: str, code: int = 1) -> NoReturn:
    """End with a message."""
    sys.stderr.write(f"celery-results-mysql: {message}\n")
    sys.exit(code)


def tell(answer: object) -> None:
    """Print one JSON object."""
    sys.stdout.write(f"{json.dumps(answer)}\n")


def connect() -> pymysql.connections.Connection[Any]:
    """Log in as root; raises pymysql.err.OperationalError where no server answers."""
    return pymysql.connect(unix_socket=SOCKET, user="root", charset="utf8mb4", autocommit=True)


# --- settings ---


def options_of(file: str = "") -> dict[str, str]:
    """Return every option as the server would start with it: with this file alone, or with all there are."""
    only = [f"--defaults-file={Path(file).resolve()}"] if file else []
    # No module asks that; nothing is started.
    shown = subprocess.run(  # noqa: S603
        [SERVER, *only, "--help", "--verbose"], capture_output=True, text=True, check=False
    )
    refused = [line for line in shown.stderr.splitlines() if REFUSED.search(line)]
    if shown.returncode or (refused and file):
        fail(
            "the server refuses a setting; unless the role is wrong, it comes from mysql_config:\n"
            + "\n".join(refused or shown.stderr.splitlines()[-5:])
        )
    table = shown.stdout.partition("\n---")[2].partition("\n\n")[0]
    rows = (line.partition(" ") for line in table.splitlines()[1:])
    shown_as = {name.replace("-", "_"): value.strip() for name, _, value in rows}
    return {name: "" if value == "(No default value)" else value for name, value in shown_as.items()}


def wanted(file: str) -> dict[str, str]:
    """Return the settings that the file names, as the server shows them."""
    names = re.findall(r"^([a-z0-9_]+) *=", Path(file).read_text(encoding="utf-8"), flags=re.MULTILINE)
    options = options_of(file)
    missing = [name for name in names if name not in options]
    if missing:
        fail(f"mysql_config: write the names in full, as the server shows them: {', '.join(missing)}")
    return {name: options[name] for name in names}


def check_config(file: str) -> None:
    """Refuse a file that the server would not take as it is."""
    wanted(file)


def variables() -> dict[str, str] | None:
    """Return the live settings; None where no server answers."""
    try:
        with connect() as connection, connection.cursor() as cursor:
            cursor.execute("SHOW GLOBAL VARIABLES")
            return {str(name).lower(): str(value) for name, value in cursor.fetchall()}
    except pymysql.err.OperationalError as error:
        if error.args[0] in {2002, 2003, 2006, 2013}:
            return None
        raise


def same(name: str, value: str, live: str) -> bool:
    """Compare an option with the variable."""
    if name == "log_bin":  # an option with a file's name, a variable that is on or off
        return live.upper() == "ON"
    return normal(value) == normal(live)


def normal(value: str) -> str:
    """Give one form to what is the same: on and true, 2 and 2.000000, a list in another order of case."""
    text = {"TRUE": "ON", "FALSE": "OFF", "1": "ON", "0": "OFF"}.get(value.upper(), value)
    with contextlib.suppress(ValueError):
        return repr(float(text))
    return text.casefold()


def variable_of(name: str, live: dict[str, str]) -> str:
    """Name the variable of an option."""
    return next((known for known in VARIABLES.get(name, (name,)) if known in live), name)


def differences(file: str, live: dict[str, str]) -> dict[str, str]:
    """Return what the server should have and has not, also what was taken out of the file since."""
    options = wanted(file)
    removed = {name for name in record().get("names", []) if name not in options}
    if removed:
        defaults = options_of()
        options |= {name: defaults[name] for name in removed if name in defaults}
    return {
        name: value
        for name, value in options.items()
        if not same(name, value, live.get(variable_of(name, live), ""))
    }


def certificates(file: str) -> str:
    """Return a digest of the files of TLS."""
    options = wanted(file)
    content = b"".join(Path(options[name]).read_bytes() for name in CERTIFICATES if options.get(name))
    return hashlib.sha256(content).hexdigest()


def record() -> dict[str, Any]:
    """Return what the server was given last: {"names": [...], "tls": digest}; empty before the first time."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        found = json.loads(RECORD.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


def pending(file: str) -> None:
    """Print {"running": bool, "settings": {name: value}, "tls": bool}."""
    live = variables()
    tell(
        {
            "running": live is not None,
            "settings": differences(file, live) if live is not None else {},
            "tls": record().get("tls") != certificates(file),
        }
    )


def apply(file: str) -> None:
    """Print {"set": [names], "restart": [names], "tls": bool}; record it if no restart is needed."""
    live = variables()
    if live is None:
        fail("the server does not answer")
    restart, done = [], []
    tls = record().get("tls") != certificates(file)
    with connect() as connection, connection.cursor() as cursor:
        for name, value in differences(file, live).items():
            if name in AT_START or not set_variable(cursor, variable_of(name, live), value):
                restart.append(name)
            else:
                done.append(name)
        if tls:
            cursor.execute("FLUSH SSL" if IS_MARIADB else "ALTER INSTANCE RELOAD TLS")
    tell({"set": done, "restart": restart, "tls": tls})
    if not restart:
        write_record({"names": sorted(wanted(file)), "tls": certificates(file)})


def set_variable(cursor: pymysql.cursors.Cursor, name: str, value: str) -> bool:
    """Set one; False where only a restart can."""
    bare = value in {"TRUE", "FALSE"} or re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", value)
    literal = value if bare else f"'{pymysql.converters.escape_string(value)}'"
    try:
        cursor.execute(f"SET GLOBAL {name} = {literal}")
    except pymysql.err.MySQLError as error:
        if error.args[0] == READ_ONLY:
            return False
        fail(f"the running server refuses {name} = {value}: {error.args[1]}. It may come from mysql_config")
    return True


def write_record(content: dict[str, Any]) -> None:
    """Write it whole or not at all."""
    text = json.dumps(content, indent=1) + "\n"
    if RECORD.exists() and RECORD.read_text(encoding="utf-8") == text:
        return
    new = RECORD.with_suffix(".new")
    new.write_text(text, encoding="utf-8")
    new.replace(RECORD)


def wait() -> None:
    """Wait until the server answers; else show the end of its log."""
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        if variables() is not None:
            return
        time.sleep(0.2)
    unit = "mariadb" if IS_MARIADB else "mysql"
    journal = ["/usr/bin/journalctl", "-u", unit, "-n", "15", "--no-pager"]
    log = ""
    if Path(journal[0]).exists():
        log = subprocess.run(journal, capture_output=True, text=True, check=False).stdout  # noqa: S603
    fail(f"{unit} does not answer on {SOCKET} within {WAIT_SECONDS} s; its log ends:\n{log}")


# --- copies ---


def dump(database: str, file: str) -> None:
    """Copy the tables as they are at one moment, while others write."""
    program = f"{PREFIX}-dump" if IS_MARIADB else "/usr/bin/mysqldump"
    options = ["--single-transaction", "--quick", "--hex-blob", "--default-character-set=utf8mb4"]
    # LOCK TABLES would lock out the sequence that the ids of a table come from (error 1100).
    options.append("--skip-add-locks")
    command = [program, *AS_ROOT, *options, database]
    # Level 1: nearly as small as the higher ones, at a fraction of the time.
    with (
        gzip.open(file, "wb", compresslevel=1) as copy,
        subprocess.Popen(command, stdout=subprocess.PIPE) as dumping,  # noqa: S603
    ):
        assert dumping.stdout is not None
        while block := dumping.stdout.read(BLOCK_BYTES):
            copy.write(block)
    if dumping.returncode:
        fail(f"{program} ended with {dumping.returncode}")


def verify(file: str) -> None:
    """Read it to its end: gzip has a checksum, and mariadb-dump says that it came to the end."""
    tail, tables = b"", 0
    try:
        with gzip.open(file, "rb") as copy:
            while block := copy.read(BLOCK_BYTES):
                tables += block.count(b"CREATE TABLE `")
                tail = (tail + block)[-200:]
    except (OSError, EOFError) as error:
        fail(f"{file} is damaged: {error}")
    if DUMP_END not in tail or not tables:
        fail(f"{file} is not a whole copy: its end or its tables are missing")


def restore(database: str, file: str) -> None:
    """Load the copy beside the tables, then exchange both by one RENAME TABLE; repeatable."""
    verify(file)
    loading = f"{database}_restore"
    aside = f"{database}_before_{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
    with connect() as connection, connection.cursor() as cursor:
        cursor.execute(f"DROP DATABASE IF EXISTS `{loading}`")
        cursor.execute(f"CREATE DATABASE `{loading}` CHARACTER SET utf8mb4 COLLATE utf8mb4_bin")
    client = [PREFIX, *AS_ROOT, "--default-character-set=utf8mb4", loading]
    with gzip.open(file, "rb") as copy, subprocess.Popen(client, stdin=subprocess.PIPE) as loader:  # noqa: S603
        assert loader.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            while block := copy.read(BLOCK_BYTES):
                loader.stdin.write(block)
            loader.stdin.close()
    if loader.returncode:
        fail(f"the server did not take {file}; nothing was changed")
    with connect() as connection, connection.cursor() as cursor:
        old, new = names_in(cursor, database), names_in(cursor, loading)
        if not new:
            fail(f"there are no tables in {file}; nothing was changed")
        cursor.execute(f"CREATE DATABASE `{aside}` CHARACTER SET utf8mb4 COLLATE utf8mb4_bin")
        renames = [f"`{database}`.`{name}` TO `{aside}`.`{name}`" for name in old]
        renames += [f"`{loading}`.`{name}` TO `{database}`.`{name}`" for name in new]
        cursor.execute(f"RENAME TABLE {', '.join(renames)}")
        cursor.execute(f"DROP DATABASE `{loading}`")
        cursor.execute(f"SELECT COUNT(*) FROM `{database}`.celery_taskmeta")  # noqa: S608 - the role's own name
        rows = cursor.fetchone()
    count = rows[0] if rows else 0
    sys.stdout.write(
        f"{count} results. The tables of before are in the database {aside}; drop it when you are sure.\n"
    )


def names_in(cursor: pymysql.cursors.Cursor, database: str) -> list[str]:
    """Name tables and sequences."""
    cursor.execute("SELECT table_name FROM information_schema.tables WHERE table_schema = %s", (database,))
    return [str(name) for (name,) in cursor.fetchall()]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
