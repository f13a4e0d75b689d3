"""Real servers for the tests of the Python package; a missing program is an error that names the remedy."""

from __future__ import annotations

import contextlib
import itertools
from typing import TYPE_CHECKING, Any

import pytest
from celery._state import _get_active_apps
from tests.integration.copy_case import Stores
from tests.integration.postgresql_lab import DeployedPostgres
from tests.integration.redis_lab import RedisLab
from tests.integration.soak_case import REDIS_RIGHTS, Walk

from celery_results.smoke.application import stop_waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Those that take longest; they begin before all others, beside which the last one would run alone.
LONGEST = ("test_dual_backend.py", "test_soak_builds.py", "test_soak.py", "test_rabbitmq_faults.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have the longest files begin first."""
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown() -> None:
    """Have results that a test leaves to the garbage collector look for their server no more.

    Else each of them asks one that is gone for as long as its settings say, in the middle of another test.
    """
    for app in list(_get_active_apps()):
        if app._backend is not None:
            stop_waiting(app)


@pytest.fixture
def start_redis(tmp_path) -> Iterator[Callable[..., RedisLab]]:
    """Start servers of this test's own making; all end with it."""
    numbers = itertools.count()
    with contextlib.ExitStack() as running:

        def start(**differences: Any) -> RedisLab:
            return running.enter_context(RedisLab(tmp_path / f"redis{next(numbers)}", **differences))

        yield start


@pytest.fixture(scope="session")
def shared_redis(tmp_path_factory) -> Iterator[RedisLab]:
    """Give one server as it is deployed, for all tests that leave it so."""
    with RedisLab(tmp_path_factory.mktemp("redis")) as lab:
        yield lab


@pytest.fixture
def redis_lab(shared_redis) -> RedisLab:
    """Give that server, without what other tests have left on it."""
    with shared_redis.admin() as admin:
        admin.flushall()
    lab: RedisLab = shared_redis
    return lab


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> Iterator[Stores]:
    """Give servers of every sort, each started when first asked for, for one module's tests."""
    with Stores(tmp_path_factory.mktemp("stores")) as made:
        yield made


@pytest.fixture(scope="module")
def soak_postgres() -> Iterator[DeployedPostgres]:
    """Give a PostgreSQL as it is deployed, the target of a module's walks."""
    with DeployedPostgres() as server:
        server.deploy()
        yield server


@pytest.fixture
def walk(tmp_path, start_redis, soak_postgres) -> Iterator[Callable[[str], Walk]]:
    """Begin with two workers and the load on Redis alone."""
    walks: list[Walk] = []

    def begin(broken: str = "") -> Walk:
        soak_postgres.inside("TRUNCATE celery_taskmeta, celery_tasksetmeta")
        made = Walk(tmp_path / "walk", start_redis(acl=REDIS_RIGHTS), soak_postgres, broken)
        walks.append(made)
        made.roll_workers("old")
        made.roll_clients("old")
        return made

    yield begin
    for made in walks:
        made.end()
