"""Refusals of MariaDB and MySQL, with servers that answer wrongly: the attempts notice it."""

import contextlib
from pathlib import Path
from types import SimpleNamespace

import pymysql
import pytest

from celery_results.settings import Connection, TlsFiles
from celery_results.smoke.diagnosis import remedy_for
from celery_results.smoke.outcome import NotRun
from celery_results.smoke.refusals import Accepted, Target, mysql

LOGIN = Connection("mysql", "mysql", (("h", 3306),), "results", "celery_worker", "p", TlsFiles(enabled=True))
TARGET = Target(LOGIN, LOGIN, None, {}, Path("/etc/celery"), Path("/tmp"), "a-key")  # noqa: S108 - never opened


@pytest.fixture
def server(monkeypatch):
    """Stand in for the server: `says` maps a statement's beginning, or a login, to the number of an error."""
    says: dict[str, int] = {}

    class Cursor:
        def execute(self, statement):
            for beginning, number in says.items():
                if statement.startswith(beginning):
                    raise pymysql.err.OperationalError(number, "said so")

        def fetchone(self):
            return (0,)

    @contextlib.contextmanager
    def opened(connection, *, encrypted=True):
        key = "plain" if not encrypted else f"login {connection.username}:{connection.password}"
        if key not in says and connection != LOGIN:
            key = "other login"
        if key in says:
            raise pymysql.err.OperationalError(says[key], "said so")
        yield Cursor()

    monkeypatch.setattr(mysql, "_open", opened)
    return SimpleNamespace(says=says)


def test_refused_logins_pass(server):
    server.says |= {"other login": 1045, "plain": 3159}
    assert "refused" in mysql.wrong_password(TARGET)
    assert "refused" in mysql.no_password(TARGET)
    assert "refused" in mysql.plain_text(TARGET)


@pytest.mark.usefixtures("server")
def test_a_server_that_takes_any_password_is_noticed():
    with pytest.raises(Accepted, match="any password"):
        mysql.wrong_password(TARGET)
    with pytest.raises(Accepted, match="lets in: celery_worker, nobody, root"):
        mysql.no_password(TARGET)
    with pytest.raises(Accepted, match="without TLS"):
        mysql.plain_text(TARGET)


@pytest.mark.parametrize("attempt", [mysql.wrong_password, mysql.no_password])
def test_a_server_that_is_full_or_gone_has_refused_nothing(server, attempt):
    server.says["other login"] = 2003
    with pytest.raises(pymysql.err.OperationalError):
        attempt(TARGET)


def test_what_is_not_denied_is_allowed_even_if_it_fails(server):
    with pytest.raises(Accepted, match="drop tables"):
        mysql.foreign_key(TARGET)
    server.says |= dict.fromkeys(
        ("CREATE", "ALTER", "TRUNCATE", "SELECT 1 FROM mysql", "DROP USER", "SET"), 1142
    )
    server.says |= {"SELECT 1 INTO": 1045, "LOAD DATA LOCAL": 4166, "DROP TABLE": 1051}
    with pytest.raises(Accepted, match=r"may drop tables$"):
        mysql.foreign_key(TARGET)
    server.says["DROP TABLE"] = 1142
    assert "13 ways, all refused" in mysql.foreign_key(TARGET)


def test_without_a_client_login_nothing_is_claimed():
    with pytest.raises(NotRun):
        mysql.client_write(Target(LOGIN, None, None, {}, Path("/"), Path("/"), "a-key"))


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("(1045, \"Access denied for user 'celery_worker'@'192.0.2.1'\")", "_PASSWORD"),
        (
            "(1130, \"Host '192.0.2.1' is not allowed to connect to this MariaDB server\")",
            "mysql_client_sources",
        ),
        ('(1142, "INSERT command denied to user")', "grants"),
        ("(1226, \"User has exceeded the 'max_user_connections' resource\")", "mysql_max_connections"),
        ("(1114, \"The table 'celery_taskmeta' is full\")", "disk"),
        ("(1205, 'Lock wait timeout exceeded')", "INNODB_TRX"),
        ("(1146, \"Table 'celery_results.celery_taskmeta' doesn't exist\")", "tables"),
    ],
)
def test_messages_of_the_server_lead_to_a_remedy(message, told):
    assert told in remedy_for(f"OperationalError: {message}", mysql.HINTS)
