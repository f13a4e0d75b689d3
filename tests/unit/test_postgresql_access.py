"""plugins/modules/postgresql_access.py and postgresql_cluster.py, without a server."""

import importlib.util
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from psycopg2 import sql  # type: ignore[import-untyped]

PROJECT = Path(__file__).parents[2]
GRANTS = yaml.safe_load((PROJECT / "roles/postgresql/vars/main/access.yml").read_text())[
    "__postgresql_grants"
]
# RFC 7677, section 3, with the keys that follow from its salt and password.
RFC_VERIFIER = (
    "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY="
    ":wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
)


def load(name: str) -> ModuleType:
    path = PROJECT / "plugins" / "modules" / f"{name}.py"
    specification = importlib.util.spec_from_file_location(name, path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def access() -> ModuleType:
    return load("postgresql_access")


@pytest.fixture(scope="module")
def cluster() -> ModuleType:
    return load("postgresql_cluster")


def test_a_verifier_of_the_rfc_is_recognized(access):
    assert access.verifies(RFC_VERIFIER, "pencil")
    assert not access.verifies(RFC_VERIFIER, "pencils")


def test_what_is_made_is_recognized_and_never_the_same_twice(access):
    made = access.verifier_of("a-password")
    assert access.verifies(made, "a-password")
    assert not access.verifies(made, "another")
    assert made != access.verifier_of("a-password")
    assert "a-password" not in made


@pytest.mark.parametrize(
    "kept", [None, "", "md5aa5ba2ebb4b2b0c8d0e0d0b0c0d0e0f0", "SCRAM-SHA-256$x", "SCRAM-SHA-256$1:a$b:c"]
)
def test_anything_else_is_no_verifier(access, kept):
    assert not access.verifies(kept, "a-password")


def granted(grants: list[dict[str, Any]]) -> set[tuple[str, ...]]:
    return {
        (grant["kind"], str(grant["name"]), column, grant["login"], privilege)
        for grant in grants
        for column in grant.get("columns", [""])
        for privilege in grant["privileges"]
    }


def test_what_is_as_listed_stays(access):
    assert access.missing_and_surplus(GRANTS, granted(GRANTS)) == ([], [])


def test_what_is_missing_is_granted_and_what_is_too_much_is_revoked(access):
    actual = granted(GRANTS)
    removed = ("table", "celery_taskmeta", "", "celery_worker", "INSERT")
    added = {
        ("table", "celery_taskmeta", "", "celery_client", "INSERT"),
        ("table", "celery_taskmeta", "result", "celery_monitor", "SELECT"),
        ("schema", "public", "", "PUBLIC", "CREATE"),
    }
    missing, surplus = access.missing_and_surplus(GRANTS, (actual - {removed}) | added)
    assert missing == [removed]
    assert set(surplus) == added


def test_other_roles_and_objects_are_left_alone(access):
    others = {
        ("table", "celery_taskmeta", "", "celery_results_owner", "INSERT"),
        ("table", "celery_taskmeta", "", "somebody", "SELECT"),
        ("table", "another_table", "", "celery_worker", "SELECT"),
    }
    assert access.missing_and_surplus(GRANTS, granted(GRANTS) | others) == ([], [])


@pytest.mark.parametrize(
    ("verb", "joint", "right", "text"),
    [
        (
            "GRANT",
            "TO",
            ("table", "celery_taskmeta", "", "celery_worker", "SELECT"),
            [
                "SQL('GRANT')",
                "SQL('SELECT')",
                "SQL('TABLE')",
                "SQL('public.')",
                "Identifier('celery_taskmeta')",
            ],
        ),
        (
            "REVOKE",
            "FROM",
            ("schema", "public", "", "PUBLIC", "CREATE"),
            ["SQL('REVOKE')", "SQL('SCHEMA')", "Identifier('public')", "SQL('FROM')", "SQL('PUBLIC')"],
        ),
        (
            "GRANT",
            "TO",
            ("table", "t", "id", "celery_monitor", "SELECT"),
            ["Composed([SQL('('), Identifier('id'), SQL(')')])", "Identifier('celery_monitor')"],
        ),
    ],
)
def test_statements_quote_every_name(access, verb, joint, right, text):
    found = repr(access.statement_of(verb, joint, right))
    assert all(part in found for part in text), found
    assert isinstance(access.statement_of(verb, joint, right), sql.Composed)


def test_the_monitor_gets_no_payload():
    payload = {"result", "args", "kwargs", "children", "traceback", "stamps"}
    for grant in GRANTS:
        if grant["login"] == "celery_monitor" and grant["kind"] == "table":
            assert grant["columns"]
            assert not payload & set(grant["columns"])


def test_only_the_worker_writes_results():
    writers = {
        grant["login"]
        for grant in GRANTS
        if grant["name"] == "celery_taskmeta" and {"INSERT", "UPDATE"} & set(grant["privileges"])
    }
    assert writers == {"celery_worker"}


class Module:
    """The little of AnsibleModule that reading a pid file needs."""

    def __init__(self, directory: Path) -> None:
        self.params = {"data_directory": str(directory), "config_file": str(directory / "x.conf")}


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (f"{os.getpid()}\n/data\n1700000000\n7432\n/var/run/postgresql\n", (os.getpid(), 7432)),
        ("999999999\n/data\n1700000000\n5432\n", None),
        ("not a number\n", None),
        (f"{os.getpid()}\n", None),
        (None, None),
    ],
    ids=["running", "stale", "damaged", "just started", "none"],
)
def test_the_running_server_is_found_whatever_the_files_say(cluster, tmp_path, content, found):
    if content is not None:
        (tmp_path / "postmaster.pid").write_text(content)
    assert cluster.Server(Module(tmp_path)).process() == found
