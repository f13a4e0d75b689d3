"""What the deployed settings do when RabbitMQ refuses, is blocked, or dies under them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from amqp.exceptions import AccessRefused, PreconditionFailed
from celery import Celery
from kombu.exceptions import OperationalError
from tests.integration.lab_files import ROOT
from tests.integration.rabbitmq_lab import QUEUES, VHOST, RabbitmqLab, permissions

from celery_results.settings import load_settings, read_env_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PATIENCE_SECONDS = 90
QUEUE = QUEUES[0]
APPLICATION = """
import time
from celery import Celery
app = Celery("proj")
app.config_from_object("celeryconfig")
@app.task(name="proj.add")
def add(left, right):
    return left + right
@app.task(name="proj.slow")
def slow(seconds):
    time.sleep(seconds)
    return seconds
"""


@pytest.fixture(scope="module", params=["quorum", "classic"])
def lab(tmp_path_factory, request) -> Iterator[RabbitmqLab]:
    with RabbitmqLab(tmp_path_factory.mktemp("rabbitmq"), queue_type=request.param) as node:
        yield node


@pytest.fixture
def client(lab, tmp_path) -> Iterator[Callable[..., Celery]]:
    """Make apps with the deployed settings of the client's login, and changes to them."""
    config = lab.write_config(tmp_path / "client")
    settings = load_settings(config, read_env_file(config / "client.env"))
    apps: list[Celery] = []

    def make(*, transport: dict[str, Any] | None = None, **changes: Any) -> Celery:
        app = Celery(f"proj{len(apps)}", set_as_current=False)
        app.config_from_object(settings)
        # Distinct options: kombu hands out one pool for equal connections, of other apps too.
        options = {
            **settings["broker_transport_options"],
            **(transport or {}),
            "of": f"{tmp_path}{len(apps)}",
        }
        app.conf.update(broker_transport_options=options, **changes)
        apps.append(app)
        return app

    yield make
    for app in apps:
        app.close()


@contextlib.contextmanager
def worker(
    lab: RabbitmqLab, directory: Path, *options: str, ready: bool = True
) -> Iterator[Callable[[], str]]:
    """Run a worker of the deployed settings; gives its log."""
    config = lab.write_config(directory / "worker")
    (directory / "proj.py").write_text(APPLICATION)
    log = directory / "worker.log"
    path = os.pathsep.join([str(config), str(directory), str(ROOT / "src")])
    environment = {**os.environ, **read_env_file(config / "celery.env"), "PYTHONPATH": path}
    arguments = ["--quiet", "--app", "proj", "worker", "--concurrency", "1", "--loglevel", "INFO", *options]
    with (
        log.open("wb") as stream,
        subprocess.Popen(
            [sys.executable, "-m", "celery", *arguments], env=environment, stdout=stream, stderr=stream
        ) as process,
    ):
        try:
            if ready:
                assert wait_until(lambda: " ready." in log.read_text()), log.read_text()
            yield log.read_text
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def wait_until(condition: Callable[[], object], seconds: float = PATIENCE_SECONDS) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    return bool(condition())


def grant(lab: RabbitmqLab, login: str, **changes: str) -> None:
    patterns = {**permissions(lab.queue_type)[login], **changes}
    values = [patterns[name] for name in ("configure", "write", "read")]
    lab.control("set_permissions", "--vhost", VHOST, f"celery-{login}", *values)


def in_the_queue(lab: RabbitmqLab) -> int:
    """Count and remove the tasks in the queue, by a consumer of their own."""
    count = 0
    with lab.connection("worker") as connection:
        channel = connection.channel()
        while channel.basic_get(QUEUE, no_ack=True):
            count += 1
    return count


def test_a_client_that_may_not_write_gets_an_error_and_without_confirmations_silence(lab, client):
    grant(lab, "client", write="^$")
    try:
        with pytest.raises(AccessRefused, match="403"):
            client().send_task("proj.add", (1, 2), ignore_result=True)
        silent = client(transport={"confirm_publish": False})
        assert silent.send_task("proj.add", (1, 2), ignore_result=True).id
    finally:
        grant(lab, "client")
    assert in_the_queue(lab) == 0


def test_a_queue_that_the_client_does_not_know_is_an_error_too(client):
    with pytest.raises(AccessRefused, match="403"):
        client().send_task("proj.add", (1, 2), ignore_result=True, queue="another")


def test_tasks_that_were_confirmed_survive_a_kill(lab, client):
    app = client()
    for number in range(200):
        app.send_task("proj.add", (number, 1), ignore_result=True)
    lab.kill()
    lab.start()
    wait_until(lambda: lab.queues().get(QUEUE) == 200)
    assert in_the_queue(lab) == 200


def test_a_client_that_is_sending_outlives_a_restart_and_loses_nothing(lab, client):
    app = client()
    # A busy machine takes longer to start a node than the deployed retries last.
    app.conf.task_publish_retry_policy = {**app.conf.task_publish_retry_policy, "max_retries": 60}
    app.send_task("proj.add", (0, 1), ignore_result=True)
    lab.kill()
    restart = threading.Timer(0.5, lab.start)
    restart.start()
    try:
        app.send_task("proj.add", (1, 1), ignore_result=True)
    finally:
        restart.join()
    assert in_the_queue(lab) == 2


