"""The parts of smoke that need no server."""

from __future__ import annotations

import contextlib
import io
import json
import os
import ssl
import subprocess
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from celery.exceptions import TimeoutError as CeleryTimeoutError
from kombu.connection import Connection

from celery_results import cli, interruption
from celery_results.errors import SettingsError
from celery_results.redaction import Redactor
from celery_results.smoke import certificates, refusals, report, tasks, transport
from celery_results.smoke import session as sessions
from celery_results.smoke.application import Run, build
from celery_results.smoke.catalog import CATALOG, NAMES, Kind
from celery_results.smoke.checks import expect
from celery_results.smoke.diagnosis import (
    Hint,
    causes,
    is_certificate_error,
    is_name_error,
    remedy_for,
    telling_line,
)
from celery_results.smoke.outcome import CheckFailed, NotRun, Outcome, Status
from celery_results.smoke.recorder import Recorder
from celery_results.smoke.refusals import Accepted, redis
from celery_results.smoke.runner import Plan, Report, Smoke

HINTS = (Hint("NOPERM", "see the ACL"),)
OUTCOMES = (
    Outcome("value", Status.PASSED, 12, "fine [42]"),
    Outcome("chord", Status.FAILED, 3000, "no result", "see the ACL"),
    Outcome("client_write", Status.NOT_RUN, 0, "not run here: no client login"),
)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def step(steps, *, log="", secrets=()):
    recorder = Recorder(Redactor(secrets), HINTS)
    recorder.worker_log = lambda: log
    entry = next(entry for entry in CATALOG if entry.name == "chord")
    while recorder.step(entry, steps):
        pass
    return recorder.outcomes()[0]


def steps_of(ending):
    yield
    if isinstance(ending, Exception):
        raise ending
    return ending


def test_names_are_unique_and_every_check_has_a_remedy():
    assert len(set(NAMES)) == len(NAMES)
    assert all(entry.title and entry.remedy for entry in CATALOG)
    assert all((entry.steps is not None) == (entry.kind is Kind.TASKS) for entry in CATALOG)


def test_every_refusal_of_the_catalog_can_be_tried_on_redis():
    wanted = {entry.name for entry in CATALOG if entry.kind in {Kind.REFUSAL, Kind.REFUSAL_OF_A_RESULT}}
    assert wanted == set(redis.ATTEMPTS) | set(certificates.ATTEMPTS)


def test_a_backend_without_refusals_is_an_error_that_says_so():
    with pytest.raises(SettingsError, match=r"refusals for the backend nosuch .*redis"):
        refusals.load("nosuch")
    assert refusals.find("nosuch") is None


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ({"a": [1, 2.0]}, r"it\['a'\]\[1\]: expected int, found float"),
        ({"a": [1, True]}, "expected int, found bool"),
        ({"a": [1]}, "expected 2 items, found 1"),
        ({"b": [1, 2]}, "expected the keys"),
        ({"a": [1, 3]}, "expected 2, found 3"),
    ],
)
def test_values_are_compared_with_their_types(found, told):
    expect({"a": [1, 2]}, {"a": [1, 2]}, "it")
    with pytest.raises(CheckFailed, match=told):
        expect({"a": [1, 2]}, found, "it")


@pytest.mark.parametrize(
    ("ending", "status", "note", "remedy"),
    [
        ("fine", Status.PASSED, "fine", ""),
        (NotRun("no login"), Status.NOT_RUN, "not run here: no login", ""),
        (CheckFailed("odd", "do this"), Status.FAILED, "odd", "do this"),
        (Accepted("it may"), Status.FAILED, "it may", "see the server's permissions"),
        (RuntimeError("NOPERM here"), Status.FAILED, "RuntimeError: NOPERM here", "see the ACL"),
        (
            RuntimeError("has s3cret"),
            Status.FAILED,
            "RuntimeError: has ********",
            "see the server's permissions",
        ),
    ],
)
def test_whatever_a_check_does_becomes_an_outcome(ending, status, note, remedy):
    outcome = step(steps_of(ending), secrets=["s3cret"])
    assert (outcome.status, outcome.note) == (status, note)
    assert outcome.remedy.startswith(remedy)
    assert bool(outcome.remedy) == (status is Status.FAILED)


