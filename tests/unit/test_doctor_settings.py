"""Every finding about settings: a bad example gives it, a good one does not."""

import pytest

from celery_results.doctor import address, names, values
from celery_results.doctor.servers import database, rpc
from celery_results.doctor.subject import Subject, secrets

REDIS = "rediss://celery:secret@redis.example:6379/0"
GOOD = {
    "result_backend": REDIS,
    "result_expires": 3600,
    "accept_content": ["json"],
    "result_serializer": "json",
    "result_backend_always_retry": True,
    "result_backend_max_retries": 10,
    "timezone": "UTC",
}


def codes(check, raw, environ=None):
    return [finding.code for finding in check(Subject(raw=raw, environ=environ or {}))]


def cleanup(key):
    return {key: {"task": "celery.backend_cleanup", "schedule": 86400}}


@pytest.mark.parametrize("check", [names.check, values.check, address.check])
def test_good_settings_give_no_finding(check):
    assert codes(check, GOOD) == []


@pytest.mark.parametrize(
    ("code", "settings"),
    [
        ("CRB101", {"result_expire": 3600}),
        ("CRB101", {"redis_socket_timout": 3}),
        ("CRB101", {"CELERY_RESULTS_BACKEND": REDIS}),
        ("CRB101", {"CELERY_BROKER_URL": "redis://h"}),
        ("CRB102", {"result_wibble": 1}),
        ("CRB103", {"my_helper": 1}),
        ("CRB104", {"result_compression_level": 9}),
        ("CRB104", {"result_exchange": "x"}),
        ("CRB104", {"result_exchange_type": "x"}),
        ("CRB104", {"database_short_lived_sessions": True}),
        ("CRB104", {"CELERY_RESULT_TRANSPORT_OPTIONS": {}}),
        ("CRB104", {"new_result_backend": REDIS}),
        ("CRB105", {"CELERY_TIMEZONE": "UTC", "result_backend": REDIS}),
        ("CRB106", {"CELERY_RESULT_BACKEND": REDIS}),
    ],
)
def test_name(code, settings):
    assert codes(names.check, settings) == [code]


@pytest.mark.parametrize(
    "settings",
    [
        {
            "redis_backend_health_check_interval": 30,
            "redis_client_name": "x",
            "result_backend_thread_safe": True,
        },
        {"_helper": 1, "HELPER": 1},
        {"crontab": type, "read_secret": len},
        {"redbeat_redis_url": "redis://h"},
        {"override_backends": {}},
    ],
)
def test_name_that_is_read_by_somebody(settings):
    assert codes(names.check, settings) == []


def test_misspelt_name_comes_with_the_right_one():
    (finding,) = names.check(Subject(raw={"result_expire": 3600}))
    assert "result_expires" in finding.remedy


@pytest.mark.parametrize(
    ("code", "settings"),
    [
        ("CRB120", {"accept_content": ["json", "pickle"]}),
        ("CRB120", {"accept_content": ["application/x-python-serialize", "json"]}),
        ("CRB120", {"result_accept_content": ("pickle", "json")}),
        ("CRB120", {"result_serializer": "pickle", "result_accept_content": ["pickle"]}),
        ("CRB121", {"result_serializer": "yaml"}),
        ("CRB121", {"result_serializer": "json", "result_accept_content": ["msgpack"]}),
        ("CRB122", {"result_extended": True}),
        ("CRB123", {"result_backend_always_retry": False}),
        ("CRB124", {"result_backend_max_retries": float("inf")}),
        ("CRB124", {"result_backend_max_retries": None}),
        ("CRB125", {"result_backend": "db+sqlite:///x", "beat_schedule": cleanup("clean up")}),
        ("CRB126", {"beat_schedule": cleanup("celery.backend_cleanup")}),
        ("CRB127", {"result_compression": "zip"}),
        ("CRB129", {"result_backend": "mongodb://h/", "result_expires": None}),
        ("CRB129", {"result_backend": "file:///tmp/x", "result_expires": 0}),
    ],
)
def test_value(code, settings):
    assert set(codes(values.check, GOOD | settings)) == {code}


