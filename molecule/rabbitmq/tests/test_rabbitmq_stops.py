"""What tasks and clients notice of a server that dies, or has no room.

Last in the scenario: after a kill nobody can tell which settings the node has read, and the next change of them restarts it.
"""

import json
from collections.abc import Iterator

import pytest
from rabbitmq_host import pid
from scenario_support import CeleryHost, until
from testinfra.host import Host

TASKS = 100
SEND = "for n in range({count}): app.send_task('proj.add', (n, 1), ignore_result=True)"
# Gives up after two seconds; a deployed client waits for longer, and tries again.
SEND_ONE_SOON = """
app.conf.broker_transport_options["read_timeout"] = 2
try:
    app.send_task("proj.add", (1, 1), ignore_result=True, retry=False)
except Exception as error:
    print(type(error).__name__)
else:
    print("sent")
"""


def waiting(server: Host) -> int:
    """Count the tasks in the queue; -1 while the node does not answer."""
    listed = server.run("rabbitmqctl -q --formatter json list_queues -p celery name messages")
    if listed.rc != 0:
        return -1
    return next((row["messages"] for row in json.loads(listed.stdout) if row["name"] == "celery"), -1)


@pytest.fixture
def emptied(server: Host) -> Iterator[None]:
    """Begin and end with an empty queue: the scenario has no worker."""
    server.check_output("rabbitmqctl -q purge_queue -p celery celery")
    yield
    server.check_output("rabbitmqctl -q purge_queue -p celery celery")


@pytest.mark.usefixtures("emptied")
def test_confirmed_tasks_survive_a_kill_and_the_node_comes_back_by_itself(
    server: Host, worker: CeleryHost
) -> None:
    worker.python(SEND.format(count=TASKS), env_file="client.env")
    before = pid(server)
    server.check_output("systemctl kill --signal=KILL rabbitmq-server")
    until(lambda: waiting(server) == TASKS, 90, f"{TASKS} tasks are there again")
    assert pid(server) != before
    worker.python(SEND.format(count=1), env_file="client.env")
    until(lambda: waiting(server) == TASKS + 1, 30, "the node takes another task")


@pytest.mark.usefixtures("emptied")
def test_a_memory_alarm_is_an_error_and_told_and_passes(server: Host, worker: CeleryHost) -> None:
    assert worker.python(SEND_ONE_SOON, env_file="client.env") == "sent"
    server.check_output("rabbitmqctl -q set_vm_memory_high_watermark absolute 1MB")
    try:
        until(lambda: findings(worker) >= {"CRB470"}, 30, "doctor tells of the alarm")
        assert worker.python(SEND_ONE_SOON, env_file="client.env") in {"TimeoutError", "OperationalError"}
    finally:
        server.check_output("rabbitmqctl -q set_vm_memory_high_watermark 0.4")
    until(lambda: "CRB470" not in findings(worker), 30, "the alarm is over")
    assert worker.python(SEND_ONE_SOON, env_file="client.env") == "sent"
    until(lambda: waiting(server) >= 2, 30, "what was sent before and after is there")


def findings(worker: CeleryHost) -> set[str]:
    """Give the codes of what the doctor finds."""
    _, document = worker.cli("doctor")
    return {finding["code"] for finding in document["findings"]}
