"""celery_results.backends.redis on a real server: between two attempts of a task, and when it is full."""

from __future__ import annotations

import itertools
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from celery.exceptions import BackendStoreError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ExecAbortError, OutOfMemoryError, ResponseError

from celery_results.backends.redis import is_full
from celery_results.settings import environment, load_settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.integration.redis_lab import RedisLab

KEY = "celery-task-meta-t"
VALUES = {"SUCCESS": "value", "FAILURE": ValueError("x"), "RETRY": ValueError("x")}
PICKLE = {"result_serializer": "pickle", "result_accept_content": ["pickle"]}


def backend_of(lab: RedisLab, directory: Path, **settings: Any) -> Any:
    """Give a worker's backend as it is deployed, but for these settings."""
    lab.write_config(directory)
    app = Celery("test")
    app.conf.update(load_settings(directory, environment(directory / "celery.env")), **settings)
    return app.backend


@pytest.fixture
def admin(redis_lab: RedisLab) -> Any:
    with redis_lab.admin() as client:
        yield client


@pytest.fixture
def make(redis_lab: RedisLab, tmp_path: Path) -> Callable[..., Any]:
    """Give what makes backends, with settings of their own, of workers of one server without results."""
    with redis_lab.admin() as client:
        client.delete(KEY)
    numbers = itertools.count()
    return lambda **settings: backend_of(redis_lab, tmp_path / f"etc{next(numbers)}", **settings)


@pytest.fixture
def backend(make: Callable[..., Any]) -> Any:
    return make()


@pytest.fixture
def full(start_redis: Any, tmp_path: Path) -> Any:
    """Return a server without room for anything, and the backend of a worker of its."""
    lab: RedisLab = start_redis()
    admin = lab.admin()
    admin.config_set("maxmemory", 1)
    return admin, backend_of(lab, tmp_path / "etc")


def after_reading(backend: Any, act: Callable[[], object]) -> None:
    """Let this happen whenever the backend has read what is stored, and not yet written."""
    read = backend.get

    def get(key: bytes) -> Any:
        found = read(key)
        act()
        return found

    backend.get = get


def sent_by(backend: Any) -> list[str]:
    """Give the list of the commands that the backend sends from now on."""
    names: list[str] = []
    send = backend.client.execute_command

    def execute(*words: Any, **options: Any) -> Any:
        names.append(words[0])
        return send(*words, **options)

    backend.client.execute_command = execute
    return names


@pytest.mark.parametrize("before", ["", "STARTED"])
@pytest.mark.parametrize(
    "settings", [{}, PICKLE, {"result_compression": "gzip"}], ids=["json", "pickle", "gzip"]
)
def test_a_success_stored_between_reading_and_writing_stays(
    make: Callable[..., Any], settings: dict[str, Any], before: str
) -> None:
    first, second = make(**settings), make(**settings)
    if before:
        first.store_result("t", {"pid": 1}, before)
    after_reading(first, lambda: second.store_result("t", "value", "SUCCESS"))
    first.store_result("t", KeyError("again"), "RETRY")
    meta = second.get_task_meta("t")
    assert (meta["status"], meta["result"]) == ("SUCCESS", "value")


def test_what_is_not_final_is_replaced_as_celery_does(make: Callable[..., Any], admin: Any) -> None:
    first, second = make(), make()
    after_reading(first, lambda: second.store_result("t", ValueError("x"), "FAILURE"))
    first.store_result("t", ValueError("x"), "RETRY")
    assert "RETRY" in admin.get(KEY)


def test_what_is_gone_meanwhile_is_stored(backend: Any, admin: Any) -> None:
    backend.store_result("t", None, "STARTED")
    after_reading(backend, lambda: admin.delete(KEY))
    backend.store_result("t", "value", "SUCCESS")
    assert "SUCCESS" in admin.get(KEY)


def test_clients_are_told_once_what_is_stored_and_nothing_that_is_not(backend: Any, admin: Any) -> None:
    with admin.pubsub() as listener:
        listener.subscribe(KEY)
        backend.store_result("t", "value", "SUCCESS")
        stored = admin.get(KEY)
        # As if it had read before that was stored.
        backend._replace(KEY, "late", 60, None)
        admin.publish(KEY, "end")
        heard: list[str] = []
        while "end" not in heard:
            message = listener.get_message(timeout=5)
            assert message is not None, heard
            heard += [message["data"]] if message["type"] == "message" else []
    assert heard == [stored, "end"]


def test_a_store_takes_two_round_trips_and_two_more_on_a_server_that_is_new(backend: Any, admin: Any) -> None:
    """A promoted replica and a restarted server are new; SCRIPT FLUSH makes one so."""
    backend.client.ping()
    admin.script_flush()
    sent = sent_by(backend)
    backend.store_result("t", None, "STARTED")
    assert sent == ["GET", "EVALSHA", "SCRIPT LOAD", "EVALSHA"]
    sent.clear()
    backend.store_result("t", "value", "SUCCESS")
    assert sent == ["GET", "EVALSHA"]
    assert "SUCCESS" in admin.get(KEY)


