"""files/celeryconfig, deployed into a directory as on a Celery host and read by the real Celery."""

import importlib
import inspect
import json
import ssl

import pytest
from celery.app.defaults import DEFAULTS, SETTING_KEYS
from celery.exceptions import ImproperlyConfigured
from tests.unit.celeryconfig_case import NASTY, SOURCE, app_of, broker_of, settings

# celery/backends/redis.py reads these three with conf.get; they are missing in Celery's own list.
UNLISTED = {"redis_backend_health_check_interval", "redis_client_name", "redis_backend_credential_provider"}

COMMON = {
    "LOGIN": "worker",
    "RESULT_EXPIRES_SECONDS": "3600",
    "RESULT_NAME": "redis",
    "RESULT_SCHEME": "rediss",
    "RESULT_HOSTS": "results.example.com:6390",
    "RESULT_DATABASE": "2",
    "RESULT_USERNAME": "celery-worker",
    "RESULT_PASSWORD": NASTY,
    "RESULT_TLS_ENABLED": "true",
    "RESULT_TLS_CA_FILE": "/etc/celery/tls/ca.crt",
}
BROKER = broker_of(COMMON)
MUTUAL = {
    "RESULT_TLS_CERT_FILE": "/etc/celery/tls/client.crt",
    "RESULT_TLS_KEY_FILE": "/etc/celery/tls/client.key",
}
PLAIN = {"RESULT_SCHEME": "redis", "RESULT_TLS_ENABLED": "false", "RESULT_TLS_CA_FILE": ""}


@pytest.mark.parametrize(
    "extra",
    [{}, MUTUAL, PLAIN, BROKER, {"BROKER_URL": "amqps://u:p@mq.example.com//"}, {"RESULT_EXTENDED": "true"}],
    ids=["tls", "mutual-tls", "plain", "own-broker", "external-broker", "extended"],
)
def test_every_public_name_is_a_setting_that_celery_reads(load, extra):
    names = set(settings(load(COMMON, extra)))
    assert names - SETTING_KEYS - UNLISTED == set()
    assert len(names) > 10


def test_every_unlisted_setting_is_really_read():
    source = inspect.getsource(importlib.import_module("celery.backends.redis"))
    assert all(f"_get('{name}')" in source for name in UNLISTED)


@pytest.mark.parametrize("module", sorted(SOURCE.glob("*.py")), ids=lambda path: path.stem)
def test_no_secret_and_no_address_is_in_the_files(module):
    text = module.read_text()
    assert "password=" not in text.replace("password=_read", "")
    assert "://localhost" not in text
    assert "{{" not in text


@pytest.mark.parametrize(
    ("implementation", "package"),
    [("bundled", "celery_results"), ("stock", "celery"), (None, "celery_results")],
)
def test_the_class_that_stores_results_is_the_one_that_was_chosen(load, implementation, package):
    backend = app_of(load(COMMON, {"RESULT_IMPLEMENTATION": implementation})).backend
    assert type(backend).__module__.split(".")[0] == package


def test_credentials_with_any_character_reach_redis_unchanged(load):
    parameters = app_of(load(COMMON)).backend.connparams
    assert (parameters["username"], parameters["password"]) == ("celery-worker", NASTY)
    assert (parameters["host"], parameters["port"], parameters["db"]) == ("results.example.com", 6390, 2)


def test_credentials_with_any_character_reach_the_broker_unchanged(load):
    with app_of(load(COMMON, BROKER)).connection_for_write() as connection:
        assert (connection.userid, connection.password) == ("celery-worker", NASTY)
        assert (connection.hostname, connection.port) == ("results.example.com", 6390)


def test_an_address_of_ip_version_6_keeps_its_port(load):
    parameters = app_of(load(COMMON, {"RESULT_HOSTS": "[2001:db8::1]:6390"})).backend.connparams
    assert (parameters["host"], parameters["port"]) == ("2001:db8::1", 6390)


def test_the_result_connection_verifies_chain_and_name(load):
    connection = app_of(load(COMMON)).backend.client.connection_pool.make_connection()
    assert connection.cert_reqs == ssl.CERT_REQUIRED
    assert connection.check_hostname is True
    assert connection.ca_certs == "/etc/celery/tls/ca.crt"
    assert connection.certfile is None


def test_the_broker_connection_verifies_chain_and_name(load):
    with app_of(load(COMMON, BROKER)).connection_for_write() as connection:
        assert connection.ssl["ssl_cert_reqs"] == ssl.CERT_REQUIRED
        assert connection.ssl["ssl_check_hostname"] is True
        assert connection.ssl["ssl_ca_certs"] == "/etc/celery/tls/ca.crt"


def test_mutual_tls_shows_the_own_certificate(load):
    connection = app_of(load(COMMON, MUTUAL)).backend.client.connection_pool.make_connection()
    assert (connection.certfile, connection.keyfile) == tuple(MUTUAL.values())


def test_without_tls_none_is_asked_for(load):
    module = load(COMMON, PLAIN)
    assert module.redis_backend_use_ssl is None
    assert "ssl_cert_reqs" not in app_of(module).backend.connparams


