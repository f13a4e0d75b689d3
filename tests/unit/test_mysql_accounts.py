"""The statements between the accounts that a server has and those that it should have."""

import importlib.util
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "plugins" / "filter" / "mysql_accounts.py"
spec = importlib.util.spec_from_file_location("mysql_accounts", SOURCE)
assert spec
assert spec.loader
accounts = importlib.util.module_from_spec(spec)
spec.loader.exec_module(accounts)

HASH = "*" + "A1" * 20
WANTED = {
    "database": "results",
    "logins": [
        {
            "name": "celery_worker",
            "rights": {"t": ["SELECT", "INSERT"]},
            "connections": 90,
            "statement_seconds": 60,
        },
        {
            "name": "celery_monitor",
            "rights": {"*": ["BINLOG MONITOR"], "t": ["SELECT (id, name)"]},
            "connections": 10,
            "statement_seconds": 60,
        },
    ],
    "hashes": {"celery_worker": HASH, "celery_monitor": HASH},
    "hosts": ["127.0.0.1"],
    "tls": "SSL",
    "socket_plugin": "unix_socket",
    "has_statement_time": True,
}
ROOT = ("root", "localhost", "unix_socket", "", "", 0, 0)
WORKER = ("celery_worker", "127.0.0.1", "mysql_native_password", HASH, "ANY", 90, 60)
MONITOR = ("celery_monitor", "127.0.0.1", "mysql_native_password", HASH, "ANY", 10, 60)
RIGHTS = [
    ("'celery_worker'@'127.0.0.1'", "results.t", "", "SELECT", "NO"),
    ("'celery_worker'@'127.0.0.1'", "results.t", "", "INSERT", "NO"),
    ("'celery_monitor'@'127.0.0.1'", "*", "", "BINLOG MONITOR", "NO"),
    ("'celery_monitor'@'127.0.0.1'", "results.t", "id", "SELECT", "NO"),
    ("'celery_monitor'@'127.0.0.1'", "results.t", "name", "SELECT", "NO"),
    ("'somebody'@'%'", "*", "", "SUPER", "YES"),
]


def changes(users=(ROOT, WORKER, MONITOR), rights=RIGHTS, leftover=(), **wanted):
    def rows(tuples):
        return [dict(enumerate(each)) for each in tuples]

    return accounts.mysql_account_changes([rows(users), rows(rights), rows(leftover)], WANTED | wanted)


def test_what_is_right_needs_no_statement():
    assert changes() == []


def test_accounts_of_others_are_left_alone():
    assert changes(users=(ROOT, WORKER, MONITOR, ("somebody", "%", "ed25519", "x", "", 0, 0))) == []


def test_a_clean_server_gets_everything_at_once():
    created = changes(users=[ROOT], rights=[])
    login = "IDENTIFIED WITH mysql_native_password AS '" + HASH + "' REQUIRE SSL WITH MAX_USER_CONNECTIONS"
    assert created == [
        f"CREATE USER 'celery_worker'@'127.0.0.1' {login} 90 MAX_STATEMENT_TIME 60",
        "GRANT INSERT, SELECT ON `results`.`t` TO 'celery_worker'@'127.0.0.1'",
        f"CREATE USER 'celery_monitor'@'127.0.0.1' {login} 10 MAX_STATEMENT_TIME 60",
        "GRANT BINLOG MONITOR ON *.* TO 'celery_monitor'@'127.0.0.1'",
        "GRANT SELECT (id, name) ON `results`.`t` TO 'celery_monitor'@'127.0.0.1'",
    ]


@pytest.mark.parametrize(
    ("column", "value"), [(2, "ed25519"), (3, "*" + "B2" * 20), (4, ""), (4, "X509"), (5, 0), (6, 0)]
)
def test_a_login_that_differs_is_altered(column, value):
    worker = [*WORKER]
    worker[column] = value
    (statement,) = changes(users=(ROOT, worker, MONITOR))
    assert statement.startswith(
        "ALTER USER 'celery_worker'@'127.0.0.1' IDENTIFIED WITH mysql_native_password"
    )
    assert HASH in statement