@pytest.mark.parametrize(
    ("settings", "state", "seconds"),
    [
        ({"result_expires": 500}, "SUCCESS", 500),
        ({"result_expires": 500, "result_failure_expires": 900}, "FAILURE", 900),
        ({"result_expires": 500, "result_failure_expires": 900}, "RETRY", 500),
        ({"result_expires": 500, "result_failure_expires": 0}, "FAILURE", -1),
        ({"result_expires": None}, "SUCCESS", -1),
        ({"result_expires": None}, "FAILURE", -1),
    ],
)
def test_results_live_as_long_as_celery_lets_them(
    make: Callable[..., Any], admin: Any, settings: dict[str, Any], state: str, seconds: int
) -> None:
    admin.set(KEY, "", ex=7)
    make(**settings).store_result("t", VALUES[state], state)
    left = admin.ttl(KEY)
    assert left == seconds if seconds < 0 else seconds - 60 < left <= seconds


def test_who_is_always_too_late_writes_in_the_end(backend: Any, admin: Any) -> None:
    call, calls = backend.client.evalsha, []

    def evalsha(*words: Any) -> Any:
        calls.append(words)
        admin.set(KEY, backend.encode({"status": "STARTED", "result": len(calls)}))
        return call(*words)

    backend.client.evalsha = evalsha
    backend.store_result("t", "value", "SUCCESS")
    assert 2 < len(calls) < 50
    assert "SUCCESS" in admin.get(KEY)


@pytest.mark.parametrize("state", ["SUCCESS", "FAILURE"])
def test_an_answer_that_is_lost_is_no_change_by_others(backend: Any, admin: Any, state: str) -> None:
    call, calls = backend.client.evalsha, []

    def evalsha(*words: Any) -> Any:
        calls.append(words)
        answer = call(*words)
        if len(calls) == 1:
            raise RedisConnectionError("lost on its way")
        return answer

    backend.store_result("t", None, "STARTED")
    backend.client.evalsha = evalsha
    backend.store_result("t", VALUES[state], state)
    assert len(calls) == (2 if state == "SUCCESS" else 3)
    assert state in admin.get(KEY)


def test_a_value_over_redis_limit_is_celerys_error(backend: Any, admin: Any) -> None:
    backend._MAX_STR_VALUE_SIZE = 500
    with pytest.raises(BackendStoreError, match="too large") as error:
        backend.store_result("t", "x" * 500, "SUCCESS")
    assert (error.value.state, error.value.task_id) == ("SUCCESS", "t")
    assert admin.get(KEY) is None
    backend.store_result("t", "x" * 100, "SUCCESS")
    assert "SUCCESS" in admin.get(KEY)


def test_a_failure_is_recorded_as_soon_as_there_is_room(full: Any) -> None:
    admin, backend = full
    stored = threading.Thread(target=backend.store_result, args=("t", ValueError("x"), "FAILURE"))
    stored.start()
    time.sleep(1)
    assert stored.is_alive()
    assert admin.get(KEY) is None
    admin.config_set("maxmemory", 0)
    stored.join(20)
    assert not stored.is_alive()
    assert backend.get_task_meta("t")["status"] == "FAILURE"


def test_memory_that_runs_out_between_the_writes_and_their_execution_is_known_as_full(full: Any) -> None:
    """Groups are stored in a transaction: it may be queued before and executed after others filled up."""
    admin, _ = full
    admin.config_set("maxmemory", 0)
    connection = admin.connection_pool.get_connection()
    for command in (["MULTI"], ["SET", KEY, "x"]):
        connection.send_command(*command)
        connection.read_response()
    admin.config_set("maxmemory", 1)
    connection.send_command("EXEC")
    with pytest.raises(ExecAbortError) as refusal:
        connection.read_response()
    assert is_full(refusal.value)


def test_a_value_is_refused_at_once_and_nobody_is_told(full: Any) -> None:
    admin, backend = full
    with admin.pubsub() as listener:
        listener.subscribe(KEY)
        with pytest.raises(OutOfMemoryError):
            backend.store_result("t", "value", "SUCCESS")
        admin.publish(KEY, "end")
        heard = [listener.get_message(timeout=5)["data"] for _ in range(2)]
    assert heard == [1, "end"]


def test_a_failure_gives_up_in_the_end(full: Any) -> None:
    _, backend = full
    backend.max_retries = 2
    with pytest.raises(BackendStoreError):
        backend.store_result("t", ValueError("x"), "FAILURE")


def test_a_server_that_cannot_save_is_full(start_redis: Any, tmp_path: Path) -> None:
    lab: RedisLab = start_redis()
    admin, backend = lab.admin(), backend_of(lab, tmp_path / "etc")
    (lab.directory / "dump.rdb" / "in-the-way").mkdir(parents=True)
    admin.config_set("save", "3600 1000000")
    admin.bgsave()
    deadline = time.monotonic() + 20
    while admin.info("persistence")["rdb_last_bgsave_status"] == "ok":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with pytest.raises(ResponseError, match="MISCONF") as refusal:
        backend.store_result("t", "value", "SUCCESS")
    assert is_full(refusal.value)
    backend.max_retries = 1
    with pytest.raises(BackendStoreError):
        backend.store_result("t", ValueError("x"), "FAILURE")
    assert admin.get(KEY) is None
