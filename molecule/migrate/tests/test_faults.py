"""Three migrations under one load, the first with a fault in each stage: nothing that the load was told is lost.

The tests are one walk, in this order.
"""

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from postgresql_host import UNIT
from scenario_support import CeleryHost, until
from testinfra.host import Host
from testinfra.utils.ansible_runner import AnsibleRunner
from tests.soak.scenario import PYTHON, MigrationSite, Soak

# Of all that the host reaches, the target's server alone.
CUT, MENDED = (f"ip rule {verb} ipproto tcp dport 5432 blackhole" for verb in ("add", "del"))
STRAY = (
    "systemd-run --unit=stray-worker --uid=celery --gid=celery --working-directory=/var/lib/celery "
    "--property=EnvironmentFile=/root/former.env --setenv=PYTHONPATH=/etc/celery:/srv/soak "
    f"{PYTHON} -m celery --app=soak.soak_tasks:app worker --concurrency=1 --hostname=stray@%h"
)


@pytest.fixture(scope="module")
def postgresql(hosts: AnsibleRunner) -> Host:
    return hosts.get_host(hosts.get_hosts("postgresql")[0])


@contextmanager
def away(begin: Callable[[], object], end: Callable[[], object], seconds: float) -> Iterator[None]:
    """Have something be away while the load goes on; for so long at least."""
    until_then = time.monotonic() + seconds
    begin()
    try:
        yield
        until(lambda: time.monotonic() > until_then, seconds + 1, "the time passes")
    finally:
        end()


def kill_in_the_middle(
    site: MigrationSite, process: subprocess.Popen[str], reached: Callable[[], bool], what: str
) -> None:
    """Kill a run when a point is reached."""
    try:
        until(lambda: reached() or process.poll() is not None, 240, what)
        assert process.poll() is None, process.communicate()[0][-4000:]
    finally:
        if process.poll() is None:
            site.kill(process)


def stage_of(worker: CeleryHost) -> str:
    shown = worker.host.run("sed -n 's/^CELERYCONFIG_MIGRATION_STAGE=//p' /etc/celery/celery.env")
    return str(shown.stdout).strip('"\n')


def test_a_run_killed_in_the_middle_of_dual_write_is_run_again(
    site: MigrationSite, soak: Soak, workers: list[CeleryHost]
) -> None:
    workers[1].host.check_output("install -m 0600 /etc/celery/celery.env /root/former.env")
    site.does("plan", "prepare")
    running = site.start_stage("dual_write")
    kill_in_the_middle(
        site, running, lambda: stage_of(workers[0]) == "dual_write", "the first worker is restarted"
    )
    site.does("dual_write")
    soak.goes_on()
    soak.check("source")


def test_a_target_away_for_a_minute_a_killed_worker_and_a_cut_network_stop_nobody(
    soak: Soak, workers: list[CeleryHost], postgresql: Host
) -> None:
    with away(
        lambda: postgresql.check_output(f"systemctl stop {UNIT}"),
        lambda: postgresql.check_output(f"systemctl start {UNIT}"),
        60,
    ):
        soak.goes_on()
        soak.kill(workers[1])
        soak.goes_on(40)
    with away(
        lambda: workers[1].host.check_output(CUT),
        lambda: workers[1].host.check_output(MENDED),
        5,
    ):
        soak.goes_on(40)
    soak.check("source")


def test_a_killed_copy_and_a_killed_target_are_made_good_by_running_it_again(
    site: MigrationSite, soak: Soak, workers: list[CeleryHost], postgresql: Host
) -> None:
    def copies() -> bool:
        return bool(workers[0].host.run("pgrep -u celery -f 'celery-results copy'").stdout)

    running = site.start_stage("backfill", migration_copy_options=["--rate=100", "--batch=50"])
    until(lambda: copies() or running.poll() is not None, 120, "the copy runs")
    postgresql.check_output(f"systemctl kill -s KILL {UNIT}")
    soak.goes_on()
    assert copies(), "the copy waits for a server that is away"
    workers[0].host.check_output("pkill -KILL -u celery -f 'celery-results copy'")
    assert running.wait(120) != 0
    running.communicate()
    site.does("backfill", "verify")
    soak.check("source", "target")


def test_a_worker_left_on_the_former_settings_stops_the_cutover(
    site: MigrationSite, soak: Soak, workers: list[CeleryHost]
) -> None:
    workers[1].host.check_output(STRAY)
    before = soak.fingerprints()
    try:
        site.refuses("cutover", f"stray@{workers[1].host.check_output('hostname')}")
        assert soak.fingerprints() == before
    finally:
        workers[1].host.check_output("systemctl stop stray-worker")
    # What it has stored is on the source alone.
    site.does("verify")
    soak.check("source", "target")


def test_a_run_killed_in_the_middle_of_cutover_is_run_again(
    site: MigrationSite, soak: Soak, workers: list[CeleryHost]
) -> None:
    running = site.start_stage("cutover")
    kill_in_the_middle(
        site, running, lambda: stage_of(workers[0]) == "cutover", "the first worker is restarted"
    )
    soak.goes_on()
    site.does("cutover")
    soak.goes_on()
    soak.check("source", "target")


def test_a_target_away_while_it_is_the_primary_loses_nothing(
    site: MigrationSite, soak: Soak, postgresql: Host, workers: list[CeleryHost]
) -> None:
    postgresql.check_output(f"systemctl kill -s KILL {UNIT}")
    soak.kill(workers[0])
    soak.goes_on(40)
    site.does("finish")
    soak.goes_on()
    soak.check("celery")


def test_the_way_home_in_one_go(site: MigrationSite, soak: Soak, postgresql: Host) -> None:
    site.source, site.target = "postgresql", "redis"
    site.refuses("prepare", "Empty it first")
    postgresql.check_output("redis-admin -n 0 FLUSHDB")
    site.does("walk", confirm="all")
    soak.goes_on()
    soak.check("celery")


def test_on_to_mysql_in_one_go(site: MigrationSite, soak: Soak) -> None:
    site.source, site.target = "redis", "mysql"
    site.does("walk", confirm="all")
    soak.goes_on()
    soak.stop()
    report = soak.check("celery", sample=0, final=True, at_least=1000)
    assert report["on_their_way"] == 0
