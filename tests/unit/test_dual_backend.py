"""The dual backend on two stores in this process's memory: what is written, read, refused and bounded."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import sqlite3
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, states
from celery.app.task import Context
from celery.exceptions import ImproperlyConfigured, SoftTimeLimitExceeded
from celery.result import AsyncResult, GroupResult

from celery_results.backends.dual import DualBackend, helper, mirror, parts, waiting
from celery_results.backends.dual.breaker import LONGEST_SECONDS, Breaker
from celery_results.backends.dual.helper import Helpers, LateError
from celery_results.backends.dual.options import STAGES, Options
from celery_results.backends.dual.side import build_mirror, place_of
from celery_results.migration.journal import Journal
from celery_results.migration.repair import repair

CLASS = "celery_results.backends.dual:DualBackend"
SECRET = "p4ssw0rd-and-more"
BOUND_SECONDS = 0.3
ROOT = Path(__file__).parents[2]


def memory(prefix: str, **settings: Any) -> dict[str, Any]:
    return {
        "result_backend": "cache+memory://",
        "result_backend_transport_options": {"global_keyprefix": prefix},
        **settings,
    }


@pytest.fixture
def options(tmp_path):
    name = str(tmp_path)
    return {
        "stage": "dual_write",
        "old": memory(f"{name}old."),
        "new": memory(f"{name}new."),
        "journal": str(tmp_path / "journal"),
        "mirror_seconds": BOUND_SECONDS,
        "breaker_seconds": 1000,
    }


def backend_of(options: dict[str, Any], **conf: Any) -> Any:
    mirror._shared.clear()  # each test its own breaker
    app = Celery("unit", set_as_current=False, broker="memory://")
    app.conf.update(result_backend=CLASS, result_backend_transport_options=options, **conf)
    return app.backend


def side(options: dict[str, Any], name: str) -> Any:
    app = Celery("side", set_as_current=False)
    app.conf.update(options[name])
    return app.backend


def states_of(options: dict[str, Any], task_id: str) -> tuple[str, str]:
    old, new = (side(options, name).get_task_meta(task_id)["status"] for name in ("old", "new"))
    return old, new


class DownError(ConnectionError):
    """What a driver says."""


def break_mirror(backend: Any, *, error: Exception | None = None, hang: threading.Event | None = None) -> Any:
    """Let the mirror's writes fail or hang, and count what is tried."""
    tried: list[str] = []
    built = backend.mirror.backend()

    def store(task_id: str, *_: Any, **__: Any) -> None:
        tried.append(task_id)
        if hang is not None:
            hang.wait()
        if error is not None:
            raise error

    built.store_result = store
    return tried


# Writes


@pytest.mark.parametrize("stage", [name for name, stage in STAGES.items() if stage.mirror_results])
def test_a_write_goes_to_both(options, stage):
    backend = backend_of(options | {"stage": stage})
    backend.store_result("t", {"a": 1}, "SUCCESS")
    assert [side(options, name).get_task_meta("t")["result"] for name in ("old", "new")] == [{"a": 1}] * 2
    assert len(backend.mirror.journal) == 0


def test_while_draining_the_old_side_gets_no_more_results(options):
    backend = backend_of(options | {"stage": "drain"})
    backend.store_result("t", 1, "SUCCESS")
    assert states_of(options, "t") == ("PENDING", "SUCCESS")


def test_the_primarys_error_is_the_callers_and_the_mirror_is_not_written(options):
    backend = backend_of(options)

    def refuse(*_: Any, **__: Any) -> None:
        raise DownError

    backend.primary._store_result = refuse
    with pytest.raises(DownError):
        backend.store_result("t", 1, "SUCCESS")
    assert states_of(options, "t") == ("PENDING", "PENDING")
    assert len(backend.mirror.journal) == 0


