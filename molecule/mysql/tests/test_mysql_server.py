"""The server as a client and as an attacker meet it."""

import pytest
from scenario_support import CeleryHost, Site
from testinfra.host import Host

SQL = "mariadb --batch --skip-column-names"
TLS = "--protocol=tcp --host=127.0.0.1 --ssl-ca=/etc/mysql/tls/ca.crt --ssl-verify-server-cert"


def ask(server: Host, statement: str) -> str:
    """Ask as root, by the unix socket."""
    return str(server.check_output(f'{SQL} -e "{statement}"'))


def attempt(server: Host, site: Site, user: str, statement: str, options: str = TLS) -> str:
    """Ask by TCP as one of the logins; return what the server says to it."""
    password = site.secrets().get(f"mysql_{user.removeprefix('celery_')}_password", "")
    said = server.run(f'MYSQL_PWD={password} {SQL} {options} --user={user} celery_results -e "{statement}"')
    return str(said.stdout + said.stderr)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("transaction_isolation", "READ-COMMITTED"),
        ("require_secure_transport", "ON"),
        ("skip_name_resolve", "ON"),
        ("local_infile", "OFF"),
        ("innodb_flush_log_at_trx_commit", "1"),
        ("sync_binlog", "1"),
        ("log_bin", "ON"),
        ("binlog_format", "ROW"),
        ("tls_version", "TLSv1.2,TLSv1.3"),
        ("max_allowed_packet", str(64 * 2**20)),
        ("innodb_buffer_pool_size", str(128 * 2**20)),
        ("time_zone", "+00:00"),
        ("character_set_server", "utf8mb4"),
        ("max_connections", "40"),
    ],
)
def test_live_settings(server: Host, variable: str, value: str) -> None:
    # 10.11 knows the isolation by its old name only.
    names = f"'{variable}', '{variable.replace('transaction', 'tx')}'"
    found = ask(server, f"SHOW GLOBAL VARIABLES WHERE Variable_name IN ({names})").splitlines()
    assert {line.split("\t")[1] for line in found} == {value}


@pytest.mark.parametrize("implementation", ["bundled", "stock"])
def test_a_celery_session_reads_committed_and_is_encrypted(worker: CeleryHost, implementation: str) -> None:
    """Asked inside the very sessions that store results, of our class and of Celery's."""
    code = f"""
import os
os.environ["CELERYCONFIG_RESULT_IMPLEMENTATION"] = "{implementation}"
import celeryconfig, importlib
app = Celery("test", set_as_current=False)
app.config_from_object(importlib.reload(celeryconfig))
questions = ["SELECT @@tx_isolation", "SHOW SESSION STATUS LIKE 'Ssl_version'"]
if "{implementation}" == "stock":
    import sqlalchemy
    session = app.backend.ResultSession()
    print(*[session.execute(sqlalchemy.text(question)).one()[-1] for question in questions])
else:
    print(*app.backend._pool.run(lambda session: [session.execute(question)[0][-1] for question in questions]))
"""
    isolation, tls = worker.python(code).split()
    assert isolation == "READ-COMMITTED"
    assert tls in {"TLSv1.3", "TLSv1.2"}


def test_it_listens_on_named_addresses_only(server: Host) -> None:
    listening = server.check_output("ss -Hltn sport = :3306 | awk '{print $4}'")
    assert "127.0.0.1:3306" in listening
    assert "0.0.0.0" not in listening  # noqa: S104 - looked for, not bound
    assert "*:" not in listening


def test_old_tls_is_refused(server: Host) -> None:
    command = "echo | timeout 5 openssl s_client -starttls mysql -connect 127.0.0.1:3306"
    refused = server.run(f"{command} -tls1_1 -cipher ALL:@SECLEVEL=0")
    assert "Cipher is (NONE)" in refused.stdout
    good = server.run(f"{command} -tls1_2 -CAfile /etc/mysql/tls/ca.crt -verify_ip 127.0.0.1")
    assert "Verify return code: 0 (ok)" in good.stdout


def test_plain_text_is_refused(server: Host, site: Site) -> None:
    plain = "--protocol=tcp --host=127.0.0.1 --skip-ssl"
    # 10.11 looks at the account first, 11.8 at the connection.
    said = attempt(server, site, "celery_worker", "SELECT 1", plain)
    assert any(number in said for number in ("3159", "1045")), said
    assert attempt(server, site, "celery_worker", "SELECT 1").strip() == "1", (
        "the control: with TLS it answers"
    )


@pytest.mark.parametrize("user", ["root", "''", "mysql", "celery_owner"])
def test_nobody_else_gets_in_by_tcp(server: Host, user: str) -> None:
    said = server.run(f"{SQL} {TLS} --user={user} -e 'SELECT 1'").stderr
    assert any(number in said for number in ("1045", "1130", "1698")), said


def test_there_are_no_accounts_but_ours_and_debians(server: Host) -> None:
    users = set(ask(server, "SELECT DISTINCT user FROM mysql.user").split())
    ours = {"celery_worker", "celery_client", "celery_reader", "celery_monitor"}
    assert users - {"root", "mysql", "mariadb.sys"} == ours
    assert ask(server, "SELECT host, plugin FROM mysql.user WHERE user = 'root'").split() == [
        "localhost",
        "unix_socket",
    ]
    assert "test" not in ask(server, "SHOW DATABASES").split()