@pytest.mark.parametrize(
    "settings",
    [
        {"accept_content": ["application/json"]},
        {"result_serializer": "made-by-the-user"},
        {"result_backend": "db+sqlite:///x", "beat_schedule": cleanup("celery.backend_cleanup")},
        {"result_backend": "db+sqlite:///x", "result_backend_always_retry": False},
        {"result_compression": "gzip"},
        {"result_compression": "application/x-gzip"},
    ],
)
def test_value_that_is_right(settings):
    assert codes(values.check, GOOD | settings) == []


@pytest.mark.parametrize(
    "environ",
    [
        {"CELERY_RESULT_BACKEND": "redis://other"},
        {"RESULT_BACKEND": "redis://other"},
        {"BROKER_URL": "redis://h"},
    ],
)
def test_environment_that_overrides_the_settings(environ):
    assert codes(values.check, GOOD, environ) == ["CRB128"]


def test_environment_decides_which_backend_is_examined():
    subject = Subject(raw=GOOD, environ={"CELERY_RESULT_BACKEND": "rpc://"})
    assert subject.alias == "rpc"


@pytest.mark.parametrize(
    ("code", "backend"),
    [
        ("CRB140", None),
        ("CRB140", "disabled"),
        ("CRB141", "postgresql://u:p@h/db"),
        ("CRB141", "mysql://u:p@h/db"),
        ("CRB141", "reddis://h"),
        ("CRB141", "redis:/:p@h"),
        ("CRB142", "redis+cluster://h:6379"),
        ("CRB142", "rediscluster://h:6379"),
        ("CRB143", "redis://:a/b@h:6379/0"),
        ("CRB143", "redis://:a#b@h:6379/0"),
        ("CRB143", "redis://:a?b@h:6379/0"),
        ("CRB144", "redis://:a@b@h:6379/0"),
        ("CRB144", "redis://:50%x@h:6379/0"),
        ("CRB144", "sentinel://:ok@h1;sentinel://:a@b@h2"),
        ("CRB145", "no_such_package.backends:Backend+redis://h"),
    ],
)
def test_address(code, backend):
    assert codes(address.check, {"result_backend": backend}) == [code]


@pytest.mark.parametrize(
    "backend",
    [
        "redis",
        "rediss://u:p%40ss@h:6379/0?ssl_ca_certs=/etc/a@b.crt",
        "redis://h:6379/0?client_name=a@b",
        "redis+socket:///run/redis.sock?virtual_host=1",
        "db+postgresql+psycopg://u:p@h/db",
        "celery.backends.redis:RedisBackend+redis://h",
        "rpc://",
        "file:///var/a@b",
    ],
)
def test_address_that_is_right(backend):
    assert codes(address.check, {"result_backend": backend}) == []


@pytest.mark.parametrize(
    ("scheme", "instead"),
    [
        ("postgresql", "db+postgresql+psycopg://"),
        ("amqp", "rpc://"),
        ("mysql", "db+mysql+pymysql://"),
        ("redes", "redis"),
    ],
)
def test_unknown_backend_comes_with_the_one_that_is_meant(scheme, instead):
    (finding,) = address.check(Subject(raw={"result_backend": f"{scheme}://h"}))
    assert instead in finding.remedy


POSTGRESQL = {
    "result_backend": "db+postgresql+psycopg://u:p@db.example/celery",
    "database_engine_options": {
        "pool_pre_ping": True,
        "connect_args": {"sslmode": "verify-full", "sslrootcert": "/ca.crt"},
    },
}
MYSQL = {
    "result_backend": "db+mysql+pymysql://u:p@db.example/celery",
    "database_engine_options": {
        "pool_pre_ping": True,
        "isolation_level": "READ COMMITTED",
        "connect_args": {"ssl": {"ca": "/ca.crt", "check_hostname": True}},
    },
}


