"""Real servers for the tests of the Python package; a missing program is an error that names the remedy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from tests.integration.redis_lab import RedisLab

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def start_redis(tmp_path) -> Iterator[Callable[..., RedisLab]]:
    """Start servers of this test's own making; all end with it."""
    labs: list[RedisLab] = []

    def start(**differences: Any) -> RedisLab:
        lab = RedisLab(tmp_path / f"redis{len(labs)}", **differences)
        labs.append(lab)
        lab.start()
        return lab

    yield start
    for lab in labs:
        lab.stop()


@pytest.fixture(scope="session")
def redis_lab(tmp_path_factory) -> Iterator[RedisLab]:
    """Give one server as it is deployed, for all tests that leave it so."""
    lab = RedisLab(tmp_path_factory.mktemp("redis"))
    try:
        lab.start()
        yield lab
    finally:
        lab.stop()
