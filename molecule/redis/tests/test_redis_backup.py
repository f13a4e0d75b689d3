"""A backup is proved by reading results back from it through Celery."""

from scenario_support import CeleryHost, Site
from testinfra.host import Host

DIRECTORY = "/var/backups/celery-results/redis"


def test_results_come_back_from_a_backup(site: Site, server: Host, worker: CeleryHost) -> None:
    worker.python("for i in range(200): app.backend.store_result(f'backup-{i}', {'n': i}, 'SUCCESS')")
    server.check_output("celery-results-backup-redis")
    artefact = server.check_output(f"ls -t {DIRECTORY}/*.rdb | head -n 1")
    worker.python("for i in range(200): app.AsyncResult(f'backup-{i}').forget()")
    worker.python("app.backend.store_result('after-backup', 1, 'SUCCESS')")

    restore = site.run(playbook="playbooks/restore.yml", backup=artefact)

    assert restore.returncode == 0, restore.stdout[-3000:]
    read = "print(sum(app.AsyncResult(f'backup-{i}').get(timeout=5)['n'] for i in range(200)))"
    assert worker.python(read) == str(sum(range(200)))
    ttl = int(server.check_output("redis-admin ttl celery-task-meta-backup-0"))
    assert 0 < ttl <= 86400
    # What the restore replaced was set aside, not destroyed.
    assert server.run("ls -d /var/lib/redis/*before-restore*").rc == 0
    # And the restored data is as durable as any: it is in the append-only file.
    server.check_output("systemctl kill -s KILL redis-server")
    assert worker.python(read) == str(sum(range(200)))


def test_a_damaged_backup_is_refused_before_anything_is_stopped(site: Site, server: Host) -> None:
    server.check_output("celery-results-backup-redis")
    artefact = server.check_output(f"ls -t {DIRECTORY}/*.rdb | head -n 1")
    server.check_output(f"cp {artefact} /root/damaged.rdb && truncate -s 100 /root/damaged.rdb")
    pid = server.check_output("redis-admin info server | grep ^process_id")

    restore = site.run(playbook="playbooks/restore.yml", backup="/root/damaged.rdb")

    assert restore.returncode != 0
    assert "damaged.rdb" in restore.stdout
    assert server.check_output("redis-admin info server | grep ^process_id") == pid


def test_backups_are_private_checked_and_scheduled(server: Host) -> None:
    server.check_output("celery-results-backup-redis")
    directory = server.file(DIRECTORY)
    assert directory.mode == 0o700
    server.check_output(f"cd {DIRECTORY} && sha256sum -c --quiet *.sha256")
    assert server.service("celery-results-backup-redis.timer").is_enabled


def test_retention_keeps_the_newest(server: Host) -> None:
    server.check_output("celery-results-backup-redis")
    newest = server.check_output(f"ls {DIRECTORY}/*.rdb | tail -n 1")
    # Nine of earlier days, as the timer would have left them.
    server.check_output(
        f"for day in 1 2 3 4 5 6 7 8 9; do for suffix in '' .sha256; do "
        f"cp -p {newest}$suffix {DIRECTORY}/redis-2020010${{day}}T020000Z.rdb$suffix; done; done"
    )
    taken = server.check_output("celery-results-backup-redis 2>/dev/null").strip()
    kept = server.check_output(f"ls {DIRECTORY}/*.rdb").split()
    assert len(kept) == 7
    assert kept[-2:] == [newest, taken]
    assert len(server.check_output(f"ls {DIRECTORY}/*.sha256").split()) == 7