def test_a_failing_mirror_is_journalled_by_id_and_never_an_error(options):
    backend = backend_of(options)
    tried = break_mirror(backend, error=DownError(SECRET))
    for number in range(50):
        backend.store_result(f"t{number}", SECRET, "SUCCESS")
    assert tried == ["t0"]  # then the breaker is open
    assert {entry.id for entry in backend.mirror.journal.entries()} == {f"t{n}" for n in range(50)}
    assert {entry.side for entry in backend.mirror.journal.entries()} == {"new"}
    assert SECRET not in (backend.mirror.journal.directory / "journal").read_text()


def test_a_hanging_mirror_delays_one_write_once_and_no_more(options):
    backend = backend_of(options)
    never = threading.Event()
    tried = break_mirror(backend, hang=never)
    began = time.monotonic()
    for number in range(100):
        backend.store_result(f"t{number}", 1, "SUCCESS")
    assert tried == ["t0"]
    assert BOUND_SECONDS <= time.monotonic() - began < BOUND_SECONDS + 10
    assert len(backend.mirror.journal) == 100
    never.set()


def test_a_value_that_the_mirror_refuses_closes_no_door_for_others(options):
    backend = backend_of(
        options
        | {"old": {**options["old"], "result_serializer": "pickle", "result_accept_content": ["pickle"]}}
    )
    backend.store_result("set", {1, 2}, "SUCCESS")
    backend.store_result("plain", 1, "SUCCESS")
    assert side(options, "new").get_task_meta("plain")["result"] == 1
    assert [entry.id for entry in backend.mirror.journal.entries()] == ["set"]


@pytest.mark.parametrize("reason", [KeyboardInterrupt, SoftTimeLimitExceeded])
def test_an_interrupted_write_is_journalled(options, reason):
    backend = backend_of(options)
    break_mirror(backend, error=None)

    def interrupt(*_: Any) -> None:
        raise reason

    backend.mirror._helpers.run = interrupt
    with pytest.raises(reason):
        backend.store_result("t", 1, "SUCCESS")
    backend.mirror._helpers.after_fork()
    del backend.mirror._helpers.run
    assert [entry.id for entry in backend.mirror.journal.entries()] == ["t"]


def test_a_journal_that_cannot_be_written_fails_no_task(options, caplog):
    backend = backend_of(options | {"journal": "/proc/none/journal"})
    break_mirror(backend, error=DownError())
    backend.store_result("t", 1, "SUCCESS")
    assert "journal cannot be written" in caplog.text


def test_success_is_final_on_both_sides(options):
    backend = backend_of(options)
    backend.store_result("t", 1, "SUCCESS")
    backend.store_result("t", ValueError("late"), "FAILURE")
    assert states_of(options, "t") == ("SUCCESS", "SUCCESS")


def test_each_side_has_its_own_serializer(options):
    options["new"].update(result_serializer="pickle", result_accept_content=["pickle"])
    backend = backend_of(options)
    backend.store_result("t", ValueError("bad"), "FAILURE")
    old, new = (side(options, name) for name in ("old", "new"))
    assert json.loads(old.get(old.get_key_for_task("t")))["result"]["exc_type"] == "ValueError"
    assert new.get(new.get_key_for_task("t"))[:1] == b"\x80"
    assert repr(new.get_task_meta("t")["result"]) == repr(old.get_task_meta("t")["result"])


def test_forget_and_groups_reach_both(options):
    backend = backend_of(options)
    app = backend.app
    backend.store_result("t", 1, "SUCCESS")
    AsyncResult("t", app=app).forget()
    assert states_of(options, "t") == ("PENDING", "PENDING")
    members = GroupResult("g", [AsyncResult("a", app=app)], app=app)
    members.save()
    assert [side(options, name).restore_group("g").as_tuple() for name in ("old", "new")] == [
        members.as_tuple()
    ] * 2
    members.delete()
    assert [side(options, name).restore_group("g") for name in ("old", "new")] == [None, None]


