"""A backup is proved by reading results back from it through Celery."""

from postgresql_host import sql, started
from scenario_support import CeleryHost, Site
from testinfra.host import Host

DIRECTORY = "/var/backups/celery-results/postgresql"
READ = "print(sum(app.AsyncResult(f'backup-{i}').get(timeout=5)['n'] for i in range(200)))"


def take(server: Host) -> str:
    server.check_output("celery-results-backup-postgresql")
    return str(server.check_output(f"ls -t {DIRECTORY}/*.dump | head -n 1"))


def test_results_come_back_from_a_backup_while_the_server_stays_up(
    site: Site, server: Host, worker: CeleryHost
) -> None:
    before = started(server)
    worker.python("for i in range(200): app.backend.store_result(f'backup-{i}', {'n': i}, 'SUCCESS')")
    artefact = take(server)
    worker.python("for i in range(200): app.AsyncResult(f'backup-{i}').forget()")
    worker.python("app.backend.store_result('after-backup', 1, 'SUCCESS')")

    restore = site.run(playbook="playbooks/restore.yml", backup=artefact)

    assert restore.returncode == 0, restore.stdout[-3000:]
    assert worker.python(READ) == str(sum(range(200)))
    assert started(server) == before
    assert worker.python("print(app.AsyncResult('after-backup').state)") == "PENDING"
    # What the restore replaced was set aside, not destroyed.
    aside = sql(server, "SELECT datname FROM pg_database WHERE datname LIKE 'celery\\_results\\_before\\_%'")
    assert sql(server, "SELECT count(*) FROM celery_taskmeta WHERE task_id = 'after-backup'", aside) == "1"
    sql(server, f"DROP DATABASE {aside}")
    # New ids do not meet old ones.
    worker.python("app.backend.store_result('after-restore', 1, 'SUCCESS')")


def test_a_damaged_backup_is_refused_and_costs_nothing(server: Host, worker: CeleryHost) -> None:
    worker.python("for i in range(200): app.backend.store_result(f'backup-{i}', {'n': i}, 'SUCCESS')")
    artefact = take(server)
    size = int(server.check_output(f"stat -c %s {artefact}"))
    server.check_output(f"head -c {size - 200} {artefact} > /root/damaged.dump")
    for action in ("verify", "restore"):
        attempt = server.run(f"celery-results-postgresql {action} /root/damaged.dump")
        assert attempt.rc != 0, action
        assert "damaged" in attempt.stderr + attempt.stdout or "untouched" in attempt.stderr
    assert worker.python(READ) == str(sum(range(200)))


def test_backups_are_private_checked_and_scheduled(server: Host) -> None:
    take(server)
    assert server.file(DIRECTORY).mode == 0o700
    server.check_output(f"cd {DIRECTORY} && sha256sum -c --quiet *.sha256")
    assert server.service("celery-results-backup-postgresql.timer").is_enabled
    server.check_output("systemctl start celery-results-backup-postgresql.service")
    # The end of a unit with RemoveIPC would have taken the shared memory of all that runs as postgres.
    assert "RemoveIPC=no" in server.check_output(
        "systemctl show celery-results-backup-postgresql -p RemoveIPC"
    )
    assert "shared memory segment" not in server.check_output("cat /var/log/postgresql/*.log")