def test_a_result_that_does_not_come_is_explained_by_the_workers_log():
    outcome = step(steps_of(CheckFailed("no result")), log="start\nNOPERM evalsha\nend")
    assert (outcome.note, outcome.remedy) == (
        "no result; the worker's log says: NOPERM evalsha",
        "see the ACL",
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("certificate verify failed: certificate has expired", "renews"),
        ("certificate verify failed: IP address mismatch", "_HOSTS is a name"),
        ("[SSL: CERTIFICATE_VERIFY_FAILED] unable to get local issuer certificate", "_TLS_CA_FILE"),
        ("Error 111 connecting to h:1. Connection refused.", "is the server up"),
        ("[SSL: WRONG_VERSION_NUMBER] wrong version number", "_TLS_ENABLED"),
        ("User celery-worker has no permissions to run the 'evalsha' command", "ACL"),
        ("The user executing the script can't run this command or subcommand script: 5bd, on @user", "ACL"),
        ("invalid username-password pair or user is disabled.", "_PASSWORD"),
        ("OOM command not allowed when used memory > 'maxmemory'.", "redis_maxmemory"),
    ],
)
def test_a_message_leads_to_the_setting(text, told):
    assert told in remedy_for(text, redis.HINTS)
    assert telling_line(f"one\n  {text}\ntwo", redis.HINTS) == text


def test_a_certificate_error_is_found_behind_others():
    name = ssl.SSLCertVerificationError(1, "certificate verify failed: Hostname mismatch")
    wrapped = RuntimeError("lost")
    wrapped.__cause__ = ConnectionError(name)
    assert is_certificate_error(wrapped)
    assert is_name_error(wrapped)
    assert not is_name_error(ssl.SSLCertVerificationError(1, "self-signed certificate"))
    assert not is_certificate_error(ConnectionRefusedError(111, "Connection refused"))
    wrapped.__context__ = wrapped
    assert len(list(causes(wrapped))) == 3


def test_report_is_ok_only_if_something_passed_and_nothing_failed():
    passed, failed, not_run = OUTCOMES
    ok = {
        outcomes: Report("redis", "private", "worker", outcomes).ok
        for outcomes in ((passed, not_run), OUTCOMES)
    }
    assert ok == {(passed, not_run): True, OUTCOMES: False}
    assert not Report("redis", "private", "worker", (not_run,)).ok
    assert not Report("redis", "private", "worker", (failed,)).ok


def test_report_as_json_keeps_its_keys():
    document = json.loads(report.as_json(Report("redis", "private", "worker", OUTCOMES, witness="id")))
    assert set(document) == {
        "ok",
        "backend",
        "broker",
        "login",
        "checks",
        "leftovers",
        "worker_log",
        "witness",
    }
    assert document["checks"][1] == {
        "name": "chord",
        "status": "failed",
        "milliseconds": 3000,
        "note": "no result",
        "remedy": "see the ACL",
    }


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_report_for_people_says_what_to_do(stream):
    out = stream()
    report.print_text(Report("redis", "private", "worker", OUTCOMES, leftovers=("x",), log_tail="a\nb"), out)
    text = out.getvalue()
    for part in (
        "fine [42]",
        "chord: no result\n  do: see the ACL",
        "  a\n  b",
        "1 passed, 1 failed, 1 not run",
    ):
        assert part in text
    assert ("\x1b[" in text) == (stream is Terminal)


def test_private_broker_delivers_whole_messages_in_order(tmp_path):
    settings = transport.settings(tmp_path)
    with Connection(
        settings["broker_url"], transport_options=settings["broker_transport_options"]
    ) as connection:
        queue = connection.SimpleQueue("smoke")
        for number in range(3):
            queue.put({"number": number})
        names = [path.name for path in (tmp_path / "messages").iterdir()]
        assert all(name.endswith(".smoke.msg") for name in names)
        assert [queue.get(timeout=1).payload for _ in range(3)] == [
            {"number": 0},
            {"number": 1},
            {"number": 2},
        ]
        queue.close()


