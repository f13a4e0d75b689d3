"""What PostgreSQL must refuse."""

from __future__ import annotations

import contextlib
import os
import secrets
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from celery_results.smoke.diagnosis import Hint
from celery_results.smoke.outcome import NotRun
from celery_results.smoke.refusals import Accepted, Target

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from celery_results.settings import Connection
    from celery_results.smoke.refusals import Attempt

_SECONDS = 5
_SUPERUSERS = ("postgres", "root")
_OTHER_DATABASES = ("postgres", "template1")

HINTS = (
    Hint(
        r"permission denied for",
        "the login lacks a right that Celery needs, or the tables belong to somebody else: run site.yml for "
        "the server again, which keeps the rights as the role postgresql lists them",
    ),
    Hint(
        r"password authentication failed|no password supplied",
        "CELERYCONFIG_RESULT_USERNAME and _PASSWORD are not those of the server: run site.yml for the server "
        "and this host with the same vault_postgresql_*_password or the same .state directory",
    ),
    Hint(
        r"pg_hba.conf rejects|no pg_hba.conf entry",
        "the server does not expect this host, this login or this database: run site.yml for the server "
        "again, which learns the addresses of all Celery hosts; one behind NAT belongs into "
        "postgresql_firewall_sources",
    ),
    Hint(
        r"connection requires a valid client certificate",
        "the server wants a certificate of ours: set postgresql_tls_client_auth where this host sees it "
        "(group_vars/all), or run site.yml for this host again",
    ),
    Hint(
        r"too many connections|remaining connection slots",
        "each process that uses results holds a connection: raise postgresql_connection_limits and "
        "postgresql_max_connections, or run fewer processes",
    ),
    Hint(
        r"No space left on device|could not extend file",
        "the server's disk is full: free space there; results are refused until it can write",
    ),
    Hint(
        r"read-only transaction|hot standby|server is in recovery|session is read-only",
        "CELERYCONFIG_RESULT_HOSTS names a standby, or the database was set read-only: it must be a primary",
    ),
    Hint(
        r"canceling statement due to statement timeout",
        "a statement took longer than postgresql_statement_timeout_seconds: is the server overloaded, or the "
        "clean-up of Celery's own class one statement for millions of rows?",
    ),
    Hint(
        r"canceling statement due to lock timeout",
        "another session holds a lock for longer than postgresql_lock_timeout_seconds: see pg_stat_activity",
    ),
    Hint(
        r"relation .* does not exist|column .* does not exist",
        "the tables are not those of this version: run site.yml for the server again",
    ),
    Hint(r"the database system is starting up", "the server recovers still: run this again in a moment"),
)


def _parameters(login: Connection, **changes: object) -> dict[str, Any]:
    host, port = login.hosts[0]
    parameters: dict[str, Any] = {
        "host": host,
        "port": port,
        "dbname": login.database,
        "user": login.username,
        "password": login.password,
        "connect_timeout": _SECONDS,
        "application_name": "celery-results smoke",
        # Not what the account has in its home, nor libpq's variables.
        "passfile": os.devnull,
        "sslmode": "disable",
    }
    if login.tls.enabled:
        parameters |= {"sslmode": "verify-full", "sslrootcert": login.tls.ca_file}
        if login.tls.cert_file:
            parameters |= {"sslcert": login.tls.cert_file, "sslkey": login.tls.key_file}
    return parameters | changes


@contextlib.contextmanager
def _open(login: Connection, **changes: object) -> Iterator[psycopg.Connection[Any]]:
    connection = psycopg.connect(**_parameters(login, **changes), autocommit=True)
    try:
        yield connection
    finally:
        connection.close()


def _show_that_it_answers(login: Connection, **changes: object) -> None:
    with _open(login, **changes) as connection:
        connection.execute("SELECT 1")


def _is_refusal(error: psycopg.OperationalError) -> bool:
    """Tell whether the server itself said no; libpq has no SQLSTATE for what happens while it connects."""
    text = str(error)
    said = ("pg_hba.conf", "authentication failed", "no password supplied", "not permitted to log in")
    return any(part in text for part in said)


def _refused(login: Connection, **changes: object) -> bool:
    """Try to come in another way; raise whatever is neither success nor refusal."""
    try:
        _show_that_it_answers(login, **changes)
    except psycopg.OperationalError as error:
        if _is_refusal(error):
            return True
        raise
    return False


def plain_text(target: Target) -> str:
    """Log in with the right password, without TLS."""
    _show_that_it_answers(target.login)
    if not _refused(target.login, sslmode="disable"):
        raise Accepted("the server takes a login without TLS")
    return f"{target.login.username}: the genuine login is refused without TLS"


