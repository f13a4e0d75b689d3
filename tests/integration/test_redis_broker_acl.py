"""The rights of celery-broker, rendered from the role: enough for all that a broker does, and no more."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar
from tests.integration.lab_files import ROOT
from tests.integration.redis_lab import RedisLab

from celery_results.settings import read_env_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROLE = ROOT / "roles" / "redis"
APPLICATION = '''
import os
import time

from celery import Celery
from celery.exceptions import Reject

app = Celery("proj")
app.config_from_object("celeryconfig")
app.conf.worker_prefetch_multiplier = 1
# kombu looks for messages of lost workers each 10 seconds, and at nine of ten looks does nothing.
app.conf.broker_transport_options |= {
    "visibility_timeout": 2,
    "unacked_restore_interval": 1,
    "unacked_restore_throttle": 1,
}


@app.task
def double(number):
    return 2 * number


@app.task(bind=True, acks_late=True)
def late(self, path):
    """Run until killed, the first time; a message that comes back ends it."""
    if not os.path.exists(path):
        open(path, "w").close()
        time.sleep(60)
    return "again"


@app.task(bind=True, acks_late=True)
def refuse(self, path):
    if not os.path.exists(path):
        open(path, "w").close()
        raise Reject("once", requeue=True)
    return "taken back"
'''
CLIENT = """
import contextlib
import sys
import threading

from amqp.exceptions import ChannelError
from kombu import Producer, Queue
from proj import app, double, late, refuse

directory = sys.argv[1]
seen = []


def listen():
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": lambda event: seen.append(event["type"])})
        receiver.capture(limit=None, timeout=None, wakeup=True)


threading.Thread(target=listen, daemon=True).start()
app.control.purge()
assert double.delay(1).get(timeout=20) == 2
for priority in (0, 3, 6, 9):
    assert double.apply_async((priority,), priority=priority).get(timeout=20) == 2 * priority
assert double.apply_async((5,), countdown=1).get(timeout=20) == 10
assert refuse.delay(f"{directory}/refused").get(timeout=20) == "taken back"
assert app.control.inspect(timeout=5).ping()
waiting = double.apply_async((6,), countdown=600)
app.control.revoke(waiting.id)
assert app.control.inspect(timeout=5).active_queues()
assert "task-succeeded" in seen, seen
with app.connection_for_write() as connection, connection.default_channel as channel:
    with contextlib.suppress(ChannelError):  # an empty queue is none
        channel.queue_declare("celery", passive=True)  # monitors ask so how long it is
    own = Queue("celery-results-smoke-0123456789ab", expires=60)(channel)  # as smoke's
    own.declare()
    Producer(channel).publish("x", routing_key=own.name)
    own.get(no_ack=True)
    own.delete()
print("late", late.delay(f"{directory}/late").id, flush=True)
"""


def rules_of(login: str, version: str) -> list[str]:
    """Render the role's rules as Ansible does."""
    loader = DataLoader()
    variables: dict[str, Any] = {"__redis_server_version": {"stdout": f"Redis server v={version}"}}
    for file in [ROLE / "defaults/main.yml", *sorted(ROLE.glob("vars/main/*.yml"))]:
        variables |= loader.load_from_file(str(file), trusted_as_template=True)
    users = Templar(loader=loader, variables=variables).template(variables["__redis_acl"])
    return next(list(user["rules"]) for user in users if user["name"] == login)


