"""Real servers for the tests of the Python package; a missing program is an error that names the remedy."""

from __future__ import annotations

import contextlib
import itertools
from typing import TYPE_CHECKING, Any

import pytest
from tests.integration.copy_case import Stores
from tests.integration.redis_lab import RedisLab

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def start_redis(tmp_path) -> Iterator[Callable[..., RedisLab]]:
    """Start servers of this test's own making; all end with it."""
    numbers = itertools.count()
    with contextlib.ExitStack() as running:

        def start(**differences: Any) -> RedisLab:
            return running.enter_context(RedisLab(tmp_path / f"redis{next(numbers)}", **differences))

        yield start


@pytest.fixture(scope="session")
def redis_lab(tmp_path_factory) -> Iterator[RedisLab]:
    """Give one server as it is deployed, for all tests that leave it so."""
    with RedisLab(tmp_path_factory.mktemp("redis")) as lab:
        yield lab


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> Iterator[Stores]:
    """Give servers of every sort, each started when first asked for, for one module's tests."""
    with Stores(tmp_path_factory.mktemp("stores")) as made:
        yield made
