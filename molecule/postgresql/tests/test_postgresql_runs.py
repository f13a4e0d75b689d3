"""Runs of the playbooks: in check mode, with everything changing, interrupted; and what they print."""

from postgresql_host import client, sql, started
from scenario_support import CeleryHost, Site, until
from testinfra.host import Host

CONFIG = {"max_wal_size": "128MB", "shared_buffers": "128MB"}
TLS = "/etc/postgresql/*/main/tls"
SERVED = (
    "echo | openssl s_client -connect localhost:5432 -starttls postgres 2>/dev/null "
    "| openssl x509 -noout -fingerprint -enddate"
)
SERVER_ONLY = "playbooks/backend.yml"


def test_check_mode_on_the_clean_host_left_nothing_and_leaked_nothing(site: Site) -> None:
    site.assert_clean_check_ended_well()


def test_check_mode_on_the_deployed_host_finds_nothing_to_do(site: Site) -> None:
    site.assert_nothing_to_do("--check", "--diff", "-vvv")


def test_passwords_certificate_and_settings_change_without_a_restart_and_are_never_shown(
    site: Site, server: Host, worker: CeleryHost
) -> None:
    """Every task that touches a secret runs as `changed` here, in the loudest mode there is."""
    before = started(server)
    expire_now(site, server)
    code, report = worker.cli("doctor")
    assert code == 1
    assert "CRB521" in {finding["code"] for finding in report["findings"]}, report
    old = site.forget_secrets()

    run = site.run("--diff", "-vvv", postgresql_config=CONFIG | {"work_mem": "7MB"})

    assert run.returncode == 0, run.stdout[-3000:]
    new = site.assert_replaced(old, run.stdout)
    assert started(server) == before
    assert sql(server, "SHOW work_mem") == "7MB"
    refused = server.run(client("celery_worker", old["postgresql_worker_password"]))
    assert "authentication failed" in refused.stderr
    assert server.check_output(client("celery_worker", new["postgresql_worker_password"])) == "1"
    code, report = worker.cli("doctor --fail-on warning")
    assert code == 0, report


def expire_now(site: Site, server: Host) -> None:
    """Put a certificate of our own authority in place that expired an hour ago, and have it served."""
    old, served = server.check_output(f"cat {TLS}/server.crt"), server.check_output(SERVED)
    expired = site.expired(old)
    server.check_output(f"printf %s '{expired}' > $(ls {TLS}/server.crt)")
    sql(server, "SELECT pg_reload_conf()")
    until(lambda: server.run(SERVED).stdout.strip() not in ("", served), 10, "the expired one is served")


def test_a_setting_that_the_server_refuses_is_named_and_changes_nothing(site: Site, server: Host) -> None:
    before = started(server)
    run = site.run(playbook=SERVER_ONLY, postgresql_config=CONFIG | {"work_mem": "many"})
    assert run.returncode != 0
    assert "postgresql_config" in run.stdout
    assert "work_mem" in run.stdout
    assert started(server) == before
    assert sql(server, "SELECT count(*) FROM pg_file_settings WHERE setting = 'many'") == "0"


def test_settings_with_which_it_does_not_start_are_taken_back(site: Site, server: Host) -> None:
    """The parser takes the name of a library; only the start tells that there is none."""
    config = CONFIG | {"shared_preload_libraries": "no_such_library"}
    run = site.run(playbook=SERVER_ONLY, postgresql_config=config)
    assert run.returncode != 0
    assert "no_such_library" in run.stdout
    assert "in place again and it runs" in run.stdout
    assert sql(server, "SHOW shared_preload_libraries") == ""


def test_a_killed_run_is_completed_by_the_next(site: Site, server: Host) -> None:
    """Killed right after the file was written, before the restart that it needs."""
    config = CONFIG | {"max_worker_processes": 9}
    first = site.start(postgresql_config=config)
    written = "grep -rqE \"^max_worker_processes = '9'\" /etc/postgresql/*/main/conf.d"
    until(lambda: server.run(written).rc == 0, 120, "the settings file is written")
    site.kill(first)
    assert sql(server, "SHOW max_worker_processes") == "8"

    # The run before held the lock, and is dead.
    run = site.run(playbook=SERVER_ONLY, postgresql_config=config)

    assert run.returncode == 0, run.stdout[-3000:]
    assert sql(server, "SHOW max_worker_processes") == "9"


def test_what_somebody_set_by_hand_is_named(site: Site, server: Host) -> None:
    sql(server, "ALTER SYSTEM SET log_lock_waits = off")
    sql(server, "GRANT INSERT ON celery_taskmeta TO celery_client")
    try:
        sql(server, "SELECT pg_reload_conf()")
        run = site.run(playbook=SERVER_ONLY, postgresql_config=CONFIG | {"max_worker_processes": 9})
    finally:
        sql(server, "ALTER SYSTEM RESET log_lock_waits")
        sql(server, "SELECT pg_reload_conf()")
    assert run.returncode != 0
    assert "log_lock_waits is off" in run.stdout
    assert "postgresql.auto.conf" in run.stdout
    # A right too much is not only named but taken.
    assert sql(server, "SELECT has_table_privilege('celery_client', 'celery_taskmeta', 'INSERT')") == "f"
