"""INTEGER ids become BIGINT: after 2,147,483,647 stores every further one would fail.

PostgreSQL's own way, ALTER COLUMN TYPE, rewrites the table while nobody may read or write it. That is done
with a small table. A larger one gets a second column beside `id`: a trigger fills it for new rows, batches
for old ones, an index is built CONCURRENTLY, and at the end the column takes the name and the place of the
primary key in one short transaction. The column is then the last of the table, which only SELECT * and
INSERT without column names notice.

An upgrade that was interrupted goes on from what it finds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .layout import Step

if TYPE_CHECKING:
    from .layout import Table
    from .postgresql_catalog import TableState

COLUMN = "celery_results_id"


def wider_ids(table: Table, state: TableState, rewrite_bytes: int) -> list[Step]:
    """Plan the change; nothing where ids are BIGINT."""
    if state.columns["id"].type != "integer":
        return []
    if COLUMN not in state.columns and state.bytes <= rewrite_bytes:
        statement = f"ALTER TABLE public.{table.name} ALTER COLUMN id TYPE bigint"
        return [Step(f"{table.name}: id becomes bigint (small: rewritten under a lock)", (statement,))]
    return _beside(table, state)


def _beside(table: Table, state: TableState) -> list[Step]:
    name, index = f"public.{table.name}", f"{table.name}_{COLUMN}"
    copy = f"public.{table.name}_copy_id"
    text = f"{table.name}: id becomes bigint, online:"
    steps = []
    if COLUMN not in state.columns:
        body = f"$body$ BEGIN NEW.{COLUMN} := NEW.id; RETURN NEW; END $body$"
        action = f"FOR EACH ROW EXECUTE FUNCTION {copy}()"
        statements = (
            f"ALTER TABLE {name} ADD COLUMN {COLUMN} bigint",
            f"CREATE OR REPLACE FUNCTION {copy}() RETURNS trigger LANGUAGE plpgsql AS {body}",
            f"CREATE TRIGGER {table.name}_copy_id BEFORE INSERT OR UPDATE ON {name} {action}",
        )
        steps.append(Step(f"{text} a second column, filled by a trigger", statements))
    fill = f"UPDATE {name} SET {COLUMN} = id WHERE id >= {{low}} AND id < {{high}} AND {COLUMN} IS NULL"  # noqa: S608
    steps.append(Step(f"{text} fill it for old rows, in batches", (fill,), windows=table.name))
    steps.append(
        Step(
            f"{text} its index, concurrently",
            (
                f"DROP INDEX CONCURRENTLY IF EXISTS public.{index}",  # of an interrupted build
                f"CREATE UNIQUE INDEX CONCURRENTLY {index} ON {name} ({COLUMN})",
            ),
            alone=True,
        )
    )
    # SET NOT NULL then believes the check and reads no row under its lock.
    check = f"{table.name}_{COLUMN}_check"
    steps.append(
        Step(
            f"{text} check that no row lacks it",
            (
                f"ALTER TABLE {name} DROP CONSTRAINT IF EXISTS {check}",
                f"ALTER TABLE {name} ADD CONSTRAINT {check} CHECK ({COLUMN} IS NOT NULL) NOT VALID",
            ),
        )
    )
    steps.append(Step(f"{text} validate the check", (f"ALTER TABLE {name} VALIDATE CONSTRAINT {check}",)))
    steps.append(Step(f"{text} it becomes id", _swap(table, index, check, copy)))
    return steps


def _swap(table: Table, index: str, check: str, copy: str) -> tuple[str, ...]:
    name, sequence = f"public.{table.name}", f"public.{table.sequence}"
    return (
        f"LOCK TABLE {name} IN ACCESS EXCLUSIVE MODE",
        f"DROP TRIGGER {table.name}_copy_id ON {name}",
        f"DROP FUNCTION {copy}()",
        f"ALTER TABLE {name} ALTER COLUMN {COLUMN} SET NOT NULL",
        f"ALTER TABLE {name} DROP CONSTRAINT {check}",
        f"CREATE SEQUENCE IF NOT EXISTS {sequence}",
        f"ALTER SEQUENCE {sequence} OWNED BY NONE",  # or it would go with the column
        f"ALTER TABLE {name} DROP COLUMN id",
        f"ALTER TABLE {name} RENAME COLUMN {COLUMN} TO id",
        f"ALTER TABLE {name} ADD CONSTRAINT {table.name}_pkey PRIMARY KEY USING INDEX {index}",
        f"ALTER SEQUENCE {sequence} OWNED BY {name}.id",
        f"ALTER TABLE {name} ALTER COLUMN id SET DEFAULT nextval('{sequence}')",
    )
