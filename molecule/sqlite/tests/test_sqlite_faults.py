"""What happens to results when programs are killed, the disk is full, and everybody writes at once."""

import time
from collections.abc import Iterator
from functools import partial

import pytest
from scenario_support import CeleryHost, until
from testinfra.host import Host

PROJECT = "/srv/proj"
DIRECTORY = "/var/lib/celery/results"
DATABASE = f"{DIRECTORY}/results.sqlite3"
NOTES = "/var/lib/celery/acknowledged"
STORE_AND_NOTE = """
with open("/var/lib/celery/acknowledged", "a", buffering=1) as acknowledged:
    for number in range(100000):
        app.backend.store_result(f"{prefix}-{number}", number, "SUCCESS")
        acknowledged.write(f"{prefix}-{number} {number}\\n")
"""
COUNT_LOST = """
noted = [line.split() for line in open("/var/lib/celery/acknowledged").read().splitlines()]
lost = [name for name, value in noted if app.AsyncResult(name).result != int(value)]
print(len(noted), len(lost))
"""
HOLD = (
    f"import sqlite3, time; c = sqlite3.connect('{DATABASE}', isolation_level=None); "
    "c.execute('BEGIN IMMEDIATE'); open('/var/lib/celery/held', 'w'); time.sleep({seconds}); c.execute('ROLLBACK')"
)


@pytest.fixture
def database(server: Host) -> Iterator[Host]:
    """Return the host, and make sure that a test leaves a sound database."""
    server.check_output(f"rm -f {NOTES} /var/lib/celery/held")
    yield server
    found = server.run(f"runuser -u celery -- /usr/local/sbin/celery-results-sqlite check {DATABASE}")
    assert found.rc == 0, found.stdout + found.stderr


def noted(host: Host) -> int:
    return int(host.run(f"cat {NOTES} | wc -l").stdout)


def has_noted(host: Host, number: int) -> bool:
    return noted(host) > number


def test_no_acknowledged_result_is_lost_when_writers_are_killed(worker: CeleryHost, database: Host) -> None:
    for prefix in ("first", "second", "third"):
        enough = noted(database) + 60
        command = worker.command(f"prefix = '{prefix}'\n{STORE_AND_NOTE}")
        database.check_output(f"nohup {command} >/tmp/store.log 2>&1 & echo started")
        until(partial(has_noted, database, enough), 30, "stores run")
        database.check_output("pkill -KILL -u celery -f 'venv/bin/python -$'")
        until(
            lambda: database.run("pgrep -u celery -f 'venv/bin/python -$'").rc != 0, 30, "the writer is dead"
        )

    count, lost = worker.python(COUNT_LOST).split()
    assert int(count) > 180
    assert int(lost) == 0


def test_no_result_that_was_seen_is_lost_when_the_worker_is_killed(
    worker: CeleryHost, database: Host
) -> None:
    send_and_note = f"""
from proj.celery import add
results = [add.apply_async((i, 0), task_id=f"seen-{{i}}") for i in range(1000)]
waiting = dict(enumerate(results))
with open("{NOTES}", "a", buffering=1) as acknowledged:
    while waiting:
        for number, result in list(waiting.items()):
            if result.ready():
                acknowledged.write(f"seen-{{number}} {{result.result}}\\n")
                del waiting[number]
"""
    command = worker.command(send_and_note, more_path=PROJECT)
    database.check_output(f"nohup {command} >/tmp/seen.log 2>&1 & echo started")
    until(lambda: noted(database) > 20, 60, "tasks run")
    database.check_output("systemctl kill -s KILL celery-worker")
    seen = noted(database)
    database.check_output("pkill -KILL -u celery -f 'venv/bin/python -$'")
    until(lambda: database.service("celery-worker").is_running, 60, "the worker is back")

    count, lost = worker.python(COUNT_LOST).split()
    assert int(count) >= seen > 20
    assert int(lost) == 0
    code = "from proj.celery import add; print(add.delay(2, 3).get(timeout=40))"
    assert worker.python(code, more_path=PROJECT) == "5"