@pytest.mark.parametrize("later_seconds", [0.05, None])
@pytest.mark.parametrize(
    ("stage", "first", "second"),
    # A client in bridge or cutover meets workers on both sides of a restart.
    [
        ("dual_write", "old", "new"),
        ("bridge", "old", "new"),
        ("bridge", "new", "old"),
        ("cutover", "old", "new"),
        ("cutover", "new", "old"),
    ],
)
def test_a_result_that_is_forgotten_between_the_two_writes_does_not_come_back(
    options, stage, first, second, later_seconds
):
    backend = backend_of(options | {"stage": stage})
    side(options, first).store_result("t", 1, "SUCCESS")
    if later_seconds:
        later = threading.Timer(later_seconds, side(options, second).store_result, ("t", 1, "SUCCESS"))
        later.start()
    backend.forget("t")
    owed = [(entry.operation, entry.side) for entry in backend.mirror.journal.entries()]
    if later_seconds:
        later.join()
        assert states_of(options, "t") == ("PENDING", "PENDING")
        assert not owed
    else:  # it may still come: the repair will see
        assert owed == [("forget", second)]
        side(options, second).store_result("t", 1, "SUCCESS")
        assert repair(backend.app, seconds=10).deleted == 1
        assert states_of(options, "t") == ("PENDING", "PENDING")


def test_what_was_never_mirrored_is_forgotten_at_once(options):
    backend = backend_of(options | {"mirror_seconds": 1000})
    old = side(options, "old")
    old.store_result("t", 1, "SUCCESS")
    key = old.get_key_for_task("t")
    old.set(key, json.dumps(json.loads(old.get(key)) | {"date_done": "2020-01-01T00:00:00+00:00"}))
    backend.forget("t")
    old.set(key, b"no document")
    backend.forget("t")
    assert not old.get(key)
    assert len(backend.mirror.journal) == 0


# Reads


@pytest.mark.parametrize(
    ("stage", "seen"),
    [("dual_write", "PENDING"), ("bridge", "SUCCESS"), ("cutover", "SUCCESS"), ("drain", "SUCCESS")],
)
def test_what_only_the_mirror_has_is_read_by_stage(options, stage, seen):
    backend = backend_of(options | {"stage": stage})
    side(options, backend.stage.mirror).store_result("t", 1, "SUCCESS")
    GroupResult("g", [AsyncResult("t", app=backend.app)]).save(backend=side(options, backend.stage.mirror))
    assert backend.get_task_meta("t")["status"] == seen
    assert backend.task_result_exists("t") == (seen == "SUCCESS")
    assert (backend.restore_group("g") is not None) == (seen == "SUCCESS")
    found = dict(backend.get_many(["t", "u"], max_iterations=1))
    assert list(found) == (["t"] if seen == "SUCCESS" else [])


@pytest.mark.parametrize(
    ("primary", "other", "seen"),
    [
        ("STARTED", "SUCCESS", "SUCCESS"),
        ("STARTED", "RETRY", "STARTED"),
        ("PENDING", "RETRY", "RETRY"),
        ("FAILURE", "SUCCESS", "FAILURE"),
        ("SUCCESS", "PENDING", "SUCCESS"),
    ],
)
def test_the_primary_is_believed_unless_the_mirror_knows_more(options, primary, other, seen):
    backend = backend_of(options | {"stage": "cutover"})
    for name, state in (("new", primary), ("old", other)):
        if state != "PENDING":
            side(options, name).store_result(
                "t", ValueError(1) if state in states.EXCEPTION_STATES else 1, state
            )
    assert backend.get_task_meta("t")["status"] == seen


def test_a_mirror_that_cannot_be_read_changes_no_answer(options):
    backend = backend_of(options | {"stage": "cutover"})

    def refuse(*_: Any) -> None:
        raise DownError

    backend.mirror.backend()._get_task_meta_for = refuse
    assert backend.get_task_meta("t")["status"] == "PENDING"
    assert not backend.mirror.breaker.closed


