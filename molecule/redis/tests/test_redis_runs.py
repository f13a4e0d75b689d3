"""Runs of the playbooks: in check mode, twice, at once, interrupted; and what they print."""

import os
import signal
import time

from scenario_support import CeleryHost, Site, until
from testinfra.host import Host


def test_check_mode_on_the_clean_host_left_nothing_and_leaked_nothing(site: Site) -> None:
    output = (site.ephemeral / "clean-check.log").read_text()
    assert "failed=0" in output
    site.assert_hidden(output)


def test_check_mode_on_the_deployed_host_finds_nothing_to_do(site: Site) -> None:
    run = site.run("--check", "--diff", "-vvv")
    assert run.returncode == 0, run.stdout[-3000:]
    assert "changed=0" in run.stdout
    site.assert_hidden(run.stdout)


def test_passwords_and_run_time_settings_change_without_restart_and_are_never_shown(
    site: Site, server: Host, worker: CeleryHost
) -> None:
    """Every task that touches a secret runs as `changed` here, in the loudest mode there is."""
    started = server.check_output("redis-admin info server | grep -E '^(process_id|run_id)'")
    old = site.secrets()
    for name in old:
        (site.state_directory / "secrets" / name).unlink()

    run = site.run("--diff", "-vvv", redis_config={"slowlog-max-len": 77})

    assert run.returncode == 0, run.stdout[-3000:]
    new = site.secrets()
    assert set(new) == set(old)
    assert not set(new.values()) & set(old.values())
    for secret in (*old.values(), *new.values()):
        assert secret not in run.stdout
    assert server.check_output("redis-admin info server | grep -E '^(process_id|run_id)'") == started
    assert server.check_output("redis-admin config get slowlog-max-len").split()[1] == "77"
    refused = server.run(
        "redis-cli --no-auth-warning --tls --cacert /etc/redis/tls/ca.crt -h localhost "
        f"--user celery-worker --pass {old['redis_worker_password']} ping"
    )
    assert "WRONGPASS" in refused.stderr
    assert (
        worker.python(
            "app.backend.store_result('rotated', 1, 'SUCCESS'); print(app.AsyncResult('rotated').get())"
        )
        == "1"
    )


def test_a_setting_that_the_server_refuses_is_named_and_changes_nothing(site: Site, server: Host) -> None:
    pid = server.check_output("redis-admin info server | grep ^process_id")
    run = site.run(redis_config={"slowlog-max-len": "many"})
    assert run.returncode != 0
    assert "redis_config" in run.stdout
    assert server.check_output("redis-admin info server | grep ^process_id") == pid


def test_a_killed_run_is_completed_by_the_next(site: Site, server: Host) -> None:
    """Killed right after the file was written: the handler that applies it never ran."""
    first = site.start(redis_config={"slowlog-max-len": 55})
    until(
        lambda: server.run("grep -rlE 'slowlog-max-len +55' /etc/redis").rc == 0,
        120,
        "the settings file is written",
    )
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    time.sleep(1)  # the module that was under way on the host ends by itself

    run = site.run(redis_config={"slowlog-max-len": 55})

    assert run.returncode == 0, run.stdout[-3000:]
    assert server.check_output("redis-admin config get slowlog-max-len").split()[1] == "55"


def test_the_second_of_two_runs_is_refused(site: Site, server: Host) -> None:
    first = site.start()
    try:
        until(
            lambda: first.poll() is not None or server.file("/run/celery-results.lock").size > 0,
            120,
            "the first run holds the lock",
        )
        second = site.run()
        assert second.returncode != 0
        assert "another run" in second.stdout
    finally:
        output, _ = first.communicate(timeout=300)
    assert first.returncode == 0, output[-3000:]
