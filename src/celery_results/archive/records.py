"""One result as it is in the database, and as it is in a file."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

# The columns of Celery 5.7's table, in its order.
COLUMNS: Final = (
    "id",
    "task_id",
    "status",
    "result",
    "date_done",
    "traceback",
    "children",
    "name",
    "args",
    "kwargs",
    "worker",
    "retries",
    "queue",
    "stamps",
)
BYTES: Final = frozenset({"result", "children", "args", "kwargs", "stamps"})
_ID, _TASK_ID, _STATUS, _DATE_DONE = 0, 1, 2, 4


@dataclass(frozen=True)
class Record:
    """One row; `values` are in the order of COLUMNS, date_done as text, `YYYY-MM-DD HH:MM:SS.ffffff` in UTC.

    SQLite keeps times as text: there it is that very text.
    """

    values: tuple[Any, ...]

    @classmethod
    def of_row(cls, row: Sequence[Any]) -> Record:
        """Take a row of any of the drivers."""
        values: list[Any] = []
        for name, value in zip(COLUMNS, row, strict=True):
            if isinstance(value, datetime):
                values.append(value.isoformat(sep=" ", timespec="microseconds"))
            elif name in BYTES and isinstance(value, str):
                values.append(value.encode())  # SQLite keeps what it was given
            elif isinstance(value, bytearray | memoryview):
                values.append(bytes(value))
            else:
                values.append(value)
        return cls(tuple(values))

    @property
    def id(self) -> int:
        """Give the row's number."""
        return int(self.values[_ID])

    @property
    def task_id(self) -> str:
        """Give the task's id."""
        return str(self.values[_TASK_ID])

    @property
    def date_done(self) -> str:
        """Give the time as text."""
        return str(self.values[_DATE_DONE])

    @property
    def key(self) -> tuple[int, str, str]:
        """Give what tells whether a row is still the same: id, date_done, status."""
        return self.id, self.date_done, str(self.values[_STATUS])

    @property
    def size(self) -> int:
        """Give about as many bytes as it takes in memory and in a statement."""
        return 200 + sum(len(value) for value in self.values if isinstance(value, bytes | str))

    def to_json(self) -> bytes:
        """Give one line; bytes that are UTF-8 are a string, others {"base64": "..."}."""
        fields = {name: _encoded(value) for name, value in zip(COLUMNS, self.values, strict=True)}
        return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"

    @classmethod
    def of_json(cls, line: bytes) -> Record:
        """Read what `to_json` wrote; raises ValueError for anything else."""
        fields = json.loads(line)
        if not isinstance(fields, dict) or set(fields) != set(COLUMNS):
            raise ValueError("no record")
        return cls(tuple(_decoded(name, fields[name]) for name in COLUMNS))


def _encoded(value: Any) -> Any:  # noqa: ANN401 - a column's value, and JSON's
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}


def _decoded(name: str, value: Any) -> Any:  # noqa: ANN401 - JSON's value, and a column's
    if isinstance(value, dict):
        return base64.b64decode(value["base64"], validate=True)
    return value.encode() if name in BYTES and isinstance(value, str) else value