@pytest.mark.parametrize("stage", STAGES)
def test_a_timeout_is_of_the_clock(options, stage, monkeypatch):
    backend = backend_of(options | {"stage": stage})
    monkeypatch.setattr(waiting, "SLICE_SECONDS", 0.1)
    began = time.monotonic()
    for timeout in (0, 0.3):
        with pytest.raises(backend.TimeoutError):
            AsyncResult("never", app=backend.app).get(timeout=timeout)
        with pytest.raises(backend.TimeoutError):
            GroupResult("g", [AsyncResult("never", app=backend.app)], app=backend.app).get(timeout=timeout)
    assert 0.6 <= time.monotonic() - began < 20


@pytest.mark.parametrize("stage", STAGES)
def test_a_wait_ends_with_the_result_wherever_it_is_stored(options, stage, monkeypatch):
    backend = backend_of(options | {"stage": stage})
    monkeypatch.setattr(waiting, "SLICE_SECONDS", 0.1)
    places = ["old", "new"] if backend.read_fallback else [backend.stage.primary]
    for name in places:
        target = side(options, name)
        threading.Timer(0.2, target.store_result, (f"t-{name}", 7, "SUCCESS")).start()
        assert AsyncResult(f"t-{name}", app=backend.app).get(timeout=20, interval=0.05) == 7
        threading.Timer(0.2, target.store_result, (f"u-{name}", 8, "SUCCESS")).start()
        both = [AsyncResult(f"{letter}-{name}", app=backend.app) for letter in "tu"]
        assert GroupResult("g", both, app=backend.app).get(timeout=20, interval=0.05) == [7, 8]


def test_a_tasks_own_timeout_error_is_no_timeout_of_the_wait(options):
    backend = backend_of(options | {"stage": "drain"})
    backend.primary.store_result("t", backend.TimeoutError("mine"), "FAILURE")
    with pytest.raises(backend.TimeoutError, match="mine"):
        AsyncResult("t", app=backend.app).get(timeout=20)


# Chords


def test_a_chord_is_created_on_the_primary_and_its_parts_go_to_both(options):
    backend = backend_of(options)
    calls: list[tuple[str, str]] = []
    for store in (backend.primary, backend.mirror.backend()):
        GroupResult("g", [AsyncResult("t", app=backend.app)], app=backend.app).save(backend=store)
    for name, store in (("old", backend.primary), ("new", backend.mirror.backend())):
        for method in ("apply_chord", "set_chord_size", "on_chord_part_return", "ensure_chords_allowed"):
            setattr(store, method, lambda *_, __n=name, __m=method, **___: calls.append((__n, __m)))
    backend.ensure_chords_allowed()
    backend.set_chord_size("g", 2)
    backend.apply_chord(("g", []), None)
    backend.on_chord_part_return(Context(id="t", group="g", group_index=0), "SUCCESS", 1)
    assert calls == [
        ("old", "ensure_chords_allowed"),
        ("old", "set_chord_size"),
        ("old", "apply_chord"),
        ("old", "on_chord_part_return"),
        ("new", "on_chord_part_return"),
    ]


def test_a_part_that_the_mirror_did_not_take_is_reported_again(options):
    backend = backend_of(options | {"breaker_seconds": 0.1})
    reported: list[str] = []
    down = threading.Event()

    def report(request: Any, *_: Any, **__: Any) -> None:
        if not down.is_set():
            raise DownError
        reported.append(request.id)

    backend.mirror.backend().on_chord_part_return = report
    backend.primary.on_chord_part_return = lambda *_: None
    GroupResult("g", [], app=backend.app).save()
    for number in range(3):
        backend.on_chord_part_return(Context(id=f"t{number}", group="g", group_index=number), "SUCCESS", 1)
    assert len(backend.mirror.journal) == 3
    down.set()
    deadline = time.monotonic() + 20
    while len(backend.mirror.journal) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert sorted(reported) == ["t0", "t1", "t2"]
    assert len(backend.mirror.journal) == 0


