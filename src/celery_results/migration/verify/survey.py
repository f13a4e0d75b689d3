"""One side in a few thousand numbers: how many results each bucket of ids has, and the sum of their digests.

Each side is surveyed in a process of its own: settings, secrets included, reach it by its standard input.
"""

from __future__ import annotations

import base64
import contextlib
import gc
import os
import pickle
import subprocess
import sys
import time
import zlib
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from celery_results.migration.verify.reading import side
from celery_results.migration.verify.record import TASK, Terms
from celery_results.stores.endpoint import of_settings

if TYPE_CHECKING:
    from collections.abc import Iterable

    from celery_results.stores.endpoint import Endpoint

BUCKETS: Final = 4096
_MASK: Final = (1 << 64) - 1
_START: Final = "from celery_results.migration.verify.survey import main; main()"
_NEEDED: Final = ("result_", "redis_", "database_", "timezone")
_TELL_EVERY: Final = 5000
_HOUR: Final = 3600


@dataclass
class Survey:
    """What was found in one store."""

    counts: list[int] = field(default_factory=lambda: [0] * BUCKETS)
    sums: list[int] = field(default_factory=lambda: [0] * BUCKETS)
    states: Counter[str] = field(default_factory=Counter)
    ages: Counter[int] = field(default_factory=Counter)  # by hours since date_done; -1 for unfinished
    results: int = 0
    groups: int = 0
    odd: int = 0  # results whose life does not end when their age says so
    seconds: float = 0.0
    peak_bytes: int = 0
    chosen: dict[str, int] = field(default_factory=dict)  # digests by id, of the buckets asked for

    def differing(self, other: Survey) -> list[int]:
        """Name the buckets that are not the same."""
        return [
            bucket
            for bucket in range(BUCKETS)
            if self.counts[bucket] != other.counts[bucket] or self.sums[bucket] != other.sums[bucket]
        ]


def bucket_of(kind: str, name: str) -> int:
    """Give the bucket of an id."""
    return zlib.crc32(f"{kind}:{name}".encode("utf-8", "surrogatepass")) % BUCKETS


def survey(endpoint: Endpoint, terms: Terms, chosen: Iterable[int], tell: Any) -> Survey:  # noqa: ANN401
    """Read one store to its end; remember the digests of some buckets. `tell` is called with a count."""
    found = Survey()
    wanted = frozenset(chosen)
    began, now = time.monotonic(), time.time()
    store = side(endpoint, terms)
    with contextlib.closing(store):
        for kind, record in store.all():
            number = bucket_of(kind, record.id)
            digest = record.digest(terms)
            if wanted:
                if number in wanted:
                    found.chosen[f"{kind}:{record.id}"] = digest
                continue
            found.counts[number] += 1
            found.sums[number] = (found.sums[number] + digest) & _MASK
            if kind == TASK:
                found.results += 1
                found.states[record.state] += 1
                found.odd += record.odd(terms) is not None
                found.ages[-1 if record.done is None else int((now - record.done / 1e6) // _HOUR)] += 1
            else:
                found.groups += 1
            if (found.results + found.groups) % _TELL_EVERY == 0:
                tell(found.results + found.groups)
    found.seconds = time.monotonic() - began
    return found


class Elsewhere:
    """A survey in another process."""

    def __init__(self, endpoint: Endpoint, terms: Terms, chosen: Iterable[int] = ()) -> None:
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
            pipe.write(pickle.dumps((settings, terms, tuple(chosen))))

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
    settings, terms, chosen = pickle.load(sys.stdin.buffer)  # noqa: S301 - from our parent, by a pipe

    def tell(count: int) -> None:
        sys.stdout.write(f"seen {count}\n")
        sys.stdout.flush()

    outcome: object
    try:
        gc.disable()
        outcome = found = survey(of_settings(settings, "the store"), terms, chosen, tell)
        with open("/proc/self/status", encoding="ascii") as status:  # noqa: PTH123 - a line of it
            found.peak_bytes = int(status.read().partition("VmHWM:")[2].split()[0]) * 1024
    except Exception as error:  # noqa: BLE001 - raised again where it is waited for
        outcome = RuntimeError(f"{type(error).__name__}: {error}")
    sys.stdout.write(f"result {base64.b64encode(pickle.dumps(outcome)).decode()}\n")
