"""What MariaDB and MySQL must refuse."""

from __future__ import annotations

import contextlib
import secrets
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pymysql
from pymysql.constants import ER

from celery_results.smoke.diagnosis import Hint
from celery_results.smoke.outcome import NotRun
from celery_results.smoke.refusals import Accepted, Target

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from celery_results.settings import Connection
    from celery_results.smoke.refusals import Attempt

_SECONDS = 5
# What a server with require_secure_transport answers to a login without TLS.
_SECURE_TRANSPORT_REQUIRED = 3159
# No such account, none for this address, wrong or no password.
_NO_LOGIN = frozenset({ER.ACCESS_DENIED_ERROR, 1130, 1698})
# Access denied to: a database, a table, a column, an operation (FILE is denied like a login), a sequence.
_DENIED = frozenset({ER.DBACCESS_DENIED_ERROR, ER.TABLEACCESS_DENIED_ERROR, ER.COLUMNACCESS_DENIED_ERROR})
_DENIED_OPERATION = frozenset({ER.SPECIFIC_ACCESS_DENIED_ERROR, ER.ACCESS_DENIED_ERROR})
# LOCAL INFILE is off: MariaDB, MySQL, and both in older releases.
_LOCAL_INFILE_OFF = frozenset({4166, 3948, 1148})

HINTS = (
    Hint(
        r"\(1045\b|\(1698\b|Access denied for user",
        "CELERYCONFIG_RESULT_USERNAME and _PASSWORD are not those of the server, or it wants a certificate "
        "(CELERYCONFIG_RESULT_TLS_CERT_FILE): run site.yml for the server and this host with the same "
        "vault_mysql_*_password or the same .state directory",
    ),
    Hint(
        r"\(1130\b|is not allowed to connect",
        "the server has no account for the address of this host: put it in the group celery or "
        "celery_client, or behind NAT into mysql_client_sources, and run site.yml for the server again",
    ),
    Hint(
        r"\(1142\b|\(1143\b|\(1044\b|command denied",
        "the server's grants deny this login something that Celery needs: run site.yml for the server again",
    ),
    Hint(
        r"\(1040\b|\(1203\b|\(1226\b|[Tt]oo many connections|max_user_connections",
        "the server has no connection left: raise mysql_max_connections, or start fewer processes",
    ),
    Hint(
        r"\(1021\b|\(1114\b|Disk full|is full",
        "the server's disk is full: free space there; results are refused until then",
    ),
    Hint(
        r"\(1153\b|max_allowed_packet",
        "the result is larger than the server takes: mysql_config: {max_allowed_packet: 256M}",
    ),
    Hint(
        r"\(1205\b|\(1213\b|Lock wait timeout|Deadlock",
        "another transaction holds rows of the results: look at information_schema.INNODB_TRX on the server",
    ),
    Hint(r"\(1290\b|read.only", "CELERYCONFIG_RESULT_HOSTS names a replica: it must name the primary"),
    Hint(
        r"\(1146\b|\(1054\b|doesn't exist|Unknown column",
        "the tables are not those of this version: run site.yml for the server again",
    ),
)


@contextlib.contextmanager
def _open(connection: Connection, *, encrypted: bool = True) -> Iterator[Any]:
    """Log in by the address of the settings; the session changes nothing unless it commits."""
    host, port = connection.hosts[0]
    tls: dict[str, Any] = {"ssl_disabled": True}
    if connection.tls.enabled and encrypted:
        tls = {"ssl_ca": connection.tls.ca_file, "ssl_verify_cert": True, "ssl_verify_identity": True}
        if connection.tls.cert_file:
            tls |= {"ssl_cert": connection.tls.cert_file, "ssl_key": connection.tls.key_file}
    session = pymysql.connect(
        host=host,
        port=port,
        user=connection.username,
        password=connection.password,
        database=connection.database,
        connect_timeout=_SECONDS,
        read_timeout=_SECONDS,
        write_timeout=_SECONDS,
        local_infile=True,
        autocommit=False,
        **tls,
    )
    try:
        with session.cursor() as cursor:
            yield cursor
    finally:
        session.rollback()
        session.close()


def _show_that_it_answers(login: Connection) -> None:
    with _open(login) as cursor:
        cursor.execute("SELECT 1")


def _is_refused(login: Connection) -> bool:
    try:
        with _open(login):
            return False
    except pymysql.err.MySQLError as error:
        if error.args[0] in _NO_LOGIN:
            return True
        raise


def plain_text(target: Target) -> str:
    """Log in without TLS: the password does not cross the network, but results would."""
    _show_that_it_answers(target.login)
    try:
        with _open(target.login, encrypted=False):
            pass
    except pymysql.err.MySQLError as error:
        if error.args[0] == _SECURE_TRANSPORT_REQUIRED or error.args[0] in _NO_LOGIN:
            return "refused without TLS"
        raise
    raise Accepted("the server takes a login without TLS")


