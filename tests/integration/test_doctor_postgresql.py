"""Doctor against real PostgreSQL servers: live findings provoked, and a good server that gives none."""

from __future__ import annotations

import contextlib
import datetime as dt

import psycopg
import pytest
from tests.integration.doctor_case import doctor
from tests.integration.postgresql_lab import HBA, NAME, OWNER, DeployedPostgres

from celery_results.doctor.servers.postgresql import live, network


@pytest.fixture(scope="module")
def lab():
    with DeployedPostgres() as server:
        server.deploy()
        yield server


@pytest.fixture(autouse=True)
def _certificates_of_a_day(monkeypatch):
    monkeypatch.setattr(network, "WARNING_BEFORE", dt.timedelta(0))


@pytest.fixture
def examine(tmp_path, capsys):
    """Run the command as an operator does, and give what it found by code."""

    def run(server, implementation="bundled", *, monitor=True, **changes):
        config = server.write_config(tmp_path / "etc", implementation, **changes)
        if not monitor:
            (config / "monitor.env").unlink()
        secrets = server.passwords.values()
        report = doctor(
            config, capsys=capsys, secrets=secrets, ends=lambda report: bool(report["counts"]["error"])
        )
        found: dict[str, str] = {}
        for finding in report["findings"]:
            # Files of a test are not where a deployment has them, nor of its owner.
            if finding["severity"] != "info" or finding["code"].startswith("CRB5"):
                found[finding["code"]] = f"{found.get(finding['code'], '')}{finding['found']}\n"
        return {name: text for name, text in found.items() if not name.startswith("CRB16")}

    return run


@pytest.mark.parametrize("monitor", [True, False])
def test_good_server_gives_neither_error_nor_warning(lab, examine, monitor):
    assert examine(lab, monitor=monitor) == {}


def test_a_certificate_that_expires_soon(lab, examine, monkeypatch):
    monkeypatch.setattr(network, "WARNING_BEFORE", dt.timedelta(days=30))
    assert set(examine(lab)) == {"CRB522"}


def test_celerys_own_class_is_mentioned(lab, examine):
    assert set(examine(lab, "stock")) == {"CRB520"}


