"""The logins' permissions on RabbitMQ: enough for all that Celery does, and no part of them is too much."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from celery import Celery
from tests.integration.lab_files import ROOT
from tests.integration.rabbitmq_lab import DELAYED, UUID, VHOST, RabbitmqLab, permissions
from tests.integration.test_rabbitmq_faults import wait_until, worker

from celery_results.settings import load_settings, read_env_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NOTHING = "nothing-of-this-name"
PARTS = {
    "task queue": "(celery|",
    "control": r"(.+\.)?celery\.pidbox",
    "events": rf"celeryev(\.{UUID})?",
    "delayed delivery": DELAYED,
}
KINDS = ("configure", "write", "read")


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Iterator[RabbitmqLab]:
    with RabbitmqLab(tmp_path_factory.mktemp("rabbitmq")) as node:
        yield node


@contextlib.contextmanager
def without(lab: RabbitmqLab, login: str, kind: str, part: str) -> Iterator[None]:
    right = permissions(lab.queue_type)[login]
    # A group that the part opens or closes stays one.
    instead = (
        "(" * part.startswith("(celery|") + NOTHING + ")$" * part.endswith(")$") + "|" * part.endswith("|")
    )
    less = instead.join(right[kind].rsplit(part, 1))
    assert less != right[kind]
    try:
        grant(lab, login, {**right, kind: less})
        yield
    finally:
        grant(lab, login, right)


def grant(lab: RabbitmqLab, login: str, patterns: dict[str, str]) -> None:
    values = [patterns[name] for name in KINDS]
    lab.control("set_permissions", "--vhost", VHOST, f"celery-{login}", *values)


def refusals(lab: RabbitmqLab, mark: int, login: str) -> list[str]:
    lines = lab.log()[mark:].splitlines()
    return [line for line in lines if "access_refused" in line and f"celery-{login}" in line]


def send(lab: RabbitmqLab, directory: Path, login: str) -> None:
    """Send at once and for later, and wait, as an app with this login does."""
    config = lab.write_config(directory / login)
    env_file = "celery.env" if login == "worker" else "client.env"
    app = Celery(f"app of {directory}", set_as_current=False)
    app.config_from_object(load_settings(config, read_env_file(config / env_file)))
    # One pool for each test: kombu would hand out the connection of an earlier one.
    app.conf.broker_transport_options = {**app.conf.broker_transport_options, "of": str(directory)}
    try:
        assert app.send_task("proj.add", (1, 2)).get(timeout=20) == 3
        assert app.send_task("proj.add", (1, 2), countdown=1).get(timeout=20) == 3
    finally:
        app.close()


def ping(lab: RabbitmqLab, directory: Path, env_file: str) -> subprocess.CompletedProcess[str]:
    config = lab.write_config(directory / "worker")
    path = os.pathsep.join([str(config), str(directory), str(ROOT / "src")])
    environment = {**os.environ, **read_env_file(config / env_file), "PYTHONPATH": path}
    return subprocess.run(
        [sys.executable, "-m", "celery", "--app", "proj", "inspect", "ping", "--timeout", "5"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_all_that_celery_does_is_allowed_and_control_is_the_workers(lab, tmp_path):
    mark = len(lab.log())
    with worker(lab, tmp_path, "--task-events"):
        for login in ("client", "worker"):
            send(lab, tmp_path, login)
        answer = ping(lab, tmp_path, "celery.env")
        assert answer.returncode == 0, answer.stderr
        assert (refusals(lab, mark, "worker"), refusals(lab, mark, "client")) == ([], [])
        refused = ping(lab, tmp_path, "client.env")
        assert refused.returncode != 0
        assert "403" in refused.stderr
    assert "reply.celery.pidbox" in refusals(lab, mark, "client")[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_a_worker_without_one_part_is_refused(lab, tmp_path, kind, part):
    with without(lab, "worker", kind, part):
        mark = len(lab.log())
        with worker(lab, tmp_path, "--task-events", ready=False):
            assert wait_until(lambda: refusals(lab, mark, "worker"))


@pytest.mark.parametrize(
    ("login", "kind", "part"),
    [
        ("worker", "configure", f"{UUID})$"),
        ("worker", "read", f"{UUID})$"),
        ("client", "configure", UUID),
        ("client", "read", UUID),
        ("client", "write", "(celery|"),
        ("client", "write", "celery_delayed_27"),
    ],
)
def test_a_sender_without_one_part_is_refused(lab, tmp_path, login, kind, part):
    with worker(lab, tmp_path):
        mark = len(lab.log())
        with without(lab, login, kind, part), pytest.raises(Exception, match=r"403|timed out"):
            send(lab, tmp_path, login)
        assert refusals(lab, mark, login)
