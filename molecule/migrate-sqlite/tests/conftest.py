"""One load for all tests."""

from collections.abc import Iterator

import pytest
from scenario_support import CeleryHost
from tests.soak.scenario import MigrationSite, Soak


@pytest.fixture(scope="session")
def site() -> MigrationSite:
    made = MigrationSite()
    made.source = "sqlite"
    return made


@pytest.fixture(scope="session")
def soak(worker: CeleryHost) -> Iterator[Soak]:
    """Run it beside the worker: another host cannot reach the file."""
    load = Soak(worker, [worker], env_file="client.env")
    load.start(rate=4.0)
    yield load
    if load.client.host.service("soak-load").is_running:
        load.stop()
