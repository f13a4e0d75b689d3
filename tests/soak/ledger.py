"""What was sent, answered and stored, noted outside of every store that is under test.

A ledger is a file of one JSON document a line, written with one write() to a file opened for appending, so
that any number of processes share it and none that is killed leaves half a line. Its directory holds
`client*.jsonl` of the load and `worker*.jsonl` of the tasks; `read` takes the lines of all of them.

| event | from | means |
|---|---|---|
| sent | client | will be sent: `id`, `kind`, `state` and `value` to come, its `seconds`, what it `needs` |
| queued | client | the broker has it |
| got | client | `state` and `value` that get() gave: acknowledged |
| reread | client | `state` and `value` of an answer that had been there before |
| forgetting, forgot | client | before and after forget(); of a saved group: delete() |
| saved | client | a group with `members` |
| timeout, failed | client | no answer to `during` within its time; an `error` of a store or the broker |
| began | worker | a run of the task begins |
| stored | worker | the store has taken `state` and `value` of the run that `began` then: acknowledged |
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Longer values are noted as their digest.
BRIEF_CHARACTERS = 400


def brief(value: Any) -> Any:  # whatever a task returns
    """Give a value as it is compared and noted: exceptions and long values in a short form."""
    if isinstance(value, BaseException):
        return {"error": type(value).__name__, "arguments": [str(each) for each in value.args]}
    text = json.dumps(value, sort_keys=True, default=str)
    if len(text) <= BRIEF_CHARACTERS:
        return json.loads(text)
    return {"characters": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}


@functools.cache
def _opened(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)


def note(path: Path, event: str, *, durable: bool = False, **fields: Any) -> None:  # JSON
    """Append one line; `durable` waits until it is on the disk."""
    line = json.dumps({"event": event, "at": time.time(), **fields}) + "\n"
    file = _opened(path)
    os.write(file, line.encode())
    if durable:
        os.fdatasync(file)


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """Give the lines of one ledger; one that is being written is left out."""
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield json.loads(line)


def read(directory: Path) -> list[dict[str, Any]]:
    """Give the lines of every ledger by their time; raise FileNotFoundError if there is none."""
    paths = sorted([*directory.glob("client*.jsonl"), *directory.glob("worker*.jsonl")])
    if not paths:
        raise FileNotFoundError(f"no ledger in {directory}")
    return sorted((line for path in paths for line in lines(path)), key=lambda line: float(line["at"]))
