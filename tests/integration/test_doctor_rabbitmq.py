"""Doctor against a real RabbitMQ: each live finding provoked once, and a good broker that gives none."""

from __future__ import annotations

import contextlib
import json
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import amqp
import pytest
from tests.integration.doctor_case import by_code, doctor, serious
from tests.integration.doctor_rabbitmq_node import DoctorNode
from tests.integration.doctor_redis_server import Authority
from tests.integration.lab_files import free_port
from tests.integration.rabbitmq_lab import PROBE, VHOST

from celery_results.cli import main

if TYPE_CHECKING:
    from collections.abc import Iterator

DEADLINE_SECONDS = 20
SHORT_QUEUE = """
from kombu import Exchange, Queue
_quorum = {"x-queue-type": "quorum"}
task_queues = [Queue("celery", Exchange("celery", "topic"), "celery", max_length=3, queue_arguments=_quorum)]
"""
OTHER_QUEUE = """
from kombu import Exchange, Queue
_quorum = {{"x-queue-type": "quorum"}}
task_queues = [Queue("{name}", Exchange("{name}", "topic"), "{name}", queue_arguments=_quorum)]
"""
# rpc is told what it is; that its results are persistent, too.
RPC = {"CRB401", "CRB402"}


@pytest.fixture(scope="module")
def node(tmp_path_factory) -> Iterator[DoctorNode]:
    with DoctorNode(tmp_path_factory.mktemp("rabbitmq"), plain_port=True) as node:
        node.open_listeners()
        yield node


@pytest.fixture(autouse=True)
def _only_this_node(node, monkeypatch) -> None:
    """Whatever this machine has on RabbitMQ's usual ports is none of these tests' business."""
    network = "celery_results.doctor.servers.rabbitmq.network"
    for name in ("PLAIN_PORTS", "MANAGEMENT_PORTS", "DISTRIBUTION_PORTS"):
        monkeypatch.setattr(f"{network}.{name}", (free_port(node.address),))


@pytest.fixture
def examine(node, tmp_path, capsys):
    """Run the command as an operator does; give the findings by code, infos too."""

    def run(
        expect: int = 1, *, login="worker", monitor=True, listener="", extra="", **changes
    ) -> dict[str, Any]:
        if listener:
            changes["CELERYCONFIG_BROKER_HOSTS"] = f"{node.address}:{node.ports[listener]}"
        directory = node.write_config(tmp_path / "etc", **changes)
        with (directory / "celeryconfig.py").open("a") as settings:
            settings.write(extra)
        env_file = directory / ("celery.env" if login == "worker" else "client.env")
        if not monitor:
            (directory / "monitor.env").unlink()
        arguments = "--env-file", str(env_file), "--fail-on", "warning"
        secrets = node.passwords.values()
        return by_code(
            doctor(directory, *arguments, capsys=capsys, secrets=secrets, ends=lambda _: bool(expect))
        )

    return run


def wait_for(condition) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def waiting(node) -> int:
    with node.connection("worker") as connection:
        return int(connection.channel().queue_declare("celery", passive=True).message_count)


def free_listener(node) -> str:
    return f"{node.address}:{free_port(node.address)}"


@pytest.mark.parametrize("login", ["worker", "client"])
def test_good_broker_gives_nothing_but_what_rpc_is(examine, login):
    assert set(examine(0, login=login)) == RPC


def test_nothing_on_the_broker_is_changed(node, examine):
    with node.connection("worker") as connection:
        task = amqp.Message("task")
        connection.channel().basic_publish_confirm(task, exchange="celery", routing_key="celery")
    try:
        before = node.everything()
        for login in ("worker", "client"):
            found = examine(login=login)
            assert serious(found) == {"CRB477"}
            assert found["CRB477"]["found"] == "1 messages in celery, no consumer\n"
        assert node.everything() == before
        assert waiting(node) == 1
    finally:
        node.control("purge_queue", "--vhost", VHOST, "celery")


def test_queue_that_is_not_there_is_not_made(node, examine):
    """The worker's login might declare it: the first worker does."""
    name = f"celery-results-smoke-{'ab' * 6}"
    before = node.everything()
    assert set(examine(0, extra=OTHER_QUEUE.format(name=name))) == RPC
    assert node.everything() == before


def test_broker_that_is_not_there(node, examine):
    found = examine(CELERYCONFIG_BROKER_HOSTS=free_listener(node))
    assert serious(found) == {"CRB003"}
    assert "Connection refused" in found["CRB003"]["found"]


