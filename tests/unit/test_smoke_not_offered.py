"""What a backend does not offer is said so: neither passed nor failed."""

from __future__ import annotations

import io
import json

import pytest

from celery_results.redaction import Redactor
from celery_results.smoke import certificates, refusals, report
from celery_results.smoke.catalog import CATALOG, NAMES, Kind
from celery_results.smoke.outcome import CheckFailed, Outcome, Status
from celery_results.smoke.recorder import Recorder
from celery_results.smoke.refusals import rabbitmq
from celery_results.smoke.runner import Report

BACKENDS = ("redis", "postgresql", "mysql", "sqlite", "rabbitmq")
ENTRIES = {entry.name: entry for entry in CATALOG}


def absence(ending):
    yield
    if isinstance(ending, Exception):
        raise ending
    return ending


def outcome_of(ending) -> Outcome:
    recorder = Recorder(Redactor(()), (), {"second_read": "by nobody"})
    steps = absence(ending)
    while recorder.step(ENTRIES["second_read"], steps):
        pass
    return recorder.outcomes()[0]


def test_what_was_shown_to_be_absent_is_not_offered():
    outcome = outcome_of("PENDING for ever")
    assert (outcome.status, outcome.note) == (Status.NOT_OFFERED, "by nobody; shown: PENDING for ever")
    assert not outcome.remedy


def test_what_is_there_after_all_is_a_failure():
    assert outcome_of(CheckFailed("expected PENDING, found SUCCESS")).status is Status.FAILED


def test_what_cannot_be_shown_is_said():
    recorder = Recorder(Redactor(()), (), {"chord": "by nobody"})
    recorder.not_offered(ENTRIES["chord"])
    assert recorder.outcomes() == (Outcome("chord", Status.NOT_OFFERED, 0, "by nobody"),)


def test_it_fails_nothing_and_proves_nothing():
    absent = Outcome("chord", Status.NOT_OFFERED, 0, "by rpc")
    passed = Outcome("value", Status.PASSED, 1, "fine")
    found = Report("rabbitmq", "rabbitmq", "worker", (passed, absent))
    assert found.ok
    assert not Report("rabbitmq", "rabbitmq", "worker", (absent,)).ok
    document = json.loads(report.as_json(found))
    assert [check["status"] for check in document["checks"]] == ["passed", "not_offered"]
    stream = io.StringIO()
    report.print_text(found, stream)
    assert "chord               not offered      0 ms  by rpc" in stream.getvalue()
    assert "1 passed, 0 failed, 0 not run, 1 not offered" in stream.getvalue()


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_says_what_it_does_not_offer(backend):
    plugin = refusals.load(backend)
    assert set(plugin.NOT_OFFERED) <= set(NAMES)
    assert bool(plugin.NOT_OFFERED) == (backend == "rabbitmq")


def test_only_task_checks_and_the_witness_can_be_absent():
    kinds = {ENTRIES[name].kind for name in rabbitmq.NOT_OFFERED}
    assert kinds == {Kind.TASKS, Kind.WITNESS}
    assert {name for name, entry in ENTRIES.items() if entry.absence} <= set(rabbitmq.NOT_OFFERED)


def test_every_refusal_of_the_catalog_can_be_tried_on_rabbitmq():
    wanted = {entry.name for entry in CATALOG if entry.kind in {Kind.REFUSAL, Kind.REFUSAL_OF_A_RESULT}}
    assert wanted == set(rabbitmq.ATTEMPTS) | set(certificates.ATTEMPTS)
