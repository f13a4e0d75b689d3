"""`celery-results smoke` against a real PostgreSQL: all holds as deployed, each weakness is found."""

from __future__ import annotations

import pytest
from tests.integration.postgresql_lab import HBA, NAME, OWNER, DeployedPostgres
from tests.integration.redis_lab import only, smoke

from celery_results.smoke.catalog import NAMES


@pytest.fixture(scope="module")
def lab():
    with DeployedPostgres() as server:
        server.deploy()
        yield server


@pytest.mark.parametrize("implementation", ["bundled", "stock"])
def test_everything_holds_as_deployed_and_nothing_is_left(lab, tmp_path, implementation):
    config = lab.write_config(tmp_path / "etc", implementation)
    answer = smoke(config, "--json", "--timeout", "60")
    assert answer.code == 0, answer.stdout + answer.stderr
    # The server drops nothing by itself: that is beat's clean-up.
    assert answer.names("passed") == [
        name for name in NAMES if name not in {"witness", "expiry"} and not name.startswith("broker_")
    ]
    assert answer.document["backend"] == "postgresql"
    assert not [name for name, password in lab.passwords.items() if password in answer.stdout + answer.stderr]
    with lab.connect(NAME) as connection:
        left = connection.execute("SELECT task_id FROM celery_taskmeta WHERE name IS NULL").fetchall()
        groups = connection.execute("SELECT count(*) FROM celery_tasksetmeta").fetchone()
    assert groups == (0,)
    # Stock Celery stores the state of its own chord_unlock, whose id nobody is told.
    assert len(left) <= (0 if implementation == "bundled" else 1)
    lab.inside("DELETE FROM celery_taskmeta")


def test_a_witness_is_read_with_the_clients_login(lab, tmp_path):
    kept = smoke(lab.write_config(tmp_path / "worker"), "--json", "--keep-witness", *only("value"))
    assert kept.code == 0, kept.stdout + kept.stderr
    client = lab.write_config(tmp_path / "client")
    (client / "celery.env").write_text((client / "client.env").read_text())
    (client / "client.env").unlink()
    answer = smoke(client, "--json", "--witness", kept.document["witness"])
    assert answer.code == 0, answer.stdout + answer.stderr
    assert {"witness", "client_write", "foreign_key"} <= set(answer.names("passed"))


def weak(old: str, new: str) -> str:
    assert old in HBA
    return HBA.replace(old, new)


PLAIN = weak("hostnossl all  all       all  reject", "").replace("hostssl ", "host ")
SUPERUSER = weak("host      all  postgres  all  reject", "hostssl all postgres 127.0.0.0/8 trust")
WEAK_FILES = [
    (PLAIN, "plain_text", "without TLS"),
    (weak("scram-sha-256", "trust"), "wrong_password", "any password"),
    (weak("scram-sha-256", "password"), "wrong_password", "without SCRAM"),
    (weak("scram-sha-256", "trust"), "no_password", "without a password"),
    (SUPERUSER, "no_password", "postgres gets in"),
    (weak("hostssl   celery_results", "hostssl all"), "foreign_key", "enter the database postgres"),
]
TOO_MANY_RIGHTS = [
    ("GRANT CREATE ON SCHEMA public TO celery_worker", "foreign_key", "create a table"),
    (f"GRANT {OWNER} TO celery_worker", "foreign_key", "become the owner"),
    ("GRANT TRUNCATE ON celery_taskmeta TO celery_worker", "foreign_key", "empty the table"),
    ("GRANT TEMPORARY ON DATABASE celery_results TO PUBLIC", "foreign_key", "temporary table"),
    ("GRANT pg_execute_server_program TO celery_worker", "foreign_key", "run a program"),
    ("GRANT UPDATE ON celery_taskmeta TO celery_client", "client_write", "overwrite a result"),
    ("GRANT INSERT ON celery_taskmeta TO celery_client", "client_write", "forge a result"),
]


@pytest.mark.parametrize(
    ("hba", "check", "words"), WEAK_FILES, ids=lambda value: value if " " in value else ""
)
def test_each_way_in_is_found_by_its_check(lab, tmp_path, hba, check, words):
    lab.admit(hba)
    try:
        answer = smoke(lab.write_config(tmp_path / "etc"), "--json", *only(check))
    finally:
        lab.admit(HBA)
    assert answer.code == 1, answer.stdout + answer.stderr
    assert words in answer.check(check)["note"]


@pytest.mark.parametrize(("grant", "check", "words"), TOO_MANY_RIGHTS)
def test_each_right_too_much_is_found_by_its_check(lab, tmp_path, grant, check, words):
    lab.inside(grant)
    try:
        answer = smoke(lab.write_config(tmp_path / "etc"), "--json", *only(check))
    finally:
        lab.inside(grant.replace("GRANT", "REVOKE").replace(" TO ", " FROM "))
    assert answer.code == 1, answer.stdout + answer.stderr
    assert words in answer.check(check)["note"]


@pytest.mark.parametrize(("weaker", "check"), [("verify-ca", "wrong_name"), ("require", "untrusted_ca")])
def test_settings_that_do_not_verify_are_found(lab, tmp_path, weaker, check):
    config = lab.write_config(tmp_path / "etc")
    module = config / "celeryconfig_postgresql.py"
    text = module.read_text().replace("verify-full", weaker)
    # libpq verifies with `require` too where it is given an authority.
    module.write_text(text.replace('"sslrootcert": server.tls_ca_file,', "") if weaker == "require" else text)
    answer = smoke(config, "--json", *only(check))
    assert answer.code == 1, answer.stdout + answer.stderr


@pytest.mark.parametrize(
    ("statement", "back", "remedy"),
    [
        (
            "REVOKE INSERT ON celery_taskmeta FROM celery_worker",
            "GRANT INSERT ON celery_taskmeta TO celery_worker",
            "run site.yml for the server again",
        ),
        (
            "ALTER ROLE celery_worker SET default_transaction_read_only = on",
            "ALTER ROLE celery_worker RESET default_transaction_read_only",
            "must be a primary",
        ),
        ("ALTER ROLE celery_worker PASSWORD 'another'", "", "vault_postgresql_*_password"),
    ],
)
def test_what_does_not_work_names_the_remedy(lab, tmp_path, statement, back, remedy):
    lab.inside(statement)
    try:
        answer = smoke(lab.write_config(tmp_path / "etc"), "--timeout", "15", *only("value"))
    finally:
        lab.inside(back or f"ALTER ROLE celery_worker PASSWORD '{lab.passwords['worker']}'")
    assert answer.code != 0
    assert remedy in answer.stdout + answer.stderr
