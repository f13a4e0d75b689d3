"""`celery-results smoke` against a real MariaDB: all holds as deployed, each weakness is found."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest
from tests.integration.lab_files import weaken
from tests.integration.mysql_case import database_of, lab_with, write_config
from tests.integration.redis_lab import only, smoke

from celery_results.smoke.catalog import CATALOG, NAMES, Kind
from celery_results.smoke.certificates import ATTEMPTS as CERTIFICATE_ATTEMPTS
from celery_results.smoke.refusals.mysql import ATTEMPTS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.database_lab import Database, MariaDBLab

REFUSALS = [entry.name for entry in CATALOG if entry.kind is Kind.REFUSAL]


@pytest.fixture(scope="module")
def lab() -> Iterator[MariaDBLab]:
    with lab_with() as lab:
        yield lab


@pytest.fixture(scope="module")
def database(lab: MariaDBLab) -> Database:
    return database_of(lab)


@contextlib.contextmanager
def changed(lab: MariaDBLab, *statements: str, back: tuple[str, ...]) -> Iterator[None]:
    """Weaken the server for one test."""
    with contextlib.closing(lab.connect("mysql")) as connection:
        for statement in statements:
            connection.cursor().execute(statement)
    try:
        yield
    finally:
        with contextlib.closing(lab.connect("mysql")) as connection:
            for statement in back:
                connection.cursor().execute(statement)


def test_every_refusal_of_the_catalog_can_be_tried() -> None:
    wanted = {entry.name for entry in CATALOG if entry.kind in {Kind.REFUSAL, Kind.REFUSAL_OF_A_RESULT}}
    assert wanted == set(ATTEMPTS) | set(CERTIFICATE_ATTEMPTS)


@pytest.mark.parametrize("implementation", ["bundled", "stock"])
def test_everything_holds_as_deployed_and_nothing_is_left(lab, database, tmp_path, implementation) -> None:
    config = write_config(tmp_path / "etc", database, CELERYCONFIG_RESULT_IMPLEMENTATION=implementation)
    answer = smoke(config, "--json")
    assert answer.code == 0, answer.stdout + answer.stderr
    # Rows expire by the nightly cleanup, not by the server.
    assert answer.names("passed") == [
        name for name in NAMES if name not in {"witness", "expiry"} and not name.startswith("broker_")
    ]
    assert answer.check("expiry")["status"] == "not_run"
    assert not [name for name, password in lab.passwords.items() if password in answer.stdout + answer.stderr]
    assert database.rows(
        "SELECT (SELECT COUNT(*) FROM celery_taskmeta) + (SELECT COUNT(*) FROM celery_tasksetmeta)"
    ) == [(0,)]


WEAKNESSES: dict[str, tuple[str, str, str]] = {
    "plain text": (
        "plain_text",
        "SET GLOBAL require_secure_transport = OFF; ALTER USER celery_worker REQUIRE NONE",
        "SET GLOBAL require_secure_transport = ON; ALTER USER celery_worker REQUIRE SSL",
    ),
    "somebody without a name": ("no_password", "CREATE USER ''@'%'", "DROP USER ''@'%'"),
    "root by network": ("no_password", "CREATE USER root@'127.%' REQUIRE SSL", "DROP USER root@'127.%'"),
    "tables": (
        "foreign_key",
        "GRANT CREATE, DROP ON `{db}`.* TO celery_worker",
        "REVOKE CREATE, DROP ON `{db}`.* FROM celery_worker",
    ),
    "alter": (
        "foreign_key",
        "GRANT ALTER ON `{db}`.celery_taskmeta TO celery_worker",
        "REVOKE ALTER ON `{db}`.celery_taskmeta FROM celery_worker",
    ),
    "accounts": (
        "foreign_key",
        "GRANT SELECT ON mysql.user TO celery_worker",
        "REVOKE SELECT ON mysql.user FROM celery_worker",
    ),
    "files of the server": (
        "foreign_key",
        "GRANT FILE ON *.* TO celery_worker",
        "REVOKE FILE ON *.* FROM celery_worker",
    ),
    "files of the client": ("foreign_key", "SET GLOBAL local_infile = ON", "SET GLOBAL local_infile = OFF"),
    "statements of others": (
        "foreign_key",
        "GRANT PROCESS ON *.* TO celery_worker",
        "REVOKE PROCESS ON *.* FROM celery_worker",
    ),
    "a client that changes": (
        "client_write",
        "GRANT UPDATE ON `{db}`.celery_taskmeta TO celery_client",
        "REVOKE UPDATE ON `{db}`.celery_taskmeta FROM celery_client",
    ),
    "a client that stores": (
        "client_write",
        # The id's default is the sequence: without the right to it, MariaDB refuses any row.
        ("GRANT INSERT ON `{db}`.celery_taskmeta TO celery_client; "
        "GRANT SELECT, INSERT ON `{db}`.task_id_sequence TO celery_client"),
        ("REVOKE INSERT ON `{db}`.celery_taskmeta FROM celery_client; "
        "REVOKE INSERT ON `{db}`.task_id_sequence FROM celery_client"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("weakness", WEAKNESSES)
def test_a_weakness_of_the_server_fails_the_check_for_it(lab, database, tmp_path, weakness) -> None:
    failed, statements, back = (text.replace("{db}", database.name) for text in WEAKNESSES[weakness])
    names = REFUSALS if failed in REFUSALS else [failed]
    holder: Any = lab.connect("mysql")  # somebody whose statements could be seen
    config = write_config(tmp_path / "etc", database)
    with contextlib.closing(holder), changed(lab, *statements.split("; "), back=tuple(back.split("; "))):
        answer = smoke(config, "--json", *only(*names))
    assert (answer.code, answer.names("failed")) == (1, [failed]), answer.stdout + answer.stderr
    assert answer.check(failed)["remedy"]
    assert smoke(config, "--json", *only(*REFUSALS)).code == 0


@pytest.mark.parametrize(
    ("failed", "old", "new"),
    [
        ("untrusted_ca", '"true"', '"false"'),
        ("wrong_name", '"ssl_verify_identity": "true"', '"ssl_verify_identity": "false"'),
    ],
)
def test_settings_that_do_not_verify_the_server_fail(database, tmp_path, failed, old, new) -> None:
    config = write_config(tmp_path / "etc", database)
    weaken(config / "celeryconfig_mysql.py", (old, new))
    answer = smoke(config, "--json", *only(failed))
    assert (answer.code, answer.names("failed")) == (1, [failed]), answer.stdout + answer.stderr


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"CELERYCONFIG_RESULT_HOSTS": "127.0.0.1:1"}, "is the server up"),
        ({"CELERYCONFIG_RESULT_PASSWORD": "wrong:/@password"}, "CELERYCONFIG_RESULT_USERNAME and _PASSWORD"),
    ],
    ids=["server down", "wrong password"],
)
def test_a_server_that_does_not_answer_is_said_plainly(database, tmp_path, changes, told) -> None:
    answer = smoke(write_config(tmp_path / "etc", database, **changes))
    assert answer.code == 1
    assert told in answer.stderr, answer.stderr
    assert "Traceback" not in answer.stderr
    assert "wrong:/@password" not in answer.stderr
