"""One side in a few thousand numbers: how many results each bucket of ids has, and the sum of their digests.

Each side is surveyed in a process of its own: settings, secrets included, reach it by its standard input.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import os
import pickle
import subprocess
import sys
import time
import zlib
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from celery_results.migration import interpreter
from celery_results.migration.pace import Brake, Pace, give_way
from celery_results.migration.probe import Probe
from celery_results.migration.verify.brief import Brief
from celery_results.migration.verify.reading import side
from celery_results.migration.verify.record import GROUP, TASK, Terms
from celery_results.stores.endpoint import of_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from celery_results.migration.verify.reading import Side
    from celery_results.stores.endpoint import Endpoint

BUCKETS: Final = 1 << 16
_STARTS: Final = {kind: zlib.crc32(f"{kind}:".encode()) for kind in (TASK, GROUP)}
_SEAL: Final = b"the same number in each process that is started with the same seed"
_MASK: Final = (1 << 64) - 1
_START: Final = "from celery_results.migration.verify.survey import main; main()"
_NEEDED: Final = ("result_", "redis_", "database_", "timezone")
_TELL_EVERY: Final = 5000
_PACE_EVERY: Final = 500
_MOST_POINTS: Final = 300
_HOUR: Final = 3_600_000_000  # microseconds
_BETWEEN_WRITES: Final = 20_000  # microseconds, on the average of a bucket


@dataclass
class Survey:
    """What was found in one store."""

    counts: list[int] = field(default_factory=lambda: [0] * BUCKETS)
    sums: list[int] = field(default_factory=lambda: [0] * BUCKETS)
    # Microseconds since 1970 of all times in a bucket; see `differing`.
    times: list[int] = field(default_factory=lambda: [0] * BUCKETS)
    states: Counter[str] = field(default_factory=Counter)
    ages: Counter[int] = field(default_factory=Counter)  # by hours since date_done; -1 for unfinished
    results: int = 0
    groups: int = 0
    odd: int = 0  # results whose life does not end when their age says so
    seconds: float = 0.0
    lowest_share: float = 1.0  # of the time, in which it read, while its store answered slowly
    # (seconds since it began, how many were read by then), some 300 of them at most
    timeline: list[tuple[float, int]] = field(default_factory=list)
    read: int = 0
    seal: int = 0  # of Python's hash, which differs from process to process unless it is given a seed
    peak_bytes: int = 0
    _interval: float = 0.1
    # Digest and time by id, of the buckets asked for.
    chosen: dict[str, tuple[int, int | None]] = field(default_factory=dict)

    def note(self, seconds: float, count: int) -> None:
        """Remember how many were read by now; ever more seldom in a long survey."""
        last = self.timeline[-1][0] if self.timeline else 0.0
        if seconds - last >= self._interval:
            self.timeline.append((seconds, count))
            if len(self.timeline) > _MOST_POINTS:
                self.timeline = self.timeline[1::2]
                self._interval *= 2

    def differing(self, other: Survey, terms: Terms) -> list[int]:
        """Name the buckets that are not the same.

        The times of results that were written to both sides differ by what lies between two writes, a few
        milliseconds each; one that differs by more than the tolerance moves the sum of its bucket by more.
        """
        return [
            bucket
            for bucket in range(BUCKETS)
            if self.counts[bucket] != other.counts[bucket]
            or self.sums[bucket] != other.sums[bucket]
            or abs(self.times[bucket] - other.times[bucket])
            > terms.tolerance * 1_000_000 + self.counts[bucket] * _BETWEEN_WRITES
        ]

    def rates(self) -> list[tuple[float, float]]:
        """Give (seconds since it began, results and groups a second up to then)."""
        points = [(0.0, 0), *self.timeline]
        return [
            (then, (count - before) / (then - since))
            for (since, before), (then, count) in itertools.pairwise(points)
            if then > since
        ]

    def same(self, other: Survey, key: str, terms: Terms) -> bool:
        """Say whether a chosen result is the same in both."""
        if key not in self.chosen or key not in other.chosen:
            return False
        (one, then), (two, there) = self.chosen[key], other.chosen[key]
        return one == two and terms.same_time(then, there)


def bucket_of(kind: str, name: bytes) -> int:
    """Give the bucket of an id."""
    return zlib.crc32(name, _STARTS[kind]) & (BUCKETS - 1)


@dataclass(frozen=True)
class Limits:
    """How fast one store may be read: results a second, and seconds that its answers to others may take."""

    rate: float | None = None
    latency: float | None = None


def survey(
    endpoint: Endpoint, terms: Terms, chosen: Iterable[int], tell: Callable[[int], None], pace: Pace
) -> Survey:
    """Read one store to its end; remember the digests of some buckets. `tell` is called with a count."""
    found = Survey(seal=hash(_SEAL))
    wanted = frozenset(chosen)
    began = time.monotonic()
    store = side(endpoint, terms)
    told = 0
    with contextlib.closing(store):
        pace.begin()
        for read in _chosen(store, terms, wanted, found) if wanted else _counted(store, terms, found):
            found.read += read
            found.note(time.monotonic() - began, found.read)
            pace.after(read, lambda: False)
            pace.begin()
            if found.read - told >= _TELL_EVERY:
                told = found.read
                tell(told)
    found.sums = [total & _MASK for total in found.sums]
    found.seconds = time.monotonic() - began
    found.timeline.append((found.seconds, found.read))
    return found


def _chosen(store: Side, terms: Terms, wanted: frozenset[int], found: Survey) -> Iterator[int]:
    """Note each result of some buckets, decoded; give how many were read, again and again."""
    for kind, read, records in store.all(lambda kind, name: bucket_of(kind, name) in wanted):
        for record in records:
            found.chosen[f"{kind}:{record.id}"] = record.digest(terms), record.done
        yield from _some_at_a_time(read)


def _counted(store: Side, terms: Terms, found: Survey) -> Iterator[int]:
    """Add all up, brief where that can be; give how many were read, again and again."""
    parts = store.briefs() if terms.json else _decoded(store, terms)
    now = int(time.time() * 1_000_000)
    counts, sums, times = found.counts, found.sums, found.times
    crc32, most = zlib.crc32, BUCKETS - 1
    for kind, read, briefs in parts:
        start = _STARTS[kind]
        for name, _, done, odd, number in briefs:
            bucket = crc32(name, start) & most
            counts[bucket] += 1
            sums[bucket] += number
            if done is not None:
                times[bucket] += done
            if odd:
                found.odd += kind == TASK
        if kind == TASK:
            found.results += len(briefs)
            found.states.update(brief[1] for brief in briefs)
            found.ages.update(-1 if brief[2] is None else (now - brief[2]) // _HOUR for brief in briefs)
        else:
            found.groups += len(briefs)
        yield from _some_at_a_time(read)


def _decoded(store: Side, terms: Terms) -> Iterator[tuple[str, int, list[Brief]]]:
    for kind, read, records in store.all(lambda _kind, _name: True):
        briefs = [
            Brief(
                record.id.encode("utf-8", "surrogatepass"),
                record.state,
                record.done,
                record.odd(terms) is not None,
                record.digest(terms),
            )
            for record in records
        ]
        yield kind, read, briefs


def _some_at_a_time(read: int) -> Iterator[int]:
    """Give a part in pieces: one is paced for as long as the whole of it took otherwise."""
    while read > _PACE_EVERY:
        yield _PACE_EVERY
        read -= _PACE_EVERY
    yield read


class Elsewhere:
    """A survey in another process."""

    def __init__(
        self,
        endpoint: Endpoint,
        terms: Terms,
        chosen: Iterable[int] = (),
        limits: Limits | None = None,
        seed: int = 1,
    ) -> None:
        """Start it; only surveys of one seed can be compared."""
        settings = {name: value for name, value in endpoint.settings.items() if name.startswith(_NEEDED)}
        self._process = subprocess.Popen(  # noqa: S603 - this interpreter, and a constant
            [sys.executable, "-c", _START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={
                **os.environ,
                "PYTHONHASHSEED": str(seed),
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            },
            start_new_session=True,  # Ctrl-C is for the one who waits, and ends this one
        )
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._process.stdin as pipe:
            pipe.write(pickle.dumps((settings, terms, tuple(chosen), limits or Limits())))

    def result(self, show: Any) -> Survey:  # noqa: ANN401 - a function that takes a count
        """Wait for its end; raises what it raised."""
        assert self._process.stdout is not None
        found: Any = RuntimeError("the survey ended before its time")
        try:
            for line in self._process.stdout:
                word, _, rest = line.partition(b" ")
                if word == b"seen":
                    show(int(rest))
                else:
                    found = pickle.loads(base64.b64decode(rest))  # noqa: S301 - from our child, by a pipe
        finally:
            self.end()
        if isinstance(found, Exception):
            raise found
        survey_found: Survey = found
        return survey_found

    def end(self) -> None:
        """Want it no more."""
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def main() -> None:
    """Be the other process: settings on standard input, counts and the result on standard output."""
    settings, terms, chosen, limits = pickle.load(sys.stdin.buffer)  # noqa: S301 - from our parent, by a pipe

    def tell(count: int) -> None:
        sys.stdout.write(f"seen {count}\n")
        sys.stdout.flush()

    outcome: object
    try:
        interpreter.set_up()
        store = of_settings(settings, "the store")
        with contextlib.ExitStack() as stack:
            brakes = []
            if limits.latency is not None:
                answers = stack.enter_context(Probe(store)).answers
                brakes.append(Brake(store.place, answers, limits.latency))
            give_way()  # not who looks how fast the store answers
            outcome = found = survey(store, terms, chosen, tell, Pace(limits.rate, brakes))
            found.lowest_share = min((brake.lowest for brake in brakes), default=1.0)
        with open("/proc/self/status", encoding="ascii") as status:  # noqa: PTH123 - a line of it
            found.peak_bytes = int(status.read().partition("VmHWM:")[2].split()[0]) * 1024
    except Exception as error:  # noqa: BLE001 - raised again where it is waited for
        outcome = RuntimeError(f"{type(error).__name__}: {error}")
    sys.stdout.write(f"result {base64.b64encode(pickle.dumps(outcome)).decode()}\n")
