"""One load for all tests of a run, and which tests are whose release's."""

from collections.abc import Iterator

import pytest
from scenario_support import CeleryHost
from tests.soak.scenario import MigrationSite, Soak, release

# Both ways through the stages on each release would be twice as long, and prove little more.
collect_ignore = [{"12": "test_faults.py", "13": "test_way_back.py"}[release()]]


@pytest.fixture(scope="session")
def site() -> MigrationSite:
    return MigrationSite()


@pytest.fixture(scope="session")
def soak(client: CeleryHost, workers: list[CeleryHost]) -> Iterator[Soak]:
    load = Soak(client, workers)
    load.start()
    yield load
    if load.client.host.service("soak-load").is_running:
        load.stop()