def test_a_reply_that_waits_survives_a_kill_as_long_as_its_client_lives(lab, client, tmp_path):
    app = client()
    with worker(lab, tmp_path) as log:
        result = app.send_task("proj.add", (20, 22))
        # Nobody has asked for it yet: it waits in the client's queue.
        assert wait_until(lambda: "succeeded" in log())
        assert wait_until(lambda: lab.queues()[app.backend.oid] == 1)
        lab.kill()
        lab.start()
        assert result.get(timeout=PATIENCE_SECONDS) == 42


def test_a_client_that_is_gone_before_its_reply_leaves_nothing(lab, client, tmp_path):
    app = client()
    with worker(lab, tmp_path) as log:
        result = app.send_task("proj.slow", (2,))
        with pytest.raises(Exception, match="timed out"):
            result.get(timeout=0.3)
        assert app.backend.oid in lab.queues()
        app.backend.result_consumer.stop()
        assert wait_until(lambda: app.backend.oid not in lab.queues())
        assert wait_until(lambda: "succeeded" in log())
        assert app.backend.oid not in lab.queues()
        # The worker goes on.
        assert client().send_task("proj.add", (1, 2)).get(timeout=PATIENCE_SECONDS) == 3


@pytest.mark.parametrize(
    ("alarm", "end"),
    [
        (("set_vm_memory_high_watermark", "0.0001"), ("set_vm_memory_high_watermark", "absolute", "500MB")),
        (("set_disk_free_limit", "1000000GB"), ("set_disk_free_limit", "50MB")),
    ],
    ids=["memory", "disk"],
)
def test_an_alarm_blocks_publishers_for_a_bounded_time_and_loses_nothing(lab, client, alarm, end):
    app = client()
    app.send_task("proj.add", (0, 1), ignore_result=True)
    lab.control(*alarm)
    try:
        # Alarms follow within the node's own interval of looking.
        assert wait_until(lambda: lab.evaluate("rabbit_alarm:get_alarms().") != "[]")
        blocked = client(transport={"read_timeout": 1})
        with pytest.raises((OperationalError, OSError), match="timed out"):
            blocked.send_task("proj.add", (1, 1), ignore_result=True, retry=False)
        # One that is still waiting when the alarm ends is sent, once.
        sent: list[object] = []
        waiting = threading.Thread(
            target=lambda: sent.append(client().send_task("proj.add", (2, 1), ignore_result=True).id)
        )
        waiting.start()
        waiting.join(2)
        assert waiting.is_alive()
    finally:
        lab.control(*end)
    waiting.join(PATIENCE_SECONDS)
    assert len(sent) == 1
    assert in_the_queue(lab) >= 2


def test_a_deployed_client_gives_up_on_a_server_that_confirms_nothing(client):
    app = client()
    options = app.conf.broker_transport_options
    policy = app.conf.task_publish_retry_policy
    assert options["read_timeout"] == options["write_timeout"] == 15
    assert policy["max_retries"] == 5
    assert options["confirm_publish"] is True


def test_a_client_that_has_sent_before_gives_up_while_the_server_is_away(lab, client):
    app = client()
    app.send_task("proj.add", (1, 2))
    lab.kill()
    try:
        # In a thread: Celery's own class waits here for as long as the server is away.
        again = ThreadPoolExecutor(1).submit(app.send_task, "proj.add", (1, 2))
        with pytest.raises(OperationalError):
            again.result(PATIENCE_SECONDS)
    finally:
        lab.start()
    assert in_the_queue(lab) == 1


def test_waiting_for_longer_than_the_answer_timeout_is_no_error(lab, client, tmp_path):
    app = client(transport={"read_timeout": 1})
    with worker(lab, tmp_path):
        assert app.send_task("proj.slow", (3,)).get(timeout=PATIENCE_SECONDS) == 3


def test_a_task_for_later_waits_on_the_server_with_quorum_queues_and_in_the_worker_without(
    lab, client, tmp_path
):
    app = client()
    with worker(lab, tmp_path) as log:
        began = time.monotonic()
        result = app.send_task("proj.add", (1, 2), countdown=2)
        held = wait_until(lambda: " received" in log(), 1.0)
        assert held == (lab.queue_type == "classic")
        assert result.get(timeout=PATIENCE_SECONDS) == 3
        assert time.monotonic() - began >= 2


def test_a_worker_whose_login_may_not_answer_says_so(lab, client, tmp_path):
    grant(lab, "worker", write=permissions(lab.queue_type)["worker"]["write"].replace(r"|amq\.default", ""))
    try:
        with worker(lab, tmp_path) as log:
            result = client().send_task("proj.add", (1, 2))
            assert wait_until(lambda: "ACCESS_REFUSED" in log())
            with pytest.raises(Exception, match="timed out"):
                result.get(timeout=0.5)
    finally:
        grant(lab, "worker")
        in_the_queue(lab)


def test_a_queue_of_another_type_is_refused_and_not_changed(lab):
    other = {} if lab.queue_type == "quorum" else {"x-queue-type": "quorum"}
    with lab.connection("worker") as connection, pytest.raises(PreconditionFailed, match="inequivalent arg"):
        connection.channel().queue_declare(QUEUE, durable=True, auto_delete=False, arguments=other)