def test_greenlets_share_what_is_kept_of_chords(options, monkeypatch):
    """Celery makes a backend for each of them, so for each task: a thread for each would be thousands."""
    assert backend_of(options)._parts is not backend_of(options)._parts
    monkeypatch.setattr(parts, "detect_environment", lambda: "gevent")
    assert backend_of(options)._parts is backend_of(options)._parts


def test_a_side_that_would_fail_a_foreign_chord_is_not_told_of_its_parts(options):
    backend = backend_of(options)
    backend.on_chord_part_return(Context(id="t", group="g", group_index=0, chord=None), "SUCCESS", 1)
    assert len(backend.mirror.journal) == 0


# Settings


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"stage": None}, "stage"),
        ({"stage": "later"}, "dual_write"),
        ({"journal": None}, "journal"),
        ({"journal": "relative"}, "absolute"),
        ({"old": None}, "old"),
        ({"old": {}}, "result_backend"),
        (
            {"old": {"result_backend": "cache+memory://", "result_compression_level": 3}},
            "result_compression_level",
        ),
        ({"new": {"result_backend": "rpc://"}}, "rpc|RPC"),
        ({"new": {"result_backend": "disabled://"}}, "stores nothing"),
        ({"new": {"result_backend": CLASS}}, "another dual"),
        ({"mirror_seconds": 0}, "mirror_seconds"),
        ({"breaker_seconds": "soon"}, "breaker_seconds"),
        ({"wait": "pubsub"}, "poll"),
        ({"read_fallback": 1}, "read_fallback"),
        ({"mirror_secnods": 3}, "mirror_secnods"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(options, changes, named):
    wrong = {name: value for name, value in {**options, **changes}.items() if value is not None}
    with pytest.raises(ImproperlyConfigured, match=named):
        backend_of(wrong)


@pytest.mark.parametrize("name", ["redis", "postgresql", "mysql", "sqlite"])
@pytest.mark.parametrize("implementation", ["bundled", "stock"])
def test_what_celeryconfig_says_of_each_backend_can_be_a_side(options, name, implementation):
    path = ROOT / "files" / "celeryconfig" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"side_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    server = SimpleNamespace(
        implementation=implementation,
        scheme={"redis": "rediss"}.get(name, name),
        hosts=["results.example.com:1"],
        database="/var/lib/results.sqlite3" if name == "sqlite" else "2",
        username="u",
        password=SECRET,
        tls_enabled=True,
        tls_ca_file="/etc/celery/tls/ca.crt",
        tls_cert_file="",
        tls_key_file="",
        options={},
    )
    new = Options.of_settings({**options, "new": module.result_settings(server)}).sides["new"]
    assert SECRET not in place_of(Celery(set_as_current=False), new)


def test_one_store_twice_is_refused(options):
    with pytest.raises(ImproperlyConfigured, match="one and the same"):
        backend_of(options | {"new": options["old"]})


def test_no_secret_is_shown(options):
    url = f"postgresql+psycopg://user:{SECRET}@127.0.0.1/results?password={SECRET}"
    options["new"] = {"result_backend": f"celery_results.backends.database:DatabaseBackend+{url}"}
    backend = backend_of(options)
    shown = [
        backend.as_uri(),
        backend.as_uri(include_password=True),
        backend.app.conf.humanize().replace(f"?password={SECRET}", ""),  # as Celery shows any URL's query
        repr(backend),
    ]
    assert not [text for text in shown if SECRET in text]
    assert "postgresql" in shown[0]
    with pytest.raises(ImproperlyConfigured) as error:
        Options.of_settings({**options, "stage": "later"})
    assert SECRET not in str(error.value)


