"""Passwords, certificates and run-time settings change under a server that keeps running, and are never shown.

One run changes them all, from the worst state that there is: the served certificate has expired.
"""

import json
from dataclasses import dataclass
from typing import Any

import pytest
from redis_host import CLI, connected, hold
from scenario_support import CeleryHost, Site, until
from testinfra.backend.base import CommandResult
from testinfra.host import Host

SERVED = (
    "echo | openssl s_client -connect localhost:6379 2>/dev/null | openssl x509 -noout -fingerprint -enddate"
)
PROCESS = "redis-admin info server | grep -E '^(process_id|run_id)'"


@dataclass(frozen=True)
class Renewal:
    """What was there before the run that replaced every secret, and what that run printed."""

    process: str
    served_before: str
    served_expired: str
    doctor: tuple[int, Any]
    smoke: CommandResult
    held: set[str]
    old: dict[str, str]
    output: str


@pytest.fixture(scope="module")
def renewal(site: Site, server: Host, worker: CeleryHost) -> Renewal:
    """Expire the certificate, forget every password, and run with another run-time setting.

    Every task that touches a secret runs as `changed` then, in the loudest mode there is.
    """
    process = server.check_output(PROCESS)
    held = hold(server, site)
    served_before = server.check_output(SERVED)
    expire_now(site, server)
    served_expired = server.check_output(SERVED)
    doctor = worker.cli("doctor")
    smoke = worker.host.run("runuser -u celery -- /opt/celery/venv/bin/celery-results smoke --timeout 20")
    old = site.forget_secrets()
    old.pop("redis_migration_password", None)  # the login of the tests before, which this run takes away

    run = site.run("--diff", "-vvv", redis_config={"slowlog-max-len": 77})

    assert run.returncode == 0, run.stdout[-3000:]
    return Renewal(process, served_before, served_expired, doctor, smoke, held, old, run.stdout)


def expire_now(site: Site, server: Host) -> None:
    """Put a certificate of our own authority in place that expired an hour ago, and have it served."""
    old = server.check_output("cat /etc/redis/tls/server.crt")
    expired = site.expired(old)
    server.check_output(f"printf %s '{expired}' > /etc/redis/tls/server.crt")
    server.check_output(
        "redis-admin config set tls-cert-file /etc/redis/tls/server.crt tls-key-file /etc/redis/tls/server.key"
    )
    until(lambda: "notAfter" in server.run(SERVED).stdout, 10, "the server serves again")


def test_an_expired_certificate_is_reported(renewal: Renewal) -> None:
    assert renewal.served_expired != renewal.served_before
    code, report = renewal.doctor
    assert code == 1
    assert any("expired" in finding["title"].lower() for finding in report["findings"]), report
    assert renewal.smoke.rc == 1
    assert "certificate" in renewal.smoke.stdout + renewal.smoke.stderr


def test_everything_changed_without_a_restart(renewal: Renewal, server: Host) -> None:
    assert server.check_output(PROCESS) == renewal.process
    assert server.check_output(SERVED) not in (renewal.served_expired, renewal.served_before)
    assert server.check_output("redis-admin config get slowlog-max-len").split()[1] == "77"


def test_no_secret_is_shown_by_the_run_that_changes_them(renewal: Renewal, site: Site) -> None:
    site.assert_replaced(renewal.old, renewal.output)


def test_old_passwords_are_refused_and_new_ones_work(
    renewal: Renewal, server: Host, worker: CeleryHost
) -> None:
    refused = server.run(f"{CLI} --user celery-worker --pass {renewal.old['redis_worker_password']} ping")
    assert "WRONGPASS" in refused.stderr
    code = "app.backend.store_result('rotated', 1, 'SUCCESS'); print(app.AsyncResult('rotated').get())"
    assert worker.python(code) == "1"


def test_who_came_with_an_old_password_is_disconnected(renewal: Renewal, server: Host) -> None:
    assert renewal.held
    assert not renewal.held & connected(server)


def test_a_user_that_is_not_wanted_any_more_is_gone(renewal: Renewal, server: Host) -> None:
    assert renewal.output
    assert "celery-migration" not in server.check_output("redis-admin acl users")


def test_doctor_is_content_again(renewal: Renewal, worker: CeleryHost) -> None:
    assert renewal.doctor[0] == 1
    code, report = worker.cli("doctor --fail-on warning")
    assert code == 0, json.dumps(report, indent=1)
