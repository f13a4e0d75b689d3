"""Print statistics: tables for people, one JSON document for machines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from typing import TextIO

    from celery_results.statistics.collect import Statistics

NAMES_SHOWN: Final = 15
DAYS_SHOWN: Final = 14


def document_of(statistics: Statistics, place: dict[str, str]) -> dict[str, Any]:
    """Give the document that --json prints; its keys do not change. Times are UTC."""
    oldest = statistics.unfinished
    return {
        "ok": True,
        "database": place,
        "exact": statistics.exact,
        "rows": statistics.rows,
        "groups": statistics.groups,
        "states": statistics.states,
        "names": statistics.names,
        "ages": statistics.ages,
        "days": statistics.days,
        "result_bytes": {
            "sum": statistics.result_bytes,
            "average": statistics.average_result_bytes,
            "largest": statistics.largest_result_bytes,
        },
        "oldest_unfinished": None
        if oldest is None
        else {
            "task_id": oldest.task_id,
            "status": oldest.status,
            "stored_before": None if oldest.stored_before is None else oldest.stored_before.isoformat() + "Z",
        },
        "table_bytes": statistics.table_bytes,
        "index_bytes": statistics.index_bytes,
        "dead_rows": statistics.dead_rows,
    }


def print_text(statistics: Statistics, title: str, stream: TextIO) -> None:
    """Print tables; plain lines where nobody watches."""
    console = Console(file=stream, highlight=False, markup=False, soft_wrap=not stream.isatty())
    console.print(title)
    if not statistics.exact:
        console.print("the time limit ended the count: what follows is the server's estimate; see --timeout")
    for heading, counts in _sections(statistics):
        if not counts:
            continue
        if stream.isatty():
            table = Table(heading, "", title_justify="left", show_header=True)
            table.columns[1].justify = "right"
            for label, value in counts:
                table.add_row(label, value)
            console.print(table)
        else:
            console.print(heading)
            for label, value in counts:
                console.print(f"  {label:<40} {value:>16}")


def _sections(statistics: Statistics) -> list[tuple[str, list[tuple[str, str]]]]:
    sizes = [
        ("results", f"{statistics.rows:,}"),
        ("saved groups", _number(statistics.groups)),
        ("bytes of results", _number(statistics.result_bytes)),
        ("average result", _number(statistics.average_result_bytes)),
        ("largest result", _number(statistics.largest_result_bytes)),
        ("table on disk", _number(statistics.table_bytes)),
        ("indexes on disk", _number(statistics.index_bytes)),
        ("dead rows (estimate)", _number(statistics.dead_rows)),
    ]
    oldest = statistics.unfinished
    unfinished = []
    if oldest is not None:
        when = (
            "?"
            if oldest.stored_before is None
            else oldest.stored_before.isoformat(sep=" ", timespec="seconds")
        )
        unfinished = [(f"{oldest.task_id} ({oldest.status})", f"before {when}")]
    names = list(statistics.names.items())
    more = [(f"{len(names) - NAMES_SHOWN} more", _number(sum(count for _, count in names[NAMES_SHOWN:])))]
    return [
        ("size", [(label, value) for label, value in sizes if value]),
        ("state", _counts(statistics.states)),
        ("name", _counts(dict(names[:NAMES_SHOWN])) + (more if len(names) > NAMES_SHOWN else [])),
        ("age", _counts(statistics.ages)),
        ("ended on day (UTC)", _counts(dict(list(statistics.days.items())[-DAYS_SHOWN:]))),
        ("oldest unfinished, stored", unfinished),
    ]


def _counts(counts: dict[str, int]) -> list[tuple[str, str]]:
    return [(label, f"{count:,}") for label, count in counts.items()]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"
