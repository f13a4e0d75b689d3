"""MariaDB and MySQL: columns wide enough for any result, changed in one copy of the table at most."""

from __future__ import annotations

import contextlib
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy
from sqlalchemy.exc import DBAPIError

from .errors import ForeignTableError, SchemaError
from .layout import LOCK_NAME, TABLES, VERSION_TABLE, Step, Table

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sqlalchemy.engine import Connection

BINARY = "CHARACTER SET utf8mb4 COLLATE utf8mb4_bin"
TYPES = {
    "key": f"VARCHAR(155) {BINARY}",
    "status": f"VARCHAR(50) {BINARY}",
    "bytes": "LONGBLOB",
    "time": "DATETIME(6)",
    "text": f"LONGTEXT {BINARY}",
    "string": f"VARCHAR(155) {BINARY}",
    "integer": "INTEGER",
}
# What a column of that kind may be as it is; anything else is changed.
FINE = {
    "key": r"varchar\(155\)",
    "status": r"varchar\(50\)",
    "bytes": r"longblob",
    "time": r"datetime\(6\)",
    "text": r"mediumtext|longtext",
    "string": r"varchar\(155\)",
    "integer": r"int(eger)?(\(\d+\))?",
}
# What any Celery 5.x made: what is neither is not Celery's.
CELERYS = {
    "id": r"(big)?int(\(\d+\))?( unsigned)?",
    "key": r"varchar\(\d+\)",
    "status": r"varchar\(\d+\)",
    "bytes": r"(tiny|medium|long)?blob",
    "time": r"datetime(\(\d\))?",
    "text": r"(medium|long)?text",
    "string": r"varchar\(\d+\)",
    "integer": r"int(\(\d+\))?",
}
# From the least to the most that others notice; a server refuses what it cannot do that way.
WAYS = (
    "ALGORITHM=INSTANT",
    "ALGORITHM=INPLACE, LOCK=NONE",
    "ALGORITHM=COPY, LOCK=NONE",
    "ALGORITHM=COPY, LOCK=SHARED",
)
CANNOT_THAT_WAY = frozenset({1221, 1845, 1846})
LOCK_WAIT_TIMEOUT = 1205


@dataclass(frozen=True)
class Column:
    """A column as information_schema describes it, in lower case."""

    type: str
    nullable: bool
    default: str
    extra: str
    charset: str
    collation: str


