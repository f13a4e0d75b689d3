"""A RabbitMQ broker: its settings, and what the server says of itself, without a server."""

import ssl

import pytest
from kombu.entity import Exchange, Queue
from tests.unit.test_doctor_redis_settings import certificate_file

from celery_results.doctor.examine import examine
from celery_results.doctor.servers.rabbitmq import options, state
from celery_results.doctor.servers.rabbitmq.parameters import RefusedError, read_parameters
from celery_results.doctor.subject import Subject

PASSWORD = "s3cret/with#signs"
URL = "amqps://celery:secret@broker.example:5671/shop"
PLAIN = {"broker_use_ssl": None}


@pytest.fixture
def good(tmp_path):
    """Give settings without any finding."""
    return {
        "broker_url": URL,
        "broker_use_ssl": {
            "cert_reqs": ssl.CERT_REQUIRED,
            "ca_certs": certificate_file(tmp_path / "ca.crt", days=365),
            "server_hostname": None,
        },
        "broker_heartbeat": 30,
        "broker_transport_options": {"confirm_publish": True},
        "task_default_queue_type": "quorum",
        "task_default_exchange_type": "topic",
    }


def findings(settings, environ=None):
    return list(options.check_settings(Subject(raw=settings, environ=environ or {})))


def codes(settings, environ=None):
    return [finding.code for finding in findings(settings, environ)]


def quorum(name="celery", exchange_type="topic", **changes):
    arguments = {"x-queue-type": "quorum"} | changes.pop("arguments", {})
    return Queue(name, Exchange(name, exchange_type), name, queue_arguments=arguments, **changes)


def test_good_settings_give_no_finding(good):
    assert codes(good) == []


@pytest.mark.parametrize(
    ("code", "settings"),
    [
        ("CRB144", {"broker_url": "amqps://celery:a@b@broker.example/shop"}),
        ("CRB404", {"broker_transport_options": {}}),
        ("CRB404", {"broker_transport_options": {"confirm_publish": False}}),
        ("CRB430", {"broker_url": "amqp://u:p@broker.example/shop"} | PLAIN),
        ("CRB430", {"broker_url": "pyamqp://u:p@broker.example/shop"} | PLAIN),
        ("CRB431", {"broker_url": "amqp://u:p@127.0.0.1/shop"} | PLAIN),
        ("CRB431", {"broker_url": "amqp://u:p@[::1]:5672/shop"} | PLAIN),
        ("CRB432", {"broker_use_ssl": {"cert_reqs": ssl.CERT_NONE}}),
        ("CRB432", {"broker_use_ssl": {"cert_reqs": ssl.CERT_OPTIONAL, "ca_certs": None}}),
        ("CRB434", {"broker_url": f"{URL}?ssl_cert_reqs=none", "broker_use_ssl": None}),
        ("CRB434", {"broker_use_ssl": {"ssl_cert_reqs": "required"}}),
        ("CRB434", {"broker_use_ssl": {"cert_reqs": "required"}}),
        ("CRB434", {"broker_url": "amqps://u:p@broker.example:port/shop"}),
        ("CRB436", {"broker_url": "amqps://guest:guest@broker.example/shop"}),
        ("CRB436", {"broker_url": "amqps://broker.example/shop"}),
        ("CRB437", {"broker_url": "amqps://u:p@broker.example//"}),
        ("CRB437", {"broker_url": "amqps://u:p@broker.example"}),
        ("CRB437", {"broker_url": "amqps://u:p@broker.example/%2F"}),
        ("CRB438", {"broker_url": "amqps://u:p@broker.example/a/b"}),
        ("CRB438", {"broker_url": "amqps://u:p@broker.example//shop"}),
        ("CRB438", {"broker_url": "amqps://u:p@broker.example/50%shop"}),
        ("CRB438", {"broker_url": "amqps://u:p@broker.example/shop#1"}),
        ("CRB439", {"broker_heartbeat": 0}),
        ("CRB439", {"broker_heartbeat": None}),
        ("CRB439", {"broker_heartbeat": 3600}),
        ("CRB440", {"worker_detect_quorum_queues": False}),
        ("CRB441", {"task_queue_max_priority": 5}),
        ("CRB441", {"task_queues": [quorum(max_priority=5)]}),
        ("CRB441", {"task_queues": [quorum(arguments={"x-queue-mode": "lazy"})]}),
        ("CRB442", {"task_default_exchange_type": "direct"}),
        ("CRB442", {"task_queues": [quorum(exchange_type="direct")]}),
        ("CRB443", {"task_default_queue_type": "classic"}),
        ("CRB445", {"task_default_delivery_mode": "transient"}),
        ("CRB445", {"task_default_delivery_mode": 1}),
        ("CRB446", {"task_acks_late": True}),
        ("CRB446", {"task_acks_late": True, "task_time_limit": 7200}),
        ("CRB446", {"task_annotations": {"slow": {"acks_late": True}}, "task_time_limit": 7200}),
    ],
)
def test_setting(good, code, settings):
    assert codes(good | settings) == [code]