def test_wrong_password(examine):
    found = examine(CELERYCONFIG_BROKER_PASSWORD="not-the-password")
    assert serious(found) == {"CRB004", "CRB005"}
    assert "user celery-worker: user name or password is wrong" in found["CRB004"]["found"]
    assert "not-the-password" not in json.dumps(found)


def test_wrong_vhost(examine):
    found = examine(CELERYCONFIG_BROKER_DATABASE="shop")
    assert serious(found) == {"CRB450", "CRB005"}
    assert "vhost shop not found" in found["CRB450"]["found"]


def test_vhost_without_permission(node, examine):
    node.control("clear_permissions", "--vhost", VHOST, "celery-worker")
    try:
        found = examine()
    finally:
        with node.permitted("worker"):
            pass
    assert serious(found) == {"CRB451"}


@pytest.mark.parametrize(
    ("listener", "code", "said"),
    [
        ("expired", "CRB452", "3 days ago"),
        ("soon", "CRB453", "12 days left"),
        ("misnamed", "CRB454", "the certificate 127.1.2.3"),
        ("stranger", "CRB455", ""),
        ("old", "CRB456", "below TLS 1.2"),
        ("mutual", "CRB457", "it may want a certificate"),
    ],
)
def test_certificate_or_handshake(examine, listener, code, said):
    found = examine(listener=listener)
    assert serious(found) == {code}
    assert said in found[code]["found"]
    untrusted = code not in {"CRB453", "CRB456"}
    assert ("CRB001" in found) is untrusted
    assert not untrusted or "cannot trust" in found["CRB001"]["found"]


def test_client_certificate_that_the_settings_name(node, examine):
    certificate, key = node.authority.issue("client")
    tls = {
        "CELERYCONFIG_BROKER_TLS_CERT_FILE": str(certificate),
        "CELERYCONFIG_BROKER_TLS_KEY_FILE": str(key),
    }
    assert set(examine(0, listener="mutual", **tls)) == RPC


def test_certificate_of_the_future(examine, monkeypatch):
    monkeypatch.setattr("celery_results.doctor.servers.rabbitmq.live.datetime", Yesteryear)
    assert serious(examine()) == {"CRB460"}


class Yesteryear:
    """A clock that went wrong by more than the certificate's age."""

    @staticmethod
    def now(zone):
        from datetime import datetime, timedelta  # noqa: PLC0415 - the name is what is replaced

        return datetime.now(zone) - timedelta(days=365)


def test_authority_of_another_deployment(examine, tmp_path):
    other = Authority(tmp_path, "other")
    assert serious(examine(CELERYCONFIG_BROKER_TLS_CA_FILE=str(other.file))) == {"CRB455"}


def test_plain_text_where_the_settings_want_tls(node, examine):
    found = examine(CELERYCONFIG_BROKER_HOSTS=f"{node.address}:{node.plain}")
    assert serious(found) == {"CRB458"}


def test_plain_text_port_beside_the_one_with_tls(node, examine, monkeypatch):
    monkeypatch.setattr("celery_results.doctor.servers.rabbitmq.network.PLAIN_PORTS", (node.plain,))
    assert serious(examine()) == {"CRB459"}


@pytest.mark.parametrize("is_administrator", [True, False])
def test_guest(node, examine, is_administrator):
    node.control("add_user", "guest", "guest")
    try:
        if is_administrator:
            node.control("set_permissions", "--vhost", VHOST, "guest", ".*", ".*", ".*")
        found = examine()
    finally:
        node.control("delete_user", "guest")
    assert serious(found) == {"CRB463"}
    assert ("is closed to it" in found["CRB463"]["found"]) is not is_administrator


def test_login_that_may_do_everything(node, examine):
    with node.permitted("worker", configure=".*", write=".*", read=".*"):
        found = examine()
    assert serious(found) == {"CRB464"}
    for right in ("(configure)", "(read)", "(write)"):
        assert f"of any name {right}" in found["CRB464"]["found"]


def test_monitor_that_may_do_more_than_ask(node, examine):
    with node.permitted("monitor", read=".*", write=".*"):
        found = examine()
    assert serious(found) == {"CRB464"}
    assert "celery-monitor may read queues of any name" in found["CRB464"]["found"]
    assert "amq.default" in found["CRB464"]["found"]


def test_client_that_may_do_what_only_workers_need(node, examine):
    wide = r"^(celery|amq\.default|[0-9a-f-]{36})$"
    with node.permitted("client", configure=wide, write=wide, read=wide):
        found = examine(login="client")
    assert serious(found) == {"CRB464"}
    for right in ("amq.default", "take tasks out of the queue celery", "delete the queue celery"):
        assert right in found["CRB464"]["found"]


