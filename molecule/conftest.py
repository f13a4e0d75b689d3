"""The scenarios' hosts by role, and runs of the playbooks against them."""

import os
from collections.abc import Iterator

import pytest
from scenario_support import CeleryHost, Site, until
from testinfra.host import Host
from testinfra.utils.ansible_runner import AnsibleRunner


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
def site() -> Site:
    return Site()


@pytest.fixture(scope="session")
def server_name(hosts: AnsibleRunner) -> str:
    return str(hosts.get_hosts(os.environ.get("MOLECULE_BACKEND", "redis"))[0])


@pytest.fixture
def reachable_server(server: Host) -> Iterator[Host]:
    """Return the server, and make sure that a test which broke it leaves it answering."""
    yield server
    until(lambda: server.run("redis-admin ping").stdout.strip() == "PONG", 60, "the server answers again")
