"""What a migration would take along, lose, need and last: an estimate from a census, and changes nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from celery_results.migration.census import BINS, LONGER, NEVER, UNFINISHED, Census, take
from celery_results.migration.drain import from_rpc, to_rpc
from celery_results.stores.endpoint import of_settings
from celery_results.stores.record import Form, Shape

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from celery_results.stores.endpoint import Endpoint

DRAINED: Final = "rabbitmq"
TARGETS: Final = ("redis", "postgresql", "mysql", "sqlite", DRAINED)
# Bytes at the target for one result: so many, and so many for each byte of its values. Measured: 20,000 to
# 60,000 results with a text of 10, 300, 500 and 1,000 random characters, copied from Redis 7.0 by this copy
# into an empty store; used_memory of Redis, pg_total_relation_size of PostgreSQL 17 (indexes included),
# data_length + index_length of MariaDB 11.8, the pages of SQLite's file. A line through the four points is
# within a tenth of each. Without logs of changes (WAL, binary log, append-only file) and room to grow.
_SIZES: Final[Mapping[str, tuple[float, float]]] = {
    "redis": (175.0, 1.08),
    "postgresql": (195.0, 1.48),
    "mysql": (229.0, 1.04),
    "sqlite": (121.0, 1.28),
}
# Of a document of Celery's: the names of its fields and its id, which a row does not repeat.
_FRAME_BYTES: Final = 125
# A copy of the same results took 1.6 (PostgreSQL) to 3.3 (MariaDB, SQLite) times as long as reading and
# converting them did, on two cores that were busy otherwise; its brake and other hardware may stretch it.
_FASTEST: Final = 1.2
_SLOWEST: Final = 5.0


@dataclass(frozen=True)
class Plan:
    """A census, and what follows from it; `census` is None where results cannot be looked at."""

    source: str
    target: str
    census: Census | None
    by_age: bool = False
    form: Form = "rows"
    drain: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def target_bytes(self) -> int | None:
        """Estimate what the target needs."""
        census = self.census
        if census is None or self.drain or not census.seen + census.seen_groups:
            return None if census is None or self.drain else 0
        frame = {"rows": 0, "documents": _FRAME_BYTES}
        change = frame["documents" if self.target == "redis" else "rows"] - frame[self.form]
        each, factor = _SIZES[self.target]
        mean = census.bytes / (census.seen + census.seen_groups) + change
        return round((census.results + census.groups) * (each + factor * max(0.0, mean)))

    @property
    def duration(self) -> tuple[int, int] | None:
        """Estimate the seconds of the copy, at best and at worst."""
        census = self.census
        if census is None or self.drain:
            return None
        whole = (census.results + census.groups) / census.rate if census.rate else 0.0
        return round(whole * _FASTEST), round(whole * _SLOWEST) + 1

    def document(self) -> dict[str, Any]:
        """Give it as JSON has it; what was looked at in a sample only is scaled up to all."""
        census = self.census
        document: dict[str, Any] = {
            "ok": True,
            "from": self.source,
            "to": self.target,
            "drain": list(self.drain) or None,
            "notes": list(self.notes),
        }
        if census is None:
            return document
        scale = census.results / census.seen if census.seen else 1.0

        def scaled(counts: Mapping[str, int]) -> dict[str, int]:
            return {name: round(count * scale) for name, count in counts.items() if count}

        duration = self.duration
        seen = census.seen + census.seen_groups
        bins = (*BINS, LONGER, NEVER, UNFINISHED)
        document.update(
            exact=census.exact,
            sampled=census.seen,
            results=census.results,
            groups=census.groups,
            chords=census.chords,
            bytes=round(census.bytes / seen * (census.results + census.groups)) if seen else 0,
            states=dict(sorted(scaled(census.states).items())),
            unfinished=round(census.unfinished * scale),
            life_by="age" if self.by_age else "ttl",
            life={name: scaled(census.life).get(name, 0) for name in bins},
            longest_seconds=round(census.longest),
            lossy=None if self.drain else dict(sorted(scaled(census.lossy).items())),
            failed=None if self.drain else round(census.failed * scale),
            target_bytes=self.target_bytes,
            rate=round(census.rate),
            seconds=None if duration is None else list(duration),
            estimated=["target_bytes", "seconds"],
        )
        return document


def plan(
    settings: Mapping[str, Any], name: str, lister: Callable[[], Endpoint] | None, target: str, sample: int
) -> Plan:
    """Look at a store, as the copy to `target`, one of TARGETS, would.

    `lister` gives the same store with a login that may list; it is asked for a key-value store only. Raises
    EndpointError and what the drivers raise.
    """
    if _is_rpc(settings):
        return Plan("rabbitmq", target, None, drain=from_rpc())
    source = of_settings(settings, name).precise()
    form: Form = "documents" if target == "redis" else "rows"
    shape = Shape(form, source.shape.serializer, source.shape.expires)
    listing = lister() if lister is not None and source.storage is None else source
    census = take(source, listing, shape, sample)
    drain = to_rpc(census) if target == DRAINED else ()
    notes = []
    if census.chords:
        notes.append(
            f"{census.chords} chords are in flight: their counters stay where they are, and both sides are "
            "told of their parts while results are written to both"
        )
    if not census.exact:
        notes.append(
            f"states, lives, bytes and losses are those of {census.seen} results, scaled up to all; "
            "--sample 1000000000 looks at each"
        )
    return Plan(
        source.place, target, census, source.storage is not None, source.shape.form, drain, tuple(notes)
    )


def _is_rpc(settings: Mapping[str, Any]) -> bool:
    backend = str(settings.get("result_backend") or "")
    return backend.partition("://")[0].rpartition("+")[2] == "rpc" or backend == "rpc"