class Monitor:
    """Every command that the server was given in the broker's database."""

    def __init__(self, lab: RedisLab) -> None:
        self._log = (lab.directory / "monitor.log").open("w+")
        self._process = subprocess.Popen(
            shlex.split(
                f"redis-cli -h {lab.address} -p {lab.port} --tls --cacert {lab.authority.file} "
                "--user admin --no-auth-warning MONITOR"
            ),
            env={**os.environ, "REDISCLI_AUTH": lab.passwords["admin"]},
            stdout=self._log,
        )
        until(lambda: self._text().startswith("OK"))

    def _text(self) -> str:
        return Path(self._log.name).read_text(errors="replace")

    def end(self) -> set[str]:
        self._process.terminate()
        self._process.wait()
        given = set()
        for line in self._text().splitlines():
            # [1 lua]: what a script calls needs the login's rights too.
            found = re.match(r'\S+ \[1 (?:127\.\S+|lua)\] "([^"]+)"(?: "([^"]*)")?', line)
            if found:
                name = found[1].lower()
                given.add(f"{name}|{found[2].lower()}" if name in {"script", "client"} else name)
        return given


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisLab]:
    version = re.search(r"v=([0-9.]+)", subprocess.check_output(["redis-server", "--version"], text=True))
    assert version
    rules = " ".join(rules_of("celery-broker", version[1]))
    with RedisLab(tmp_path_factory.mktemp("acl"), acl={"broker": rules}) as lab:
        yield lab


@pytest.fixture(scope="module")
def used(lab: RedisLab) -> set[str]:
    """Have two workers and a client do all that a broker is used for; give the commands that this took."""
    directory = lab.directory / "host"
    config = lab.write_config(directory, broker=True)
    (directory / "proj.py").write_text(APPLICATION)
    (directory / "client.py").write_text(CLIENT)
    environment = {**os.environ, "PYTHONPATH": f"{config}:{ROOT / 'src'}"}

    def run(env_file: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *arguments],
            env=environment | read_env_file(config / env_file),
            cwd=directory,
            text=True,
            start_new_session=True,
            **options,
        )

    def worker(name: str) -> subprocess.Popen[str]:
        log = (directory / f"{name}.log").open("w")
        shape = shlex.split("-A proj worker -E --concurrency=1 --loglevel=INFO")
        return run("celery.env", "-m", "celery", *shape, f"--hostname={name}@here", stdout=log, stderr=log)

    monitor = Monitor(lab)
    workers = [worker("first"), worker("second")]
    try:
        until(lambda: all("ready." in log.read_text() for log in directory.glob("*.log")))
        client = run("client.env", "client.py", str(directory), stdout=subprocess.PIPE)
        output, _ = client.communicate(timeout=90)
        assert client.returncode == 0, (directory / "first.log").read_text()
        until((directory / "late").exists)
        for process in workers:
            os.killpg(process.pid, signal.SIGKILL)  # one of them holds a message that it never acknowledged
            process.wait()
        workers.append(worker("third"))
        key = f"celery-task-meta-{output.split()[-1]}"
        with lab.admin() as admin:
            until(lambda: b'"again"' in (admin.get(key) or "").encode())
        workers[-1].send_signal(signal.SIGTERM)
        workers[-1].wait(timeout=30)
    finally:
        for process in workers:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return monitor.end()


def granted(lab: RedisLab) -> set[str]:
    with lab.admin() as admin:
        commands = admin.acl_getuser("celery-broker")["commands"]
    return {name.removeprefix("+").lower() for name in commands if name.startswith("+")}


def test_nothing_that_a_broker_is_used_for_is_denied(lab: RedisLab, used: set[str]) -> None:
    assert used
    with lab.admin() as admin:
        assert admin.acl_log() == []


def test_nothing_is_granted_that_no_broker_uses(lab: RedisLab, used: set[str]) -> None:
    logging_in = {"auth", "hello", "client|setinfo", "client|setname", "ping", "select", "quit"}
    assert granted(lab) - used - logging_in == set()


@pytest.mark.parametrize(
    "command",
    [
        "GET celery-task-meta-1",
        "SET celery-task-meta-1 x",
        "DEL celery-taskset-meta-1",
        "KEYS *",
        "SCAN 0",
        "CONFIG GET requirepass",
        "ACL LIST",
        "FLUSHDB",
        "SUBSCRIBE celery-task-meta-1",
        "LPUSH another-queue x",
        "EVAL return{} 0",
        "MONITOR",
    ],
)
def test_the_broker_login_is_refused_the_rest(lab: RedisLab, used: set[str], command: str) -> None:
    assert used  # after it, for its log of denials is to be empty
    with lab.client("broker") as client, pytest.raises(redis.exceptions.NoPermissionError):
        client.execute_command(*command.split())
