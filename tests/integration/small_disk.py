"""A disk of a megabyte for the tables of one PostgreSQL database, to be filled and to have room again."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from tests.integration.database_server import TABLES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.integration.database_server import Database

PIECE = b"x" * 4096


@dataclass(frozen=True)
class SmallDisk:
    """Where it is mounted."""

    directory: Path

    def fill(self) -> None:
        """Leave nothing free."""
        with contextlib.suppress(OSError), (self.directory / "ballast").open("wb", buffering=0) as file:
            while file.write(PIECE) == len(PIECE):
                pass

    def make_room(self) -> None:
        subprocess.run(["mount", "-o", "remount,size=64m", str(self.directory)], check=True)


@contextlib.contextmanager
def small_disk(database: Database) -> Iterator[SmallDisk]:
    """Have the tables on such a disk; indexes and the server's log of writes stay where they were."""
    if os.getuid():
        pytest.fail("mounting a small file system needs root")
    name = f"small_{database.name}"
    directory = database.lab.directory / name
    directory.mkdir()
    with contextlib.ExitStack() as stack:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(directory)], check=True)
        stack.callback(subprocess.run, ["umount", "--lazy", str(directory)], check=True)
        shutil.chown(directory, "postgres", "postgres")
        database.rows(f"CREATE TABLESPACE {name} LOCATION '{directory}'")
        stack.callback(database.rows, f"DROP TABLESPACE {name}")
        for table in TABLES:
            database.rows(f"ALTER TABLE {table} SET TABLESPACE {name}")
            stack.callback(database.rows, f"ALTER TABLE {table} SET TABLESPACE pg_default")
        yield SmallDisk(directory)
