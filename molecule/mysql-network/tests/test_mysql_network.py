"""A server that wants certificates, seen from the host that may reach it and from one that may not."""

import subprocess

from scenario_support import CeleryHost, Site
from testinfra.host import Host


def greeting(host: str, address: str) -> bytes:
    """Return the first bytes that the server says to this host; nothing, if it is dropped."""
    code = (
        "import socket, sys; s = socket.create_connection((sys.argv[1], 13306), 3); "
        "sys.stdout.buffer.write(s.recv(200))"
    )
    said = subprocess.run(
        ["docker", "exec", host, "python3", "-c", code, address], capture_output=True, check=False
    )
    return said.stdout


def test_it_listens_on_the_named_addresses_and_port_only(server: Host, address: str) -> None:
    listening = server.check_output("ss -Hltn sport = :13306 or sport = :3306 | awk '{print $4}'").split()
    assert sorted(listening) == sorted([f"{address}:13306", "127.0.0.1:13306"])


def test_the_workers_settings_follow_the_servers_variables(worker: CeleryHost) -> None:
    """Both are set for the server's group only, which the worker's host is not in."""
    assert worker.python("print(app.conf.result_backend.count(':13306/'))") == "1"
    assert worker.python("print(app.conf.database_engine_options['pool_recycle'])") == "300"


def test_a_certificate_is_wanted(worker: CeleryHost, server: Host) -> None:
    assert (
        worker.python("app.backend.store_result('mtls', 1, 'SUCCESS'); print(app.AsyncResult('mtls').get())")
        == "1"
    )
    attempt = """
import dataclasses, os
from celery_results.settings import connection_from_env
from celery_results.smoke.refusals.mysql import _is_refused
login = connection_from_env(os.environ)
print(_is_refused(login), _is_refused(dataclasses.replace(login, tls=dataclasses.replace(login.tls, cert_file=""))))
"""
    assert worker.python(attempt) == "False True"
    assert (
        server.check_output(
            "mariadb -BNe \"SELECT DISTINCT ssl_type FROM mysql.user WHERE user LIKE 'celery%'\""
        )
        == "X509"
    )


def test_strangers_are_dropped_and_without_the_firewall_have_no_account(
    server: Host, worker: CeleryHost, stranger: str, address: str
) -> None:
    assert greeting(stranger, address) == b""
    server.check_output("nft delete table inet celery_results_mysql")
    try:
        # The control: the packet gets through now; and it is told that it has no account, before any login.
        assert b"is not allowed to connect" in greeting(stranger, address)
    finally:
        server.check_output("systemctl restart celery-results-firewall")
    assert greeting(stranger, address) == b""
    assert worker.cli("smoke --only value")[0] == 0


def test_limiting_a_run_to_the_workers_touches_and_needs_nothing_else(site: Site) -> None:
    site.assert_nothing_to_do("--limit", "celery,localhost")
