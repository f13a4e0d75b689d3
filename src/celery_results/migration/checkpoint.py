"""How far a copy is, on the disk: written after a batch is durable, whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

from celery_results.migration.errors import CheckpointError
from celery_results.migration.lossy import Lossy
from celery_results.stores.record import KINDS, Failure, Kind

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from celery_results.stores.record import Position

FORMAT: Final = 1
MOST_FAILURES: Final = 1000  # that are named; all are counted


@dataclass
class Tally:
    """Of one kind: read = copied + present + expired + failed."""

    read: int = 0
    copied: int = 0
    present: int = 0
    expired: int = 0
    failed: int = 0


@dataclass
class Progress:
    """How far one pass is. `position` is None before its first batch; `earlier` passes were given up."""

    position: Position | None = None
    fraction: float = 0.0
    complete: bool = False
    source_identity: str = ""
    target_identity: str = ""
    passes: int = 1
    copied_before: int = 0  # by passes that began anew, because a server had been restarted
    tallies: dict[Kind, Tally] = field(default_factory=lambda: {kind: Tally() for kind in KINDS})
    lossy: Lossy = field(default_factory=Lossy)
    failures: list[Failure] = field(default_factory=list)

    def begin_anew(self) -> None:
        """Start another pass: what is stored already will be found there."""
        self.copied_before += sum(tally.copied for tally in self.tallies.values())
        self.passes += 1
        self.position, self.fraction, self.complete = None, 0.0, False
        self.tallies = {kind: Tally() for kind in KINDS}
        self.lossy, self.failures = Lossy(), []

    @property
    def total(self) -> Tally:
        """Add the kinds up."""
        tallies = self.tallies.values()
        return Tally(**{name: sum(getattr(tally, name) for tally in tallies) for name in vars(Tally())})

    def document(self) -> dict[str, Any]:
        """Give it as JSON has it."""
        return {
            "passes": self.passes,
            "copied_before": self.copied_before,
            **{kind: asdict(tally) for kind, tally in self.tallies.items()},
            "lossy": {name: count for name, count in sorted(self.lossy.items()) if count},
            "failures": [failure._asdict() for failure in self.failures],
        }


class Checkpoint:
    """One file for one pair of stores."""

    def __init__(self, path: Path, source: str, target: str) -> None:
        """Name the file and the two places; neither holds a secret."""
        self.path = path
        self._pair = {"source": source, "target": target}

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other copies off this file; the lock ends with the process, however it ends."""
        try:
            descriptor = os.open(f"{self.path}.lock", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise CheckpointError(
                    expected=f"nobody else to use {self.path}",
                    found="another copy at work",
                    do="wait for it, or name another file with --checkpoint",
                ) from None
            yield
        finally:
            os.close(descriptor)

    def load(self) -> Progress:
        """Give how far the last run came; a fresh one where there was none, or where it came to its end."""
        try:
            stored = json.loads(self.path.read_bytes())
            if stored["format"] != FORMAT or stored["pair"] != self._pair:
                source, target = self._pair.values()
                raise CheckpointError(
                    expected=f"{self.path} to be of a copy from {source} to {target}",
                    found=f"one from {stored['pair']['source']} to {stored['pair']['target']}",
                    do="name another file with --checkpoint",
                )
            if stored["complete"]:
                return Progress()
            return Progress(
                position=stored["position"],
                fraction=float(stored["fraction"]),
                source_identity=stored["source_identity"],
                target_identity=stored["target_identity"],
                passes=int(stored["passes"]),
                copied_before=int(stored["copied_before"]),
                tallies={kind: Tally(**stored[kind]) for kind in KINDS},
                lossy=Lossy(stored["lossy"]),
                failures=[Failure(**failure) for failure in stored["failures"]],
            )
        except FileNotFoundError:
            return Progress()
        except OSError as error:
            raise self._unwritable(error) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                expected=f"a checkpoint in {self.path}",
                found=f"something else ({type(error).__name__})",
                do="remove it: the copy then starts again and skips what is there",
            ) from None

    def save(self, progress: Progress) -> None:
        """Write it beside, force it to the disk, and put it in place."""
        document = {
            "format": FORMAT,
            "pair": self._pair,
            "position": progress.position,
            "fraction": progress.fraction,
            "complete": progress.complete,
            "source_identity": progress.source_identity,
            "target_identity": progress.target_identity,
            **progress.document(),
        }
        beside = self.path.with_name(f"{self.path.name}.tmp")
        try:
            descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(json.dumps(document).encode())
                file.flush()
                os.fsync(file.fileno())
            beside.replace(self.path)
            directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> CheckpointError:
        return CheckpointError(
            expected=f"to read and write {self.path}",
            found=error.strerror or type(error).__name__,
            do="name a file in a directory of your own with --checkpoint",
        )