@pytest.mark.parametrize(
    "settings",
    [
        {"broker_url": "amqps://u:p%40%2F@broker.example/a%2Fb"},
        {"broker_url": "amqp://u:p@broker.example:5671/shop"},  # TLS by broker_use_ssl
        {"broker_url": "amqps://u:p@[2001:db8::1]:5671/shop"},
        {"broker_heartbeat": 60.0},
        {"task_acks_late": True, "task_time_limit": 600},
        {"task_queues": [quorum("a"), quorum("b", message_ttl=60, max_length=1000)]},
        {"broker_login_method": "EXTERNAL", "broker_url": "amqps://broker.example/shop"},
        {"worker_detect_quorum_queues": True},
    ],
)
def test_setting_that_is_right(good, settings):
    assert codes(good | settings) == []


def test_password_that_cuts_the_url_in_two(good):
    assert codes(good | {"broker_url": "amqps://u:a#b@broker.example/shop"}) == ["CRB143", "CRB434"]


def test_queue_that_does_not_last(good):
    transient = Queue("celery", Exchange("celery", "topic"), "celery", durable=False)
    assert codes(good | {"task_queues": [transient]}) == ["CRB444", "CRB443"]
    assert codes(good | {"task_queues": [quorum(durable=False)]}) == ["CRB444", "CRB441"]


def test_quorum_queue_of_one_connection(good):
    """For one connection, kombu makes a queue auto_delete, too."""
    assert codes(good | {"task_queues": [quorum(exclusive=True)]}) == ["CRB444", "CRB441"]


def test_name_that_nothing_verifies(good):
    """A name is compared only if kombu is told one, or told None; amqps:// alone tells it nothing."""
    tls = {name: value for name, value in good["broker_use_ssl"].items() if name != "server_hostname"}
    assert codes(good | {"broker_use_ssl": tls}) == ["CRB433"]
    assert codes(good | {"broker_use_ssl": True}) == ["CRB433", "CRB435"]
    assert codes(good | {"broker_use_ssl": None}) == ["CRB433", "CRB435"]


def test_public_authorities(good):
    tls = {"cert_reqs": ssl.CERT_REQUIRED, "server_hostname": None}
    assert codes(good | {"broker_use_ssl": tls}) == ["CRB435"]


def test_contexts_own_options_count(good):
    """py-amqp makes a context of its own from these."""
    ca_file = good["broker_use_ssl"]["ca_certs"]
    verified = {"context": {"cafile": ca_file, "check_hostname": True}}
    assert codes(good | {"broker_use_ssl": verified}) == []
    assert codes(good | {"broker_use_ssl": {"context": {"cafile": ca_file}}}) == ["CRB433"]


@pytest.mark.parametrize("name", ["ca_certs", "certfile", "keyfile"])
def test_tls_file_that_cannot_be_used(good, name):
    assert codes(good | {"broker_use_ssl": good["broker_use_ssl"] | {name: "/nowhere/x"}}) == ["CRB163"]


@pytest.mark.parametrize(("code", "days"), [("CRB164", -1), ("CRB165", 10)])
def test_certificate_in_the_settings_that_runs_out(good, tmp_path, code, days):
    old = certificate_file(tmp_path / "old.crt", days=days)
    assert codes(good | {"broker_use_ssl": good["broker_use_ssl"] | {"ca_certs": old}}) == [code]