DENIED = {
    "celery_worker": [
        "CREATE TABLE x (id INT)",
        "DROP TABLE celery_tasksetmeta",
        "ALTER TABLE celery_taskmeta ADD COLUMN x INT",
        "TRUNCATE TABLE celery_taskmeta",
        "CREATE DATABASE x",
        "SELECT * FROM mysql.user",
        "SELECT * FROM mysql.global_priv",
        "SELECT 1 INTO OUTFILE '/tmp/x'",
        "LOAD DATA INFILE '/etc/passwd' INTO TABLE celery_taskmeta",
        "LOAD DATA LOCAL INFILE '/etc/passwd' INTO TABLE celery_taskmeta (task_id)",
        "SET GLOBAL max_connections = 1",
        "SHUTDOWN",
        "GRANT SELECT ON celery_taskmeta TO celery_reader@127.0.0.1",
    ],
    "celery_client": [
        "INSERT INTO celery_taskmeta (task_id) VALUES ('forged')",
        "UPDATE celery_taskmeta SET status = 'FORGED'",
        "REPLACE INTO celery_taskmeta (id, task_id) VALUES (1, 'forged')",
        "DROP TABLE celery_tasksetmeta",
        "SELECT NEXTVAL(task_id_sequence)",
    ],
    "celery_reader": [
        "INSERT INTO celery_taskmeta (task_id) VALUES ('forged')",
        "UPDATE celery_taskmeta SET status = 'FORGED'",
        "DELETE FROM celery_taskmeta",
        "DELETE FROM celery_tasksetmeta",
        "SELECT * FROM mysql.user",
    ],
    "celery_monitor": [
        "SELECT result FROM celery_taskmeta",
        "SELECT args FROM celery_taskmeta",
        "SELECT * FROM celery_taskmeta",
        "DELETE FROM celery_taskmeta",
        "SHOW ENGINE INNODB STATUS",
    ],
}
ALLOWED = {
    "celery_worker": "SELECT COUNT(*) FROM celery_taskmeta",
    "celery_client": "SELECT COUNT(*) FROM celery_taskmeta",
    "celery_reader": "SELECT COUNT(result) FROM celery_taskmeta",
    "celery_monitor": "SELECT COUNT(date_done) FROM celery_taskmeta",
}


@pytest.mark.parametrize("user", DENIED)
def test_least_privilege(server: Host, site: Site, user: str) -> None:
    assert attempt(server, site, user, ALLOWED[user]).strip().isdigit()
    for statement in DENIED[user]:
        said = attempt(server, site, user, statement, f"{TLS} --local-infile=1")
        denied = ("denied", "LOCAL INFILE", "local infile", "1148", "4166")
        assert any(text in said for text in denied), f"{statement}: {said}"


def test_a_client_cannot_see_what_others_run(server: Host, site: Site) -> None:
    """Statements carry results: even the login for monitoring sees its own only."""
    for user in ALLOWED:
        seen = attempt(server, site, user, "SELECT DISTINCT user FROM information_schema.processlist").split()
        assert seen == [user]


def test_no_password_is_kept_on_the_server(server: Host, site: Site) -> None:
    logs = server.check_output("cat /var/lib/mysql/mariadb-bin.0* | tr -cd '[:print:]\\n'")
    journal = server.run(
        "journalctl -u mariadb --no-pager; cat /root/.mysql_history /root/.mariadb_history"
    ).stdout
    files = server.check_output("cat /etc/mysql/*.cnf /etc/mysql/*.d/*.cnf /etc/mysql/celery-results.applied")
    for name, secret in site.secrets().items():
        assert secret not in logs + journal + files, name


def test_a_result_of_five_megabytes_comes_back(worker: CeleryHost) -> None:
    code = """
import hashlib
text = "".join(hashlib.sha256(str(i).encode()).hexdigest() for i in range(82000))
app.backend.store_result("large", text, "SUCCESS")
assert len(text) > 5_000_000 and app.AsyncResult("large").get(timeout=30) == text
app.AsyncResult("large").forget()
print("equal")
"""
    assert worker.python(code) == "equal"


def test_task_ids_differ_by_case_and_times_keep_microseconds(worker: CeleryHost, server: Host) -> None:
    worker.python(
        "app.backend.store_result('case', 1, 'SUCCESS'); app.backend.store_result('CASE', 2, 'SUCCESS')"
    )
    assert worker.python("print(app.AsyncResult('case').get(), app.AsyncResult('CASE').get())") == "1 2"
    question = "SELECT COUNT(*) FROM celery_results.celery_taskmeta WHERE MICROSECOND(date_done) > 0 AND task_id = 'case'"
    # One in a million has none.
    assert ask(server, question) == "1"


def test_debians_unit_keeps_its_hardening(server: Host) -> None:
    shown = server.check_output(
        "systemctl show mariadb -p ProtectSystem -p ProtectHome -p LimitNOFILE -p Restart -p User"
    )
    assert "ProtectHome=yes" in shown
    assert "User=mysql" in shown
    assert "LimitNOFILE=65535" in shown
    assert "Restart=always" in shown
    assert server.service("mariadb").is_enabled
