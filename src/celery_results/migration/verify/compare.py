"""From two surveys to a verdict: buckets that differ, then ids in them, then each such result read again."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal

from celery_results.migration.verify.reading import side
from celery_results.migration.verify.record import Terms
from celery_results.migration.verify.survey import BUCKETS, Elsewhere, Limits, Survey

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from celery_results.migration.verify.reading import Side
    from celery_results.migration.verify.record import Record
    from celery_results.stores.endpoint import Endpoint

Verdict = Literal["missing", "extra", "different", "moving", "expired", "equal"]
# A bucket that differs is read in full; more results than this at once would need too much memory.
_SEEDS: Final = 2**32 - 1  # that Python takes
_IDS: Final = 100_000
_IDS_AT_ONCE: Final = 200
_LOOKS: Final = 4
_LOOK_SECONDS: Final = 0.5
_MOST_NAMED: Final = 1000
# The end of a life, as the clocks of three machines see it.
_END_SECONDS: Final = 10.0


@dataclass(frozen=True)
class Finding:
    """One result that is not the same on both sides; no payload."""

    verdict: Verdict
    kind: str
    id: str
    bucket: int
    fields: tuple[str, ...] = ()


@dataclass
class Report:
    """What came out; `gate` is what a cutover asks for."""

    source: str
    target: str
    began: float
    seconds: float = 0.0
    source_survey: Survey = field(default_factory=Survey)
    target_survey: Survey = field(default_factory=Survey)
    buckets: list[int] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    fields: Counter[str] = field(default_factory=Counter)
    by_age: int = 0  # of a database: its results end by their age, whatever their keys had
    findings: list[Finding] = field(default_factory=list)
    journal: int | None = None  # entries that wait for repair; None where nobody asked

    @property
    def unexplained(self) -> int:
        """Count what nothing explains."""
        return self.counts["missing"] + self.counts["extra"] + self.counts["different"]

    @property
    def gate(self) -> bool:
        """Tell whether both sides are the same, and nothing waits for repair."""
        return not self.unexplained and not self.counts["moving"] and not self.journal

    def document(self) -> dict[str, Any]:
        """Give it as JSON has it."""
        return {
            "ok": self.gate,
            "began": round(self.began, 3),
            "from": self.source,
            "to": self.target,
            "seconds": round(self.seconds, 2),
            "source": _side(self.source_survey),
            "target": _side(self.target_survey),
            "buckets": {"all": BUCKETS, "different": len(self.buckets)},
            **{name: self.counts[name] for name in ("missing", "extra", "different", "moving", "expired")},
            "fields": dict(self.fields),
            "expiry_by_age": self.by_age,
            "journal": self.journal,
            "findings": [asdict(finding) for finding in self.findings],
        }


def _side(survey: Survey) -> dict[str, Any]:
    return {
        "results": survey.results,
        "groups": survey.groups,
        "states": dict(survey.states),
        "hours": {str(hour): count for hour, count in sorted(survey.ages.items())},
        "seconds": round(survey.seconds, 2),
        "lowest_share": round(survey.lowest_share, 2),
        "rates": [[round(then, 2), round(rate)] for then, rate in survey.rates()],
        "peak_bytes": survey.peak_bytes,
    }


def compare(
    source: Endpoint,
    target: Endpoint,
    show: Callable[[int], None] = lambda _count: None,
    sleep: Callable[[float], None] = time.sleep,
    limits: tuple[Limits, Limits] = (Limits(), Limits()),
) -> Report:
    """Compare everything, each side within its limits; raises what the drivers raise."""
    terms = Terms(
        databases=source.storage is not None or target.storage is not None,
        by_age=target.storage is not None,
        seconds=not (source.shape.keeps_microseconds and target.shape.keeps_microseconds),
        json=source.shape.serializer == target.shape.serializer == "json",
    )
    report = Report(source.place, target.place, time.time())
    began = time.monotonic()
    report.source_survey, report.target_survey = _both((source, target), limits, terms, (), show)
    report.by_age = report.source_survey.odd if terms.by_age else 0
    report.buckets = report.source_survey.differing(report.target_survey, terms)
    terms = replace(terms, json=False)
    at_once = max(1, _IDS * BUCKETS // max(1, report.source_survey.read, report.target_survey.read))
    if len(report.buckets) > at_once:
        # So many of different text: decoded, they may well be the same.
        one, two = _both((source, target), limits, terms, (), show)
        report.buckets = one.differing(two, terms)
    with (
        contextlib.closing(side(source, terms)) as here,
        contextlib.closing(side(target, terms)) as there,
    ):
        judge = _Judge(here, there, terms, sleep=sleep)
        for start in range(0, len(report.buckets), at_once):
            part = report.buckets[start : start + at_once]
            one, two = _both((source, target), limits, terms, part, show)
            differ = sorted(
                key for key in one.chosen.keys() | two.chosen.keys() if not one.same(two, key, terms)
            )
            _note(report, judge.all_of(differ))
    report.seconds = time.monotonic() - began
    return report


def _both(
    stores: tuple[Endpoint, Endpoint],
    limits: tuple[Limits, Limits],
    terms: Terms,
    chosen: Sequence[int],
    show: Callable[[int], None],
) -> tuple[Survey, Survey]:
    seed = 1 + secrets.randbelow(_SEEDS)
    here, there = (
        Elsewhere(store, terms, chosen, limit, seed) for store, limit in zip(stores, limits, strict=True)
    )
    try:
        one, two = here.result(show), there.result(lambda _count: None)
        assert one.seal == two.seal, "both processes must hash alike"
        return one, two
    finally:
        here.end()
        there.end()


def _note(report: Report, findings: Sequence[Finding]) -> None:
    for finding in findings:
        report.counts[finding.verdict] += 1
        if finding.verdict == "different":
            report.fields.update(finding.fields)
        if finding.verdict != "equal" and len(report.findings) < _MOST_NAMED:
            report.findings.append(finding)


class _Judge:
    """Reads single results on both sides, again and again, until it is clear what they are."""

    def __init__(self, here: Side, there: Side, terms: Terms, *, sleep: Callable[[float], None]) -> None:
        self._here = here
        self._there = there
        self._terms = terms
        self._sleep = sleep

    def all_of(self, keys: Sequence[str]) -> list[Finding]:
        """Judge results that had two digests: all of them at each look, so that none is waited for alone."""
        from celery_results.migration.verify.survey import bucket_of  # noqa: PLC0415 - shared with the child

        open_keys = list(keys)
        findings: list[Finding] = []
        before: dict[str, int] = {}
        moved: set[str] = set()
        for look in range(_LOOKS):
            if look:
                self._sleep(_LOOK_SECONDS)
            still: list[str] = []
            for place in range(0, len(open_keys), _IDS_AT_ONCE):
                for key, (one, two) in self._read(open_keys[place : place + _IDS_AT_ONCE]).items():
                    verdict, fields = self._verdict(one, two)
                    content = hash((_content(one), _content(two)))
                    if before.setdefault(key, content) != content:
                        moved.add(key)
                    before[key] = content
                    # One look may fall between the two writes of a live result.
                    if verdict in {"missing", "extra", "different"}:
                        if look < _LOOKS - 1:
                            still.append(key)
                            continue
                        verdict = "moving" if key in moved else verdict
                    kind, _, name = key.partition(":")
                    bucket = bucket_of(kind, name.encode("utf-8", "surrogatepass"))
                    findings.append(Finding(verdict, kind, name, bucket, fields))
            open_keys = still
            if not open_keys:
                break
        return findings

    def _read(self, keys: Sequence[str]) -> dict[str, tuple[Record | None, Record | None]]:
        found: dict[str, tuple[Record | None, Record | None]] = {}
        kinds: dict[str, list[str]] = {}
        for key in keys:
            kind, _, name = key.partition(":")
            kinds.setdefault(kind, []).append(name)
        for kind, names in kinds.items():
            one, two = self._here.some(kind, names), self._there.some(kind, names)
            found.update({f"{kind}:{name}": (one.get(name), two.get(name)) for name in names})
        return found

    def _verdict(self, one: Record | None, two: Record | None) -> tuple[Verdict, tuple[str, ...]]:
        if one is None or two is None:
            left = one or two
            if left is None or (left.end is not None and left.end < time.time() + _END_SECONDS):
                return "expired", ()
            return ("missing" if two is None else "extra"), ()
        fields = tuple(one.differences(two, self._terms))
        return ("different" if fields else "equal"), fields


def _content(record: Record | None) -> object:
    return None if record is None else repr(record.values)
