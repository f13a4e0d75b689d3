"""A user's application under our worker unit."""

import time
import uuid

from scenario_support import CeleryHost, Site, until
from testinfra.host import Host

PROJECT = "/srv/proj"


def test_a_task_runs_in_the_deployed_worker(worker: CeleryHost) -> None:
    code = "from proj.celery import add; print(add.delay(2, 3).get(timeout=20))"
    assert worker.python(code, more_path=PROJECT) == "5"
    assert worker.python(code, env_file="client.env", more_path=PROJECT) == "5"


def test_units_are_hardened_and_hold_no_secret(worker: CeleryHost, site: Site) -> None:
    shown = worker.host.check_output(
        "systemctl show celery-worker -p User -p NoNewPrivileges -p ProtectSystem -p Environment -p CapabilityBoundingSet"
    )
    assert "User=celery" in shown
    assert "NoNewPrivileges=yes" in shown
    assert "ProtectSystem=strict" in shown
    assert "CapabilityBoundingSet=\n" in shown + "\n"
    for secret in site.secrets().values():
        assert secret not in shown


def test_the_application_finds_what_it_requires(workers: list[CeleryHost]) -> None:
    for worker in workers:
        assert worker.python("import tabulate; print(tabulate.__name__)") == "tabulate"


def test_beat_runs_once(workers: list[CeleryHost]) -> None:
    first, second = (worker.host.service("celery-beat") for worker in workers)
    assert first.is_running
    assert first.is_enabled
    assert not second.exists


def test_no_task_is_lost_when_the_worker_restarts(worker: CeleryHost) -> None:
    """Twenty tasks queued and two running when the restart comes: all results arrive, each ran once."""
    run = uuid.uuid4()
    send = (
        "from proj.celery import slow; "
        f"[slow.apply_async((1, f't{{i}}'), task_id=f'{run}-{{i}}') for i in range(20)]"
    )
    worker.python(send, more_path=PROJECT)
    time.sleep(1.5)
    pid = worker.host.check_output("systemctl show -p MainPID --value celery-worker")

    worker.host.check_output("systemctl restart celery-worker")

    assert worker.host.check_output("systemctl show -p MainPID --value celery-worker") != pid
    collect = (
        "from celery.result import AsyncResult; "
        f"print(' '.join(app.AsyncResult(f'{run}-{{i}}').get(timeout=60) for i in range(20)))"
    )
    assert worker.python(collect).split() == [f"t{i}" for i in range(20)]


def moment(worker: CeleryHost, event: str) -> float:
    """Return when the worker's unit last did so, in seconds of the hosts' common clock."""
    shown = worker.host.check_output(f"systemctl show celery-worker --timestamp=unix -p {event} --value")
    return float(shown.strip().lstrip("@"))


def test_a_changed_setting_restarts_one_worker_after_the_other_and_beat_moves(
    site: Site, workers: list[CeleryHost]
) -> None:
    worker, second = workers
    change = uuid.uuid4()
    worker.python(
        "from proj.celery import slow; "
        f"[slow.apply_async((2, f'c{{i}}'), task_id=f'{change}-{{i}}') for i in range(6)]",
        more_path=PROJECT,
    )
    pid = worker.host.check_output("systemctl show -p MainPID --value celery-worker")
    run = site.run(
        broker="redis",
        celery_result_expires_seconds=43200,
        celery_beat_default="{{ inventory_hostname == topology_celery | last }}",
    )
    assert run.returncode == 0, run.stdout[-3000:]
    assert moment(worker, "ActiveEnterTimestamp") <= moment(second, "ActiveExitTimestamp")
    assert not worker.host.service("celery-beat").exists
    assert second.host.service("celery-beat").is_running
    assert worker.host.check_output("systemctl show -p MainPID --value celery-worker") != pid
    collect = f"print(' '.join(app.AsyncResult(f'{change}-{{i}}').get(timeout=60) for i in range(6)))"
    assert worker.python(collect).split() == [f"c{i}" for i in range(6)]
    for each in workers:
        assert each.python("print(app.conf.result_expires)") in ("43200", "12:00:00")


def test_the_unit_survives_a_killed_worker(worker: CeleryHost) -> None:
    worker.host.check_output("systemctl kill -s KILL celery-worker")
    until(lambda: worker.host.service("celery-worker").is_running, 60, "the worker is back")
    code = "from proj.celery import add; print(add.delay(2, 3).get(timeout=40))"
    assert worker.python(code, more_path=PROJECT) == "5"


def test_inspect_answers_over_our_broker(worker: CeleryHost) -> None:
    command = worker.command("print(app.control.ping(timeout=5))", more_path=PROJECT)
    until(lambda: "pong" in worker.host.run(command).stdout, 30, "the worker answers a ping")


def test_broker_login_is_denied_nothing(server: Host, worker: CeleryHost) -> None:
    """A worker that starts, tasks at once and later, and inspect; the attacks of smoke are in the log before."""
    server.check_output("redis-admin acl log reset")
    worker.host.check_output("systemctl restart celery-worker")
    code = (
        "from proj.celery import add; print(add.delay(2, 3).get(timeout=60), "
        "add.apply_async((2, 4), countdown=1).get(timeout=60), bool(app.control.ping(timeout=5)))"
    )
    assert worker.python(code, more_path=PROJECT) == "5 6 True"
    assert "celery-broker" not in server.check_output("redis-admin acl log")