def test_a_full_disk_is_loud_and_passes(worker: CeleryHost, database: Host) -> None:
    attempt = worker.command(
        "app.backend.max_retries = 1\n"
        "import uuid; app.backend.store_result(f'disk-{uuid.uuid4()}', 'x' * 200000, 'SUCCESS'); print('stored')"
    )
    worker.python("app.backend.store_result('before-full', 7, 'SUCCESS')")
    database.check_output(f"dd if=/dev/zero of={DIRECTORY}/filler bs=1M 2>/dev/null || true")
    try:
        refused = until(lambda: (run := database.run(attempt)).rc != 0 and run, 60, "a store is refused")
        assert "database or disk is full" in refused.stderr + refused.stdout
        # What is there can still be read.
        assert worker.python("print(app.AsyncResult('before-full').result)") == "7"
        _, report = worker.cli("doctor")
        assert "CRB623" in {finding["code"] for finding in report["findings"]}
    finally:
        database.check_output(f"rm -f {DIRECTORY}/filler")
    until(lambda: "stored" in database.run(attempt).stdout, 60, "stores are accepted again")


def hold(database: Host, seconds: float) -> None:
    database.check_output(
        f'nohup runuser -u celery -- python3 -c "{HOLD.format(seconds=seconds)}" >/dev/null 2>&1 & echo started'
    )
    until(lambda: database.file("/var/lib/celery/held").exists, 10, "the lock is held")


def test_a_store_waits_for_another_writer_and_reads_do_not(worker: CeleryHost, database: Host) -> None:
    worker.python("app.backend.store_result('readable', 8, 'SUCCESS')")
    hold(database, 4)
    code = """
import time
app.backend.max_retries = 0
began = time.monotonic()
assert app.AsyncResult("readable").result == 8
read = time.monotonic() - began
app.backend.store_result("waited", 9, "SUCCESS")
print(int(read * 1000), int((time.monotonic() - began) * 1000), app.AsyncResult("waited").result)
"""
    read_ms, stored_ms, value = map(int, worker.python(code).split())
    assert value == 9
    assert read_ms < 1000
    assert stored_ms > 1000


def test_a_lock_that_is_held_too_long_is_told(worker: CeleryHost, database: Host) -> None:
    hold(database, 3)
    code = """
app.conf.database_engine_options["connect_args"]["timeout"] = 0.2
app.backend.max_retries = 1
try:
    app.backend.store_result("refused", 1, "SUCCESS")
except Exception as error:
    print(error, error.__cause__, error.__context__)
"""
    assert "database is locked" in worker.python(code)
    until(lambda: database.run("pgrep -u celery -f 'BEGIN IMMEDIATE'").rc != 0, 20, "the lock is gone")
    assert (
        worker.python(
            "app.backend.store_result('refused', 1, 'SUCCESS'); print(app.AsyncResult('refused').result)"
        )
        == "1"
    )


def test_results_of_many_writers_at_once_are_all_there(worker: CeleryHost, database: Host) -> None:
    """Two pool processes of the worker, and four clients that store and read by themselves."""
    client = "for i in range(100): app.backend.store_result(f'crowd-{number}-{i}', i, 'SUCCESS')"
    commands = " & ".join(worker.command(f"number = {number}\n{client}") for number in range(4))
    code = "from proj.celery import add; r = [add.delay(i, i) for i in range(100)]; print(sum(x.get(timeout=60) for x in r))"
    began = time.monotonic()
    database.check_output(f"sh -c {quoted(commands + ' & wait')} >/tmp/crowd.log 2>&1 & echo started")
    assert worker.python(code, more_path=PROJECT) == str(2 * sum(range(100)))
    count = "print(sum(app.AsyncResult(f'crowd-{n}-{i}').result == i for n in range(4) for i in range(100)))"
    until(
        lambda: worker.python(count) == "400",
        60,
        f"all results are there, after {time.monotonic() - began:.0f} s",
    )
    assert database.check_output("cat /tmp/crowd.log") == ""


def quoted(text: str) -> str:
    return "'" + text.replace("'", "'\"'\"'") + "'"
