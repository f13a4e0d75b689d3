"""One side in a few thousand numbers: how many results each bucket of ids has, and the sum of their digests.

Each side is surveyed in a process of its own: settings, secrets included, reach it by its standard input.
"""

from __future__ import annotations

import base64
import contextlib
import gc
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

from celery_results.migration.pace import Brake, Pace
from celery_results.migration.probe import Probe
from celery_results.migration.verify.reading import side
from celery_results.migration.verify.record import TASK, Terms
from celery_results.stores.endpoint import of_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from celery_results.stores.endpoint import Endpoint

BUCKETS: Final = 4096
_MASK: Final = (1 << 64) - 1
_START: Final = "from celery_results.migration.verify.survey import main; main()"
_NEEDED: Final = ("result_", "redis_", "database_", "timezone")
_TELL_EVERY: Final = 5000
_PACE_EVERY: Final = 500
_MOST_POINTS: Final = 300
_HOUR: Final = 3600
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


def bucket_of(kind: str, name: str) -> int:
    """Give the bucket of an id."""
    return zlib.crc32(f"{kind}:{name}".encode("utf-8", "surrogatepass")) % BUCKETS


@dataclass(frozen=True)
class Limits:
    """How fast one store may be read: results a second, and seconds that its answers to others may take."""

    rate: float | None = None
    latency: float | None = None


def survey(
    endpoint: Endpoint, terms: Terms, chosen: Iterable[int], tell: Callable[[int], None], pace: Pace
) -> Survey:
    """Read one store to its end; remember the digests of some buckets. `tell` is called with a count."""
    found = Survey()
    wanted = frozenset(chosen)
    began, now = time.monotonic(), time.time()
    store = side(endpoint, terms)
    seen = 0
    with contextlib.closing(store):
        pace.begin()
        for kind, record in store.all():
            seen += 1
            if seen % _PACE_EVERY == 0:
                found.note(time.monotonic() - began, seen)
                pace.after(_PACE_EVERY, lambda: False)
                pace.begin()
            if seen % _TELL_EVERY == 0:
                tell(seen)
            number = bucket_of(kind, record.id)
            digest = record.digest(terms)
            if wanted:
                if number in wanted:
                    found.chosen[f"{kind}:{record.id}"] = digest, record.done
                continue
            found.counts[number] += 1
            found.sums[number] = (found.sums[number] + digest) & _MASK
            found.times[number] += record.done or 0
            if kind == TASK:
                found.results += 1
                found.states[record.state] += 1
                found.odd += record.odd(terms) is not None
                found.ages[-1 if record.done is None else int((now - record.done / 1e6) // _HOUR)] += 1
            else:
                found.groups += 1
    found.seconds = time.monotonic() - began
    found.timeline.append((found.seconds, seen))
    return found


class Elsewhere:
    """A survey in another process."""

    def __init__(
        self, endpoint: Endpoint, terms: Terms, chosen: Iterable[int] = (), limits: Limits | None = None
    ) -> None:
        """Start it."""
        settings = {name: value for name, value in endpoint.settings.items() if name.startswith(_NEEDED)}
        self._process = subprocess.Popen(  # noqa: S603 - this interpreter, and a constant
            [sys.executable, "-c", _START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
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
        gc.disable()
        store = of_settings(settings, "the store")
        with contextlib.ExitStack() as stack:
            brakes = []
            if limits.latency is not None:
                answers = stack.enter_context(Probe(store)).answers
                brakes.append(Brake(store.place, answers, limits.latency))
            outcome = found = survey(store, terms, chosen, tell, Pace(limits.rate, brakes))
            found.lowest_share = min((brake.lowest for brake in brakes), default=1.0)
        with open("/proc/self/status", encoding="ascii") as status:  # noqa: PTH123 - a line of it
            found.peak_bytes = int(status.read().partition("VmHWM:")[2].split()[0]) * 1024
    except Exception as error:  # noqa: BLE001 - raised again where it is waited for
        outcome = RuntimeError(f"{type(error).__name__}: {error}")
    sys.stdout.write(f"result {base64.b64encode(pickle.dumps(outcome)).decode()}\n")
