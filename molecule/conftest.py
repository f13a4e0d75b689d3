"""The scenarios' hosts by role, and runs of the playbooks against them."""

import os
import subprocess
from collections.abc import Iterator

import pytest
from scenario_support import CeleryHost, Site, networks_of, until
from testinfra.host import Host
from testinfra.utils.ansible_runner import AnsibleRunner

PREFIX = os.environ.get("MOLECULE_PREFIX", "crb")
RELEASE = os.environ.get("MOLECULE_DEBIAN", "13")


@pytest.fixture(scope="session")
def hosts() -> AnsibleRunner:
    return AnsibleRunner(os.environ["MOLECULE_INVENTORY_FILE"])


@pytest.fixture(scope="session")
def server(hosts: AnsibleRunner) -> Host:
    """Return the first host of the backend's group."""
    return hosts.get_host(hosts.get_hosts(os.environ.get("MOLECULE_BACKEND", "redis"))[0])


@pytest.fixture(scope="session")
def worker(hosts: AnsibleRunner) -> CeleryHost:
    return CeleryHost(hosts.get_host(hosts.get_hosts("celery")[0]))


@pytest.fixture(scope="session")
def workers(hosts: AnsibleRunner) -> list[CeleryHost]:
    """Return every worker host, in the order in which they are restarted."""
    return [CeleryHost(hosts.get_host(name)) for name in hosts.get_hosts("celery")]


@pytest.fixture(scope="session")
def client(hosts: AnsibleRunner) -> CeleryHost:
    """Return the first host that only sends tasks and reads their results."""
    return CeleryHost(hosts.get_host(hosts.get_hosts("celery_client")[0]))


@pytest.fixture(scope="session")
def site() -> Site:
    return Site()


@pytest.fixture(scope="session")
def server_name(hosts: AnsibleRunner) -> str:
    return str(hosts.get_hosts(os.environ.get("MOLECULE_BACKEND", "redis"))[0])


@pytest.fixture
def network(hosts: AnsibleRunner) -> str:
    """Return the name of the one network that the worker's host is on."""
    (name,) = networks_of(str(hosts.get_hosts("celery")[0]))
    return name


@pytest.fixture
def address(server_name: str, network: str) -> str:
    """Return the server's address on the worker's network."""
    return networks_of(server_name)[network]


@pytest.fixture
def stranger(network: str) -> Iterator[str]:
    """Start a host on the worker's network which is in no group; return its name."""
    name = f"{network}-stranger"
    subprocess.run(
        ["docker", "run", "-d", "--rm", "--name", name, "--label", f"owner=molecule-{PREFIX}",
         "--network", network, f"crb-debian-bare:{RELEASE}", "sleep", "120"],
        capture_output=True, check=True,
    )  # fmt: skip
    yield name
    subprocess.run(["docker", "rm", "-f", name], capture_output=True, check=True)


@pytest.fixture
def reachable_server(server: Host) -> Iterator[Host]:
    """Return the server, and make sure that a test which broke it leaves it answering."""
    yield server
    until(lambda: server.run("redis-admin ping").stdout.strip() == "PONG", 60, "the server answers again")
