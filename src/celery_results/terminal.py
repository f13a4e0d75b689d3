"""Progress on a terminal: one line on stderr that counts, and nothing where nobody watches."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextlib.contextmanager
def counter(title: str, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """Give a function that shows a number of rows, and rows a second."""
    console = Console(file=sys.stderr)
    if not shown or not console.is_terminal:
        yield lambda _rows: None
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        TextColumn("{task.completed:,} rows"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(title, total=None)
        yield lambda rows: progress.update(task, completed=rows)