class MySQL:
    """The dialect; see :class:`layout.Dialect`."""

    def __init__(self, connection: Connection, lock_seconds: float, wait_seconds: float) -> None:
        """Use this connection; a statement waits lock_seconds for other transactions, then tries again."""
        self.connection = connection
        self.lock_seconds = lock_seconds
        self.wait_seconds = wait_seconds
        self.mariadb = "mariadb" in str(self._scalar("SELECT VERSION()")).lower()

    def prepare(self) -> None:
        """Refuse to start without a database; limit the wait for others' transactions."""
        if self._scalar("SELECT DATABASE()") is None:
            raise SchemaError(
                expected="a database in the URL", found="none", do="add /celery_results to the URL"
            )
        self._run(f"SET SESSION lock_wait_timeout = {max(1, round(self.lock_seconds))}")

    @contextlib.contextmanager
    def locked(self, wait_seconds: float) -> Iterator[None]:
        """Let one upgrade of this database run at a time."""
        name = f"{LOCK_NAME}:{self._scalar('SELECT DATABASE()')}"[:64]
        if self._scalar("SELECT GET_LOCK(:name, :seconds)", name=name, seconds=wait_seconds) != 1:
            raise SchemaError(
                expected=f"another upgrade of this database to end within {wait_seconds:g} s",
                found="it still runs",
                do="look at SHOW PROCESSLIST; run this again later",
            )
        try:
            yield
        finally:
            if not self.connection.invalidated:
                self._scalar("SELECT RELEASE_LOCK(:name)", name=name)

    def existing(self) -> frozenset[str]:
        """Name those of our tables that are there."""
        return frozenset(self._tables()) & {VERSION_TABLE, *(table.name for table in TABLES)}

    def plan(self) -> list[Step]:
        """Compare what is there with what should be."""
        steps: list[Step] = []
        tables = self._tables()
        for table in TABLES:
            if self.mariadb and table.sequence not in tables:
                statements = [f"CREATE SEQUENCE IF NOT EXISTS {table.sequence}"]
                if table.name in tables:
                    statements.append(self._forward(table))
                steps.append(Step(f"create {table.sequence}", tuple(statements)))
            if table.name not in tables:
                steps.append(Step(f"create {table.name}", (self._create(table),)))
                continue
            columns = self._columns(table)
            indexes = self._indexes(table)
            _require_celery(table, tables[table.name], columns, indexes)
            if self.mariadb and table.sequence in tables and self._is_behind(table):
                steps.append(Step(f"{table.sequence}: goes on after the highest id", (self._forward(table),)))
            steps += self._alter(table, tables[table.name], columns, indexes)
        return steps

    def execute(self, step: Step) -> None:
        """Make one change, in the way that others notice least; try again where a lock is held."""
        for statement in step.statements:
            if statement.startswith("ALTER TABLE"):
                self._alter_in_the_best_way(step, statement)
            else:
                self._run(statement)

    def _alter_in_the_best_way(self, step: Step, statement: str) -> None:
        deadline = time.monotonic() + self.wait_seconds
        ways = iter(WAYS)
        way = next(ways)
        while True:
            try:
                self._run(f"{statement}, {way}")
            except DBAPIError as error:
                number = error.orig.args[0] if error.orig is not None and error.orig.args else 0
                if number in CANNOT_THAT_WAY and way != WAYS[-1]:
                    way = next(ways)
                elif number != LOCK_WAIT_TIMEOUT:
                    raise
                elif time.monotonic() > deadline:
                    raise SchemaError(
                        expected=f"a lock for the step '{step.text}' within {self.wait_seconds:g} s",
                        found="a transaction that holds one all the time",
                        do="look for it in information_schema.INNODB_TRX",
                    ) from error
                else:
                    time.sleep(self.lock_seconds / 5)
            else:
                return

    def _create(self, table: Table) -> str:
        columns = ", ".join(f"{name} {self._type(table, kind)}" for name, kind in table.columns.items())
        return (
            f"CREATE TABLE IF NOT EXISTS {table.name} ({columns}, PRIMARY KEY (id), UNIQUE KEY {table.key} "
            f"({table.key}), KEY {table.date_index} (date_done)) ENGINE=InnoDB DEFAULT {BINARY}"
        )

    def _alter(
        self, table: Table, engine: str, columns: Mapping[str, Column], indexes: Mapping[str, tuple[str, ...]]
    ) -> list[Step]:
        changes, words = [], []
        if engine != "innodb":
            changes.append("ENGINE=InnoDB")
            words.append(f"{engine} becomes InnoDB")
        for name, kind in table.columns.items():
            wanted = self._type(table, kind)
            if name not in columns:
                changes.append(f"ADD COLUMN {name} {wanted}")
                words.append(f"add {name}")
            elif not self._is_fine(table, kind, columns[name]):
                changes.append(f"MODIFY COLUMN {name} {wanted}")
                words.append(f"{name} becomes {wanted.partition(' CHARACTER')[0]}")
        if not any(index[:1] == ("date_done",) for index in indexes.values()):
            changes.append(f"ADD KEY {table.date_index} (date_done)")
            words.append("index date_done")
        if not changes:
            return []
        # One statement: where the table must be copied, it is copied once.
        statement = f"ALTER TABLE {table.name} {', '.join(changes)}"
        return [Step(f"{table.name}: {', '.join(words)}", (statement,))]

    def _type(self, table: Table, kind: str) -> str:
        if kind != "id":
            return TYPES[kind]
        # On MariaDB SQLAlchemy, and so Celery, takes ids from a sequence; on MySQL there are none.
        source = f"DEFAULT nextval({table.sequence})" if self.mariadb else "AUTO_INCREMENT"
        return f"BIGINT NOT NULL {source}"

    def _is_fine(self, table: Table, kind: str, column: Column) -> bool:
        if kind == "id":
            source = (
                "nextval(" in column.default and table.sequence in column.default
                if self.mariadb
                else "auto_increment" in column.extra
            )
            return source and bool(re.fullmatch(r"bigint(\(\d+\))?", column.type))
        if not re.fullmatch(FINE[kind], column.type) or not column.nullable:
            return False
        if kind == "key":
            return column.collation == "utf8mb4_bin"
        return column.charset in {"", "utf8mb4"}

    def _forward(self, table: Table) -> str:
        # SETVAL never steps back. The step forward leaves room for what is stored before it runs.
        highest = self._scalar(f"SELECT COALESCE(MAX(id), 0) FROM {table.name}")  # noqa: S608 - constants
        return f"SELECT SETVAL({table.sequence}, {int(str(highest)) + 1000})"

    def _is_behind(self, table: Table) -> bool:
        statement = (
            f"SELECT (SELECT COALESCE(MAX(id), 0) FROM {table.name}) >= next_not_cached_value "  # noqa: S608 - constants
            f"FROM {table.sequence}"
        )
        return bool(self._scalar(statement))

    def _tables(self) -> dict[str, str]:
        """Give the engine of each table and sequence, '' for a view."""
        rows = self.connection.exec_driver_sql(
            "SELECT table_name, engine FROM information_schema.tables WHERE table_schema = DATABASE()"
        )
        return {row[0]: str(row[1] or "").lower() for row in rows}

    def _columns(self, table: Table) -> dict[str, Column]:
        rows = self.connection.execute(
            sqlalchemy.text(
                "SELECT column_name, column_type, is_nullable, column_default, extra, character_set_name,"
                " collation_name FROM information_schema.columns"
                " WHERE table_schema = DATABASE() AND table_name = :name"
            ),
            {"name": table.name},
        )
        columns = {}
        for row in rows:
            lower = [str(value or "").lower() for value in row]
            columns[row[0]] = Column(lower[1], lower[2] == "yes", lower[3], lower[4], lower[5], lower[6])
        return columns

    def _indexes(self, table: Table) -> dict[str, tuple[str, ...]]:
        rows = self.connection.execute(
            sqlalchemy.text(
                "SELECT index_name, column_name, non_unique FROM information_schema.statistics"
                " WHERE table_schema = DATABASE() AND table_name = :name ORDER BY index_name, seq_in_index"
            ),
            {"name": table.name},
        )
        indexes: dict[str, tuple[str, ...]] = {}
        for name, column, non_unique in rows:
            key = f"{name}{'' if int(non_unique) else ' unique'}"
            indexes[key] = (*indexes.get(key, ()), str(column))
        return indexes

    def _scalar(self, statement: str, **values: object) -> object:
        return self.connection.execute(sqlalchemy.text(statement), values).scalar()

    def _run(self, statement: str) -> None:
        self.connection.exec_driver_sql(statement)


def _require_celery(
    table: Table, engine: str, columns: Mapping[str, Column], indexes: Mapping[str, tuple[str, ...]]
) -> None:
    problems = []
    if not engine:
        problems.append("it is no table")
    for name, kind in table.columns.items():
        if name not in columns:
            if name not in table.optional:
                problems.append(f"no column {name}")
        elif not re.fullmatch(CELERYS[kind], columns[name].type):
            problems.append(f"{name} is {columns[name].type}")
    if not any(name.endswith(" unique") and index == (table.key,) for name, index in indexes.items()):
        problems.append(f"{table.key} is not unique")
    if problems:
        raise ForeignTableError(
            expected=f"a {table.name} that Celery made",
            found="; ".join(problems),
            do="rename that table, or use another database; nothing was changed",
        )