def test_a_mirror_that_cannot_be_built_yet_fails_nobody(options, monkeypatch):
    original = build_mirror
    failures: list[int] = []

    def build(*arguments: Any) -> Any:
        if len(failures) < 2:
            failures.append(1)
            raise DownError
        return original(*arguments)

    monkeypatch.setattr(mirror, "build_mirror", build)
    backend = backend_of(options | {"breaker_seconds": 0.01})
    assert backend.mirror.built() is None
    backend.store_result("t", 1, "SUCCESS")
    assert [entry.id for entry in backend.mirror.journal.entries()] == ["t"]
    deadline = time.monotonic() + 20
    while not backend.mirror.breaker.closed and time.monotonic() < deadline:
        backend.store_result("u", 1, "SUCCESS")
    assert states_of(options, "u") == ("SUCCESS", "SUCCESS")


def test_wrong_settings_of_the_mirror_are_told_at_the_start(options):
    options["new"] = {"result_backend": "celery_results.backends.database:DatabaseBackend+oracle://u:p@h/x"}
    with pytest.raises(ImproperlyConfigured, match="oracle"):
        backend_of(options)


def test_the_mirror_of_celerys_own_database_class_makes_no_table_and_retries_nothing(options, tmp_path):
    options["new"] = {"result_backend": f"db+sqlite:///{tmp_path}/new.sqlite3"}
    backend = backend_of(options)
    backend.store_result("t", 1, "SUCCESS")
    built = backend.mirror.backend()
    assert (built.always_retry, built.max_retries, built.session_manager.prepared) == (False, 0, True)
    assert [entry.id for entry in backend.mirror.journal.entries()] == ["t"]  # there is no such table


def test_a_redis_mirror_answers_within_the_bound_whatever_its_url_says(options):
    options["new"] = {"result_backend": "redis://127.0.0.1:1/0?socket_timeout=99"}
    parameters = backend_of(options).mirror.backend().connparams
    assert parameters["socket_timeout"] == parameters["socket_connect_timeout"] == BOUND_SECONDS
    assert parameters["retry"].get_retries() == 0


@pytest.mark.parametrize("kind", ["celery_results.backends.database:DatabaseBackend", "db"])
def test_a_locked_file_holds_a_mirror_no_longer_than_the_bound(options, tmp_path, kind):
    """SQLite waits in C: with gevent no helper thread bounds that."""
    waits = {"connect_args": {"timeout": 30.0}}
    file = tmp_path / "new.sqlite3"
    options["new"] = {"result_backend": f"{kind}+sqlite:///{file}", "database_engine_options": waits}
    with contextlib.closing(sqlite3.connect(file)) as other:
        other.execute("BEGIN EXCLUSIVE")
        built = backend_of(options).mirror.backend()
        began = time.monotonic()
        with pytest.raises(Exception, match="locked"):
            built.store_result("t", 1, "SUCCESS")
        assert time.monotonic() - began < 15
    assert waits == {"connect_args": {"timeout": 30.0}}


@pytest.mark.parametrize(
    ("url", "drivers"),
    [
        ("db+postgresql+psycopg2://u@127.0.0.1:1/x", ["psycopg2"]),
        ("db+postgresql+psycopg://u@127.0.0.1:1/x", []),
        ("celery_results.backends.database:DatabaseBackend+postgresql://u@127.0.0.1:1/x", []),
        ("redis://127.0.0.1:1/1", []),
    ],
)
def test_a_driver_that_stops_every_greenlet_is_named(options, monkeypatch, caplog, url, drivers):
    backend_of(options | {"new": {"result_backend": url}})
    assert "does not know" not in caplog.text
    monkeypatch.setattr(mirror, "detect_environment", lambda: "gevent")
    backend_of(options | {"new": {"result_backend": url}})
    assert re.findall(r"driver (\w+) does not know gevent", caplog.text) == drivers


def test_beat_cleans_up_unless_both_sides_expire_by_themselves(options, tmp_path):
    redis = {"result_backend": "redis://127.0.0.1:1/0"}
    database = {
        "result_backend": f"celery_results.backends.database:DatabaseBackend+sqlite:///{tmp_path}/x.sqlite3"
    }
    assert not backend_of(options | {"old": redis, "new": database}).supports_autoexpire
    assert not backend_of(options | {"old": database, "new": redis}).supports_autoexpire
    other = {"result_backend": "redis://127.0.0.1:1/1"}
    assert backend_of(options | {"old": redis, "new": other}).supports_autoexpire


