"""celery_results.backends.redis on a real server: who waits is told, whatever the server does first."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from celery.result import GroupResult

from celery_results.settings import environment, load_settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.integration.redis_lab import RedisLab

IDS = ("a", "b", "c")
LIMIT = 5


def app_of(lab: RedisLab, directory: Path, login: str) -> Any:
    lab.write_config(directory)
    app = Celery(login, set_as_current=False)
    app.conf.update(load_settings(directory, environment(directory / f"{login}.env")))
    return app


@pytest.fixture
def app(redis_lab: RedisLab, tmp_path: Path) -> Any:
    """Give a client as it is deployed."""
    return app_of(redis_lab, tmp_path / "client", "client")


@pytest.fixture
def store(redis_lab: RedisLab, tmp_path: Path) -> Callable[..., None]:
    """Give what stores a result as a worker does."""
    backend = app_of(redis_lab, tmp_path / "worker", "celery").backend

    def storing(task_id: str, state: str = "SUCCESS") -> None:
        backend.store_result(task_id, task_id.upper(), state)

    return storing


@pytest.fixture
def group(app: Any) -> GroupResult:
    return GroupResult("g", [app.AsyncResult(task_id) for task_id in IDS], app=app)


def subscribe_late(app: Any, act: Callable[[], object]) -> None:
    """Have the server look, then let this happen, then subscribe; Redis may do so to what Celery sends."""
    consumer = app.backend.result_consumer
    look = consumer.on_wait_for_pending

    def on_wait_for_pending(result: Any, **options: Any) -> None:
        keys = sorted(consumer.subscribed_to)
        with consumer._locked():
            consumer._pubsub.unsubscribe(*keys)
            while consumer._pubsub.subscribed:
                consumer._pubsub.get_message(timeout=1)
            look(result, **options)
            act()
            consumer._pubsub.subscribe(*keys)

    consumer.on_wait_for_pending = on_wait_for_pending


def reads_of(app: Any) -> list[int]:
    """Count the keys of each MGET that the client sends from now on."""
    sizes: list[int] = []
    mget = app.backend.client.mget

    def counted(keys: Any) -> Any:
        sizes.append(len(keys))
        return mget(keys)

    app.backend.client.mget = counted
    return sizes


def test_a_result_stored_between_the_look_and_the_subscription_is_seen(
    app: Any, store: Callable[..., None]
) -> None:
    subscribe_late(app, lambda: store("a"))
    assert app.AsyncResult("a").get(timeout=LIMIT) == "A"


def test_those_of_a_group_are_seen_with_one_read(
    app: Any, group: GroupResult, store: Callable[..., None]
) -> None:
    subscribe_late(app, lambda: deque(map(store, IDS)))
    reads = reads_of(app)
    assert group.get(timeout=LIMIT) == ["A", "B", "C"]
    assert reads == [3, 3]  # Celery's look, and ours


def test_a_result_stored_while_a_lost_connection_is_made_anew_is_seen(
    app: Any, store: Callable[..., None], redis_lab: RedisLab
) -> None:
    result = app.AsyncResult("a")
    backend = app.backend
    backend.add_pending_result(result)
    reads: list[Any] = []
    mget = backend.client.mget

    def before_the_subscription(keys: Any) -> Any:
        found = mget(keys)
        if not reads:
            store("a")
        reads.append(found)
        return found

    backend.client.mget = before_the_subscription
    with redis_lab.admin() as admin:
        assert admin.client_kill_filter(_type="pubsub") == 1
    assert result.get(timeout=LIMIT) == "A"
    assert reads[0] == [None]


def test_who_is_told_of_states_is_not_told_of_old_ones(app: Any, store: Callable[..., None]) -> None:
    store("a", "STARTED")
    told: list[str] = []
    subscribe_late(app, lambda: threading.Timer(1, store, ["a"]).start())
    app.AsyncResult("a").get(timeout=LIMIT, on_message=lambda meta: told.append(meta["status"]))
    assert told == ["SUCCESS"]


def test_what_was_there_is_not_read_again(app: Any, store: Callable[..., None]) -> None:
    store("a")
    reads = reads_of(app)
    assert app.AsyncResult("a").get(timeout=LIMIT) == "A"
    app.backend.result_consumer.drain_events(timeout=0.2)
    assert reads == []
