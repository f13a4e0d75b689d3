"""What somebody who watches sees: a bar on a terminal, a JSON line every few seconds elsewhere; on stderr."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from celery_results.migration.checkpoint import Progress

LINE_SECONDS: Final = 10.0


class Speed:
    """Results a second since this run began, and how long the rest takes at that."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with the first look."""
        self._clock = clock
        self._first: tuple[float, int, float] | None = None

    def of(self, progress: Progress) -> tuple[float, float | None]:
        """Give (results a second, seconds left or None)."""
        now, read, fraction = self._clock(), progress.total.read, progress.fraction
        if self._first is None or read < self._first[1]:
            self._first = now, read, fraction
            return 0.0, None
        then, before, begun = self._first
        passed = now - then
        if passed <= 0 or fraction <= begun:
            return 0.0, None
        return (read - before) / passed, (1 - fraction) * passed / (fraction - begun)


@contextlib.contextmanager
def shown(title: str, period: float = LINE_SECONDS) -> Iterator[Callable[[Progress], None]]:
    """Give what shows how far a copy is."""
    console = Console(file=sys.stderr)
    speed = Speed()
    if not console.is_terminal:
        last = time.monotonic()

        def line(progress: Progress) -> None:
            nonlocal last
            rate, left = speed.of(progress)
            if progress.complete or time.monotonic() - last >= period:
                last = time.monotonic()
                sys.stderr.write(json.dumps(_event(progress, rate, left)) + "\n")
                sys.stderr.flush()

        yield line
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[counts]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}", markup=False),
    )
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task(title, total=1.0, counts="", left="")

        def update(progress: Progress) -> None:
            rate, left = speed.of(progress)
            total = progress.total
            counts = f"{total.read:,} read {total.copied:,} copied {rate:,.0f}/s"
            if total.failed:
                counts += f" {total.failed:,} failed"
            eta = "" if left is None else f"{left // 60:.0f}:{left % 60:02.0f} left"
            bar.update(task, completed=progress.fraction, counts=counts, left=eta)

        yield update


def _event(progress: Progress, rate: float, left: float | None) -> dict[str, object]:
    return {
        "event": "progress",
        "fraction": round(progress.fraction, 4),
        **vars(progress.total),
        "rate": round(rate),
        "seconds_left": None if left is None else round(left),
        "passes": progress.passes,
    }
