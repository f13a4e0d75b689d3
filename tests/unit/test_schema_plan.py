"""The schema package without a server: what it plans for PostgreSQL, its command line, its imports."""

from __future__ import annotations

import ast
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from celery_results.schema import postgresql_catalog
from celery_results.schema import postgresql_plan as plan
from celery_results.schema.command_line import main
from celery_results.schema.errors import ForeignTableError
from celery_results.schema.layout import GROUPS, TASKS
from celery_results.schema.postgresql import PostgreSQL
from celery_results.schema.postgresql_catalog import Column, Index, Sequence, TableState
from celery_results.schema.postgresql_ids import COLUMN, wider_ids
from celery_results.schema.postgresql_plan import BRIN, BTREE, SUMMARIES_KEEP_HOT
from celery_results.schema.upgrade import head

PACKAGE = Path(plan.__file__).parent
NAME, NEW = "ix_celery_taskmeta_date_done", "ix_celery_taskmeta_date_done_new"


def index(name, method="btree", *, valid=True):
    return Index(name, method, valid, unique=False, columns=("date_done",))


def state(**changes):
    columns = {
        name: Column(plan.TYPES[kind], "nextval('task_id_sequence'::regclass)" if kind == "id" else "", "l")
        for name, kind in TASKS.columns.items()
    }
    whole = TableState(
        kind="r",
        owner="owner",
        columns=columns,
        indexes=(index(NAME), Index("u", "btree", valid=True, unique=True, columns=("task_id",))),
        options=plan.STORAGE,
        sequence=Sequence("owner", "bigint", "celery_taskmeta.id", 9),
        highest_id=9,
        lz4=True,
        bytes=10,
    )
    return replace(whole, **changes)


def statements(steps):
    return [statement for step in steps for statement in step.statements]


@pytest.mark.parametrize(
    ("indexes", "kind", "wanted"),
    [
        ((index(NAME),), BTREE, []),
        ((index(NAME, "brin"),), BRIN, []),
        ((), BTREE, ["CREATE", "RENAME"]),
        ((index(NAME),), BRIN, ["CREATE", "DROP", "RENAME"]),
        ((index(NAME), index(NEW, "brin", valid=False)), BRIN, ["DROP", "CREATE", "DROP", "RENAME"]),
        ((index(NAME), index(NEW, "brin")), BRIN, ["DROP", "RENAME"]),
        ((index(NEW, "brin"),), BRIN, ["RENAME"]),
        ((index(NAME, "brin"), index(NEW, "brin")), BRIN, ["DROP"]),
        ((index(NAME, valid=False),), BTREE, ["DROP", "CREATE", "RENAME"]),
        ((index(NEW),), BRIN, ["DROP", "CREATE", "RENAME"]),
    ],
)
def test_an_index_is_there_before_another_goes(indexes, kind, wanted):
    steps = plan.date_index(TASKS, state(indexes=indexes), kind)
    words = {"CREATE INDEX": "CREATE", "DROP INDEX": "DROP", "ALTER INDEX": "RENAME"}
    assert [words[" ".join(statement.split()[:2])] for statement in statements(steps)] == wanted
    for step in steps:
        assert step.alone is not any("ALTER" in statement for statement in step.statements)


@pytest.mark.parametrize(
    ("version", "table", "kind"),
    [
        (150000, TASKS, BTREE),
        (SUMMARIES_KEEP_HOT, TASKS, BRIN),
        (170000, TASKS, BRIN),
        (170000, GROUPS, BTREE),
    ],
)
def test_summaries_are_for_releases_that_keep_hot_updates_with_them(monkeypatch, version, table, kind):
    monkeypatch.setattr(postgresql_catalog, "server_version", lambda _connection: version)
    dialect = PostgreSQL(None, None, 1, 1, 1)  # type: ignore[arg-type] # asks nothing of the connection
    assert dialect._index_kind(table) == kind


def test_a_table_that_is_as_it_should_be_needs_nothing():
    whole = state()
    assert not plan.columns(TASKS, whole)
    assert not plan.storage(TASKS, whole)
    assert not plan.sequence(TASKS, whole, renewed=False)
    assert not wider_ids(TASKS, whole, 0)


def test_small_tables_are_rewritten_and_large_ones_are_not():
    narrow = {**state().columns, "id": Column("integer", "", "")}
    assert statements(wider_ids(TASKS, state(columns=narrow), 10)) == [
        "ALTER TABLE public.celery_taskmeta ALTER COLUMN id TYPE bigint"
    ]
    online = wider_ids(TASKS, state(columns=narrow), 9)
    assert not any("TYPE bigint" in statement for statement in statements(online))
    begun = {**narrow, COLUMN: Column("bigint", "", "")}
    assert wider_ids(TASKS, state(columns=begun), 10) == online[1:]


def test_foreign_types_are_no_celery_table():
    odd = {**state().columns, "result": Column("text", "", "l")}
    with pytest.raises(ForeignTableError, match="result is text, not bytea"):
        plan.require_celery(TASKS, state(columns=odd))


def test_it_imports_nothing_but_alembic_sqlalchemy_and_the_standard_library():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                root = name.partition(".")[0]
                assert root in {"alembic", "sqlalchemy"} or root in sys.stdlib_module_names, f"{path}: {name}"


def test_the_command_line_tells_errors_as_json(capsys, tmp_path):
    assert main(["check", "--url", "mysql+pymysql://u:s3cret@h/d", "--owner", "x", "--json"]) == 2
    shown = capsys.readouterr().out
    assert "s3cret" not in shown
    assert set(json.loads(shown)) == {"changed", "error"}
    assert main(["check", "--url-file", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.startswith("error: expected")
    with pytest.raises(SystemExit, match="2"):
        main(["check"])
    with pytest.raises(SystemExit, match="2"):
        main(["check", "--url", "sqlite://", "--wait", "0"])


def test_sqlite_in_plain_words(capsys, tmp_path):
    url = f"sqlite:///{tmp_path}/results.sqlite3"
    assert main(["upgrade", "--url", url]) == 0
    told = capsys.readouterr().out
    assert "done: create celery_taskmeta" in told
    assert f"revision none -> {head()}" in told
    assert main(["upgrade", "--url", url]) == 0
    assert "done:" not in capsys.readouterr().out
