"""Ports of a broker's host that should not answer; the listeners here say what RabbitMQ's would."""

import contextlib
import socket
import threading

import pytest

from celery_results.doctor import certificates
from celery_results.doctor.servers.rabbitmq import network
from celery_results.doctor.servers.rabbitmq.parameters import Parameters

HOST = "127.0.0.1"
AMQP_START = b"\x01\x00\x00\x00\x00\x00\x10\x00\x0a\x00\x0a"
HTTP_ANSWER = b"HTTP/1.1 200 OK\r\n\r\n"
TLS_ALERT = b"\x15\x03\x03\x00\x02\x02\x0a"


@contextlib.contextmanager
def listener(answer):
    """Answer one connection, as long as the test lasts."""
    with socket.create_server((HOST, 0)) as server:

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection:
                        connection.recv(64)
                        connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
    thread.join(5)


@pytest.fixture
def closed():
    """Give a port where nothing listens."""
    with socket.create_server((HOST, 0)) as server:
        return server.getsockname()[1]


@pytest.fixture
def codes(closed, monkeypatch):
    """Look at a host as if it were another machine, at these ports only."""

    def look(*, is_local=False, tls=True, **ports):
        for name in ("PLAIN_PORTS", "MANAGEMENT_PORTS", "DISTRIBUTION_PORTS"):
            monkeypatch.setattr(network, name, (ports.get(name.lower(), closed),))
        monkeypatch.setattr(Parameters, "is_local", is_local)
        parameters = Parameters(HOST, closed, "u", "p", "v", "PLAIN", {} if tls else None)
        return [finding.code for finding in network.check_other_ports(parameters)]

    return look


def test_closed_ports_give_no_finding(codes):
    assert codes() == []


@pytest.mark.parametrize(
    ("code", "kind", "answer"),
    [
        ("CRB459", "plain_ports", AMQP_START),
        ("CRB459", "plain_ports", b"AMQP\x00\x00\x09\x01"),
        ("CRB461", "management_ports", HTTP_ANSWER),
        ("CRB462", "distribution_ports", b""),
    ],
)
def test_port_that_answers(codes, code, kind, answer):
    with listener(answer) as port:
        assert codes(**{kind: port}) == [code]


@pytest.mark.parametrize("kind", ["plain_ports", "management_ports"])
def test_port_with_tls_gives_no_finding(codes, kind):
    with listener(TLS_ALERT) as port:
        assert codes(**{kind: port}) == []


@pytest.mark.parametrize("kind", ["management_ports", "distribution_ports"])
def test_what_answers_on_this_machine_only_is_where_it_belongs(codes, kind):
    with listener(HTTP_ANSWER) as port:
        assert codes(is_local=True, **{kind: port}) == []


def test_settings_without_tls_are_told_so_elsewhere(codes):
    with listener(AMQP_START) as port:
        assert codes(tls=False, plain_ports=port) == []


def test_ports_that_say_nothing_cost_one_wait_together(codes, monkeypatch):
    waiting = threading.Barrier(2, timeout=5)

    def wait(*_arguments):
        waiting.wait()  # raises unless all wait at the same time
        return ""

    monkeypatch.setattr(certificates, "answers_in_plain_text", wait)
    monkeypatch.setattr(certificates, "unreachable", lambda *_arguments: wait() or "timed out")
    assert codes() == []
    assert not waiting.broken
