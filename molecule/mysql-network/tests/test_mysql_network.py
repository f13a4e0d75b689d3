"""A server that wants certificates, seen from the host that may reach it and from one that may not."""

import os
import subprocess
from collections.abc import Iterator

import pytest
from scenario_support import CeleryHost, Site
from testinfra.host import Host

PREFIX = os.environ.get("MOLECULE_PREFIX", "crb")
RELEASE = os.environ.get("MOLECULE_DEBIAN", "13")


@pytest.fixture
def address(server_name: str) -> str:
    shown = subprocess.run(
        ["docker", "inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", server_name],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return shown.stdout.strip()


@pytest.fixture
def outsider() -> Iterator[str]:
    """Start a host on the same network which is in no group; return its name."""
    name = f"{PREFIX}-mysqlnet-outsider-{RELEASE}"
    subprocess.run(
        ["docker", "run", "-d", "--rm", "--name", name, "--label", f"owner=molecule-{PREFIX}",
         "--network", f"{PREFIX}-mysqlnet-{RELEASE}", f"crb-debian-bare:{RELEASE}", "sleep", "120"],
        capture_output=True, check=True,
    )  # fmt: skip
    yield name
    subprocess.run(["docker", "rm", "-f", name], capture_output=True, check=True)


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


def test_outsiders_are_dropped_and_without_the_firewall_have_no_account(
    server: Host, worker: CeleryHost, outsider: str, address: str
) -> None:
    assert greeting(outsider, address) == b""
    server.check_output("nft delete table inet celery_results_mysql")
    try:
        # The control: the packet gets through now; and it is told that it has no account, before any login.
        assert b"is not allowed to connect" in greeting(outsider, address)
    finally:
        server.check_output("systemctl restart celery-results-firewall")
    assert greeting(outsider, address) == b""
    assert worker.cli("smoke --only value")[0] == 0


def test_limiting_a_run_to_the_workers_touches_and_needs_nothing_else(site: Site) -> None:
    run = site.run("--limit", "celery,localhost")
    assert run.returncode == 0, run.stdout[-3000:]
    assert "changed=0" in run.stdout
