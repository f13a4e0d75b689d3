"""celery_results.backends.redis against a server that is full."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from celery.exceptions import BackendStoreError
from redis.exceptions import ExecAbortError, OutOfMemoryError

from celery_results.backends.redis import is_full
from celery_results.settings import environment, load_settings

if TYPE_CHECKING:
    from tests.integration.redis_lab import RedisLab


@pytest.fixture
def full(start_redis: Any, tmp_path: Any) -> Any:
    """Return a server without room for anything, and the backend of a worker of its."""
    lab: RedisLab = start_redis()
    directory = lab.write_config(tmp_path / "etc")
    app = Celery("full")
    app.conf.update(load_settings(directory, environment(directory / "celery.env")))
    admin = lab.admin()
    admin.config_set("maxmemory", 1)
    return admin, app.backend


def test_a_failure_is_recorded_as_soon_as_there_is_room(full: Any) -> None:
    admin, backend = full
    stored = threading.Thread(target=backend.store_result, args=("t", ValueError("x"), "FAILURE"))
    stored.start()
    time.sleep(1)
    assert stored.is_alive()
    assert admin.get("celery-task-meta-t") is None
    admin.config_set("maxmemory", 0)
    stored.join(20)
    assert not stored.is_alive()
    assert backend.get_task_meta("t")["status"] == "FAILURE"


def test_memory_that_runs_out_between_the_writes_and_their_execution_is_known_as_full(full: Any) -> None:
    """Celery stores in a transaction: the write may be queued before and executed after others filled up."""
    admin, _ = full
    admin.config_set("maxmemory", 0)
    connection = admin.connection_pool.get_connection()
    for command in (["MULTI"], ["SET", "celery-task-meta-t", "x"]):
        connection.send_command(*command)
        connection.read_response()
    admin.config_set("maxmemory", 1)
    connection.send_command("EXEC")
    with pytest.raises(ExecAbortError) as refusal:
        connection.read_response()
    assert is_full(refusal.value)


def test_a_value_is_refused_at_once(full: Any) -> None:
    _, backend = full
    with pytest.raises(OutOfMemoryError):
        backend.store_result("t", "value", "SUCCESS")


def test_a_failure_gives_up_in_the_end(full: Any) -> None:
    _, backend = full
    backend.max_retries = 2
    with pytest.raises(BackendStoreError):
        backend.store_result("t", ValueError("x"), "FAILURE")
