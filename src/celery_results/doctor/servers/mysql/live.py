"""The live MariaDB or MySQL server: the connection, the logins, then what the server says of itself."""

from __future__ import annotations

import re
import socket
import ssl
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import pymysql

from celery_results.doctor.certificates import TIMEOUT_SECONDS
from celery_results.doctor.findings import (
    LOGIN_REFUSED,
    MONITOR_REFUSED,
    SERVER_NOT_CHECKED,
    UNREACHABLE,
    Finding,
    could_not_check,
    error,
    warning,
)
from celery_results.doctor.servers.mysql import state
from celery_results.doctor.servers.mysql.parameters import Parameters, RefusedError, read_parameters
from celery_results.doctor.subject import Subject, result_backend

if TYPE_CHECKING:
    from collections.abc import Iterator

UNTRUSTED = error(
    "CRB551",
    "The server's certificate is refused",
    "Name the authority that signed it (ssl_ca), and the server by a name that is in the certificate; "
    "site.yml for "
    "server and Celery hosts with the same state directory makes both.",
)
EXPIRED = error(
    "CRB552",
    "The server's certificate has expired",
    "Issue it again: site.yml renews it and the server takes it without a restart (FLUSH SSL).",
)
EXPIRES_SOON = warning(
    "CRB553",
    "The server's certificate expires soon",
    "Issue it again: site.yml renews it and the server takes it without a restart (FLUSH SSL).",
)
TOO_POWERFUL = warning(
    "CRB554",
    "The login of the settings may do more than Celery needs",
    "Grant it SELECT, INSERT, UPDATE and DELETE on the two tables, SELECT and INSERT on MariaDB's "
    "sequences, and "
    "nothing else: who steals this password may do all that it may.",
)
NO_CONNECTION_LEFT = error(
    "CRB555",
    "The server has no connection left",
    "Raise max_connections (mysql_max_connections), or start fewer processes: each one holds a connection.",
)
CLOCK = warning(
    "CRB556",
    "The clocks differ",
    "Run a time service (systemd-timesyncd, chrony) on both hosts: the clean-up compares times of one with "
    "times of "
    "the other.",
)

WARNING_BEFORE: Final = timedelta(days=21)
CLOCK_TOLERANCE_SECONDS: Final = 2.0
_NO_LOGIN: Final = frozenset({1044, 1045, 1049, 1130, 1698})
_NO_CONNECTION_LEFT: Final = frozenset({1040, 1203, 1226})
_NEEDED: Final = frozenset({"USAGE", "SELECT", "INSERT", "UPDATE", "DELETE"})
_NO_ACCESS: Final = "Deploy monitor.env, or run doctor with --monitor-env-file: its login may see that."


def check_server(subject: Subject) -> Iterator[Finding]:
    """Judge the live server."""
    try:
        own = read_parameters(subject.settings, subject.result_backend)
    except RefusedError as refused:
        yield SERVER_NOT_CHECKED.finding(str(refused), "Correct the settings first.")
        return
    if not own.socket_path and (problem := _unreachable(own)):
        yield UNREACHABLE.finding(f"{own.host}:{own.port}: {problem}")
        return
    refused_own = list(_login(own))
    yield from refused_own
    # No other password goes over a connection that cannot be trusted, and none to a server that is full.
    if any(finding.code not in {LOGIN_REFUSED.code, EXPIRES_SOON.code} for finding in refused_own):
        yield could_not_check("what the server says of itself", "see the findings on the connection")
        return
    logged_in = not any(finding.code == LOGIN_REFUSED.code for finding in refused_own)
    logins = [own] if logged_in else []
    if monitor := _monitor(subject):
        problems = [finding for finding in _login(monitor) if finding.code != EXPIRES_SOON.code]
        if problems:
            yield MONITOR_REFUSED.finding(problems[0].found)
        else:
            logins.append(monitor)
    if logged_in:
        yield from _privileges(own)
    if not logins:
        yield could_not_check("what the server says of itself", "no login is accepted")
        return
    yield from _server(subject, logins[-1])
    # The columns with a payload are shown only to whoever may read them.
    yield from _database(subject, logins[0])


def _unreachable(parameters: Parameters) -> str:
    try:
        socket.create_connection((parameters.host, parameters.port), TIMEOUT_SECONDS).close()
    except OSError as failure:
        return failure.strerror or str(failure) or type(failure).__name__
    return ""


def _login(parameters: Parameters) -> Iterator[Finding]:
    try:
        with parameters.open() as cursor:
            certificate = getattr(cursor.connection, "_sock", None)
            if isinstance(certificate, ssl.SSLSocket):
                yield from _dates(certificate)
    except (pymysql.err.MySQLError, OSError) as failure:
        yield _judged(parameters, failure)


def _dates(connection: ssl.SSLSocket) -> Iterator[Finding]:
    found = connection.getpeercert()
    if not found or "notAfter" not in found:
        return  # not verified, hence not decoded: the settings are told so
    end = datetime.fromtimestamp(ssl.cert_time_to_seconds(str(found["notAfter"])), UTC)
    left = end - datetime.now(UTC)
    if left < WARNING_BEFORE:
        yield EXPIRES_SOON.finding(f"{left.days} days left, until {end:%Y-%m-%d %H:%M} UTC")


