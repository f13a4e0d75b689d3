"""Runs of the playbooks: in check mode, with changes, with a backup; and what they print."""

from scenario_support import CeleryHost, Site, until
from testinfra.host import Host

DIRECTORY = "/var/backups/celery-results/mysql"
SERVED = "echo | openssl s_client -starttls mysql -connect 127.0.0.1:3306 2>/dev/null | openssl x509 -noout -fingerprint"


def pid(server: Host) -> str:
    return str(server.check_output("systemctl show -p MainPID --value mariadb"))


def value(server: Host, variable: str) -> str:
    return str(server.check_output(f"mariadb --skip-ssl -BNe 'SELECT @@GLOBAL.{variable}'"))


def test_check_mode_on_the_deployed_host_finds_nothing_to_do(site: Site) -> None:
    site.assert_nothing_to_do("--check", "--diff", "-vvv")


def test_passwords_settings_and_certificate_change_without_a_restart_and_are_never_shown(
    site: Site, server: Host, worker: CeleryHost
) -> None:
    """Every task that touches a secret runs as `changed` here, in the loudest mode there is."""
    before = pid(server)
    expire_now(site, server)
    code, report = worker.cli("doctor")
    assert code == 1
    assert "CRB552" in {finding["code"] for finding in report["findings"]}, report
    served = server.check_output(SERVED)
    old = site.forget_secrets()
    # What nobody should have done by hand: the run finds and undoes it.
    server.check_output(
        "mariadb --skip-ssl -e \"SET GLOBAL local_infile = ON; CREATE USER 'celery_worker'@'%' IDENTIFIED BY 'x'; "
        "GRANT DROP ON celery_results.* TO 'celery_worker'@'127.0.0.1'; CREATE USER ''@'localhost'\""
    )

    run = site.run("--diff", "-vvv", mysql_config={"max_connect_errors": 77, "long_query_time": "1.5"})

    assert run.returncode == 0, run.stdout[-3000:]
    site.assert_replaced(old, run.stdout)
    assert pid(server) == before
    assert server.check_output(SERVED) != served
    assert value(server, "max_connect_errors") == "77"
    assert float(value(server, "long_query_time")) == 1.5
    assert value(server, "local_infile") == "0"
    assert (
        server.check_output(
            "mariadb --skip-ssl -BNe \"SELECT COUNT(*) FROM mysql.user WHERE host = '%' OR user = ''\""
        )
        == "0"
    )
    assert "DROP" not in server.check_output(
        "mariadb --skip-ssl -BNe \"SHOW GRANTS FOR 'celery_worker'@'127.0.0.1'\""
    )
    refused = server.run(
        f"MYSQL_PWD={old['mysql_worker_password']} mariadb --protocol=tcp --host=127.0.0.1 --user=celery_worker "
        "--ssl-ca=/etc/mysql/tls/ca.crt -e 'SELECT 1'"
    )
    assert "1045" in refused.stderr
    # Not warnings: other tests have used all connections (CRB574).
    code, report = worker.cli("doctor")
    assert code == 0, report
    assert worker.cli("smoke --only value --only foreign_key")[0] == 0


def expire_now(site: Site, server: Host) -> None:
    """Put a certificate of our own authority in place that expired an hour ago, and have it served."""
    before = server.check_output(SERVED)
    old = server.check_output("cat /etc/mysql/tls/server.crt")
    expired = site.expired(old)
    server.check_output(f"printf %s '{expired}' > /etc/mysql/tls/server.crt")
    server.check_output("mariadb --skip-ssl -e 'FLUSH SSL'")
    until(lambda: server.check_output(SERVED) != before, 10, "the expired certificate is served")


def test_a_setting_that_the_server_refuses_is_named_and_changes_nothing(site: Site, server: Host) -> None:
    before, file = pid(server), server.check_output("cat /etc/mysql/mariadb.conf.d/90-celery-results.cnf")
    run = site.run(mysql_config={"max_connect_errors": "many"})
    assert run.returncode != 0
    assert "mysql_config" in run.stdout
    assert server.check_output("cat /etc/mysql/mariadb.conf.d/90-celery-results.cnf") == file
    assert pid(server) == before


def test_results_come_back_from_a_backup(site: Site, server: Host, worker: CeleryHost) -> None:
    worker.python(
        "[app.backend.store_result(f'backup-{i}', {'n': i, 'b': 'é☃' * i}, 'SUCCESS') for i in range(30)]"
    )
    artefact = server.check_output("celery-results-backup-mysql")
    server.check_output(f"cd {DIRECTORY} && sha256sum -c --quiet *.sha256")
    assert server.file(DIRECTORY).mode == 0o700
    assert server.service("celery-results-backup-mysql.timer").is_enabled
    worker.python("[app.AsyncResult(f'backup-{i}').forget() for i in range(30)]")
    worker.python("app.backend.store_result('after-backup', 1, 'SUCCESS')")
    before = pid(server)

    # mysql_config of the run above is gone, and so is what it set.
    restore = site.run(playbook="playbooks/restore.yml", backup=artefact)

    assert restore.returncode == 0, restore.stdout[-3000:]
    read = "print(sum(app.AsyncResult(f'backup-{i}').get(timeout=5)['n'] for i in range(30)))"
    assert worker.python(read) == str(sum(range(30)))
    assert worker.python("print(app.AsyncResult('backup-3').get(timeout=5)['b'])") == "é☃" * 3
    assert pid(server) == before
    # What the restore replaced was set aside, not destroyed; new ids go on where the old ones ended.
    aside = server.check_output(
        "mariadb --skip-ssl -BNe \"SHOW DATABASES LIKE 'celery\\_results\\_before%'\" | tail -n 1"
    )
    kept = server.check_output(
        f"mariadb --skip-ssl -BNe \"SELECT COUNT(*) FROM {aside}.celery_taskmeta WHERE task_id = 'after-backup'\""  # noqa: S608
    )
    assert kept == "1"
    worker.python("app.backend.store_result('after-restore', 1, 'SUCCESS')")
    number = (
        "SELECT id = (SELECT MAX(id) FROM celery_results.celery_taskmeta) FROM celery_results.celery_taskmeta"
    )
    assert server.check_output(f"mariadb --skip-ssl -BNe \"{number} WHERE task_id = 'after-restore'\"") == "1"


def test_a_damaged_backup_is_refused_and_changes_nothing(server: Host, worker: CeleryHost) -> None:
    worker.python("app.backend.store_result('untouched', 1, 'SUCCESS')")
    artefact = server.check_output("celery-results-backup-mysql")
    server.check_output(f"head -c 2000 {artefact} > /root/damaged.sql.gz")
    refused = server.run("celery-results-mysql restore celery_results /root/damaged.sql.gz")
    assert refused.rc == 1
    assert "damaged" in refused.stderr
    assert worker.python("print(app.AsyncResult('untouched').get(timeout=5))") == "1"
