"""PostgreSQL: tables tuned for rows that live for a day, changed online."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import sqlalchemy
from sqlalchemy.exc import DBAPIError

from . import postgresql_catalog as catalog
from . import postgresql_plan as plan
from .errors import SchemaError
from .layout import LOCK_NAME, TABLES, TASKS, VERSION_TABLE, Step, Table
from .postgresql_ids import wider_ids

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.engine import Connection

    from .postgresql_catalog import TableState

LOCK_NOT_AVAILABLE, QUERY_CANCELED = "55P03", "57014"
WINDOW = 5000  # ids that one transaction of a batch step works on
_LOCK_KEY = int.from_bytes(LOCK_NAME.encode()[-8:], "big") >> 1


class PostgreSQL:
    """The dialect; see :class:`layout.Dialect`."""

    def __init__(
        self,
        connection: Connection,
        owner: str | None,
        lock_seconds: float,
        wait_seconds: float,
        rewrite_bytes: int,
    ) -> None:
        """Use this connection; tables are to belong to the owner, or to the login where there is none."""
        self.connection = connection
        self.owner = owner
        self.lock_seconds = lock_seconds
        self.wait_seconds = wait_seconds
        self.rewrite_bytes = rewrite_bytes

    def prepare(self) -> None:
        """Fix what a role's or database's settings could change, and become the owner."""
        for setting in (
            "statement_timeout = 0",
            "idle_in_transaction_session_timeout = 0",
            "search_path = pg_catalog",
            "client_min_messages = warning",
            f"lock_timeout = {int(self.lock_seconds * 1000)}",
        ):
            self._run(f"SET {setting}")
        if self.owner is not None:
            if not self._scalar("SELECT count(*) FROM pg_roles WHERE rolname = :name", name=self.owner):
                raise SchemaError(
                    expected=f"the role {self.owner}",
                    found="no such role on this server",
                    do=f"create it first: CREATE ROLE {self._quoted(self.owner)} NOLOGIN",
                )
            self._run(f"SET ROLE {self._quoted(self.owner)}")
        if not self._scalar("SELECT has_schema_privilege('public', 'CREATE')"):
            who = self._quoted(str(self._scalar("SELECT current_user")))
            raise SchemaError(
                expected="the right to create tables in the schema public",
                found=f"{who} has none",
                do=f"as a superuser in this database: GRANT USAGE, CREATE ON SCHEMA public TO {who}",
            )

    @contextlib.contextmanager
    def locked(self, wait_seconds: float) -> Iterator[None]:
        """Let one upgrade run at a time.

        Asked for again and again, never waited for: a session that waits inside a statement holds a snapshot,
        which CREATE INDEX CONCURRENTLY of the session before it would wait for in turn.
        """
        deadline = time.monotonic() + wait_seconds
        while not self._scalar("SELECT pg_try_advisory_lock(:key)", key=_LOCK_KEY):
            if time.monotonic() > deadline:
                raise SchemaError(
                    expected=f"another upgrade of this database to end within {wait_seconds:g} s",
                    found="it still runs",
                    do="look at pg_stat_activity; run this again later",
                )
            time.sleep(0.2)
        try:
            yield
        finally:
            if not self.connection.invalidated:
                self._scalar("SELECT pg_advisory_unlock(:key)", key=_LOCK_KEY)

    def existing(self) -> frozenset[str]:
        """Name those of our tables that are there."""
        names = [VERSION_TABLE, *(table.name for table in TABLES)]
        return frozenset(catalog.relations(self.connection, names))

    def plan(self) -> list[Step]:
        """Compare what is there with what should be."""
        steps: list[Step] = []
        for table in TABLES:
            state = catalog.table_state(self.connection, table)
            if state is None:
                steps += self._create(table)
                continue
            plan.require_celery(table, state)
            if self.owner is not None:
                steps += self._own(table, state)
            steps += plan.columns(table, state)
            ids = wider_ids(table, state, self.rewrite_bytes)
            steps += ids
            steps += plan.sequence(table, state, renewed=len(ids) > 1)
            steps += plan.storage(table, state)
            steps += plan.date_index(table, state, self._index_kind(table))
        if self.owner is not None:
            steps += self._own_version_table()
        return steps

    def execute(self, step: Step) -> None:
        """Make one change; step back from a lock that is held, so as not to block others, and try again."""
        deadline = time.monotonic() + self.wait_seconds
        while True:
            try:
                self._execute(step)
            except DBAPIError as error:
                if _state(error) != LOCK_NOT_AVAILABLE:
                    raise
                if time.monotonic() > deadline:
                    raise SchemaError(
                        expected=f"a lock for the step '{step.text}' within {self.wait_seconds:g} s",
                        found="a transaction that holds one all the time",
                        do="look for it: SELECT pid, xact_start, query FROM pg_stat_activity ORDER BY 2",
                    ) from error
                time.sleep(self.lock_seconds / 5)
            else:
                return

    def _execute(self, step: Step) -> None:
        if step.alone:
            self._execute_alone(step)
            return
        if step.windows:
            self._execute_in_windows(step)
            return
        self._run("BEGIN")
        try:
            if step.as_login:
                self._run("SET LOCAL ROLE NONE")
            for statement in step.statements:
                self._run(statement)
        except BaseException:
            if not self.connection.invalidated:
                self._run("ROLLBACK")
            raise
        self._run("COMMIT")

    def _execute_alone(self, step: Step) -> None:
        # It waits for transactions that are older than itself; stores do not wait for it.
        self._run(f"SET lock_timeout = 0; SET statement_timeout = {int(self.wait_seconds * 1000)}")
        try:
            for statement in step.statements:
                self._run(statement)
        except DBAPIError as error:
            if _state(error) != QUERY_CANCELED:
                raise
            raise SchemaError(
                expected=f"the step '{step.text}' to end within {self.wait_seconds:g} s",
                found="a transaction that is older and does not end, or a large table",
                do="look for the one: SELECT pid, xact_start, query FROM pg_stat_activity ORDER BY 2; "
                "for the other give a longer --wait",
            ) from error
        finally:
            if not self.connection.invalidated:
                limit = int(self.lock_seconds * 1000)
                self._run(f"SET statement_timeout = 0; SET lock_timeout = {limit}")

    def _execute_in_windows(self, step: Step) -> None:
        name = f"public.{step.windows}"
        last = catalog.number(self.connection, f"SELECT coalesce(max(id), 0) FROM {name}")  # noqa: S608
        low = catalog.number(self.connection, f"SELECT coalesce(min(id), 0) FROM {name}")  # noqa: S608
        while low <= last:
            for statement in step.statements:
                self._run(statement.format(low=low, high=low + WINDOW))
            following = f"SELECT coalesce(min(id), {last + 1}) FROM {name} WHERE id >= {low + WINDOW}"  # noqa: S608
            low = catalog.number(self.connection, following)

    def _create(self, table: Table) -> list[Step]:
        columns = []
        lz4 = catalog.has_lz4(self.connection)
        for name, kind in table.columns.items():
            compression = " COMPRESSION lz4" if lz4 and kind in {"bytes", "text"} else ""
            extra = {
                "id": f" DEFAULT nextval('public.{table.sequence}') PRIMARY KEY",
                "key": " UNIQUE",
            }.get(kind, "")
            columns.append(f"{name} {plan.TYPES[kind]}{compression}{extra}")
        options = ", ".join(f"{name} = {value}" for name, value in plan.STORAGE.items())
        return [
            Step(
                f"create {table.name}",
                (
                    f"CREATE SEQUENCE IF NOT EXISTS public.{table.sequence}",
                    f"CREATE TABLE public.{table.name} ({', '.join(columns)}) WITH ({options})",
                    f"ALTER SEQUENCE public.{table.sequence} OWNED BY public.{table.name}.id",
                    f"CREATE INDEX {table.date_index} ON public.{table.name} USING {self._index_kind(table)}",
                ),
            )
        ]

    def _own(self, table: Table, state: TableState) -> list[Step]:
        owner = self._quoted(str(self.owner))
        steps = []
        if state.owner != self.owner:
            steps.append(
                Step(
                    f"{table.name}: owner becomes {self.owner}",
                    (f"ALTER TABLE public.{table.name} OWNER TO {owner}",),
                    as_login=True,
                )
            )
        sequence = state.sequence
        if sequence is not None and sequence.owner != self.owner and not sequence.owned_by:
            steps.append(
                Step(
                    f"{table.sequence}: owner becomes {self.owner}",
                    (f"ALTER SEQUENCE public.{table.sequence} OWNER TO {owner}",),
                    as_login=True,
                )
            )
        return steps

    def _own_version_table(self) -> list[Step]:
        found = catalog.relations(self.connection, [VERSION_TABLE]).get(VERSION_TABLE)
        if found is None or found == self.owner:
            return []
        return [
            Step(
                f"{VERSION_TABLE}: owner becomes {self.owner}",
                (f"ALTER TABLE public.{VERSION_TABLE} OWNER TO {self._quoted(str(self.owner))}",),
                as_login=True,
            )
        ]

    def _index_kind(self, table: Table) -> str:
        # Saved groups are never updated: for them there is no HOT to keep.
        hot = table is TASKS and catalog.server_version(self.connection) >= plan.SUMMARIES_KEEP_HOT
        return plan.BRIN if hot else plan.BTREE

    def _quoted(self, name: str) -> str:
        return str(self.connection.dialect.identifier_preparer.quote(name))

    def _scalar(self, statement: str, **values: object) -> object:
        return self.connection.execute(sqlalchemy.text(statement), values).scalar()

    def _run(self, statement: str) -> None:
        self.connection.exec_driver_sql(statement)


def _state(error: DBAPIError) -> str:
    """Give the SQLSTATE, which psycopg 2 and 3 keep under different names."""
    return str(getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None) or "")