def wrong_password(target: Target) -> str:
    """Log in with the right name and another password."""
    _show_that_it_answers(target.login)
    if _is_refused(replace(target.login, password=secrets.token_hex(20))):
        return f"{target.login.username}: refused"
    raise Accepted("the server takes any password for this login")


def no_password(target: Target) -> str:
    """Come without a password, without a name, and as root."""
    _show_that_it_answers(target.login)
    logins = {
        target.login.username: replace(target.login, password=""),
        "nobody": replace(target.login, username="", password=""),
        "root": replace(target.login, username="root", password=""),
        "root with this password": replace(target.login, username="root"),
    }
    accepted = [name for name, login in logins.items() if not _is_refused(replace(login, database=""))]
    if accepted:
        raise Accepted(f"the server lets in: {', '.join(accepted)}")
    return f"{target.login.username}, no name, and root: refused"


def foreign_key(target: Target) -> str:
    """Change the tables, read others, reach the server's files and settings, see others' statements."""
    # Each is refused before the server looks whether there is such a thing; none destroys what there is.
    absent = f"celery_results_smoke_{secrets.token_hex(8)}"
    statements = {
        "create tables": f"CREATE TABLE {absent} (id INT)",
        "alter tables": "ALTER TABLE celery_taskmeta COMMENT = ''",
        "drop tables": f"DROP TABLE {absent}",
        "truncate tables": f"TRUNCATE TABLE {absent}",
        "create databases": f"CREATE DATABASE {absent}",
        "read the accounts": "SELECT 1 FROM mysql.user LIMIT 1",
        "change accounts": f"DROP USER '{absent}'@'127.0.0.1'",
        "change settings": "SET GLOBAL local_infile = @@GLOBAL.local_infile",
        "write files of the server": f"SELECT 1 INTO OUTFILE '/{absent}/none'",
        "load files of the client": "LOAD DATA LOCAL INFILE '/dev/null' INTO TABLE celery_taskmeta (task_id)",
    }
    queries = {
        "read files of the server": "SELECT LOAD_FILE('/etc/passwd') IS NOT NULL",
        "see other databases": "SELECT COUNT(*) FROM information_schema.schemata"
        " WHERE schema_name NOT IN (DATABASE(), 'information_schema')",
        "see statements of others": "SELECT COUNT(*) FROM information_schema.processlist"
        " WHERE user <> SUBSTRING_INDEX(USER(), '@', 1)",
    }  # fmt: skip
    with _open(target.login) as cursor:
        may = [what for what, statement in statements.items() if _is_allowed(cursor, statement)]
        if "create tables" in may:
            cursor.execute(f"DROP TABLE IF EXISTS {absent}")
        if "create databases" in may:
            cursor.execute(f"DROP DATABASE IF EXISTS {absent}")
        for what, query in queries.items():
            cursor.execute(query)
            if cursor.fetchone()[0]:
                may.append(what)
    if may:
        raise Accepted(f"{target.login.username} may {', '.join(may)}")
    return f"{target.login.username}: {len(statements) + len(queries)} ways, all refused"


def client_write(target: Target) -> str:
    """Have the client's login store a result, and change one that is there."""
    if target.client is None:
        raise NotRun("this host has no client login (client.env)")
    # The key is of hexadecimal digits and hyphens; nothing is committed.
    key = target.result_key
    statements = {
        "change a result": f"UPDATE celery_taskmeta SET status = 'FORGED' WHERE task_id = '{key}'",  # noqa: S608
        "store a result": f"INSERT INTO celery_taskmeta (id, task_id) VALUES (0, 'forged-{key}')",  # noqa: S608
    }
    with _open(target.client) as cursor:
        cursor.execute("SELECT 1 FROM celery_taskmeta LIMIT 1")
        may = [what for what, statement in statements.items() if _is_allowed(cursor, statement)]
    if may:
        raise Accepted(f"{target.client.username} may {', '.join(may)}")
    return f"{target.client.username}: neither insert nor update"


def _is_allowed(cursor: Any, statement: str) -> bool:  # noqa: ANN401 - PyMySQL has no types
    try:
        cursor.execute(statement)
    except pymysql.err.MySQLError as error:
        # Any other error comes after the question whether this login may.
        return error.args[0] not in _DENIED | _DENIED_OPERATION | _LOCAL_INFILE_OFF
    return True


def forget_chord(backend: object, group_id: str) -> None:
    """Do nothing: a chord leaves no more than the group, which is deleted like any."""


BROKER_ATTEMPTS: Mapping[str, Attempt] = {}
NOT_OFFERED: Mapping[str, str] = {}

ATTEMPTS: Mapping[str, Attempt] = {
    "plain_text": plain_text,
    "wrong_password": wrong_password,
    "no_password": no_password,
    "foreign_key": foreign_key,
    "client_write": client_write,
}