def test_run_passes_through_the_environment_and_says_what_is_missing(tmp_path):
    run = Run("queue", tmp_path, private_broker=True, parent=42, task_seconds=7)
    assert Run.from_environment(run.to_environment()) == run
    with pytest.raises(SettingsError, match="CELERY_RESULTS_SMOKE_QUEUE"):
        Run.from_environment({})


def test_own_settings_win_over_what_would_lead_tasks_astray(tmp_path):
    deployed = {"task_routes": {"*": "elsewhere"}, "task_always_eager": True, "include": ["no.such.module"]}
    app = build(deployed, Run("own", tmp_path, private_broker=True, parent=0, task_seconds=5))
    assert (app.conf.task_routes, app.conf.task_always_eager, tuple(app.conf.include)) == (None, False, ())
    assert app.amqp.default_queue.name == "own"
    assert f"{tasks.PREFIX}echo" in app.tasks
    app.close()


def test_choosing_an_attack_on_a_result_chooses_the_result(tmp_path):
    plan = Plan(tmp_path, {}, None, None, 1, frozenset({"client_write"}))
    assert [entry.name for entry in plan.selected(Kind.TASKS)] == ["value"]
    assert plan.selected(Kind.REFUSAL) == []


def test_a_login_that_is_neither_workers_nor_clients_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="monitor"):
        Smoke(Plan(tmp_path, {"CELERYCONFIG_LOGIN": "monitor"}, None, None, 1, frozenset(NAMES)))


def test_list_names_every_check_and_a_wrong_name_is_wrong_usage(capsys):
    assert cli.main(["smoke", "--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(NAMES)
    assert cli.main(["smoke", "--only", "chrod"]) == 2
    assert "chrod" in capsys.readouterr().err


@pytest.mark.parametrize("looks", [1, 2, None])
def test_a_result_whose_notice_was_missed_is_looked_at_again(monkeypatch, tmp_path, looks):
    seen = []

    def get(timeout: float, **_: Any) -> str:
        seen.append(timeout)
        if len(seen) == looks:
            return "value"
        time.sleep(timeout)
        raise CeleryTimeoutError

    monkeypatch.setattr(sessions, "LOOK_AGAIN_SECONDS", 0.25)
    session = sessions.Session(None, tmp_path, 0.8, lambda: None)
    session.start_clock()
    result = SimpleNamespace(get=get, state="PENDING")
    if looks:
        assert session.get(result) == "value"
        assert len(seen) == looks
    else:
        with pytest.raises(CheckFailed, match="no result within"):
            session.get(result)
        assert max(seen) <= 0.25
        assert len(seen) >= 3


def test_large_result_says_its_own_digest():
    assert len(tasks.large(1)["text"]) == tasks.LARGE_BYTES
    assert tasks.large(1) == tasks.large(1)
    assert tasks.retry_once(SimpleNamespace(request=SimpleNamespace(retries=1))) == 1


def test_an_interruption_in_the_middle_of_an_exec_leaves_the_exit_code_alone(tmp_path):
    (tmp_path / "command.py").write_text(
        "import os, signal, sys\n"
        "from celery_results import interruption\n"
        "interruption.install()\n"
        "try:\n"
        "    exec('os.kill(os.getpid(), signal.SIGINT)\\nwhile True: pass')\n"
        "except KeyboardInterrupt:\n"
        "    sys.exit(130)\n"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    ran = subprocess.run(
        [sys.executable, "-m", "command"], env={**os.environ, "PYTHONPATH": path}, check=False, timeout=30
    )
    assert ran.returncode == 130


def test_an_interruption_that_a_library_swallows_is_remembered(monkeypatch):
    monkeypatch.setattr(interruption, "_asked", threading.Event())
    interruption.check()
    with contextlib.suppress(KeyboardInterrupt):
        interruption._interrupt(2, None)
    with pytest.raises(KeyboardInterrupt):
        step(steps_of("fine"))
