"""What a store holds: counted in full, and looked at result by result, all of them or a sample.

A key-value store names its keys in no order, so the first ones are a fair sample; ids and lives may be asked
for with one login and values with another one. A database is read at places spread over its rows.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from celery import Celery, states

from celery_results.backends.database.dialect import qualified
from celery_results.migration.convert import Converter
from celery_results.migration.lossy import Lossy
from celery_results.migration.verify.record import Decoder
from celery_results.stores.record import KINDS, TASK_DATE, Document, Kind, Shape, now_ms, text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from celery_results.backends.database.storage import Storage
    from celery_results.stores.endpoint import Endpoint

BINS: Final = {"<1 h": 3600, "<6 h": 21_600, "<1 d": 86_400, "<7 d": 604_800}
LONGER: Final = "longer"
NEVER: Final = "never"
UNFINISHED: Final = "unfinished"
# celery/backends/database/models.py: the columns task_id and taskset_id.
_LONGEST_ID: Final = 155
_SCAN_COUNT: Final = 1000
_KEYS: Final = 500
_FIRST: Final = 50
_BYTES: Final = 1 << 20
_PLACES: Final = 50
_CHORD_KEY: Final = re.compile(rb"\.[jstdc]\Z")


@dataclass
class Census:
    """What was found. Results, groups and chords are counted in full; everything else is of `seen`.

    `life` counts results by the seconds that they have left (a key of Redis by its TTL, a row of a database
    by its age), `seconds` is what reading and converting `seen` took.
    """

    results: int = 0
    groups: int = 0
    chords: int | None = None
    seen: int = 0
    seen_groups: int = 0
    bytes: int = 0  # of values, without keys, columns' names and indexes
    states: Counter[str] = field(default_factory=Counter)
    life: Counter[str] = field(default_factory=Counter)
    longest: float = 0.0  # seconds, of those that end at all
    lossy: Lossy = field(default_factory=Lossy)
    failed: int = 0
    seconds: float = 0.0

    @property
    def exact(self) -> bool:
        """Tell whether all of it was seen."""
        return (self.seen, self.seen_groups) == (self.results, self.groups)

    @property
    def unfinished(self) -> int:
        """Count those that have no final state."""
        return sum(count for state, count in self.states.items() if state not in states.READY_STATES)

    @property
    def rate(self) -> float:
        """Give results a second, read and converted."""
        return self.seen / self.seconds if self.seconds else 0.0


def take(source: Endpoint, lister: Endpoint, target: Shape, sample: int) -> Census:
    """Look at a store; `lister` is the same one with a login that may list. Raises the drivers' errors."""
    census = Census()
    looked = _Look(census, source.shape, target)
    if source.storage is not None:
        _rows(source, source.storage, looked, sample)
    else:
        _documents(source, lister, looked, sample)
    return census


class _Look:
    """Looks at records as the copy would, and counts what it sees."""

    def __init__(self, census: Census, source: Shape, target: Shape) -> None:
        self.census = census
        self._source = source
        self._converter = Converter(source, target)
        self._limited = target.form == "rows"
        self._decode = Decoder(source.serializer)

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.census.seconds += time.perf_counter() - began

    def at(self, kind: Kind, records: list[Any]) -> None:
        census = self.census
        with self.timed():
            _, failures = self._converter.convert(kind, records)
            census.lossy.update(self._converter.take_lossy())
        census.failed += len(failures)
        if self._limited:
            refused = {failure.id for failure in failures}
            census.failed += sum(
                len(name) > _LONGEST_ID and name not in refused
                for name in (text(record[0]) for record in records)
            )
        if kind == "groups":
            census.seen_groups += len(records)
            census.bytes += sum(map(_size, records))
            return
        now = now_ms()
        census.seen += len(records)
        for record in records:
            census.bytes += _size(record)
            state, left = self._told(record, now)
            census.states[state] += 1
            census.life[self._bin(left)] += 1

    def _told(self, record: Any, now: int) -> tuple[str, float | str]:  # noqa: ANN401 - a document or a row
        """Give the state, and the seconds left or the name of a bin."""
        if isinstance(record, Document):
            try:
                state = str(self._decode(record.value)["status"])
            except (ValueError, KeyError, TypeError):
                state = "unreadable"
            return state, NEVER if record.deadline is None else (record.deadline - now) / 1000
        date, expires = record[TASK_DATE], self._source.expires
        left: float | str = UNFINISHED if date is None else NEVER
        if date is not None and expires is not None:
            left = expires - (now - date / 1000) / 1000
        return text(record[1]), left

    def _bin(self, left: float | str) -> str:
        if isinstance(left, str):
            return left
        self.census.longest = max(self.census.longest, left)
        return next((name for name, most in BINS.items() if left < most), LONGER)


def _size(record: Sequence[Any]) -> int:
    if isinstance(record, Document):
        return len(record.value)
    return sum(len(value) for value in record if isinstance(value, bytes))