@pytest.mark.parametrize(
    ("code", "settings"),
    [
        ("CRB301", POSTGRESQL | {"result_backend": "db+postgresql://u:p@db.example/celery"}),
        ("CRB301", MYSQL | {"result_backend": "db+mysql://u:p@db.example/celery"}),
        ("CRB302", POSTGRESQL | {"result_expires": 0}),
        ("CRB303", POSTGRESQL | {"result_expires": None}),
        ("CRB304", {"result_backend": "db+sqlite:///x", "database_engine_options": {"pool_size": 10}}),
        (
            "CRB305",
            {
                "result_backend": "db+postgresql+psycopg://u@localhost/x",
                "database_engine_options": {"echo": 1},
            },
        ),
        ("CRB306", {"result_backend": "db+mysql+pymysql://u:p@localhost/celery"}),
        ("CRB307", POSTGRESQL | {"result_compression": "gzip"}),
        ("CRB308", MYSQL | {"timezone": "Europe/Berlin"}),
        ("CRB309", {"result_backend": "db+postgresql+psycopg://u:p@db.example/celery"}),
    ],
)
def test_database(code, settings):
    assert codes(database.check_settings, settings) == [code]


@pytest.mark.parametrize(
    ("found", "options", "query"),
    [
        ([], {"pool_size": 10}, "?sslmode=verify-full"),
        ([], {}, "?sslmode=verify-full"),
        (["CRB309"], {}, ""),
    ],
    ids=["a-pool-in-every-process", "isolated-by-itself", "not-verified"],
)
def test_our_own_class_is_judged_by_what_it_does(found, options, query):
    ours = "celery_results.backends.database:DatabaseBackend"
    settings = {
        "result_backend": f"{ours}+postgresql+psycopg://u:p@db.example/x{query}",
        "database_engine_options": options,
    }
    assert codes(database.check_settings, settings) == found


@pytest.mark.parametrize(
    "settings",
    [
        POSTGRESQL,
        MYSQL,
        POSTGRESQL | {"timezone": "Europe/Berlin"},
        {"result_backend": "db+sqlite:///x"},
        {"result_backend": "db+postgresql+psycopg://u:p@db.example/x?sslmode=verify-full"},
        {"result_backend": "db+postgresql+psycopg://u:p@localhost/x"},
    ],
)
def test_database_that_is_right(settings):
    assert codes(database.check_settings, settings) == []


RPC = {
    "result_backend": "rpc://",
    "result_persistent": True,
    "broker_transport_options": {"confirm_publish": True},
}


@pytest.mark.parametrize(
    ("code", "settings"),
    [
        ("CRB403", {"result_compression": "gzip"}),
        ("CRB404", {"broker_transport_options": {}}),
        ("CRB405", {"result_expires": 0}),
    ],
)
def test_rpc(code, settings):
    assert codes(rpc.check_settings, RPC) == ["CRB401", "CRB402"]
    assert codes(rpc.check_settings, RPC | settings) == ["CRB401", "CRB402", code]


def test_rpc_says_what_becomes_of_results_that_wait():
    assert codes(rpc.check_settings, RPC | {"result_persistent": False}) == ["CRB401", "CRB407"]


@pytest.mark.parametrize(
    ("code", "broker"),
    [("CRB002", None), ("CRB406", "redis://h/0"), ("CRB406", "sqs://k:s3cret@"), ("CRB406", "memory://")],
)
def test_rpc_without_rabbitmq(code, broker):
    (finding,) = rpc.check_server(Subject(raw=RPC | {"broker_url": broker}))
    assert finding.code == code
    assert "s3cret" not in finding.found


@pytest.mark.parametrize("broker", ["amqps://h", "amqp://h", "pyamqp://h", "h"])
def test_rpc_with_rabbitmq_leaves_the_server_to_the_broker(broker):
    assert codes(rpc.check_server, RPC | {"broker_url": broker}) == []


def test_secrets_are_found_wherever_they_hide():
    subject = Subject(
        raw={
            "result_backend": "redis://:url%40password@h",
            "redis_password": "setting-password",
            "broker_transport_options": {"sentinel_kwargs": {"password": "nested-password"}},
            "broker_url": "sentinel://:first-one@h1;sentinel://:second-one@h2",
        },
        environ={"MY_API_TOKEN": "environment-token", "URL": "amqp://u:raw@password@h"},
        monitor_environ={"CELERYCONFIG_RESULT_PASSWORD": "monitor-password"},
    )
    assert secrets(subject) == {
        "url%40password",
        "url@password",
        "setting-password",
        "nested-password",
        "first-one",
        "second-one",
        "environment-token",
        "raw@password",
        "monitor-password",
    }