def wrong_password(target: Target) -> str:
    """Log in with the right name and another password, and let the server ask for it in an unsafe way."""
    _show_that_it_answers(target.login)
    if not _refused(target.login, password=secrets.token_hex(20)):
        raise Accepted("the server takes any password for this login")
    # require_auth makes libpq insist: a server that would take anything else than SCRAM fails here.
    try:
        _show_that_it_answers(target.login, require_auth="!scram-sha-256")
    except psycopg.OperationalError as error:
        if "authentication method requirement" not in str(error):
            raise
        return f"{target.login.username}: refused; the right one is asked for by SCRAM only"
    raise Accepted("the server lets this login in without SCRAM-SHA-256")


def no_password(target: Target) -> str:
    """Come without a password, and as the superuser."""
    _show_that_it_answers(target.login)
    if not _refused(target.login, password=None):
        raise Accepted("the server lets this login in without a password")
    for user in _SUPERUSERS:
        for password in (None, target.login.password):
            if not _refused(target.login, user=user, password=password):
                raise Accepted(f"{user} gets in over the network")
    return "no password, and the superuser over the network: refused"


def foreign_key(target: Target) -> str:
    """Change tables, read what is not Celery's, run programs on the server, enter other databases."""
    name = sql.Identifier(f"celery_results_smoke_{secrets.token_hex(8)}")
    ways: dict[str, Any] = {
        "create a table": sql.SQL("CREATE TABLE {} (a int)").format(name),
        "create a temporary table": sql.SQL("CREATE TEMPORARY TABLE {} (a int)").format(name),
        "create a schema": sql.SQL("CREATE SCHEMA {}").format(name),
        "drop the table of results": "DROP TABLE celery_taskmeta",
        "alter the table of results": "ALTER TABLE celery_taskmeta ADD COLUMN smoke int",
        "empty the table of results": "TRUNCATE celery_taskmeta",
        "reset the ids of results": "SELECT setval('task_id_sequence', 1)",
        "become the owner": "SET ROLE celery_results_owner",
        "read the passwords": "SELECT rolpassword FROM pg_authid LIMIT 1",
        "read a file of the server": "SELECT pg_read_file('PG_VERSION')",
        "run a program on the server": "COPY (SELECT 1) TO PROGRAM 'cat >/dev/null'",
        "read the server's settings": "SELECT sourcefile FROM pg_file_settings LIMIT 1",
        "reload the server's settings": "SELECT pg_reload_conf()",
    }
    allowed = _allowed(target.login, ways)
    for database in _OTHER_DATABASES:
        if not _refused(target.login, dbname=database):
            allowed.append(f"enter the database {database}")
    if allowed:
        raise Accepted(f"{target.login.username} may {', '.join(allowed)}")
    return f"{target.login.username}: {len(ways) + len(_OTHER_DATABASES)} ways, all refused"


def client_write(target: Target) -> str:
    """Have the client's login overwrite a result, or forge a new one."""
    if target.client is None:
        raise NotRun("this host has no client login (client.env)")
    forged = secrets.token_hex(16)
    key = sql.Literal(target.result_key)
    ways = {
        "overwrite a result": sql.SQL(
            "UPDATE celery_taskmeta SET status = 'FORGED' WHERE task_id = {}"
        ).format(key),
        "forge a result": sql.SQL("INSERT INTO celery_taskmeta (id, task_id) VALUES (0, {})").format(
            sql.Literal(forged)
        ),
        "take an id": "SELECT nextval('task_id_sequence')",
    }
    allowed = _allowed(target.client, ways)
    if allowed:
        raise Accepted(f"{target.client.username} may {', '.join(allowed)}")
    return f"{target.client.username}: neither overwrites nor forges"


def _allowed(login: Connection, ways: Mapping[str, Any]) -> list[str]:
    """Try each in a transaction that is taken back; give those that the server would have done."""
    allowed = []
    with _open(login) as connection:
        connection.execute("SELECT 1")
        for what, statement in ways.items():
            with contextlib.suppress(psycopg.errors.InsufficientPrivilege):
                try:
                    with connection.transaction(force_rollback=True):
                        connection.execute(statement)
                except psycopg.errors.ActiveSqlTransaction:
                    connection.execute(statement)
                allowed.append(what)
    return allowed


def forget_chord(backend: Any, group_id: str) -> None:  # noqa: ANN401 - Celery has no types
    """Do nothing: on a database a chord is a group, which is removed already."""
    del backend, group_id


BROKER_ATTEMPTS: Mapping[str, Attempt] = {}
NOT_OFFERED: Mapping[str, str] = {}

ATTEMPTS: Mapping[str, Attempt] = {
    "plain_text": plain_text,
    "wrong_password": wrong_password,
    "no_password": no_password,
    "foreign_key": foreign_key,
    "client_write": client_write,
}