def test_environment_decides_which_broker_is_examined(good):
    assert codes(good, {"CELERY_BROKER_URL": "amqps://u:p@broker.example"}) == ["CRB437"]
    assert codes(good, {"CELERY_BROKER_WRITE_URL": "amqps://u:p@broker.example"}) == ["CRB437"]


def test_of_several_brokers_the_first_is_looked_at_and_each_url(good):
    found = findings(good | {"broker_url": f"{URL};amqps://u:p@other.example/a/b"})
    assert [finding.code for finding in found] == ["CRB438", "CRB001"]
    assert codes(good | {"broker_url": [URL, URL]}) == ["CRB001"]


@pytest.mark.parametrize(
    "url",
    [
        f"amqps://u:{PASSWORD}@broker.example:5671/shop",
        "amqps://u:s3cret@broker.example:no-port/shop",
        "amqps://u:s3cret/x@broker.example:5671/shop/a",
        "amqps://u:s3cret%@broker.example/%",
        "s3cret",
    ],
)
def test_no_finding_holds_a_piece_of_the_password(good, url):
    assert not any("s3cret" in finding.found for finding in findings(good | {"broker_url": url}))


def test_password_stays_out_of_every_representation(good):
    parameters = read_parameters(good, "amqps://u:s3cret@broker.example/shop")
    assert parameters.password == "s3cret"
    assert "s3cret" not in repr(parameters)
    with pytest.raises(RefusedError) as refused:
        read_parameters(good, f"amqps://u:{PASSWORD}@broker.example/shop")
    assert "s3cret" not in str(refused.value)
    assert refused.value.__cause__ is None


def test_rpc_over_another_broker_is_an_error():
    found = examine(Subject(raw={"result_backend": "rpc://", "broker_url": "redis://127.0.0.1:1/0"}))
    assert "CRB406" in {finding.code for finding in found}


def test_broker_is_looked_at_beside_any_backend(good):
    found = examine(Subject(raw=good | {"result_backend": "mongodb://h/", "broker_heartbeat": 0}))
    assert {"CRB439", "CRB002"} <= {finding.code for finding in found}


def test_broker_that_doctor_does_not_know_is_told():
    found = examine(Subject(raw={"result_backend": "rpc://", "broker_url": "sqs://k:s3cret@"}))
    (told,) = [finding for finding in found if finding.code == "CRB002"]
    assert "no checks for sqs broker" in told.found


VERSIONS = [
    ("3.8.9", (5, 7), ["CRB475"]),
    ("3.10.8", (5, 7), []),
    ("4.0.5", (5, 6), []),
    ("4.3.0", (5, 6), ["CRB474"]),
    ("4.3.0", (5, 7), []),
    ("5.0", (5, 5), ["CRB474"]),
    ("4.3.0-rc.1", (5, 6), ["CRB474"]),
    ("", (5, 7), ["CRB001"]),
]


@pytest.mark.parametrize(("version", "celery", "expected"), VERSIONS)
def test_version_of_the_broker_and_of_celery(version, celery, expected):
    told = {"product": "RabbitMQ", "version": version}
    assert [finding.code for finding in state.judge(told, {}, celery)] == expected


@pytest.mark.parametrize("kind", ["control", "event"])
def test_transient_shared_queues_end_with_rabbitmq_4_3(kind):
    told = {"product": "RabbitMQ", "version": "4.3.1"}
    shared = {f"{kind}_queue_exclusive": False}
    assert [finding.code for finding in state.judge(told, shared, (5, 7))] == ["CRB474"]
    assert not list(state.judge(told, shared | {f"{kind}_queue_durable": True}, (5, 7)))


def test_another_product_is_told():
    assert [finding.code for finding in state.judge({"product": "LavinMQ"}, {})] == ["CRB473"]


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("low on memory", ["CRB470"]),
        ("low on disk", ["CRB471"]),
        ("low on disk & memory", ["CRB470", "CRB471"]),
        ("", ["CRB472"]),
    ],
)
def test_reason_of_a_blocked_connection(reason, expected):
    assert [finding.code for finding in state.alarm(reason)] == expected
