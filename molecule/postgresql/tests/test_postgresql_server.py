"""The server as a client and as an attacker meet it."""

import datetime as dt

import pytest
from postgresql_host import CA, UNIT, client, sql
from scenario_support import CeleryHost, Site
from testinfra.host import Host

REFUSED = (
    "permission denied",
    "must be owner",
    "must be superuser",
    "read-only transaction",
    "does not exist",
)
DENIED = {
    "celery_worker": [
        "CREATE TABLE t (a int)",
        "CREATE TEMPORARY TABLE t (a int)",
        "DROP TABLE celery_taskmeta",
        "ALTER TABLE celery_taskmeta ADD COLUMN x int",
        "TRUNCATE celery_taskmeta",
        "SELECT rolpassword FROM pg_authid",
        "COPY celery_taskmeta TO PROGRAM 'cat'",
        "SELECT pg_read_file('/etc/passwd')",
        "SET ROLE celery_results_owner",
        "DELETE FROM celery_results_schema_version",
    ],
    "celery_client": [
        "INSERT INTO celery_taskmeta (id, task_id) VALUES (0, 'forged')",
        "UPDATE celery_taskmeta SET status = 'FORGED'",
        "SELECT nextval('task_id_sequence')",
        "DROP TABLE celery_tasksetmeta",
    ],
    "celery_reader": [
        "DELETE FROM celery_taskmeta",
        "INSERT INTO celery_tasksetmeta (id, taskset_id) VALUES (0, 'forged')",
        "SET default_transaction_read_only = off; DELETE FROM celery_taskmeta",
    ],
    "celery_monitor": [
        "SELECT result FROM celery_taskmeta",
        "SELECT args FROM celery_taskmeta",
        "SELECT result FROM celery_tasksetmeta",
        "SET default_transaction_read_only = off; DELETE FROM celery_taskmeta",
    ],
}


def password_of(site: Site, user: str) -> str:
    return site.secrets()[f"postgresql_{user.removeprefix('celery_')}_password"]


@pytest.mark.parametrize(("user", "statement"), [(user, text) for user in DENIED for text in DENIED[user]])
def test_least_privilege(server: Host, site: Site, user: str, statement: str) -> None:
    password = password_of(site, user)
    assert server.check_output(client(user, password)) == "1"
    refused = server.run(client(user, password, statement))
    assert any(text in refused.stderr for text in REFUSED), refused.stderr + refused.stdout


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"sslmode": "disable"}, "pg_hba.conf rejects"),
        ({"dbname": "postgres"}, "pg_hba.conf rejects"),
        ({"dbname": "template1"}, "pg_hba.conf rejects"),
        ({"user": "postgres"}, "pg_hba.conf rejects"),
        ({"user": "postgres", "sslmode": "disable"}, "pg_hba.conf rejects"),
        ({"user": "celery_results_owner"}, "pg_hba.conf rejects"),
        ({"sslrootcert": "/etc/ssl/certs/ca-certificates.crt"}, "certificate verify failed"),
        ({"host": "127.83.77.75"}, "refused"),
        ({"require_auth": "!scram-sha-256"}, "authentication method requirement"),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_ways_in_that_are_closed(server: Host, site: Site, parameters: dict[str, str], message: str) -> None:
    password = password_of(site, "celery_worker")
    assert server.check_output(client("celery_worker", password)) == "1", "the control"
    attempt = server.run(client("celery_worker", password, **parameters))
    if "require_auth" in parameters and "invalid connection option" in attempt.stderr:
        # The libpq of Debian 12 cannot insist; smoke tries it with a newer one.
        message = "invalid connection option"
    assert attempt.rc != 0
    assert message in attempt.stderr


def test_wrong_and_empty_passwords_are_refused(server: Host) -> None:
    assert "authentication failed" in server.run(client("celery_worker", "wrong")).stderr
    assert "no password supplied" in server.run(client("celery_worker", "") + " -w").stderr


def test_another_user_of_the_host_does_not_get_in_by_the_socket(server: Host) -> None:
    for user in ("celery", "nobody"):
        attempt = server.run(f"cd / && runuser -u {user} -- psql -XAtqc 'SELECT 1' -U postgres postgres")
        assert attempt.rc != 0
        assert "Peer authentication failed" in attempt.stderr


def test_an_md5_password_is_of_no_use(server: Host, site: Site) -> None:
    """Somebody sets one by hand: the server will not take it."""
    kept = sql(server, "SELECT rolpassword FROM pg_authid WHERE rolname = 'celery_reader'")
    assert kept.startswith("SCRAM-SHA-256$")
    try:
        sql(server, "SET password_encryption = md5; ALTER ROLE celery_reader PASSWORD 'a-password'")
        assert (
            sql(server, "SELECT left(rolpassword, 3) FROM pg_authid WHERE rolname = 'celery_reader'") == "md5"
        )
        assert "authentication failed" in server.run(client("celery_reader", "a-password")).stderr
    finally:
        sql(server, f"ALTER ROLE celery_reader PASSWORD '{kept}'")
    assert server.check_output(client("celery_reader", password_of(site, "celery_reader"))) == "1"


