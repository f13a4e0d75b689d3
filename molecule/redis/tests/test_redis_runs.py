"""Runs of the playbooks: in check mode, twice, at once, interrupted; and what they print."""

import subprocess
import time
from typing import Any

import pytest
from redis_host import connected, hold
from scenario_support import Site, until
from testinfra.host import Host

# A setting, the rights of a user, and one user more.
CHANGE: dict[str, Any] = {
    "redis_config": {"slowlog-max-len": 55},
    "redis_broker_queues": ["celery", "another"],
    "backend_migration_login": True,
}
LOCK = "/run/celery-results.lock"


def test_check_mode_on_the_clean_host_left_nothing_and_leaked_nothing(site: Site) -> None:
    site.assert_clean_check_ended_well()


def test_check_mode_on_the_deployed_host_finds_nothing_to_do(site: Site) -> None:
    site.assert_nothing_to_do("--check", "--diff", "-vvv")


def test_a_setting_that_the_server_refuses_is_named_and_changes_nothing(site: Site, server: Host) -> None:
    pid = server.check_output("redis-admin info server | grep ^process_id")
    run = site.run(redis_config={"slowlog-max-len": "many"})
    assert run.returncode != 0
    assert "redis_config" in run.stdout
    assert server.check_output("redis-admin info server | grep ^process_id") == pid


@pytest.fixture(scope="module")
def held(site: Site, server: Host) -> set[str]:
    return hold(server, site)


@pytest.fixture(scope="module")
def completion(site: Site, server: Host, held: set[str]) -> tuple[subprocess.CompletedProcess[str], ...]:
    """Kill a run right after it wrote the settings file: the handler that applies it never ran.

    Return the run that follows, and one that was started while that one was under way.
    """
    assert held <= connected(server)
    killed = site.start(**CHANGE)
    # The host itself waits, and tells at once.
    server.check_output(
        "timeout 120 sh -c \"until grep -rqE 'slowlog-max-len +55' /etc/redis; do sleep 0.02; done\""
    )
    site.kill(killed)
    time.sleep(1)  # the module that was under way on the host ends by itself
    stale = server.file(LOCK).content_string

    next_run = site.start(**CHANGE)
    try:
        until(
            lambda: next_run.poll() is not None or server.run(f"cat {LOCK}").stdout not in ("", stale),
            120,
            "the next run takes the lock over",
        )
        second = site.run()
    finally:
        output, _ = next_run.communicate(timeout=300)
    return subprocess.CompletedProcess(next_run.args, next_run.returncode, output), second


def test_a_killed_run_is_completed_by_the_next(
    completion: tuple[subprocess.CompletedProcess[str], ...], server: Host
) -> None:
    assert completion[0].returncode == 0, completion[0].stdout[-3000:]
    assert server.check_output("redis-admin config get slowlog-max-len").split()[1] == "55"


def test_users_change_and_nobody_is_disconnected(
    held: set[str], completion: tuple[subprocess.CompletedProcess[str], ...], server: Host
) -> None:
    assert completion[0].returncode == 0, completion[0].stdout[-3000:]
    assert "celery-migration" in server.check_output("redis-admin acl users").split()
    assert "~another" in server.check_output("redis-admin acl getuser celery-broker")
    assert held <= connected(server)


def test_the_second_of_two_runs_is_refused(completion: tuple[subprocess.CompletedProcess[str], ...]) -> None:
    assert completion[0].returncode == 0, completion[0].stdout[-3000:]
    assert completion[1].returncode != 0
    assert "another run" in completion[1].stdout
