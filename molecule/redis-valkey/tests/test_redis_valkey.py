"""Valkey in Redis's place, with the durability choice `always`."""

from scenario_support import CeleryHost, Site
from testinfra.host import Host


def test_valkey_serves_and_redis_is_absent(server: Host) -> None:
    assert server.service("valkey-server").is_running
    assert not server.package("redis-server").is_installed
    assert "valkey_version" in server.check_output("redis-admin info server")


def test_every_write_is_on_disk_before_it_is_acknowledged(server: Host) -> None:
    assert server.check_output("redis-admin config get appendfsync").split()[1] == "always"


def test_kill_9_loses_nothing(server: Host, worker: CeleryHost) -> None:
    worker.python("for i in range(100): app.backend.store_result(f'v-{i}', i, 'SUCCESS')")
    server.check_output("systemctl kill -s KILL valkey-server")
    read = "print(sum(app.AsyncResult(f'v-{i}').get(timeout=10) for i in range(100)))"
    assert worker.python(read) == str(sum(range(100)))


def test_the_playbook_takes_a_backup_now(site: Site, server: Host) -> None:
    list_of_them = "ls /var/backups/celery-results/redis/*.rdb 2>/dev/null | wc -l"
    before = int(server.check_output(list_of_them))
    run = site.run(playbook="playbooks/backup.yml")
    assert run.returncode == 0, run.stdout[-3000:]
    assert int(server.check_output(list_of_them)) == before + 1