def test_old_tls_is_refused(server: Host) -> None:
    command = "echo | timeout 5 openssl s_client -connect localhost:5432 -starttls postgres"
    attempt = server.run(f"{command} -tls1_1 -cipher ALL:@SECLEVEL=0")
    assert "Cipher is (NONE)" in attempt.stdout
    good = server.run(f"{command} -tls1_2 -CAfile {CA}")
    assert "Verify return code: 0 (ok)" in good.stdout


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("listen_addresses", "127.0.0.1,::1,"),
        ("ssl", "on"),
        ("ssl_min_protocol_version", "TLSv1.2"),
        ("password_encryption", "scram-sha-256"),
        ("fsync", "on"),
        ("full_page_writes", "on"),
        ("synchronous_commit", "on"),
        ("default_toast_compression", "lz4"),
        ("wal_compression", "lz4"),
        ("max_wal_size", "128MB"),
        ("data_checksums", "on"),
        ("server_encoding", "UTF8"),
        ("log_min_error_statement", "panic"),
        ("TimeZone", "UTC"),
    ],
)
def test_live_settings(server: Host, setting: str, value: str) -> None:
    assert sql(server, f"SHOW {setting}").startswith(value)


def test_the_server_listens_on_named_addresses_only(server: Host) -> None:
    listening = server.check_output("ss -Hltn sport = :5432 | awk '{print $4}'").split()
    assert "127.0.0.1:5432" in listening
    assert not [address for address in listening if address.startswith(("0.0.0.0", "[::]", "*"))]  # noqa: S104 - looked for


def test_a_login_has_limits_of_its_own(server: Host, site: Site) -> None:
    statement = (
        "SELECT string_agg(current_setting(n), ' ' ORDER BY i) FROM unnest(ARRAY['statement_timeout', \
'lock_timeout', 'idle_in_transaction_session_timeout', 'search_path', 'TimeZone']) WITH ORDINALITY AS s(n, i)"
    )
    answer = server.check_output(client("celery_worker", password_of(site, "celery_worker"), statement))
    assert answer == "30s 5s 1min public UTC"
    limits = sql(
        server, "SELECT rolname, rolconnlimit FROM pg_roles WHERE rolname LIKE 'celery\\_%' ORDER BY 1"
    )
    assert limits.split() == [
        "celery_client|60",
        "celery_monitor|7",
        "celery_reader|8",
        "celery_results_owner|-1",
        "celery_worker|120",
    ]


def test_completion_times_are_utc_whatever_the_zones(server: Host, worker: CeleryHost) -> None:
    """Server, database, and process each in another zone; the session's is pinned."""
    sql(server, "ALTER DATABASE celery_results SET timezone = 'Asia/Tokyo'")
    try:
        worker.python(
            "import os, time; os.environ['TZ'] = 'America/Chicago'; time.tzset()\n"
            "app.backend.store_result('zone-probe', 1, 'SUCCESS')"
        )
    finally:
        sql(server, "ALTER DATABASE celery_results RESET timezone")
    stored = sql(server, "SELECT date_done FROM celery_taskmeta WHERE task_id = 'zone-probe'")
    age = dt.datetime.now(dt.UTC) - dt.datetime.fromisoformat(stored).replace(tzinfo=dt.UTC)
    assert abs(age.total_seconds()) < 60
    worker.python("app.AsyncResult('zone-probe').forget()")


def test_no_password_is_kept_in_clear_text_on_the_server(server: Host, site: Site) -> None:
    found = server.check_output(
        "cat /etc/postgresql/*/main/*.conf /etc/postgresql/*/main/conf.d/* /var/log/postgresql/*"
    )
    for name, secret in site.secrets().items():
        assert secret not in found, name
    kept = sql(
        server, "SELECT DISTINCT split_part(rolpassword, '$', 1) FROM pg_authid WHERE rolpassword IS NOT NULL"
    )
    assert kept == "SCRAM-SHA-256"


def test_a_failing_statement_leaves_no_result_in_the_log(server: Host, site: Site) -> None:
    statement = (
        "INSERT INTO celery_taskmeta (id, task_id, result) VALUES (1, 'x', 'my-private-result'), (1, 'x', '')"
    )
    attempt = server.run(client("celery_worker", password_of(site, "celery_worker"), statement))
    assert "duplicate key" in attempt.stderr
    log = server.check_output("cat /var/log/postgresql/*.log")
    assert "duplicate key" in log
    assert "my-private-result" not in log


def test_the_tables_belong_to_nobody_who_can_log_in(server: Host) -> None:
    owners = sql(
        server,
        "SELECT DISTINCT pg_get_userbyid(relowner), rolcanlogin FROM pg_class c JOIN pg_roles r ON r.oid = relowner"
        " WHERE relname LIKE 'celery\\_%' AND relkind = 'r'",
    )
    assert owners == "celery_results_owner|f"


def test_the_unit_comes_back(server: Host) -> None:
    shown = server.check_output(f"systemctl show {UNIT} -p Restart -p StartLimitIntervalUSec")
    assert "Restart=on-failure" in shown
    assert "StartLimitIntervalUSec=0" in shown
    assert server.service("postgresql").is_enabled
