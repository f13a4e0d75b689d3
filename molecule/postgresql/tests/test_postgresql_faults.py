"""What happens to results when the server dies, restarts, refuses, or fills its disk."""

import time
from collections.abc import Iterator

import pytest
from postgresql_host import UNIT, answers, sql, started, wait_until_it_answers
from scenario_support import CeleryHost, until
from storing import Storing
from testinfra.host import Host

STORE_WHEN_TOLD = """
import os, time
app.backend.store_result("idle-0", 0, "SUCCESS")
open("/var/lib/celery/idle", "w").close()
while not os.path.exists("/var/lib/celery/go"):
    time.sleep(0.1)
app.backend.store_result("idle-1", 1, "SUCCESS")
print("state", app.AsyncResult("idle-0").state, app.AsyncResult("idle-1").state)
"""
HASTY = "app.backend.max_retries = 2\nimport uuid\n"
STORE = "app.backend.store_result(str(uuid.uuid4()), 'x' * 100000, 'SUCCESS'); print('stored')"


@pytest.fixture(autouse=True)
def _answering_server(server: Host) -> Iterator[None]:
    """Make sure that a test which broke the server leaves it answering."""
    wait_until_it_answers(server)
    yield
    wait_until_it_answers(server)


def in_background(worker: CeleryHost, code: str, log: str) -> None:
    worker.host.check_output(f"nohup {worker.command(code)} >{log} 2>&1 &")


def test_no_acknowledged_result_is_lost_at_kill_9(worker: CeleryHost, server: Host) -> None:
    def kill() -> None:
        before = started(server)
        server.check_output(f"systemctl kill -s KILL {UNIT}")
        until(lambda: answers(server), 30, "it is back")
        assert started(server) != before

    total, lost = Storing(worker).outlive(kill, times=2, count=150)
    assert total > 200
    assert lost == 0


def test_an_idle_pool_outlives_a_restart(worker: CeleryHost, server: Host) -> None:
    worker.host.check_output("rm -f /var/lib/celery/go /var/lib/celery/idle")
    in_background(worker, STORE_WHEN_TOLD, "/tmp/idle.log")
    until(lambda: worker.host.file("/var/lib/celery/idle").exists, 30, "the pool is filled")
    server.check_output(f"systemctl restart {UNIT}")
    wait_until_it_answers(server)
    worker.host.check_output("touch /var/lib/celery/go")
    until(lambda: "state" in worker.host.run("cat /tmp/idle.log").stdout, 60, "it stores again")
    assert "state SUCCESS SUCCESS" in worker.host.run("cat /tmp/idle.log").stdout


def test_a_connection_limit_that_is_reached_delays_results_and_doctor_says_why(
    worker: CeleryHost, server: Host
) -> None:
    sql(server, "ALTER ROLE celery_worker CONNECTION LIMIT 0")
    try:
        code, report = worker.cli("doctor")
        assert code == 1
        assert "CRB528" in {finding["code"] for finding in report["findings"]}, report
        in_background(
            worker, "app.backend.store_result('limit', 1, 'SUCCESS'); print('stored')", "/tmp/limit.log"
        )
        time.sleep(2)  # long enough to be refused several times
        assert "stored" not in worker.host.run("cat /tmp/limit.log").stdout
    finally:
        sql(server, "ALTER ROLE celery_worker CONNECTION LIMIT 120")
    until(lambda: "stored" in worker.host.run("cat /tmp/limit.log").stdout, 60, "the result is stored")


def test_a_statement_that_waits_too_long_is_cancelled_and_tried_again(
    worker: CeleryHost, server: Host
) -> None:
    hold = "BEGIN; LOCK TABLE celery_taskmeta IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(8); COMMIT"
    server.check_output(
        f"cd / && nohup runuser -u postgres -- psql -Xqd celery_results -c '{hold}' >/tmp/lock.log 2>&1 &"
    )
    locked = "SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND relation = 'celery_taskmeta'::regclass"
    until(lambda: sql(server, locked) == "1", 10, "the table is locked")
    assert worker.python("app.backend.store_result('locked', 1, 'SUCCESS'); print('stored')") == "stored"
    assert "lock timeout" in server.check_output("cat /var/log/postgresql/*.log")


@pytest.mark.parametrize("how", ["standby", "read-only database"])
def test_a_server_that_takes_no_writes_is_loud_and_named(worker: CeleryHost, server: Host, how: str) -> None:
    data = "$(ls -d /var/lib/postgresql/*/main)"
    if how == "standby":
        server.check_output(f"runuser -u postgres -- touch {data}/standby.signal && systemctl restart {UNIT}")
        wait_until_it_answers(server)
    else:
        sql(server, "ALTER DATABASE celery_results SET default_transaction_read_only = on")
    try:
        attempt = worker.host.run(worker.command(HASTY + STORE))
        assert attempt.rc != 0
        assert "standby" in attempt.stderr or "read-only" in attempt.stderr, attempt.stderr[-2000:]
        code, report = worker.cli("doctor")
        assert code == 1
        assert "CRB538" in {finding["code"] for finding in report["findings"]}, report
    finally:
        if how == "standby":
            server.check_output(f"rm -f {data}/standby.signal && systemctl restart {UNIT}")
            wait_until_it_answers(server)
        else:
            sql(server, "ALTER DATABASE celery_results RESET ALL", "postgres")
    assert "stored" in worker.python(HASTY + STORE)


def test_a_pickle_among_the_results_is_found(worker: CeleryHost, server: Host) -> None:
    sql(
        server,
        "INSERT INTO celery_taskmeta (id, task_id, status, result, date_done) VALUES"
        " (nextval('task_id_sequence'), 'pickled', 'SUCCESS', '\\x80049535', now())",
    )
    try:
        code, report = worker.cli("doctor")
        assert code == 1
        assert "CRB534" in {finding["code"] for finding in report["findings"]}, report
    finally:
        sql(server, "DELETE FROM celery_taskmeta WHERE task_id = 'pickled'")


def test_a_full_disk_is_loud_and_passes(worker: CeleryHost, server: Host) -> None:
    many = "[app.backend.store_result(str(uuid.uuid4()), os.urandom(500000).hex(), 'SUCCESS') for i in range(40)]"
    attempt = worker.command(f"{HASTY}import os\n{many}; print('stored')")
    server.check_output("dd if=/dev/zero of=/var/lib/postgresql/filler bs=1M 2>/dev/null || true")
    try:
        refused = until(lambda: (run := worker.host.run(attempt)).rc != 0 and run, 60, "a store is refused")
        assert "stored" not in refused.stdout
    finally:
        server.check_output("rm -f /var/lib/postgresql/filler")
    until(
        lambda: "stored" in worker.host.run(worker.command(HASTY + STORE)).stdout,
        60,
        "stores are accepted again",
    )
    until(lambda: worker.cli("doctor")[0] == 0, 30, "doctor is content again")
