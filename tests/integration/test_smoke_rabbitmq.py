"""`celery-results smoke` against a real RabbitMQ: all holds as deployed, its check finds each weakness."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from celery import chord, group
from celery.result import GroupResult
from kombu.exceptions import OperationalError
from tests.integration.lab_files import weaken
from tests.integration.rabbitmq_lab import (
    ANY_CERTIFICATE,
    ANY_NAME,
    QUEUES,
    SMOKE,
    UUID,
    VHOST,
    RabbitmqLab,
    permissions,
)
from tests.integration.redis_lab import Authority, command, command_environment, only, smoke

from celery_results.settings import load_settings, read_env_file
from celery_results.smoke.application import QUEUE_EXPIRES_SECONDS, Run, build, build_reader, dispose
from celery_results.smoke.catalog import CATALOG, NAMES, Kind
from celery_results.smoke.refusals.rabbitmq import NOT_OFFERED

if TYPE_CHECKING:
    from collections.abc import Iterator

ALL = {"configure": ".*", "write": ".*", "read": ".*"}
ENDED_SECONDS = 15
RUN = Run("celery-results-smoke-0123456789ab", Path(), private_broker=False, parent=0, task_seconds=5)
TASKS = [entry.name for entry in CATALOG if entry.kind is Kind.TASKS]


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Iterator[RabbitmqLab]:
    with RabbitmqLab(tmp_path_factory.mktemp("rabbitmq")) as node:
        yield node


@contextlib.contextmanager
def granted(lab: RabbitmqLab, login: str, **patterns: str) -> Iterator[None]:
    """Let a login have other permissions for a while."""
    right = permissions(lab.queue_type)[login]
    try:
        grant(lab, login, {**right, **patterns})
        yield
    finally:
        grant(lab, login, right)


def grant(lab: RabbitmqLab, login: str, patterns: dict[str, str]) -> None:
    values = [patterns[name] for name in ("configure", "write", "read")]
    lab.control("set_permissions", "--vhost", VHOST, f"celery-{login}", *values)


def assert_nothing_is_left(lab: RabbitmqLab) -> None:
    left = [name for name in lab.queues() if not name.startswith("celery_delayed_")]
    assert left == list(QUEUES)
    exchanges = {row["name"] for row in lab.table("exchanges", "name")}
    assert not [name for name in exchanges if name.startswith("celery-results-smoke")]


def assert_no_secret(lab: RabbitmqLab, text: str) -> None:
    assert not [name for name, password in lab.passwords.items() if password in text]


def test_everything_holds_as_deployed_and_nothing_is_left(lab, tmp_path):
    config = lab.write_config(tmp_path / "etc")
    mark = len(lab.log())
    answer = smoke(config, "--json")
    assert answer.code == 0, answer.stdout + answer.stderr
    assert (answer.document["backend"], answer.document["broker"]) == ("rabbitmq", "rabbitmq")
    shown = [name for name in NAMES if name in NOT_OFFERED and name != "witness"]
    assert answer.names("not_offered") == shown
    # The broker is the result store: attacked once.
    rest = [name for name in NAMES if name not in NOT_OFFERED and not name.startswith("broker_")]
    assert answer.names("passed") == rest
    assert "a second reader sees PENDING" in answer.check("second_read")["note"]
    assert "received PROGRESS" in answer.check("progress_state")["note"]
    assert answer.document["leftovers"] == []
    assert answer.stderr == ""
    assert_no_secret(lab, answer.stdout)
    assert_nothing_is_left(lab)
    assert list((config / "tmp").iterdir()) == []
    # The attacks were refused: and nothing else was.
    refused = [line for line in lab.log()[mark:].splitlines() if "access_refused" in line]
    assert len(refused) == 8, refused


def test_classic_queues_hold_as_well(tmp_path):
    with RabbitmqLab(tmp_path / "node", queue_type="classic") as node:
        answer = smoke(node.write_config(tmp_path / "etc"))
        assert answer.code == 0, answer.stdout + answer.stderr
        assert "14 passed, 0 failed, 0 not run, 6 not offered" in answer.stdout
        assert "chord               not offered" in answer.stdout
        assert_nothing_is_left(node)
        assert "celery_delayed_0" not in node.queues()


def test_what_is_said_not_to_be_offered_is_not(lab, tmp_path):
    config = lab.write_config(tmp_path / "etc")
    settings = load_settings(config, read_env_file(config / "client.env"))
    app = build(settings, replace(RUN, directory=tmp_path))
    try:
        task = app.tasks["celery_results.smoke.echo"]
        with pytest.raises(NotImplementedError):
            chord([task.s(1)], task.s(), app=app).apply_async()
        result = GroupResult("id", [], app=app)
        for call in (result.save, lambda: GroupResult.restore("id", app=app), result.delete):
            with pytest.raises(NotImplementedError):
                call()
        assert group([], app=app) is not None
        app.AsyncResult("any").forget()  # says nothing, does nothing
        assert set(NOT_OFFERED) == {
            *("witness", "second_read", "progress_state", "group_save_restore", "chord", "forget", "expiry")
        }
    finally:
        dispose(app)


def test_client_host_runs_the_refusals_and_knows_of_no_witness(lab, tmp_path):
    worker = smoke(lab.write_config(tmp_path / "worker"), "--json", "--keep-witness", *only("value"))
    assert worker.code == 0, worker.stdout + worker.stderr
    assert "witness" not in worker.document
    config = lab.write_config(tmp_path / "client")
    (config / "client.env").replace(config / "celery.env")
    answer = smoke(config, "--json")
    assert answer.code == 0, answer.stdout + answer.stderr
    assert answer.names("not_run") == TASKS
    assert answer.names("not_offered") == ["witness"]
    assert "client_write" in answer.names("passed")
    assert_nothing_is_left(lab)


@pytest.mark.parametrize(
    ("patterns", "told"),
    [
        (ALL, "declare a foreign queue"),
        ({"write": ".*"}, "publish to a foreign exchange"),
        ({"read": ".*"}, "read a foreign queue"),
    ],
)
def test_a_permission_too_many_of_the_worker_fails_the_check(lab, tmp_path, patterns, told):
    assert told in failure_of("foreign_key", lab, tmp_path, "worker", patterns)


@pytest.mark.parametrize(
    ("patterns", "told"),
    [
        ({"write": rf"^(celery|{SMOKE}|amq\.default)$"}, "forge a result"),
        ({"configure": f"^(celery|{UUID})$"}, "declare or delete the task queue"),
        ({"configure": f"^({SMOKE}|{UUID})$"}, "make a task queue"),
        ({"read": f"^(celery|{UUID})$"}, "consume or purge the task queue"),
    ],
)
def test_a_permission_too_many_of_the_client_fails_the_check(lab, tmp_path, patterns, told):
    assert told in failure_of("client_write", lab, tmp_path, "client", patterns)


def failure_of(check: str, lab: RabbitmqLab, directory: Path, login: str, patterns: dict[str, str]) -> str:
    config = lab.write_config(directory / "etc")
    with granted(lab, login, **patterns):
        answer = smoke(config, "--json", *only(check))
    assert (answer.code, answer.names("failed")) == (1, [check]), answer.stdout + answer.stderr
    assert answer.check(check)["remedy"]
    assert_nothing_is_left(lab)
    note: str = answer.check(check)["note"]
    return note


def test_another_vhost_fails_the_check(lab, tmp_path):
    config = lab.write_config(tmp_path / "etc")
    lab.control("add_vhost", "/")
    try:
        lab.control("set_permissions", "--vhost", "/", "celery-worker", "^$", "^$", "^$")
        answer = smoke(config, "--json", *only("foreign_key"))
    finally:
        lab.control("delete_vhost", "/")
    assert "enter another vhost" in answer.check("foreign_key")["note"]


def test_guest_fails_the_check(lab, tmp_path):
    config = lab.write_config(tmp_path / "etc")
    lab.control("add_user", "guest", "guest")
    try:
        lab.control("set_permissions", "--vhost", VHOST, "guest", "^$", "^$", "^$")
        answer = smoke(config, "--json", *only("no_password"))
        # A vhost that is not for guest is no refusal of guest.
        lab.control("clear_permissions", "--vhost", VHOST, "guest")
        again = smoke(config, "--json", *only("no_password"))
    finally:
        lab.control("delete_user", "guest")
    for found in (answer, again):
        assert found.names("failed") == ["no_password"]
        assert "lets guest in" in found.check("no_password")["note"]


def test_a_plain_listener_fails_the_check(lab, tmp_path):
    config = lab.write_config(tmp_path / "etc")
    listener = f'{{"{lab.address}", 5672}}'
    lab.evaluate(f"rabbit_networking:start_tcp_listener({listener}, 1).")
    try:
        answer = smoke(config, "--json", *only("plain_text"))
    finally:
        lab.evaluate(f"rabbit_networking:stop_tcp_listener({listener}).")
    assert answer.names("failed") == ["plain_text"], answer.stdout
    assert "port 5672 answers without TLS" in answer.check("plain_text")["note"]


@pytest.mark.parametrize(
    ("failed", "changes"), [("untrusted_ca", (ANY_CERTIFICATE, ANY_NAME)), ("wrong_name", (ANY_NAME,))]
)
def test_settings_that_do_not_verify_the_server_fail(lab, tmp_path, failed, changes):
    config = lab.write_config(tmp_path / "etc")
    weaken(config / "celeryconfig_rabbitmq.py", *changes)
    answer = smoke(config, "--json", *only("untrusted_ca", "wrong_name"))
    assert answer.code == 1
    assert failed in answer.names("failed"), answer.stdout + answer.stderr


def test_another_authority_is_refused_by_the_connection_that_reads(lab, tmp_path):
    config = lab.write_config(tmp_path / "etc")
    environment = read_env_file(config / "client.env")
    other = Authority(tmp_path).file
    # kombu would answer the second from the first's pool of connections: same server, same login.
    readers = [
        build_reader(load_settings(config, {**environment, "CELERYCONFIG_BROKER_TLS_CA_FILE": str(file)}))
        for file in (lab.authority.file, other)
    ]
    assert readers[0].backend.get_task_meta("any")["status"] == "PENDING"
    with pytest.raises(OperationalError, match="CERTIFICATE_VERIFY_FAILED"):
        readers[1].backend.get_task_meta("any")
    dispose(readers[0])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"HOSTS": "127.0.0.1:1"}, "is the server up"),
        ({"PASSWORD": "wrong:/@password"}, "_USERNAME and _PASSWORD"),
        ({"DATABASE": "another"}, "names a vhost"),
    ],
    ids=["server down", "wrong password", "wrong vhost"],
)
def test_a_server_that_does_not_answer_is_said_plainly(lab, tmp_path, changes, told):
    both = {f"CELERYCONFIG_{role}_{k}": v for role in ("RESULT", "BROKER") for k, v in changes.items()}
    answer = smoke(lab.write_config(tmp_path / "etc", **both))
    assert answer.code == 1
    assert answer.stdout == ""
    assert answer.stderr.startswith("error: expected amqps://celery-worker@")
    assert told in answer.stderr
    assert "Traceback" not in answer.stderr
    assert_no_secret(lab, answer.stderr)


def test_a_killed_run_leaves_a_queue_that_goes_by_itself(lab, tmp_path):
    config = lab.write_config(tmp_path / "etc")
    temporary = config / "tmp"
    # The client may send nothing: the command waits when it is killed.
    with granted(lab, "client", write="^celery_delayed_27$"):
        arguments = [*only("value"), "--timeout", "60"]
        environment = command_environment(temporary)
        with subprocess.Popen(command(config, *arguments), env=environment, stdout=-1, stderr=-1) as parent:
            try:
                deadline = time.monotonic() + ENDED_SECONDS
                while not list(temporary.glob("*/ready")) and time.monotonic() < deadline:
                    time.sleep(0.02)
                parent.send_signal(signal.SIGKILL)
                parent.communicate(timeout=ENDED_SECONDS)
            finally:
                parent.kill()
    rows = {row["name"]: row["arguments"] for row in lab.table("queues", "name", "arguments")}
    left = [name for name in rows if name not in QUEUES and not name.startswith("celery_delayed_")]
    assert sum(name.startswith("celery-results-smoke-") for name in left) == 1
    # The client's own queue too, where nobody had waited in it yet.
    assert [name for name in left if f"{QUEUE_EXPIRES_SECONDS}000" not in str(rows[name])] == []
    for name in left:
        lab.control("delete_queue", "--vhost", VHOST, name)
    assert_nothing_is_left(lab)
