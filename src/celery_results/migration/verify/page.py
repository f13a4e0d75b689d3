"""The report as one HTML page that needs nothing else: for the person who signs the cutover."""

from __future__ import annotations

import datetime as dt
from html import escape
from typing import TYPE_CHECKING, Final

from celery_results.migration.verify.survey import BUCKETS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from celery_results.migration.verify.compare import Report

_STYLE: Final = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}table{border-collapse:collapse}
td,th{padding:.2rem .8rem;text-align:left;border-bottom:1px solid #d8dee4}td.n,th.n{text-align:right}
.verdict{padding:.6rem 1rem;border-radius:.4rem;font-weight:600}
.yes{background:#dafbe1}.no{background:#ffebe9}
svg text{font:12px system-ui,sans-serif}.one{fill:#3a6ea5}.two{fill:#d08c3f}
"""
_WIDTH: Final = 640
_MOST_BARS: Final = 24


def page(report: Report) -> str:
    """Write it."""
    facts = report.document()
    when = dt.datetime.fromtimestamp(report.began, dt.UTC).isoformat(sep=" ", timespec="seconds")
    verdict = (
        "Both sides are the same. Nothing waits for repair."
        if report.gate
        else "Not the same: do not cut over. What differs is below."
    )
    one, two = report.source_survey, report.target_survey
    hours = sorted(one.ages.keys() | two.ages.keys())
    ages = {_hour(hour): (one.ages[hour], two.ages[hour]) for hour in hours}
    states = {state: (one.states[state], two.states[state]) for state in sorted(one.states | two.states)}
    kinds = {name: (facts[name],) for name in ("missing", "extra", "different", "moving", "expired")}
    journal = "not asked for" if report.journal is None else report.journal
    read = (
        f"<p>{when} UTC, {report.seconds:.1f} s. {len(report.buckets)} of {BUCKETS} buckets of ids differed"
        " and were read result by result.</p>"
    )
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>Results: source and target</title>",
        f"<style>{_STYLE}</style><h1>{escape(report.source)} → {escape(report.target)}</h1>",
        f'<p class="verdict {"yes" if report.gate else "no"}">{verdict}</p>',
        read,
        f"<p>Entries in the repair journal: {journal}.</p>",
        "<h2>What is there</h2>",
        _table(
            ("", "source", "target"),
            [("results", one.results, two.results), ("saved groups", one.groups, two.groups)],
        ),
        "<h2>By state</h2>",
        _bars(states, ("source", "target")),
        "<h2>By age, in hours since the result was stored</h2>",
        _bars(ages, ("source", "target")),
        "<h2>Rate over time: results and groups read a second</h2>",
        _lines({"source": one.rates(), "target": two.rates()}),
        "<h2>Differences</h2>",
        _bars(kinds, ("results and groups",)),
    ]
    if report.by_age:
        parts.append(
            f"<p>{report.by_age} results end at another time on the target, where their age decides.</p>"
        )
    if report.fields:
        parts.append(_table(("field", "different"), sorted(report.fields.items())))
    if report.findings:
        rows = [
            (finding.verdict, finding.kind, finding.id, ", ".join(finding.fields), finding.bucket)
            for finding in report.findings
        ]
        parts += (
            f"<h2>The first {len(rows)}</h2>",
            _table(("", "kind", "id", "fields", "bucket"), rows),
        )
    return "\n".join(parts) + "\n"


def _hour(hour: int) -> str:
    return "not done" if hour < 0 else str(hour)


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = ["".join(f"<th>{escape(name)}</th>" for name in head)]
    lines += ["".join(map(_cell, row)) for row in rows]
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _cell(value: object) -> str:
    if isinstance(value, int):
        return f"<td class=n>{value:,}</td>"
    return f"<td>{escape(str(value))}</td>"


def _lines(values: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Draw a line for each of two series of (seconds, number)."""
    right = max((then for points in values.values() for then, _ in points), default=0.0) or 1.0
    top = max((number for points in values.values() for _, number in points), default=0.0) or 1.0
    width, height = _WIDTH - 140, 160
    lines = []
    for place, points in enumerate(values.values()):
        drawn = [(0.0, points[0][1]), *points] if points else []
        text = " ".join(
            f"{110 + then / right * width:.1f},{8 + height - number / top * height:.1f}"
            for then, number in drawn
        )
        color = ("#3a6ea5", "#d08c3f")[place]
        lines.append(f'<polyline points="{text}" fill="none" stroke="{color}" stroke-width="2"/>')
    bottom = height + 8
    return (
        f"{_legend(tuple(values))}"
        f'<svg role="img" width="{_WIDTH}" height="{height + 32}" viewBox="0 0 {_WIDTH} {height + 32}">'
        f'<path d="M110 8V{bottom}H{110 + width}" fill="none" stroke="#8c959f"/>'
        f'<text x="102" y="16" text-anchor="end">{top:,.0f}</text>'
        f'<text x="102" y="{bottom}" text-anchor="end">0</text>'
        f'<text x="{110 + width}" y="{bottom + 16}" text-anchor="end">{right:.1f} s</text>'
        f"{''.join(lines)}</svg>"
    )


def _legend(names: Sequence[str]) -> str:
    said = " and ".join(
        f'<span style="color:{("#3a6ea5", "#d08c3f")[place]}">■</span> {escape(name)}'
        for place, name in enumerate(names)
    )
    return f"<p>{said}</p>"


def _bars(values: Mapping[str, tuple[int, ...]], legend: Sequence[str]) -> str:
    """Draw horizontal bars; many are drawn together, the last ones in one."""
    shown = dict(list(values.items())[:_MOST_BARS])
    rest = list(values.values())[_MOST_BARS:]
    if rest:
        shown["more"] = tuple(sum(column) for column in zip(*rest, strict=True))
    most = max((number for numbers in shown.values() for number in numbers), default=0) or 1
    height = 14 * len(legend) + 6
    lines = []
    for place, (label, numbers) in enumerate(shown.items()):
        top = place * height + 4
        lines.append(f'<text x="110" y="{top + 12}" text-anchor="end">{escape(label)}</text>')
        for line, number in enumerate(numbers):
            width = round(number / most * (_WIDTH - 250), 1)
            y = top + line * 14
            lines.append(
                f'<rect class="{("one", "two")[line]}" x="118" y="{y}" width="{width}" height="11"/>'
                f'<text x="{124 + width}" y="{y + 10}">{number:,}</text>'
            )
    total = len(shown) * height + 8
    return (
        f'{_legend(legend)}<svg role="img" width="{_WIDTH}" height="{total}" viewBox="0 0 {_WIDTH} {total}">'
        f"{''.join(lines)}</svg>"
    )
