"""Chunk files: gzip'ed JSON lines, or Parquet. Written, forced to the disk, read again, then named."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import importlib
import os
import zlib
from typing import TYPE_CHECKING, Any, Final, Protocol

from celery_results.archive.errors import ArchiveError, ArchiveUsageError
from celery_results.archive.records import BYTES, COLUMNS, Record

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

SUFFIXES: Final = {"jsonl": ".jsonl.gz", "parquet": ".parquet"}
_ROWS_AT_ONCE: Final = 500


class Writer(Protocol):
    """A file that takes records; `close` ends its format, not the file."""

    def write(self, records: list[Record]) -> None:
        """Add records."""

    def close(self) -> None:
        """Write what the format ends with."""


def require(name: str) -> None:
    """Refuse a format whose package is missing."""
    if name == "parquet":
        try:
            importlib.import_module("pyarrow.parquet")
        except ImportError:
            raise ArchiveUsageError(
                expected="the package pyarrow, which writes Parquet",
                found="no such package in this environment",
                do="install pyarrow there, or use --format jsonl",
            ) from None


def write_chunk(path: Path, form: str, batches: Iterable[list[Record]]) -> list[tuple[int, str, str]]:
    """Write a file at its final name, durably; give the keys of its rows. The file is whole or not there."""
    temporary = path.with_name(f"{path.name}.tmp")
    keys: list[tuple[int, str, str]] = []
    try:
        with temporary.open("wb") as file:
            writer = _writer(form, file)
            for batch in batches:
                writer.write(batch)
                keys += [record.key for record in batch]
            writer.close()
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        force_directory(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    return keys


def read_chunk(path: Path, form: str) -> Iterator[Record]:
    """Give the records of a file; raises ArchiveError where it is damaged."""
    try:
        yield from _read_json(path) if form == "jsonl" else _read_parquet(path)
    except (OSError, EOFError, ValueError, KeyError, zlib.error) as error:
        raise damaged(path, f"{type(error).__name__}: {error}") from error


def damaged(path: Path, found: str) -> ArchiveError:
    """Say that a chunk cannot be used."""
    return ArchiveError(
        expected=f"the chunk {path.name} as the manifest describes it",
        found=found,
        do="bring it back from a copy; nothing was deleted from the database or stored in it because of it",
    )


def sha256(path: Path) -> str:
    """Give the checksum of a file, read from its beginning to its end."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise damaged(path, error.strerror or type(error).__name__) from error


def force_directory(directory: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _writer(form: str, file: Any) -> Writer:  # noqa: ANN401 - a binary file
    return _JsonWriter(file) if form == "jsonl" else _ParquetWriter(file)


class _JsonWriter:
    def __init__(self, file: Any) -> None:  # noqa: ANN401 - a binary file
        # No time and no name in it: the same rows give the same bytes.
        self._file = gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=file, mtime=0)

    def write(self, records: list[Record]) -> None:
        for record in records:
            self._file.write(record.to_json())

    def close(self) -> None:
        self._file.close()


def _read_json(path: Path) -> Iterator[Record]:
    with gzip.open(path, "rb") as file:
        for line in file:
            yield Record.of_json(line)


class _ParquetWriter:
    def __init__(self, file: Any) -> None:  # noqa: ANN401 - a binary file
        pa: Any = importlib.import_module("pyarrow")  # an optional package
        parquet: Any = importlib.import_module("pyarrow.parquet")

        def kind(name: str) -> Any:  # noqa: ANN401 - pyarrow has no types
            if name in BYTES:
                return pa.binary()
            return {"id": pa.int64(), "retries": pa.int32()}.get(name, pa.string())

        self._schema = pa.schema([(name, kind(name)) for name in COLUMNS])
        self._batch = pa.RecordBatch
        self._writer = parquet.ParquetWriter(file, self._schema, compression="zstd")

    def write(self, records: list[Record]) -> None:
        columns = [list(values) for values in zip(*(record.values for record in records), strict=True)]
        self._writer.write_batch(
            self._batch.from_pydict(dict(zip(COLUMNS, columns, strict=True)), self._schema)
        )

    def close(self) -> None:
        self._writer.close()


def _read_parquet(path: Path) -> Iterator[Record]:
    require("parquet")
    parquet: Any = importlib.import_module("pyarrow.parquet")
    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE):
            for row in batch.to_pylist():
                yield Record(tuple(row[name] for name in COLUMNS))