def test_timeouts_and_health_check_reach_the_connection(load):
    parameters = app_of(load(COMMON)).backend.connparams
    assert parameters["socket_connect_timeout"] == 5
    assert parameters["socket_timeout"] == 30
    assert parameters["socket_keepalive"] is True
    assert parameters["health_check_interval"] == 30
    assert parameters["retry_on_timeout"] is True


@pytest.mark.parametrize(("login", "retries"), [("worker", 30), ("client", 11), ("monitor", 11)])
def test_retries_are_on_and_finite(load, login, retries):
    backend = app_of(load(COMMON, {"LOGIN": login})).backend
    assert backend.always_retry is True
    assert backend.max_retries == retries


def test_expiry_reaches_the_store(load):
    assert app_of(load(COMMON)).backend.expires == 3600


def test_a_key_prefix_reaches_store_and_broker(load):
    options = json.dumps({"global_keyprefix": "app1:"})
    module = load(COMMON, BROKER, {"RESULT_OPTIONS": options, "BROKER_OPTIONS": options})
    assert app_of(module).backend.get_key_for_task("x").startswith(b"app1:celery-task-meta-")
    assert module.broker_transport_options["global_keyprefix"] == "app1:"


def test_json_only_and_utc_by_default(load):
    module = load(COMMON)
    assert module.accept_content == module.result_accept_content == ["json"]
    assert module.task_serializer == module.result_serializer == "json"
    assert (module.timezone, module.enable_utc) == ("UTC", True)
    assert module.result_extended is False


def test_another_result_serializer_does_not_open_the_tasks(load):
    module = load(COMMON, {"RESULT_SERIALIZER": "pickle"})
    assert module.result_accept_content == ["pickle"]
    assert module.accept_content == ["json"]


def test_without_a_broker_none_is_set(load):
    assert "broker_url" not in settings(load(COMMON))


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("amqps://u:p@mq.example.com//", {"cert_reqs": ssl.CERT_REQUIRED, "server_hostname": None}),
        ("rediss://:p@q.example.com/0", {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_check_hostname": True}),
    ],
)
def test_an_external_broker_with_tls_is_verified(load, url, expected):
    module = load(COMMON, {"BROKER_URL": url})
    assert module.broker_url == url
    assert expected.items() <= module.broker_use_ssl.items()


@pytest.mark.parametrize(
    ("scheme", "option"),
    [
        ("amqps", {"confirm_publish": True, "read_timeout": 30}),
        ("amqp", {"confirm_publish": True}),
        ("rediss", {"socket_timeout": 30.0, "socket_keepalive": True}),
    ],
)
def test_an_external_broker_loses_nothing_in_silence_and_is_not_waited_for_without_end(load, scheme, option):
    module = load(COMMON, {"BROKER_URL": f"{scheme}://u:p@mq.example.com/0"})
    assert option.items() <= module.broker_transport_options.items()


def test_a_broker_of_another_kind_gets_no_options(load):
    assert "broker_transport_options" not in settings(load(COMMON, {"BROKER_URL": "sqs://k:s@"}))


def test_the_name_of_an_external_amqps_broker_is_verified_by_kombu(load):
    app = app_of(load(COMMON, {"BROKER_URL": "amqps://u:p@127.0.0.1:1//"}))
    with app.connection_for_write() as connection, pytest.raises(OSError, match="refused"):
        connection.transport.establish_connection()
    assert connection.ssl["server_hostname"] == "127.0.0.1"


def test_an_external_broker_in_plain_text_gets_no_tls(load):
    assert "broker_use_ssl" not in settings(load(COMMON, {"BROKER_URL": "amqp://u:p@mq.example.com//"}))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LOGIN", None),
        ("RESULT_NAME", None),
        ("RESULT_NAME", "no_such_backend"),
        ("RESULT_HOSTS", None),
        ("RESULT_SCHEME", None),
        ("RESULT_TLS_ENABLED", None),
        ("RESULT_TLS_ENABLED", "maybe"),
        ("RESULT_OPTIONS", "{not json"),
        ("RESULT_EXTENDED", "yes"),
        ("RESULT_EXPIRES_SECONDS", None),
        ("RESULT_EXPIRES_SECONDS", "0"),
        ("RESULT_EXPIRES_SECONDS", "-1"),
        ("RESULT_EXPIRES_SECONDS", "None"),
        ("RESULT_EXPIRES_SECONDS", "0.5"),
        ("RESULT_EXPIRES_SECONDS", ""),
    ],
)
def test_a_missing_or_wrong_variable_is_named_together_with_the_file(load, name, value):
    with pytest.raises(ImproperlyConfigured, match=rf"CELERYCONFIG_{name} .*/etc/celery/celery\.env"):
        load(COMMON, {name: value})


def test_no_setting_repeats_celerys_default_by_accident(load):
    pinned = {"enable_utc", "accept_content", "task_serializer", "result_serializer", "result_extended"}
    same = {name for name, value in settings(load(COMMON)).items() if DEFAULTS.get(name, ...) == value}
    assert same - pinned <= {"result_backend_transport_options"}
