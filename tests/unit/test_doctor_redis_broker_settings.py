"""Redis as the broker: its settings."""

import ssl

import pytest
from tests.unit.test_doctor_redis_settings import certificate_file

from celery_results.doctor.servers import for_broker
from celery_results.doctor.servers.redis import broker
from celery_results.doctor.servers.redis.parameters import read_broker_parameters
from celery_results.doctor.subject import Subject

URL = "rediss://celery-broker:secret@redis.example:6379/1"


@pytest.fixture
def good(tmp_path):
    """Give settings without any finding."""
    return {
        "result_backend": "db+sqlite:////x",
        "broker_url": URL,
        "broker_use_ssl": {
            "ssl_cert_reqs": ssl.CERT_REQUIRED,
            "ssl_check_hostname": True,
            "ssl_ca_certs": certificate_file(tmp_path / "ca.crt", days=365),
        },
        "broker_transport_options": {"socket_timeout": 30.0, "socket_connect_timeout": 5.0},
    }


def codes(settings):
    return [finding.code for finding in broker.check_settings(Subject(raw=settings))]


def test_good_settings_give_no_finding(good):
    assert codes(good) == []


@pytest.mark.parametrize(
    ("code", "settings"),
    [
        ("CRB144", {"broker_url": "rediss://u:a@b@redis.example/1"}),
        ("CRB205", {"broker_url": "rediss://u:s3cret@redis.example/one"}),
        ("CRB205", {"broker_use_ssl": {"ssl_cert_reqs": "sometimes"}}),
        ("CRB206", {"broker_use_ssl": {"ssl_cert_reqs": "required"}}),
        ("CRB220", {"broker_url": "redis://u:p@redis.example/1", "broker_use_ssl": None}),
        ("CRB221", {"broker_url": "redis://u:p@127.0.0.1/1", "broker_use_ssl": None}),
        ("CRB222", {"broker_use_ssl": None}),
        ("CRB222", {"broker_use_ssl": True}),
        ("CRB222", {"broker_use_ssl": {"ssl_cert_reqs": ssl.CERT_NONE}}),
        ("CRB222", {"broker_use_ssl": {"ssl_cert_reqs": None}}),
        ("CRB223", {"broker_url": "rediss://redis.example/1"}),
        ("CRB224", {"broker_transport_options": {}}),
        ("CRB224", {"broker_transport_options": {"socket_timeout": 30}}),
        ("CRB225", {"task_acks_late": True}),
        ("CRB225", {"task_acks_late": True, "task_time_limit": 7200}),
        ("CRB225", {"beat_schedule": {"x": {"task": "x", "options": {"countdown": 7200}}}}),
        ("CRB225", {"task_annotations": {"x": {"default_retry_delay": 3600}}}),
    ],
)
def test_setting(good, code, settings):
    assert codes(good | settings) == [code]


@pytest.mark.parametrize(
    "settings",
    [
        {"broker_url": "redis://u:p@redis.example/1"},  # TLS by broker_use_ssl
        {"broker_url": "redis+socket:///run/redis.sock?virtual_host=1", "broker_use_ssl": None},
        {"task_acks_late": True, "task_time_limit": 600},
        {"beat_schedule": {"x": {"task": "x", "options": {"countdown": 600}}}},
        {"beat_schedule": {"x": {"task": "x"}}, "task_annotations": {"x": {"rate_limit": "1/s"}}},
        {"result_backend": "rediss://u:p@redis.example/0?ssl_cert_reqs=required"},
        {"result_backend": "rediss://u:p@other.example/1?ssl_cert_reqs=required"},
    ],
)
def test_setting_that_is_right(good, settings):
    assert codes(good | settings) == []


def test_name_that_nothing_verifies(good):
    tls = good["broker_use_ssl"] | {"ssl_check_hostname": False}
    assert codes(good | {"broker_use_ssl": tls}) == ["CRB222"]


def test_visibility_timeout_that_suffices(good):
    options = good["broker_transport_options"] | {"visibility_timeout": 43200}
    late = {"task_acks_late": True, "task_time_limit": 7200, "broker_transport_options": options}
    assert codes(good | late) == []


def test_results_of_a_database_on_the_same_host_are_no_redis(good):
    postgresql = {"result_backend": "db+postgresql+psycopg://u:p@redis.example:6379/1"}
    assert codes(good | postgresql) == []


@pytest.mark.parametrize(("database", "expected"), [("1", ["CRB226"]), ("0", [])])
def test_database_number_of_the_results(good, database, expected):
    results = f"rediss://u:p@redis.example:6379/{database}?ssl_cert_reqs=required"
    assert codes(good | {"result_backend": results}) == expected


def test_socket_of_the_broker():
    options = {"broker_transport_options": {"socket_timeout": 3, "socket_connect_timeout": 5}}
    found = read_broker_parameters(options, "redis+socket://u:p%40@/run/redis.sock?virtual_host=2")
    assert found.socket_path == "/run/redis.sock"
    assert found.values["db"] == 2
    assert found.has_password
    assert found.values["socket_timeout"] == 3
    assert "socket_connect_timeout" not in found.values
    assert "p@" not in repr(found)


@pytest.mark.parametrize(
    ("url", "module"),
    [
        ("redis://h", "redis"),
        ("rediss://h", "redis"),
        ("redis+socket:///run/redis.sock", "redis"),
        ("sentinel://h", "redis"),
        ("amqps://h", "rabbitmq"),
        ("amqp://h", "rabbitmq"),
        ("h", "rabbitmq"),
    ],
)
def test_module_for_a_broker(url, module):
    found = for_broker(Subject(raw={"broker_url": url}))
    assert str(getattr(found, "__name__", None)).rpartition(".")[2] == module


@pytest.mark.parametrize("url", ["", "sqs://h", "memory://"])
def test_no_module_for_a_broker(url):
    assert for_broker(Subject(raw={"broker_url": url})) is None