@pytest.mark.parametrize(
    ("login", "lacking", "said"),
    [
        ("worker", {"write": "^celery$"}, "send results back"),
        ("worker", {"write": r"^amq\.default$"}, "send tasks to celery"),
        ("worker", {"read": "^[0-9a-f-]{36}$"}, "take tasks from celery"),
        ("client", {"write": "^$"}, "send tasks to celery"),
        ("client", {"read": "^$"}, "read its reply queue"),
        ("client", {"configure": "^$"}, "make its reply queue"),
    ],
)
def test_login_that_may_not_do_what_celery_does(node, examine, login, lacking, said):
    with node.permitted(login, **lacking):
        found = examine(login=login)
    assert serious(found) == {"CRB465"}
    assert said in found["CRB465"]["found"]


@contextlib.contextmanager
def memory_alarm(node) -> Iterator[None]:
    node.control("set_vm_memory_high_watermark", "0.00001")
    try:
        yield
    finally:
        node.control("set_vm_memory_high_watermark", "absolute", "500MB")
        wait_for(lambda: not alarmed(node))


@contextlib.contextmanager
def disk_alarm(node) -> Iterator[None]:
    node.control("set_disk_free_limit", "9999GB")
    try:
        yield
    finally:
        node.control("set_disk_free_limit", "50MB")
        wait_for(lambda: not alarmed(node))


def alarmed(node) -> bool:
    return bool(node.evaluate("rabbit_alarm:get_alarms().") != "[]")


@pytest.mark.parametrize(("alarm", "code"), [(memory_alarm, "CRB470"), (disk_alarm, "CRB471")])
def test_alarm_is_seen_by_the_monitor_and_gone_when_it_is_over(node, examine, alarm, code):
    with alarm(node):
        wait_for(lambda: alarmed(node))
        began = time.monotonic()
        found = examine()
        # A blocked server answers nothing more: doctor must not wait for it.
        assert time.monotonic() - began < 3
    assert serious(found) == {code}
    assert "low on" in found[code]["found"]
    assert set(examine(0)) == RPC


def test_alarm_without_a_monitor_login_is_said_not_to_be_looked_for(examine):
    found = examine(0, monitor=False)
    assert set(found) == {*RPC, "CRB001"}
    assert "could not check the broker's memory and disk alarms" in found["CRB001"]["found"]


def test_alarm_that_meets_the_workers_login_is_told(node, examine):
    with memory_alarm(node):
        wait_for(lambda: alarmed(node))
        found = examine(monitor=False)
    assert serious(found) == {"CRB470"}


def test_monitor_login_without_its_right(node, examine):
    with node.permitted("monitor", write="^$"):
        found = examine(0)
    assert f"may not publish to {PROBE}" in found["CRB001"]["found"]


def test_broker_without_the_probe(node, examine):
    name = f'rabbit_misc:r(<<"{VHOST}">>, exchange, <<"{PROBE}">>)'
    node.evaluate(f'rabbit_exchange:delete({name}, false, <<"test">>).')
    try:
        found = examine(0)
    finally:
        node.evaluate(f'rabbit_exchange:declare({name}, fanout, true, false, false, [], <<"test">>).')
    assert f"no exchange {PROBE}" in found["CRB001"]["found"]


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ("task_default_queue_type = 'classic'", "'x-queue-type'"),
        (SHORT_QUEUE, "'x-max-length'"),
    ],
    ids=["type", "argument"],
)
def test_queue_that_is_not_the_one_of_the_settings(examine, extra, said):
    found = examine(extra=f"\n{extra}\n")
    assert serious(found) == {"CRB476"}
    assert f"inequivalent arg {said} for queue 'celery'" in found["CRB476"]["found"]


def test_settings_of_the_users_own_beside_another_backend(node, tmp_path, capsys):
    """Another module name, the password in the URL, plain text, results in files, no monitor."""
    user, password = "celery-worker", quote(node.passwords["worker"], safe="")
    (tmp_path / "mine.py").write_text(
        f'broker_url = "amqp://{user}:{password}@{node.address}:{node.plain}/{VHOST}"\n'
        'result_backend = "file:///nowhere"\n'
    )
    code = main(["doctor", "--config-directory", str(tmp_path), "--module", "mine", "--json"])
    output = capsys.readouterr().out
    assert password not in output
    found = {finding["code"] for finding in json.loads(output)["findings"]}
    assert code == 1
    # The settings say nothing of the queue, so that Celery would make a classic one: the lab's is not.
    assert {"CRB404", "CRB431", "CRB443", "CRB476"} <= found
    assert not found & {"CRB003", "CRB004", "CRB430"}