def _judged(parameters: Parameters, failure: Exception) -> Finding:
    where, said = f"{parameters.host}:{parameters.port}", _said(failure)
    number = failure.args[0] if failure.args else 0
    if number in _NO_LOGIN:
        return LOGIN_REFUSED.finding(said)
    if number in _NO_CONNECTION_LEFT:
        return NO_CONNECTION_LEFT.finding(said)
    if "certificate has expired" in said:
        return EXPIRED.finding(f"{where}: {said}")
    if "CERTIFICATE_VERIFY_FAILED" in said:
        return UNTRUSTED.finding(f"{where}: {said}")
    return UNREACHABLE.finding(f"{where}: {said}")


def _said(failure: Exception) -> str:
    text = failure.args[1] if len(failure.args) > 1 else failure
    return " ".join(str(text).split()) or type(failure).__name__


def _monitor(subject: Subject) -> Parameters | None:
    settings = subject.monitor_settings
    if settings is None:
        return None
    try:
        return read_parameters(settings, result_backend(settings, subject.monitor_environ))
    except RefusedError:
        return None


def _privileges(own: Parameters) -> Iterator[Finding]:
    """Read what the server grants this login: the server says that to everybody of himself."""
    try:
        with own.open() as cursor:
            cursor.execute("SHOW GRANTS FOR CURRENT_USER()")
            grants = [str(value) for row in cursor.fetchall() for value in row.values()]
    except (pymysql.err.MySQLError, OSError) as failure:
        yield could_not_check("what the login of the settings may do", _said(failure))
        return
    beyond = []
    for grant in grants:
        found = re.match(r"GRANT (?P<what>.+?) ON (?P<where>\S+) TO ", grant)
        if not found:
            continue
        privileges = {part.strip() for part in re.sub(r"\([^)]*\)", "", found["what"]).split(",")}
        too_many = sorted(privileges - _NEEDED)
        # On all tables, even a right that is needed on one is too much.
        if found["where"] == "*.*" and privileges != {"USAGE"}:
            too_many = too_many or sorted(privileges)
        if too_many or "WITH GRANT OPTION" in grant:
            beyond.append(
                f"{', '.join(too_many) or 'grant what it has'} on {found['where'].replace('`', '')}"
            )
    if beyond:
        yield TOO_POWERFUL.finding("; ".join(beyond))


def _server(subject: Subject, parameters: Parameters) -> Iterator[Finding]:
    try:
        with parameters.open() as cursor:
            variables = _pairs(cursor, "SHOW GLOBAL VARIABLES")
            yield from state.judge(variables, _pairs(cursor, "SHOW GLOBAL STATUS"))
            yield from state.judge_pool(subject.settings, variables)
            yield from state.judge_size(variables, _bytes(cursor, parameters.database))
            yield from _clock(cursor)
            yield from _logs(cursor)
    except (pymysql.err.MySQLError, OSError) as failure:
        yield could_not_check("settings and state of the server", _said(failure), _NO_ACCESS)


def _database(subject: Subject, parameters: Parameters) -> Iterator[Finding]:
    try:
        with parameters.open() as cursor:
            yield from state.judge_tables(*_tables(cursor, parameters.database))
            # The index on date_done answers it at once.
            cursor.execute("SELECT MIN(date_done) AS oldest FROM celery_taskmeta")
            oldest = cursor.fetchone()["oldest"]
            yield from state.judge_oldest(oldest, subject.settings, datetime.now(UTC))
    except (pymysql.err.MySQLError, OSError) as failure:
        yield could_not_check(
            "the tables, and whether expired results are removed", _said(failure), _NO_ACCESS
        )


def _pairs(cursor: Any, query: str) -> dict[str, str]:  # noqa: ANN401 - PyMySQL has no types
    cursor.execute(query)
    return {str(row["Variable_name"]).lower(): str(row["Value"]) for row in cursor.fetchall()}


def _tables(cursor: Any, database: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:  # noqa: ANN401
    """Return the columns and the first columns of indexes, as this login is shown them."""
    cursor.execute(
        "SELECT table_name AS t, column_name AS c, column_type AS type, collation_name AS collation_name"
        " FROM information_schema.columns WHERE table_schema = %s",
        (database,),
    )
    columns = list(cursor.fetchall())
    cursor.execute(
        "SELECT table_name AS t, column_name AS c FROM information_schema.statistics"
        " WHERE table_schema = %s AND seq_in_index = 1",
        (database,),
    )
    return columns, list(cursor.fetchall())


def _bytes(cursor: Any, database: str) -> int:  # noqa: ANN401
    cursor.execute(
        "SELECT COALESCE(SUM(data_length + index_length), 0) AS bytes FROM information_schema.tables"
        " WHERE table_schema = %s",
        (database,),
    )
    return int(cursor.fetchone()["bytes"])


def _clock(cursor: Any) -> Iterator[Finding]:  # noqa: ANN401
    before = time.time()
    # TIMESTAMPDIFF of two UTC values: no zone of server or session takes part.
    cursor.execute("SELECT TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) AS microseconds")
    seconds = int(cursor.fetchone()["microseconds"]) / 1e6
    after = time.time()
    ahead = seconds - (before + after) / 2
    if abs(ahead) - (after - before) / 2 > CLOCK_TOLERANCE_SECONDS:
        yield CLOCK.finding(
            f"the server is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} this host"
        )


def _logs(cursor: Any) -> Iterator[Finding]:  # noqa: ANN401
    try:
        cursor.execute("SHOW BINARY LOGS")
    except pymysql.err.MySQLError as failure:
        # 1381: the binary log is off; otherwise the right (BINLOG MONITOR) is missing.
        if failure.args[0] != state.NO_BINARY_LOG:
            yield could_not_check("how much disk the binary logs take", _said(failure), _NO_ACCESS)
        return
    yield from state.judge_logs(sum(int(row["File_size"]) for row in cursor.fetchall()))
