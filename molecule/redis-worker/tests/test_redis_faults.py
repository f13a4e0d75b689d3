"""What happens to results when the server dies, restarts, fills its disk or its memory."""

import json
import time

from scenario_support import CeleryHost, until
from storing import Storing
from testinfra.host import Host

PROJECT = "/srv/proj"


def restarts(server: Host) -> int:
    return int(server.check_output("systemctl show -p NRestarts --value redis-server"))


def test_no_acknowledged_result_is_lost_at_kill_9(worker: CeleryHost, reachable_server: Host) -> None:
    def kill() -> None:
        before = restarts(reachable_server)
        reachable_server.check_output("systemctl kill -s KILL redis-server")
        until(lambda: restarts(reachable_server) > before, 30, "systemd starts it again")

    total, lost = Storing(worker).outlive(kill, times=3, count=300)
    assert total > 1000
    assert lost == 0


def test_get_rides_through_a_restart_of_the_server(worker: CeleryHost, reachable_server: Host) -> None:
    """The task ends while the server is away; worker and client wait for it, and the result comes."""
    waiting = worker.command(
        "from proj.celery import slow; print(slow.delay(5, 'rode-through').get(timeout=90))",
        more_path=PROJECT,
    )
    worker.host.check_output(f"nohup {waiting} >/tmp/ride.log 2>&1 &")
    time.sleep(3)
    reachable_server.check_output("systemctl stop redis-server")
    time.sleep(6)
    reachable_server.check_output("systemctl start redis-server")
    until(lambda: "rode-through" in worker.host.run("cat /tmp/ride.log").stdout, 90, "get() returns")


def test_memory_exhausted_is_an_explicit_failure_and_nothing_stays_pending(
    worker: CeleryHost, reachable_server: Host
) -> None:
    """64 MB of room, 40 results of 4 MB: each ends in SUCCESS or FAILURE, none is evicted in silence.

    The queue is elsewhere: a broker in the same full memory loses messages (docs/redis.md).
    """
    code = """
import json, time
from celery.contrib.testing.worker import start_worker
from proj.celery import app, blob
app.conf.update(broker_url="memory://", broker_use_ssl=None, broker_transport_options={})
with start_worker(app, pool="threads", concurrency=4, perform_ping_check=False, shutdown_timeout=60):
    results = [blob.apply_async((4_000_000,), task_id=f"full-{i}") for i in range(40)]
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not all(r.ready() for r in results):
        time.sleep(0.5)
    print(json.dumps([r.state for r in results]))
"""
    states = json.loads(worker.python(code, more_path=PROJECT).splitlines()[-1])
    evicted = reachable_server.check_output("redis-admin info stats | grep ^evicted_keys").strip()
    worker.python("[app.AsyncResult(f'full-{i}').forget() for i in range(40)]")
    assert states.count("SUCCESS") >= 3
    assert states.count("SUCCESS") + states.count("FAILURE") == 40, states
    assert evicted == "evicted_keys:0"


def test_a_full_disk_is_loud_and_passes(worker: CeleryHost, reachable_server: Host) -> None:
    attempt = worker.command(
        "app.backend.max_retries = 2\n"
        # A new id each time: Celery does not write a SUCCESS that is there.
        "import uuid; app.backend.store_result(f'disk-{uuid.uuid4()}', 'x' * 100000, 'SUCCESS'); print('stored')"
    )
    assert "stored" in worker.host.run(attempt).stdout
    reachable_server.check_output("dd if=/dev/zero of=/var/lib/redis/filler bs=1M 2>/dev/null || true")
    try:
        refused = until(
            lambda: (run := worker.host.run(attempt)).rc != 0 and run,
            60,
            "a store is refused",
        )
        assert "MISCONF" in refused.stderr + refused.stdout
        code, report = worker.cli("doctor")
        assert code == 1, report
    finally:
        reachable_server.check_output("rm -f /var/lib/redis/filler")
    until(lambda: "stored" in worker.host.run(attempt).stdout, 60, "stores are accepted again")
    until(lambda: worker.cli("doctor")[0] == 0, 30, "doctor is content again")
