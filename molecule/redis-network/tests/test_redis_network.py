"""A server with two addresses, seen from the hosts that may reach it and from one that may not."""

import os
import subprocess
from collections.abc import Iterator

import pytest
from scenario_support import CeleryHost, Site
from testinfra.host import Host
from testinfra.utils.ansible_runner import AnsibleRunner

PREFIX = os.environ.get("MOLECULE_PREFIX", "crb")
RELEASE = os.environ.get("MOLECULE_DEBIAN", "13")
CONNECT = "timeout 3 bash -c 'exec 3<>/dev/tcp/{address}/{port}' && echo open"


@pytest.fixture
def client(hosts: AnsibleRunner) -> CeleryHost:
    return CeleryHost(hosts.get_host(hosts.get_hosts("celery_client")[0]))


@pytest.fixture
def addresses(server_name: str) -> dict[str, str]:
    """Return the server's addresses on the networks front and back."""

    def on(network: str) -> str:
        template = f'{{{{(index .NetworkSettings.Networks "{PREFIX}-net-{network}-{RELEASE}").IPAddress}}}}'
        shown = subprocess.run(
            ["docker", "inspect", "-f", template, server_name], capture_output=True, text=True, check=True
        )
        return shown.stdout.strip()

    return {"front": on("front"), "back": on("back")}


@pytest.fixture
def stranger() -> Iterator[str]:
    """Start a host on the same network which is in no group; return its name."""
    name = f"{PREFIX}-net-stranger-{RELEASE}"
    subprocess.run(
        ["docker", "run", "-d", "--rm", "--name", name, "--label", f"owner=molecule-{PREFIX}",
         "--network", f"{PREFIX}-net-back-{RELEASE}", f"crb-debian-bare:{RELEASE}", "sleep", "120"],
        capture_output=True, check=True,
    )  # fmt: skip
    yield name
    subprocess.run(["docker", "rm", "-f", name], capture_output=True, check=True)


def test_it_listens_on_the_named_addresses_and_port_only(server: Host, addresses: dict[str, str]) -> None:
    listening = server.check_output("ss -Hltn sport = :7379 or sport = :6379 | awk '{print $4}'")
    assert f"{addresses['back']}:7379" in listening
    assert "127.0.0.1:7379" in listening
    assert addresses["front"] not in listening
    assert "0.0.0.0" not in listening  # noqa: S104 - looked for, not bound
    assert ":6379" not in listening


def test_a_worker_stores_and_a_client_reads(worker: CeleryHost, client: CeleryHost) -> None:
    worker.python("app.backend.store_result('shared', {'n': 1}, 'SUCCESS')")
    assert client.python("print(app.AsyncResult('shared').get(timeout=10)['n'])") == "1"
    assert worker.python("print(app.backend.app.conf.result_backend.count(':7379/'))") == "1"


def test_a_client_host_has_no_login_that_can_store(client: CeleryHost, site: Site) -> None:
    everything = client.host.check_output("cat /etc/celery/*.env")
    assert site.secrets()["redis_worker_password"] not in everything
    assert site.secrets()["redis_admin_password"] not in everything
    attempt = client.host.run(client.command("app.backend.store_result('forged', 1, 'SUCCESS')"))
    assert attempt.rc != 0
    assert "NoPermission" in attempt.stderr


def test_strangers_are_dropped_and_ssh_is_not(server: Host, stranger: str, addresses: dict[str, str]) -> None:
    def reaches(port: int) -> bool:
        shell = CONNECT.format(address=addresses["back"], port=port)
        return "open" in subprocess.run(
            ["docker", "exec", stranger, "bash", "-c", shell], capture_output=True, text=True, check=False
        ).stdout  # fmt: skip

    server.check_output("systemd-run --unit=other-service python3 -m http.server 22 --bind 0.0.0.0")
    try:
        assert not reaches(7379)
        assert reaches(22)
        server.check_output("nft delete table inet celery_results_redis")
        assert reaches(7379), "the control: without the rule, the port is open"
        server.check_output("systemctl restart celery-results-firewall")
        assert not reaches(7379)
    finally:
        server.check_output("systemctl stop other-service")


def test_limiting_a_run_to_the_workers_touches_and_needs_nothing_else(site: Site) -> None:
    run = site.run("--limit", "celery,localhost")
    assert run.returncode == 0, run.stdout[-3000:]
    assert "changed=0" in run.stdout
