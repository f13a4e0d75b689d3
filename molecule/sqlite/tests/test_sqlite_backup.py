"""A backup is proved by reading results back from it through Celery, while the worker runs."""

from scenario_support import CeleryHost, Site
from testinfra.host import Host

BACKUPS = "/var/backups/celery-results/sqlite"
DIRECTORY = "/var/lib/celery/results"
DATABASE = f"{DIRECTORY}/results.sqlite3"
AS_CELERY = "runuser -u celery --"
TOOL = f"{AS_CELERY} /usr/local/sbin/celery-results-sqlite"
NEWEST = f"ls -t {BACKUPS}/*.sqlite3 | head -n 1"
READ = "print(sum(app.AsyncResult(f'backup-{i}').get(timeout=5)['n'] for i in range(200)))"


def test_results_come_back_from_a_backup(site: Site, server: Host, worker: CeleryHost) -> None:
    worker.python("for i in range(200): app.backend.store_result(f'backup-{i}', {'n': i}, 'SUCCESS')")
    # As the timer runs it: in the sandbox of its unit.
    server.check_output("systemctl start celery-results-backup-sqlite.service")
    artefact = server.check_output(NEWEST)
    worker.python("for i in range(200): app.AsyncResult(f'backup-{i}').forget()")
    worker.python("app.backend.store_result('after-backup', 1, 'SUCCESS')")
    inode = server.check_output(f"stat -c %i {DATABASE}")

    restore = site.run(playbook="playbooks/restore.yml", backup=artefact, broker="redis")

    assert restore.returncode == 0, restore.stdout[-3000:]
    assert worker.python(READ) == str(sum(range(200)))
    assert worker.python("print(app.AsyncResult('after-backup').state)") == "PENDING"
    # In place, so that no program goes on with a file that is gone; in WAL mode still; and private.
    assert server.check_output(f"stat -c %i {DATABASE}") == inode
    assert server.check_output(f"{TOOL} check {DATABASE}") == '{"problems": [], "journal_mode": "wal"}'
    # What the restore replaced was set aside, not destroyed.
    aside = server.check_output(f"ls -t {DIRECTORY}/before-restore-*.sqlite3 | head -n 1")
    assert server.run(f"{AS_CELERY} grep -q after-backup {aside}").rc == 0
    code = "from proj.celery import add; print(add.delay(2, 3).get(timeout=20))"
    assert worker.python(code, more_path="/srv/proj") == "5"


def test_a_damaged_backup_is_refused(server: Host) -> None:
    server.check_output("celery-results-backup-sqlite")
    artefact = server.check_output(NEWEST)
    damaged = f"{BACKUPS}/damaged.sqlite3"
    for damage in (
        f"cp {artefact} {damaged} && truncate -s -8192 {damaged}",
        f"cp {artefact} {damaged} && dd if=/dev/urandom of={damaged} bs=4096 seek=2 count=4 conv=notrunc",
        f"echo nonsense > {damaged}",
        f"rm -f {damaged}",
    ):
        server.run(f"{AS_CELERY} sh -c '{damage}'")
        before = server.check_output(f"sha256sum {DATABASE}")
        assert server.run(f"{TOOL} verify {damaged}").rc == 1, damage
        assert server.run(f"{TOOL} restore {DATABASE} {damaged}").rc == 1, damage
        assert server.check_output(f"sha256sum {DATABASE}") == before


def test_a_damaged_database_is_replaced_once_nobody_uses_it(server: Host, worker: CeleryHost) -> None:
    worker.python("for i in range(200): app.backend.store_result(f'backup-{i}', {'n': i}, 'SUCCESS')")
    server.check_output("celery-results-backup-sqlite")
    artefact = server.check_output(NEWEST)
    server.check_output("systemctl stop celery-worker celery-beat")
    server.check_output(f"dd if=/dev/urandom of={DATABASE} bs=4096 count=3 conv=notrunc")
    assert server.run(f"{TOOL} check {DATABASE}").rc == 1
    # An open file is enough: its process would go on writing to what is set aside.
    held = server.run(
        f"{AS_CELERY} sh -c 'exec 3<{DATABASE}; /usr/local/sbin/celery-results-sqlite restore {DATABASE} {artefact}'"
    )
    assert held.rc == 1
    assert "in use" in held.stderr

    server.check_output(f"{TOOL} restore {DATABASE} {artefact}")

    server.check_output("systemctl start celery-worker celery-beat")
    assert server.run(f"{TOOL} check {DATABASE}").rc == 0
    assert worker.python(READ) == str(sum(range(200)))


def test_backups_are_private_checked_and_scheduled(server: Host) -> None:
    server.check_output("celery-results-backup-sqlite")
    assert server.file(BACKUPS).mode == 0o700
    server.check_output(f"cd {BACKUPS} && sha256sum -c --quiet sqlite-*.sha256")
    assert server.service("celery-results-backup-sqlite.timer").is_enabled