def test_a_client_certificate_may_be_wanted():
    assert all("REQUIRE X509" in statement for statement in changes(tls="X509"))
    assert (
        changes(users=(ROOT, (*WORKER[:4], "X509", 90, 60), (*MONITOR[:4], "X509", 10, 60)), tls="X509") == []
    )


@pytest.mark.parametrize(
    ("row", "statement"),
    [
        (("results.t", "", "DROP", "NO"), "REVOKE DROP ON `results`.`t` FROM 'celery_worker'@'127.0.0.1'"),
        (("results.*", "", "DROP", "NO"), "REVOKE DROP ON `results`.* FROM 'celery_worker'@'127.0.0.1'"),
        (("*", "", "FILE", "NO"), "REVOKE FILE ON *.* FROM 'celery_worker'@'127.0.0.1'"),
        (
            ("results.u", "x", "UPDATE", "NO"),
            "REVOKE UPDATE (x) ON `results`.`u` FROM 'celery_worker'@'127.0.0.1'",
        ),
        (
            ("results.t", "", "SELECT", "YES"),
            "REVOKE GRANT OPTION ON `results`.`t` FROM 'celery_worker'@'127.0.0.1'",
        ),
    ],
)
def test_a_right_too_many_is_taken_back(row, statement):
    assert changes(rights=[*RIGHTS, ("'celery_worker'@'127.0.0.1'", *row)]) == [statement]


def test_a_right_too_few_is_given():
    assert changes(rights=RIGHTS[1:]) == ["GRANT SELECT ON `results`.`t` TO 'celery_worker'@'127.0.0.1'"]


@pytest.mark.parametrize(
    ("user", "statement"),
    [
        (("", "localhost", "", "", "", 0, 0), "DROP USER ''@'localhost'"),
        (("root", "%", "mysql_native_password", "", "", 0, 0), "DROP USER 'root'@'%'"),
        (("celery_worker", "192.0.2.1", *WORKER[2:]), "DROP USER 'celery_worker'@'192.0.2.1'"),
    ],
)
def test_what_a_server_must_not_have_is_dropped(user, statement):
    assert changes(users=(ROOT, WORKER, MONITOR, user)) == [statement]


def test_root_comes_by_the_socket_only():
    root = ("root", "localhost", "mysql_native_password", "invalid", "", 0, 0)
    expected = ["ALTER USER 'root'@'localhost' IDENTIFIED WITH unix_socket"]
    assert changes(users=(root, WORKER, MONITOR)) == expected


def test_an_empty_database_test_is_dropped():
    assert changes(leftover=[("test",)]) == ["DROP DATABASE test"]


def test_mysql_has_no_limit_for_statements():
    without = changes(users=[ROOT], rights=[], has_statement_time=False)
    assert not any("MAX_STATEMENT_TIME" in statement for statement in without)


def test_a_password_is_kept_as_the_server_keeps_it():
    # SELECT PASSWORD('secret') of MariaDB 10.11
    assert accounts.mysql_native_password("secret") == "*14E65567ABDB5135D0CFD9A70B3032C179A49EE7"


def test_networks_become_netmasks():
    sources = ["192.0.2.1", "192.0.2.0/25", "2001:db8::1", "192.0.2.1/32"]
    assert accounts.mysql_hosts(sources) == ["192.0.2.1", "192.0.2.0/255.255.255.128", "2001:db8::1"]


def test_what_no_account_can_stand_for_is_named():
    sources = ["192.0.2.0/24", "2001:db8::1", "2001:db8::/64", "worker1.example.com", "%"]
    assert accounts.mysql_bad_sources(sources) == ["2001:db8::/64", "worker1.example.com", "%"]
