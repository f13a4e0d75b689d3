"""What doctor makes of a MariaDB or MySQL server's own words, without one."""

import datetime as dt

import pytest

from celery_results.doctor.servers import for_subject
from celery_results.doctor.servers.mysql import DIALECTS, state
from celery_results.doctor.servers.mysql.parameters import RefusedError, read_parameters
from celery_results.doctor.subject import Subject

GOOD = {
    "version": "11.8.6-MariaDB-0+deb13u1",
    "require_secure_transport": "ON",
    "tls_version": "TLSv1.2,TLSv1.3",
    "tx_isolation": "READ-COMMITTED",
    "transaction_isolation": "READ-COMMITTED",
    "innodb_flush_log_at_trx_commit": "1",
    "sync_binlog": "1",
    "log_bin": "ON",
    "skip_name_resolve": "ON",
    "local_infile": "OFF",
    "max_connections": "200",
    "max_allowed_packet": "67108864",
    "binlog_expire_logs_seconds": "259200",
    "expire_logs_days": "3.000000",
    "read_only": "OFF",
    "time_zone": "+00:00",
    "innodb_buffer_pool_size": "134217728",
}
NOW = dt.datetime(2026, 1, 31, tzinfo=dt.UTC)


def codes(findings):
    return [finding.code for finding in findings]


def test_a_server_as_the_role_makes_it_is_fine():
    assert codes(state.judge(GOOD, {"max_used_connections": "20"})) == []


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"require_secure_transport": "OFF"}, "CRB561"),
        ({"tls_version": "TLSv1.1,TLSv1.2"}, "CRB562"),
        ({"transaction_isolation": "REPEATABLE-READ"}, "CRB563"),
        ({"innodb_flush_log_at_trx_commit": "0"}, "CRB564"),
        ({"innodb_flush_log_at_trx_commit": "2"}, "CRB565"),
        ({"sync_binlog": "0"}, "CRB565"),
        ({"skip_name_resolve": "OFF"}, "CRB566"),
        ({"local_infile": "ON"}, "CRB567"),
        ({"max_connections": "25"}, "CRB574"),
        ({"max_allowed_packet": "1048576"}, "CRB576"),
        ({"binlog_expire_logs_seconds": "0", "expire_logs_days": "0.000000"}, "CRB578"),
        ({"read_only": "ON"}, "CRB580"),
        ({"version": "10.5.29-MariaDB"}, "CRB582"),
        ({"version": "5.7.44"}, "CRB582"),
        ({"time_zone": "SYSTEM", "system_time_zone": "CET"}, "CRB583"),
    ],
)
def test_each_unsafe_setting_is_told(changes, code):
    assert codes(state.judge(GOOD | changes, {"max_used_connections": "20"})) == [code]


def test_an_old_mariadb_knows_the_isolation_by_another_name():
    variables = {name: value for name, value in GOOD.items() if name != "transaction_isolation"}
    assert codes(state.judge(variables | {"tx_isolation": "REPEATABLE-READ"}, {})) == ["CRB563"]
    assert codes(state.judge(variables, {})) == []


def columns(**changes):
    types = {
        "id": "bigint(20)",
        "task_id": "varchar(155)",
        "result": "longblob",
        "date_done": "datetime(6)",
    } | changes
    return [
        {
            "t": "celery_taskmeta",
            "c": name,
            "type": kind.split("/")[0],
            "collation_name": (kind + "/utf8mb4_bin").split("/")[1],
        }
        for name, kind in types.items()
    ] + [
        {"t": "celery_tasksetmeta", "c": "id", "type": "bigint(20)", "collation_name": None},
    ]


INDEXES = [{"t": table, "c": "date_done"} for table in ("celery_taskmeta", "celery_tasksetmeta")]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({}, None),
        ({"result": "blob"}, "CRB568"),
        ({"date_done": "datetime"}, "CRB569"),
        ({"task_id": "varchar(155)/utf8mb4_uca1400_ai_ci"}, "CRB570"),
        ({"id": "int(11)"}, "CRB573"),
    ],
)
def test_tables_as_celery_makes_them_are_told(changes, code):
    assert codes(state.judge_tables(columns(**changes), INDEXES)) == ([code] if code else [])


def test_missing_tables_and_indexes_are_told():
    assert codes(state.judge_tables([], [])) == ["CRB572", "CRB572"]
    assert codes(state.judge_tables(columns(), INDEXES[1:])) == ["CRB571"]


@pytest.mark.parametrize(
    ("options", "code"),
    [({"pool_recycle": 300}, None), ({"pool_recycle": 600}, "CRB577"), ({"pool_pre_ping": True}, "CRB577")],
)
def test_the_pool_renews_before_the_server_closes(options, code):
    found = state.judge_pool({"database_engine_options": options}, {"wait_timeout": "600"})
    assert codes(found) == ([code] if code else [])


def test_sizes_are_compared():
    assert codes(state.judge_size(GOOD, 2**27)) == []
    assert codes(state.judge_size(GOOD, 2**28)) == ["CRB575"]
    assert codes(state.judge_logs(2**30)) == []
    assert codes(state.judge_logs(2**36)) == ["CRB579"]


@pytest.mark.parametrize(
    ("days", "expires", "code"),
    [(2, 86400, None), (4, 86400, "CRB581"), (4, dt.timedelta(days=30), None), (400, None, None)],
)
def test_results_that_outlive_their_expiry_are_told(days, expires, code):
    oldest = (NOW - dt.timedelta(days=days)).replace(tzinfo=None)
    assert codes(state.judge_oldest(oldest, {"result_expires": expires}, NOW)) == ([code] if code else [])


def test_no_result_is_no_trouble():
    assert codes(state.judge_oldest(None, {}, NOW)) == []


BUNDLED = (
    "celery_results.backends.database:DatabaseBackend+mysql+pymysql://u:p%40@h:1/d"
    "?ssl_ca=/ca&ssl_verify_cert=true&ssl_verify_identity=true&ssl_cert=/c&ssl_key=/k"
)
STOCK = {"connect_args": {"ssl": {"ca": "/ca", "cert": "/c", "key": "/k", "check_hostname": True}}}


@pytest.mark.parametrize(
    ("backend", "options"),
    [
        (BUNDLED, {}),
        ("db+mysql+pymysql://u:p%40@h:1/d", STOCK),
        ("db+mysql://u:p%40@h:1/d?ssl_cert=/c&ssl_key=/k&ssl_ca=/ca", {}),
    ],
)
def test_a_connection_verifies_as_much_as_the_settings(backend, options):
    found = read_parameters({"database_engine_options": options}, backend)
    assert (found.host, found.port, found.username, found.password, found.database) == (
        "h",
        1,
        "u",
        "p@",
        "d",
    )
    assert found.files == {"ca": "/ca", "cert": "/c", "key": "/k"}
    assert (found.verifies, found.verifies_name) == (True, True)
    assert "p@" not in repr(found)


def test_a_url_that_is_none_is_refused():
    with pytest.raises(RefusedError):
        read_parameters({}, "db+")


def test_the_module_is_found_by_the_database_of_the_url():
    for backend in ("db+mysql+pymysql://h/d", "db+mariadb+pymysql://h/d"):
        found = for_subject(Subject({"result_backend": backend}))
        assert found is not None
        assert getattr(found, "DIALECTS", None) == DIALECTS