def test_threads_have_backends_of_their_own_and_one_breaker(options):
    backend = backend_of(options)
    others: list[Any] = []
    thread = threading.Thread(target=lambda: others.append(backend.app.backend))
    thread.start()
    thread.join()
    assert isinstance(others[0], DualBackend)
    assert others[0] is not backend
    assert others[0].mirror.breaker is backend.mirror.breaker


# Breaker and helpers


def test_the_breaker_lets_one_try_after_each_longer_pause():
    now = [0.0]
    breaker = Breaker(5.0, lambda: now[0])
    assert breaker.enter()
    breaker.failed()
    pauses = []
    for _ in range(6):
        began = now[0]
        while not breaker.enter():
            now[0] += 0.5
        assert not breaker.enter()  # one only
        pauses.append(now[0] - began)
        breaker.failed()
    assert pauses == [5.0, 10.0, 20.0, 40.0, LONGEST_SECONDS, LONGEST_SECONDS]
    now[0] += LONGEST_SECONDS
    assert breaker.enter()
    breaker.succeeded()
    assert breaker.closed
    assert breaker.enter()
    assert breaker.enter()


def test_slow_answers_and_refused_values_open_it_only_when_they_are_many():
    breaker = Breaker(5.0, lambda: 0.0)
    for _ in range(2):
        assert breaker.enter()
        breaker.succeeded(slow=True)
    assert breaker.enter()
    breaker.succeeded()
    for _ in range(3):
        assert breaker.enter()
        breaker.doubtful()
    assert not breaker.closed


def test_a_helper_gives_values_errors_and_lateness_and_serves_again():
    helpers = Helpers()
    assert helpers.run(lambda: 5, 5) == 5
    with pytest.raises(KeyError):
        helpers.run(lambda: dict[str, int]()["x"], 5)
    go = threading.Event()
    with pytest.raises(LateError):
        helpers.run(go.wait, 0.05)
    assert helpers.run(lambda: 6, 5) == 6  # another one
    go.set()
    names = {helpers.run(lambda: threading.current_thread().ident, 5) for _ in range(20)}
    assert len(names) <= 2
    assert len(helpers._idle) == 2


def test_more_callers_than_helpers_wait_their_turn(monkeypatch):
    monkeypatch.setattr(helper, "MOST", 2)
    helpers = Helpers()
    done: list[int] = []
    threads = [
        threading.Thread(target=lambda n=n: done.append(helpers.run(lambda: n, 20))) for n in range(50)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == list(range(50))
    never = threading.Event()
    for _ in range(3):  # the third finds none
        with pytest.raises(LateError):
            helpers.run(never.wait, 0.05)
    never.set()


def test_a_helper_works_for_the_task_of_its_caller(options):
    backend = backend_of(options)
    app = backend.app

    @app.task(shared=False)
    def parent() -> Any:
        return Helpers().run(lambda: (app.current_worker_task, parent.request.id), 5)

    parent.push_request(id="me", called_directly=False)
    from celery._state import _task_stack  # noqa: PLC0415

    _task_stack.push(parent)
    try:
        task, identifier = parent.run()
    finally:
        _task_stack.pop()
        parent.pop_request()
    assert task.name == parent.name
    assert identifier == "me"


def test_a_forked_child_has_helpers_of_its_own(options):
    backend = backend_of(options)
    backend.store_result("parent", 1, "SUCCESS")
    child = os.fork()
    if not child:
        code = 1
        try:
            backend.store_result("child", 1, "SUCCESS")
            # This memory is the child's: its mirror must have it.
            code = int(backend.mirror.backend().get_task_meta("child")["status"] != "SUCCESS")
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert len(Journal(backend.options.journal)) == 0