# ---- key-value stores


def _documents(source: Endpoint, lister: Endpoint, looked: _Look, sample: int) -> None:
    backends: list[Any] = []
    for endpoint in (source, lister):
        app = Celery("plan", set_as_current=False)
        app.config_from_object(dict(endpoint.settings))
        backends.append(app.backend)
    values, listing = backends[0].client, backends[1].client
    prefixes: dict[Kind, bytes] = {
        "results": bytes(backends[0].task_keyprefix),
        "groups": bytes(backends[0].group_keyprefix),
    }
    census = looked.census
    census.chords = 0
    try:
        for kind in KINDS:
            prefix = prefixes[kind]
            waiting: list[bytes] = []
            reading = _Reading(values, listing, len(prefix))
            seen = 0
            pattern = re.sub(rb"([\\*?\[\]])", rb"\\\1", prefix) + b"*"
            for key in listing.scan_iter(match=pattern, count=_SCAN_COUNT):
                if kind == "groups" and _CHORD_KEY.search(key):
                    census.chords += key.endswith(b".s")
                    continue
                if kind == "results":
                    census.results += 1
                else:
                    census.groups += 1
                if seen < sample:
                    seen += 1
                    waiting.append(key)
                if len(waiting) >= _KEYS:
                    _look_at(kind, reading, looked, waiting)
                    waiting = []
            _look_at(kind, reading, looked, waiting)
    finally:
        for client in (values, listing):
            client.close()


def _look_at(kind: Kind, reading: _Reading, looked: _Look, keys: list[bytes]) -> None:
    while keys:
        with looked.timed():
            documents, count = reading.some(keys)
        keys = keys[count:]
        gone = count - len(documents)  # expired since they were named
        if kind == "results":
            looked.census.results -= gone
        else:
            looked.census.groups -= gone
        looked.at(kind, documents)


class _Reading:
    """Reads values with one login, lives with another one."""

    def __init__(self, values: Any, lives: Any, start: int) -> None:  # noqa: ANN401 - clients of redis-py
        self._values = values
        self._lives = lives
        self._start = start
        self._at_once = _FIRST

    def some(self, keys: Sequence[bytes]) -> tuple[list[Document], int]:
        """Read about as many as make _BYTES, going by those before; tell how many keys that took."""
        part = keys[: self._at_once]
        found = self._values.mget(part)
        pipeline = self._lives.pipeline(transaction=False)
        for key in part:
            pipeline.pttl(key)
        lives = pipeline.execute()
        now = now_ms()
        mean = sum(len(value) for value in found if value) // len(part) + 1
        self._at_once = max(1, min(_KEYS, _BYTES // mean))
        return [
            Document(key[self._start :], value, None if life < 0 else now + life)
            for key, value, life in zip(part, found, lives, strict=True)
            if value is not None
        ], len(part)


# ---- databases


def _rows(source: Endpoint, storage: Storage, looked: _Look, sample: int) -> None:
    census = looked.census
    first, last, census.results, census.groups = _counts(storage)
    store = source.source()
    store.connect()
    try:
        # Their order is that of their age: a sample is made of pieces from everywhere.
        whole = census.results <= sample
        pieces = 1 if whole else _PLACES
        rows = max(1, sample // pieces)
        for piece in range(pieces):
            after = 0 if whole else first - 1 + (last - first) * piece // pieces
            taken = 0
            batches = store.batches({"results": after}, 1000 if whole else min(rows, 1000), _BYTES)
            while True:
                with looked.timed():
                    batch = next(batches, None)
                if batch is None or "groups" in batch.position:
                    break
                looked.at("results", batch.results if whole else batch.results[: rows - taken])
                taken += len(batch.results)
                if not whole and taken >= rows:
                    break
        for batch in store.batches({"groups": 0}, 1000, _BYTES):
            looked.at("groups", batch.groups)
            if census.seen_groups >= sample:
                break
    finally:
        store.close()
    if whole:  # rows that came or went between counting and reading
        census.results = census.seen
    if census.seen_groups < sample:
        census.groups = census.seen_groups


def _counts(storage: Storage) -> tuple[int, int, int, int]:
    """Give the lowest and highest id, results and groups."""
    mark = "`" if storage.driver.name == "mysql" else '"'
    names = storage.tables
    tasks = qualified(names.task_schema, names.task, mark).replace("%%", "%")
    groups = qualified(names.group_schema, names.group, mark).replace("%%", "%")
    with storage.session() as session:
        if storage.driver.name == "postgresql":
            session.execute("SET statement_timeout = 0")
        ((first, last, results),) = session.execute(f"SELECT min(id), max(id), count(*) FROM {tasks}")  # noqa: S608
        ((saved,),) = session.execute(f"SELECT count(*) FROM {groups}")  # noqa: S608
    return int(first or 0), int(last or 0), int(results), int(saved)
