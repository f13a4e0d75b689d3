"""What happens to results when the server dies, restarts, is full, or has no connection left."""

import json
from collections.abc import Iterator

import pytest
from scenario_support import CeleryHost, until
from storing import Storing
from testinfra.host import Host


@pytest.fixture(autouse=True)
def answering(server: Host) -> Iterator[None]:
    """Make sure that a test which broke the server leaves it answering."""
    yield
    until(lambda: answers(server), 90, "the server answers again")


def answers(server: Host) -> bool:
    return bool(server.run("mariadb -e 'SELECT 1'").rc == 0)


def restarts(server: Host) -> int:
    return int(server.check_output("systemctl show -p NRestarts --value mariadb"))


def test_no_acknowledged_result_is_lost_at_kill_9(worker: CeleryHost, server: Host) -> None:
    def kill() -> None:
        before = restarts(server)
        server.check_output("systemctl kill -s KILL mariadb")
        until(lambda: restarts(server) > before and answers(server), 30, "systemd brings it back")

    total, lost = Storing(worker).outlive(kill, times=2, count=30)
    assert total > 50
    assert lost == 0


def test_idle_connections_survive_a_restart_of_the_server(worker: CeleryHost, server: Host) -> None:
    """A process that has its connections already: the first store and read after the restart just work."""
    code = """
import time, pathlib
app.backend.store_result("idle-0", 0, "SUCCESS")
pathlib.Path("/var/lib/celery/idle").touch()
while pathlib.Path("/var/lib/celery/idle").exists():
    time.sleep(0.1)
app.backend.store_result("idle-1", 1, "SUCCESS")
print(app.AsyncResult("idle-1").get(timeout=20), app.AsyncResult("idle-0").get(timeout=20))
"""
    worker.host.check_output("rm -f /var/lib/celery/idle")
    worker.host.check_output(f"nohup {worker.command(code)} >/tmp/idle.log 2>&1 &")
    until(lambda: worker.host.file("/var/lib/celery/idle").exists, 30, "the process holds a connection")
    server.check_output("systemctl restart mariadb")
    worker.host.check_output("rm -f /var/lib/celery/idle")
    until(lambda: worker.host.run("cat /tmp/idle.log").stdout, 60, "the process ends")
    assert worker.host.run("cat /tmp/idle.log").stdout.strip() == "1 0"


def test_a_store_waits_while_there_is_no_connection_left(worker: CeleryHost, server: Host) -> None:
    """All that one login may have are taken: root still gets in, doctor says what is wrong, the store comes through."""
    hold = """
import time, pathlib
from celery_results.settings import connection_from_env
from celery_results.smoke.refusals.mysql import _open
import contextlib, os
login = connection_from_env(os.environ)
with contextlib.ExitStack() as stack:
    held = 0
    with contextlib.suppress(Exception):
        while True:
            stack.enter_context(_open(login))
            held += 1
    pathlib.Path("/var/lib/celery/held").write_text(str(held))
    while pathlib.Path("/var/lib/celery/held").exists():
        time.sleep(0.1)
"""
    worker.host.check_output("rm -f /var/lib/celery/held")
    worker.host.check_output(f"nohup {worker.command(hold)} >/tmp/hold.log 2>&1 &")
    until(lambda: worker.host.run("test -s /var/lib/celery/held").rc == 0, 30, "all connections are held")
    try:
        assert worker.host.check_output("cat /var/lib/celery/held") == "36"
        assert answers(server)
        code, report = worker.cli("doctor")
        assert code == 1
        assert "CRB555" in {finding["code"] for finding in report["findings"]}
        store = worker.command("app.backend.store_result('waited', 1, 'SUCCESS'); print('stored')")
        worker.host.check_output(f"nohup {store} >/tmp/waited.log 2>&1 &")
        until(
            lambda: worker.host.run("pgrep -u celery -f 'venv/bin/python -$' | wc -l").stdout.strip() >= "2",
            20,
        )
    finally:
        worker.host.check_output("rm -f /var/lib/celery/held")
    until(
        lambda: worker.host.run("cat /tmp/waited.log").stdout.strip() == "stored",
        60,
        "the store comes through",
    )


def test_the_nightly_cleanup_blocks_no_new_result(worker: CeleryHost, server: Host) -> None:
    """A DELETE as in the cleanup stays open, in a session that sets no isolation of its own; others insert."""
    worker.python("[app.backend.store_result(f'old-{i}', i, 'SUCCESS') for i in range(20)]")
    # After a quiet day every row is old: what the DELETE locks then reaches to the end of the index.
    old = "UPDATE celery_results.celery_taskmeta SET date_done = '2020-01-01'"
    server.check_output(f'mariadb -e "{old}"')
    assert "CRB581" in {finding["code"] for finding in worker.cli("doctor")[1]["findings"]}
    code = """
import os, time, uuid
run = uuid.uuid4()  # a row of an earlier run would be one that the DELETE holds
from celery_results.settings import connection_from_env
from celery_results.smoke.refusals.mysql import _open
with _open(connection_from_env(os.environ)) as cursor:
    assert cursor.execute("DELETE FROM celery_taskmeta WHERE date_done < '2021-01-01'") >= 20
    slowest = 0
    for number in range(20):
        start = time.monotonic()
        app.backend.store_result(f"during-{run}-{number}", number, "SUCCESS")
        slowest = max(slowest, time.monotonic() - start)
print(slowest)
app.backend.cleanup()
print(sum(app.AsyncResult(f"old-{i}").state == "SUCCESS" for i in range(20)),
      sum(app.AsyncResult(f"during-{run}-{i}").state == "SUCCESS" for i in range(20)))
"""
    slowest, old_left, new_left = worker.python(code).split()
    assert float(slowest) < 5
    assert (old_left, new_left) == ("0", "20")


def test_a_full_disk_is_loud_and_passes(worker: CeleryHost, server: Host) -> None:
    """Stores fail or wait while there is no room, none is acknowledged and lost, and they go on with room."""
    worker.python("app.backend.store_result('before-full', 'x', 'SUCCESS')")
    server.check_output("dd if=/dev/zero of=/var/lib/mysql/filler bs=1M 2>/dev/null || true")
    attempt = worker.command(
        "import uuid\n"
        "for i in range(40):\n"
        "    name = f'full-{uuid.uuid4()}'\n"
        "    app.backend.store_result(name, uuid.uuid4().hex * 60000, 'SUCCESS')\n"
        "    print(name, flush=True)\n"
    )
    try:
        filling = worker.host.run(f"timeout 25 {attempt}")
        assert filling.rc != 0, "the disk was not full"
        assert answers(server), "what needs no room is answered"
    finally:
        server.check_output("rm -f /var/lib/mysql/filler")
    stored = worker.command("app.backend.store_result('after-full', 'y', 'SUCCESS'); print('stored')")
    until(
        lambda: "stored" in worker.host.run(f"timeout 100 {stored}").stdout, 120, "stores are accepted again"
    )
    acknowledged = json.dumps(["before-full", "after-full", *filling.stdout.split()])
    assert (
        worker.python(f"print({{app.AsyncResult(name).state for name in {acknowledged}}})") == "{'SUCCESS'}"
    )
    assert worker.cli("doctor")[0] == 0