NO_PLAIN = "hostnossl all  all       all  reject"
# What is done, what takes it back, the code, and words of the finding.
CASES = [
    (
        f"GRANT {OWNER} TO celery_worker",
        f"REVOKE {OWNER} FROM celery_worker",
        "CRB529",
        "drop Celery's tables",
    ),
    (
        "ALTER ROLE celery_worker CREATEDB",
        "ALTER ROLE celery_worker NOCREATEDB",
        "CRB529",
        "create databases",
    ),
    (
        "ALTER ROLE celery_worker SET synchronous_commit = off",
        "ALTER ROLE celery_worker RESET synchronous_commit",
        "CRB531",
        "off",
    ),
    (
        "ALTER ROLE celery_worker SET lock_timeout = 0",
        "ALTER ROLE celery_worker SET lock_timeout = '5s'",
        "CRB533",
        "lock_timeout",
    ),
    (
        "INSERT INTO celery_taskmeta (id, task_id, result) VALUES (7, 'pickled', '\\x80049535')",
        "DELETE FROM celery_taskmeta",
        "CRB534",
        "1 of the newest",
    ),
    (
        "REVOKE SELECT ON celery_taskmeta FROM celery_worker",
        "GRANT SELECT ON celery_taskmeta TO celery_worker",
        "CRB535",
        "permission denied",
    ),
    (
        "ALTER ROLE celery_worker SET default_transaction_read_only = on",
        "ALTER ROLE celery_worker RESET default_transaction_read_only",
        "CRB538",
        "read_only",
    ),
    (
        "ALTER ROLE celery_worker CONNECTION LIMIT 0",
        "ALTER ROLE celery_worker CONNECTION LIMIT -1",
        "CRB528",
        "too many connections",
    ),
    ("ALTER ROLE celery_worker PASSWORD 'another-one'", "", "CRB004", "authentication failed"),
    (
        "ALTER TABLE celery_taskmeta SET (autovacuum_enabled = false)",
        "ALTER TABLE celery_taskmeta RESET (autovacuum_enabled)",
        "CRB549",
        "autovacuum_enabled",
    ),
    (
        "DROP INDEX ix_celery_taskmeta_date_done",
        "CREATE INDEX ix_celery_taskmeta_date_done ON celery_taskmeta (date_done)",
        "CRB547",
        "celery_taskmeta has no index",
    ),
    (
        "ALTER TABLE celery_tasksetmeta ALTER id TYPE int; SELECT setval('taskset_id_sequence', 1900000000)",
        "SELECT setval('taskset_id_sequence', 1); ALTER TABLE celery_tasksetmeta ALTER id TYPE bigint",
        "CRB548",
        "88%",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=[case[2] for case in CASES])
def test_live_finding(lab, examine, case):
    statement, back, code, words = case
    lab.inside(statement)
    try:
        found = examine(lab)
    finally:
        lab.inside(back or f"ALTER ROLE celery_worker PASSWORD '{lab.passwords['worker']}'")
    assert code in found, found
    assert words in found[code]


def test_a_chosen_durability_is_told_and_no_warning(lab, examine):
    lab.inside("ALTER ROLE celery_worker SET synchronous_commit = off")
    try:
        found = examine(lab, CELERYCONFIG_RESULT_OPTIONS='{"synchronous_commit": "off"}')
    finally:
        lab.inside("ALTER ROLE celery_worker RESET synchronous_commit")
    assert set(found) == {"CRB532"}


@pytest.mark.parametrize(
    ("options", "hba", "codes"),
    [
        ({"fsync": "off", "autovacuum": "off"}, HBA, {"CRB537", "CRB541"}),
        ({"password_encryption": "md5"}, HBA.replace("scram-sha-256", "md5"), {"CRB527", "CRB546"}),
        ({}, HBA.replace(NO_PLAIN, "").replace("hostssl ", "host "), {"CRB526"}),
        ({"ssl": "off"}, HBA.replace(NO_PLAIN, ""), {"CRB524"}),
        ({"max_connections": "12", "superuser_reserved_connections": "2"}, HBA, {"CRB540"}),
    ],
    ids=["unsafe", "md5", "plain text", "no TLS", "connections"],
)  # fmt: skip
def test_findings_about_the_server(examine, options, hba, codes):
    with DeployedPostgres(options=options, hba=hba) as server, contextlib.ExitStack() as stack:
        server.deploy()
        if "max_connections" in options:
            for _ in range(8):
                stack.enter_context(contextlib.closing(server.connect("postgres")))
        assert set(examine(server)) == codes


def test_settings_that_wait_for_a_restart(examine):
    with DeployedPostgres() as server:
        server.deploy()
        server.admin("ALTER SYSTEM SET max_connections = 77", "SELECT pg_reload_conf()")
        with contextlib.closing(server.connect(NAME)) as connection:
            waiting = "SELECT count(*) FROM pg_settings WHERE pending_restart"
            while connection.execute(waiting).fetchone() == (0,):
                pass
        assert set(examine(server)) == {"CRB539"}


def test_nobody_there(examine):
    with DeployedPostgres() as server:
        server.deploy()
        server.kill()
        assert set(examine(server)) == {"CRB003"}


def test_another_authority_and_no_login_is_sent(lab, examine, tmp_path, monkeypatch):
    with DeployedPostgres() as other:
        ca = tmp_path / "other.crt"
        ca.write_bytes(other.authority.file.read_bytes())
    monkeypatch.setattr(psycopg, "connect", lambda **_: pytest.fail("a login was sent"))
    found = examine(lab, CELERYCONFIG_RESULT_TLS_CA_FILE=str(ca))
    assert "CRB523" in found


def test_clocks_that_differ(lab, examine, monkeypatch):
    monkeypatch.setattr(live, "WALL_CLOCK", lambda: 1.0)
    assert set(examine(lab)) == {"CRB545"}


def test_session_zone(lab, examine):
    """The bundle pins it in the URL; settings of somebody's own may not."""
    real = lab.write_config

    def without_zone(directory, *arguments, **changes):
        config = real(directory, *arguments, **changes)
        module = config / "celeryconfig_postgresql.py"
        module.write_text(module.read_text().replace("-c timezone=UTC", "-c timezone=Asia/Tokyo"))
        return config

    lab.write_config = without_zone
    try:
        assert set(examine(lab)) == {"CRB530"}
    finally:
        del lab.write_config
