"""One load for all tests of a run, and which tests are whose release's."""

from collections.abc import Iterator

import pytest
from scenario_support import CeleryHost
from tests.soak.scenario import MigrationSite, Soak, release

# Both ways through the stages on each release would be twice as long, and prove little more.
OTHERS = {"12": "test_faults.py", "13": "test_way_back.py"}[release()]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the other release's walk out; collect_ignore is not asked for files that are named, as molecule does."""
    others = [item for item in items if item.path.name == OTHERS]
    items[:] = [item for item in items if item not in others]
    config.hook.pytest_deselected(items=others)


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
