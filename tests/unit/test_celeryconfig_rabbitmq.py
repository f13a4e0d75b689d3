"""files/celeryconfig/rabbitmq.py, read by the real Celery as it is deployed."""

from __future__ import annotations

import ssl

import pytest
from celery.app.defaults import DEFAULTS, SETTING_KEYS
from celery.exceptions import ImproperlyConfigured
from celery.utils.quorum_queues import detect_quorum_queues
from tests.unit.celeryconfig_case import NASTY, app_of, broker_of, settings

COMMON = {
    "LOGIN": "worker",
    "RESULT_EXPIRES_SECONDS": "3600",
    "RESULT_NAME": "rabbitmq",
    "RESULT_SCHEME": "amqps",
    "RESULT_HOSTS": "mq.example.com:5690",
    "RESULT_DATABASE": "a/vhost",
    "RESULT_USERNAME": "celery-worker",
    "RESULT_PASSWORD": NASTY,
    "RESULT_TLS_ENABLED": "true",
    "RESULT_TLS_CA_FILE": "/etc/celery/tls/ca.crt",
    "RESULT_OPTIONS": '{"queue_type": "quorum", "queues": ["celery", "reports"]}',
}
BROKER = broker_of(COMMON)
BOTH = COMMON | BROKER
CLIENT = BOTH | {"LOGIN": "client"}
CLASSIC = {"BROKER_OPTIONS": '{"queue_type": "classic", "queues": ["celery"]}'}


@pytest.mark.parametrize("extra", [{}, CLASSIC, {"LOGIN": "client"}], ids=["quorum", "classic", "client"])
def test_every_public_name_is_a_setting_that_celery_reads(load, extra):
    names = set(settings(load(BOTH, extra)))
    assert names <= SETTING_KEYS
    assert {"result_persistent", "broker_use_ssl", "task_publish_retry_policy"} <= names


def test_no_setting_repeats_celerys_default_by_accident(load):
    pinned = {"enable_utc", "accept_content", "task_serializer", "result_serializer", "result_extended"}
    same = {name for name, value in settings(load(BOTH)).items() if DEFAULTS.get(name, ...) == value}
    assert same <= pinned


def test_credentials_and_vhost_with_any_character_reach_the_broker_unchanged(load):
    with app_of(load(BOTH)).connection_for_write() as connection:
        assert (connection.userid, connection.password) == ("celery-worker", NASTY)
        assert (connection.hostname, connection.port) == ("mq.example.com", 5690)
        assert connection.virtual_host == "a/vhost"


def test_the_connection_verifies_chain_and_name(load):
    app = app_of(load(BOTH, {"BROKER_HOSTS": "127.0.0.1:1"}))
    with app.connection_for_write() as connection, pytest.raises(OSError, match="refused"):
        connection.transport.establish_connection()
    assert connection.ssl["cert_reqs"] == ssl.CERT_REQUIRED
    assert connection.ssl["ca_certs"] == "/etc/celery/tls/ca.crt"
    assert connection.ssl["server_hostname"] == "127.0.0.1"
    assert "certfile" not in connection.ssl


def test_mutual_tls_shows_the_own_certificate(load):
    own = {"BROKER_TLS_CERT_FILE": "/c.crt", "BROKER_TLS_KEY_FILE": "/c.key"}
    found = load(BOTH, own).broker_use_ssl
    assert (found["certfile"], found["keyfile"]) == ("/c.crt", "/c.key")


def test_without_tls_none_is_asked_for(load):
    module = load(BOTH, {"BROKER_SCHEME": "amqp", "BROKER_TLS_ENABLED": "false"})
    assert module.broker_use_ssl is None


def test_results_come_over_the_broker_and_expire_with_their_queue(load):
    backend = app_of(load(BOTH)).backend
    assert type(backend).__name__ == "RPCBackend"
    assert backend.binding.expires == 3600
    assert backend.delivery_mode == 2


@pytest.mark.parametrize(
    "broker",
    [
        dict.fromkeys(BROKER),
        dict.fromkeys(BROKER) | {"BROKER_URL": "amqps://u:p@mq.example.com//"},
        {"BROKER_NAME": "redis", "BROKER_SCHEME": "rediss"},
    ],
    ids=["none", "external", "redis"],
)
def test_rpc_refuses_another_broker_and_says_why(load, broker):
    with pytest.raises(ImproperlyConfigured, match=r"travel over the broker.*CELERYCONFIG_BROKER_NAME"):
        load(BOTH, broker)


def test_it_serves_as_the_broker_of_another_backend(load):
    results = {
        "RESULT_NAME": "redis",
        "RESULT_SCHEME": "rediss",
        "RESULT_DATABASE": "0",
        "RESULT_OPTIONS": "{}",
    }
    module = load(BOTH, results)
    assert "rediss://" in module.result_backend
    assert module.broker_url.startswith("amqps://")
    assert "result_persistent" not in settings(module)


@pytest.mark.parametrize(("extra", "quorum"), [({}, True), (CLASSIC, False)], ids=["quorum", "classic"])
@pytest.mark.parametrize("login", ["worker", "client"])
def test_worker_and_client_know_the_queue_as_the_server_has_it(load, login, extra, quorum):
    app = app_of(load(BOTH, extra, {"LOGIN": login}))
    queue = app.amqp.queues["celery"]
    assert (queue.exchange.name, queue.exchange.type, queue.routing_key) == ("celery", "topic", "celery")
    assert (queue.durable, queue.exchange.durable, queue.auto_delete) == (True, True, False)
    assert queue.queue_arguments == ({"x-queue-type": "quorum"} if quorum else None)
    assert detect_quorum_queues(app, "amqp")[0] is quorum
    # A queue that nobody has named is of the same kind.
    other = app.amqp.queues["other"]
    assert (other.exchange.type, other.queue_arguments) == ("topic", queue.queue_arguments)


def test_only_the_worker_declares(load):
    assert not app_of(load(BOTH)).amqp.queues["celery"].no_declare
    queues = app_of(load(CLIENT)).amqp.queues
    assert set(queues) == {"celery", "reports"}
    assert all(queue.no_declare and queue.exchange.no_declare for queue in queues.values())


def test_a_worker_without_a_list_of_queues_takes_the_default_one_only(load):
    assert list(app_of(load(BOTH)).amqp.queues.consume_from) == ["celery"]
