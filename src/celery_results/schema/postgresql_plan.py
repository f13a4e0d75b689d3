"""What PostgreSQL's tables should be, and the steps from what they are; asks no server anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import ForeignTableError
from .layout import Step

if TYPE_CHECKING:
    from .layout import Table
    from .postgresql_catalog import TableState

TYPES = {
    "id": "bigint",
    "key": "character varying(155)",
    "status": "character varying(50)",
    "bytes": "bytea",
    "time": "timestamp without time zone",
    "text": "text",
    "string": "character varying(155)",
    "integer": "integer",
}
# A result is inserted once and updated once or twice, then deleted: 30 % of each page is kept for the second
# version of its rows, and vacuum comes after 2 % of the rows, not 20 %, with the budget to end soon.
STORAGE = {
    "fillfactor": "70",
    "autovacuum_vacuum_scale_factor": "0.02",
    "autovacuum_vacuum_threshold": "1000",
    "autovacuum_analyze_scale_factor": "0.02",
    "autovacuum_vacuum_cost_limit": "2000",
    "toast.autovacuum_vacuum_scale_factor": "0.02",
}
# From this release on an index of summaries does not keep an update from staying in its page (HOT).
SUMMARIES_KEEP_HOT = 160000
BRIN = "brin (date_done) WITH (pages_per_range = 32, autosummarize = on)"
BTREE = "btree (date_done)"


def require_celery(table: Table, state: TableState) -> None:
    """Raise ForeignTableError for a table that no Celery made."""
    problems = []
    if state.kind != "r":
        problems.append("it is no ordinary table")
    for name, kind in table.columns.items():
        column = state.columns.get(name)
        expected = {TYPES[kind]} | ({"integer"} if kind == "id" else set())
        if column is None:
            if name not in table.optional:
                problems.append(f"no column {name}")
        elif column.type not in expected:
            problems.append(f"{name} is {column.type}, not {TYPES[kind]}")
    if not any(index.unique and index.valid and index.columns == (table.key,) for index in state.indexes):
        problems.append(f"{table.key} is not unique")
    if problems:
        raise ForeignTableError(
            expected=f"a {table.name} that Celery made",
            found="; ".join(problems),
            do="rename that table, or use another database; nothing was changed",
        )


def columns(table: Table, state: TableState) -> list[Step]:
    """Add what is missing; have new values compressed with lz4."""
    missing = [name for name in table.columns if name not in state.columns]
    steps = []
    if missing:
        added = ", ".join(f"ADD COLUMN {name} {TYPES[table.columns[name]]}" for name in missing)
        steps.append(
            Step(
                f"{table.name}: add {', '.join(missing)}",
                (f"ALTER TABLE public.{table.name} {added}",),
            )
        )
    if state.lz4:
        toasted = [name for name, kind in table.columns.items() if kind in {"bytes", "text"}]
        late = [
            name for name in toasted if name not in state.columns or state.columns[name].compression != "l"
        ]
        if late:
            changes = ", ".join(f"ALTER COLUMN {name} SET COMPRESSION lz4" for name in late)
            steps.append(
                Step(
                    f"{table.name}: new values of {', '.join(late)} are compressed with lz4",
                    (f"ALTER TABLE public.{table.name} {changes}",),
                )
            )
    return steps


def sequence(table: Table, state: TableState, *, renewed: bool) -> list[Step]:
    """Let ids come from Celery's sequence; `renewed`: the change of their type has seen to the default."""
    steps = []
    name = f"public.{table.sequence}"
    owned = f"ALTER SEQUENCE {name} OWNED BY public.{table.name}.id"
    # The step forward leaves room for what is stored before the statement runs.
    forward = f"SELECT setval('{name}', (SELECT coalesce(max(id), 0) + 1000 FROM public.{table.name}), true)"  # noqa: S608 - constants
    sequence = state.sequence
    if sequence is None:
        create = f"CREATE SEQUENCE IF NOT EXISTS {name}"
        steps.append(Step(f"create {table.sequence}", (create, forward, owned)))
    else:
        if sequence.type != "bigint":
            steps.append(Step(f"{table.sequence}: becomes bigint", (f"ALTER SEQUENCE {name} AS bigint",)))
        if not sequence.owned_by and not renewed:
            steps.append(Step(f"{table.sequence}: belongs to {table.name}.id", (owned,)))
        if sequence.last_value < state.highest_id:
            steps.append(Step(f"{table.sequence}: goes on after the highest id", (forward,)))
    if not renewed and f"'{table.sequence}'" not in state.columns["id"].default.replace("public.", ""):
        steps.append(
            Step(
                f"{table.name}: id gets its default from {table.sequence}",
                (f"ALTER TABLE public.{table.name} ALTER COLUMN id SET DEFAULT nextval('{name}')",),
            )
        )
    return steps


def storage(table: Table, state: TableState) -> list[Step]:
    """Set what keeps a table small whose rows live for a day; other options stay as they are."""
    late = {name: value for name, value in STORAGE.items() if state.options.get(name) != value}
    if not late:
        return []
    options = ", ".join(f"{name} = {value}" for name, value in late.items())
    return [Step(f"{table.name}: set {options}", (f"ALTER TABLE public.{table.name} SET ({options})",))]


def date_index(table: Table, state: TableState, kind: str) -> list[Step]:
    """Build the index that is wanted before the one that is there goes, none of it under a lock.

    Two indexes may be there: Celery's own, by its name, and ours under a name of its own until then. What an
    interrupted build left is invalid: it costs every write and serves no read.
    """
    wanted, building = table.date_index, f"{table.date_index}_new"
    method = kind.partition(" ")[0]
    by_name = {index.name: index for index in state.indexes if index.name in {wanted, building}}

    def drop(name: str, why: str) -> Step:
        return Step(
            f"{table.name}: drop {why}", (f"DROP INDEX CONCURRENTLY IF EXISTS public.{name}",), alone=True
        )

    steps = []
    for name, index in list(by_name.items()):
        if not index.valid:
            steps.append(drop(name, f"{name}, which an interrupted build left"))
            del by_name[name]
    if wanted in by_name and by_name[wanted].method == method:
        if building in by_name:
            steps.append(drop(building, f"{building}, which is not needed"))
        return steps
    if building in by_name and by_name[building].method != method:
        steps.append(drop(building, f"{building}, of another kind"))
        del by_name[building]
    if building not in by_name:
        statement = f"CREATE INDEX CONCURRENTLY {building} ON public.{table.name} USING {kind}"
        steps.append(Step(f"{table.name}: index date_done by {method}", (statement,), alone=True))
    if wanted in by_name:
        steps.append(drop(wanted, f"the {by_name[wanted].method} index on date_done"))
    rename = f"ALTER INDEX public.{building} RENAME TO {wanted}"
    steps.append(Step(f"{table.name}: name the new index as Celery does", (rename,)))
    return steps
