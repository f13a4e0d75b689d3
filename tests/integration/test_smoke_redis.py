"""`celery-results smoke` against a real Redis: all holds as deployed, each weakness is found by its check."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from tests.integration.lab_files import weaken
from tests.integration.redis_lab import ACL, Answer, RedisLab, command, command_environment, only, smoke

from celery_results.smoke.catalog import CATALOG, NAMES, Kind

TASKS = [entry.name for entry in CATALOG if entry.kind is Kind.TASKS]
REFUSALS = [entry.name for entry in CATALOG if entry.kind is Kind.REFUSAL]
ENDED_SECONDS = 15
ANY_CERTIFICATE = ('"ssl_cert_reqs": _ssl.CERT_REQUIRED', '"ssl_cert_reqs": _ssl.CERT_NONE')
ANY_NAME = ('"ssl_check_hostname": True', '"ssl_check_hostname": False')


def processes_of(directory: Path) -> list[int]:
    """Find the processes whose environment names this directory."""
    found = []
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if str(directory).encode() in (process / "environ").read_bytes():
                found.append(int(process.name))
    return [number for number in found if number != os.getpid()]


def wait_until(condition, seconds=ENDED_SECONDS):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    return condition()


def without(command_name: str, login: str) -> dict[str, str]:
    return {login: ACL[login].replace(f" +{command_name}", "")}


def assert_no_secret(lab: RedisLab, text: str) -> None:
    assert not [name for name, password in lab.passwords.items() if password in text]


@pytest.mark.parametrize("broker", [False, True], ids=["private broker", "our broker"])
def test_everything_holds_as_deployed_and_nothing_is_left(redis_lab, tmp_path, broker):
    config = redis_lab.write_config(tmp_path / "etc", broker=broker)
    answer = smoke(config, "--json")
    assert answer.code == 0, answer.stdout + answer.stderr
    assert answer.document["ok"]
    assert answer.names("passed") == [
        name for name in NAMES if name != "witness" and (broker or not name.startswith("broker_"))
    ]
    assert (answer.document["backend"], answer.document["broker"]) == (
        "redis",
        "redis" if broker else "private",
    )
    assert answer.stderr == ""
    assert_no_secret(redis_lab, answer.stdout)
    with redis_lab.admin() as admin:
        assert admin.info("keyspace") == {}
    assert [path.name for path in config.iterdir() if path.name == "__pycache__"] == []
    assert list((config / "tmp").iterdir()) == []


def test_client_host_runs_refusals_and_reads_the_witness_of_a_worker_host(redis_lab, tmp_path):
    kept = smoke(redis_lab.write_config(tmp_path / "worker"), "--json", "--keep-witness", *only("value"))
    assert kept.code == 0, kept.stdout + kept.stderr
    config = redis_lab.write_config(tmp_path / "client")
    (config / "client.env").replace(config / "celery.env")
    answer = smoke(config, "--json", "--witness", kept.document["witness"])
    assert answer.code == 0, answer.stdout + answer.stderr
    assert answer.names("not_run") == TASKS
    assert answer.check("chord")["note"].startswith("not run here: ")
    assert {"witness", "wrong_password", "client_write"} <= set(answer.names("passed"))
    with redis_lab.admin() as admin:
        assert admin.delete(f"celery-task-meta-{kept.document['witness']}") == 1
    gone = smoke(config, "--json", "--witness", kept.document["witness"], *only("witness"))
    assert (gone.code, gone.names("failed")) == (1, ["witness"])


@pytest.mark.parametrize(
    ("command_name", "failed", "named"),
    # Redis 7.0 does not say which command of a script.
    [("zadd", ["chord"], "script"), ("evalsha", ["value", "group", "chord"], "evalsha")],
)
def test_what_an_acl_lacks_fails_what_needs_it(start_redis, tmp_path, command_name, failed, named):
    lab = start_redis(acl=without(command_name, "worker"))
    answer = smoke(
        lab.write_config(tmp_path / "etc"), "--json", "--timeout", "5", *only("value", "group", "chord")
    )
    assert (answer.code, answer.names("failed")) == (1, failed)
    assert all("ACL" in answer.check(name)["remedy"] for name in failed)
    assert any(named in line for line in answer.document["worker_log"])
    assert_no_secret(lab, answer.stdout)


@pytest.mark.parametrize(
    ("failed", "differences"),
    [
        ("no_password", {"acl": {"default": "on nopass +@all"}}),
        ("plain_text", {"plain_port": True}),
        ("wrong_password", {"acl": {"worker": f"{ACL['worker']} nopass"}}),
        ("foreign_key", {"acl": {"worker": f"{ACL['worker']} +scan"}}),
        ("foreign_key", {"acl": {"worker": f"{ACL['worker']} ~celery-results-*"}}),
        ("client_write", {"acl": {"client": f"{ACL['client']} ~celery-task-meta-*"}}),
        ("client_write", {"acl": {"client": f"{ACL['client']} +publish"}}),
    ],
)
def test_a_weakness_of_the_server_fails_the_check_for_it(start_redis, tmp_path, failed, differences):
    lab = start_redis(**differences)
    # What needs no stored result needs no worker, and is done in a second.
    names = REFUSALS if failed in REFUSALS else ["value", *REFUSALS, failed]
    answer = smoke(
        lab.write_config(tmp_path / "etc"), "--json", *only(*[name for name in names if name != "value"])
    )
    assert (answer.code, answer.names("failed")) == (1, [failed]), answer.stdout + answer.stderr
    assert answer.check(failed)["remedy"]
    assert answer.names("passed") == [name for name in names if name != failed]


@pytest.mark.parametrize(
    ("failed", "changes"), [("untrusted_ca", (ANY_CERTIFICATE, ANY_NAME)), ("wrong_name", (ANY_NAME,))]
)
def test_settings_that_do_not_verify_the_server_fail(redis_lab, tmp_path, failed, changes):
    config = redis_lab.write_config(tmp_path / "etc")
    weaken(config / "celeryconfig_redis.py", *changes)
    answer = smoke(config, "--json", *only(failed))
    assert (answer.code, answer.names("failed")) == (1, [failed]), answer.stdout + answer.stderr


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"CELERYCONFIG_RESULT_HOSTS": "127.0.0.1:1"}, "is the server up"),
        ({"CELERYCONFIG_RESULT_PASSWORD": "wrong:/@password"}, "CELERYCONFIG_RESULT_USERNAME and _PASSWORD"),
        ({"CELERYCONFIG_RESULT_HOSTS": "another"}, "CELERYCONFIG_RESULT_TLS_CA_FILE"),
    ],
    ids=["server down", "wrong password", "wrong CA"],
)
def test_a_server_that_does_not_answer_is_said_plainly(redis_lab, start_redis, tmp_path, changes, told):
    if changes.get("CELERYCONFIG_RESULT_HOSTS") == "another":
        other = start_redis()
        changes = {"CELERYCONFIG_RESULT_HOSTS": f"{other.address}:{other.port}"}
    answer = smoke(redis_lab.write_config(tmp_path / "etc", **changes))
    assert answer.code == 1
    assert answer.stdout == ""
    assert answer.stderr.startswith("error: expected rediss://celery-worker@")
    assert told in answer.stderr
    assert "Traceback" not in answer.stderr
    assert "wrong:/@password" not in answer.stderr
    assert_no_secret(redis_lab, answer.stderr)


def test_a_broker_that_does_not_answer_is_said_plainly(redis_lab, tmp_path):
    changes = {"CELERYCONFIG_BROKER_HOSTS": "127.0.0.1:1"}
    answer = smoke(redis_lab.write_config(tmp_path / "etc", broker=True, **changes), *only("value"))
    assert answer.code == 1
    assert "expected rediss://celery-broker@127.0.0.1:1" in answer.stderr
    assert "CELERYCONFIG_BROKER_HOSTS" in answer.stderr
    assert_no_secret(redis_lab, answer.stderr)


def test_a_worker_that_does_not_start_shows_its_log(redis_lab, tmp_path):
    config = redis_lab.write_config(tmp_path / "etc")
    with (config / "celeryconfig.py").open("a") as module:
        # Only a worker process has it: the command itself reads the settings without trouble.
        module.write('assert "CELERY_RESULTS_SMOKE_QUEUE" not in _os.environ, result_backend\n')
    answer = smoke(config, "--json", *only("value"))
    assert answer.code == 1
    assert "AssertionError" in answer.document["error"]["found"]
    assert "********@" in answer.stdout
    assert_no_secret(redis_lab, answer.stdout + answer.stderr)


def test_a_server_that_dies_meanwhile_fails_the_run_soon(start_redis, tmp_path):
    lab = start_redis()
    config = lab.write_config(tmp_path / "etc")
    temporary = config / "tmp"
    arguments = ["--json", "--timeout", "1", *only("value", "progress_state", "expiry")]
    environment = command_environment(temporary)
    with subprocess.Popen(command(config, *arguments), env=environment, stdout=-1, stderr=-1) as parent:
        try:
            assert wait_until(lambda: list(temporary.glob("*/ready")))
            lab.stop()
            out, error = parent.communicate(timeout=60)  # four limits of ten seconds each, at the worst
        finally:
            parent.kill()
    answer = Answer(parent.returncode, out.decode(), error.decode(), 0)
    assert answer.code == 1, answer.stdout + answer.stderr
    assert "expiry" in answer.names("failed")
    assert "is the server up" in answer.check("expiry")["remedy"]
    assert not processes_of(temporary)


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -signal.SIGKILL)],
    ids=["Ctrl-C", "terminated", "killed"],
)
def test_no_worker_outlives_the_command(start_redis, tmp_path, number, code):
    # The chord never comes: the command still waits for it when the signal arrives.
    lab = start_redis(acl=without("zadd", "worker"))
    config = lab.write_config(tmp_path / "etc")
    temporary = config / "tmp"
    arguments = [*only("value", "chord"), "--timeout", "60"]
    environment = command_environment(temporary)
    with subprocess.Popen(command(config, *arguments), env=environment, stdout=-1, stderr=-1) as parent:
        try:
            assert wait_until(lambda: list(temporary.glob("*/ready")))
            workers = [process for process in processes_of(temporary) if process != parent.pid]
            assert len(workers) >= 3  # the worker and its two pool processes
            parent.send_signal(number)
            out, error = parent.communicate(timeout=ENDED_SECONDS)
        finally:
            parent.kill()
    assert (parent.returncode, out) == (code, b""), error
    assert wait_until(lambda: not processes_of(temporary)), processes_of(temporary)
    assert wait_until(lambda: not list(temporary.iterdir()))
