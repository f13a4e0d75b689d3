"""A sample of the keys: those without a TTL, and chords that nobody finishes."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, cast

from redis.exceptions import NoPermissionError, RedisError

from celery_results.doctor.findings import Finding, could_not_check, info, warning

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

    from celery_results.doctor.servers.redis.parameters import Parameters

NO_TTL = warning(
    "CRB612",
    "Keys of Celery without a TTL",
    "Set result_expires to 1 second or more in every process that writes; the keys that are there stay "
    "until they are "
    "deleted, or given a TTL (EXPIRE).",
)
STALE_CHORDS = info(
    "CRB613",
    "Chords without progress for an hour",
    "Nothing if their tasks take that long; otherwise parts were lost or failed, and the bodies never "
    "run. What is "
    "left of them expires by itself.",
)

# The server must not feel the sample, nor the reader wait for it.
LARGEST_SAMPLE: Final = 10_000
LONGEST_SECONDS: Final = 2.0
_BATCH: Final = 500
_STALE_SECONDS: Final = 3600
_NO_TTL: Final = -1


@dataclass
class Sample:
    """What a bounded look at the keys has shown."""

    seen: int = 0
    complete: bool = False
    without_ttl: list[bytes] = field(default_factory=list)
    stale_chords: int = 0

    @property
    def size(self) -> str:
        """Say how much was looked at."""
        return f"{self.seen:,} keys, all there are" if self.complete else f"a sample of {self.seen:,} keys"


def check(client: Redis, parameters: Parameters, remedy: str) -> Iterator[Finding]:
    """Judge a sample of the keys."""
    try:
        sample = take(client, parameters)
    except NoPermissionError:
        yield could_not_check("the TTL of results", "this login may not run SCAN and PTTL on them", remedy)
        return
    except (RedisError, OSError) as failure:
        yield could_not_check("the TTL of results", type(failure).__name__)
        return
    if sample.without_ttl:
        example = sample.without_ttl[0].decode(errors="replace")
        yield NO_TTL.finding(f"{len(sample.without_ttl):,} of {sample.size}; for example {example}")
    if sample.stale_chords:
        yield STALE_CHORDS.finding(f"{sample.stale_chords:,} of {sample.size}")


def take(client: Redis, parameters: Parameters) -> Sample:
    """Look at no more keys, and for no longer, than the limits say."""
    prefixes = (parameters.task_prefix, parameters.group_prefix)
    # One pattern for results and groups; a key prefix of the user's own is no pattern.
    prefix = parameters.task_prefix.removesuffix(b"-meta-")
    pattern = re.sub(rb"([\\*?\[\]])", rb"\\\1", prefix) + b"*"
    sample, cursor = Sample(), 0
    deadline = time.monotonic() + LONGEST_SECONDS
    while not sample.complete and sample.seen < LARGEST_SAMPLE and time.monotonic() < deadline:
        cursor, found = cast("tuple[int, list[bytes]]", client.scan(cursor, match=pattern, count=_BATCH))
        _judge(client, parameters, [key for key in found if key.startswith(prefixes)], sample)
        sample.complete = cursor == 0
    return sample


def _judge(client: Redis, parameters: Parameters, keys: list[bytes], sample: Sample) -> None:
    if not keys:
        return
    pipeline = client.pipeline(transaction=False)
    for key in keys:
        pipeline.pttl(key)
    for key, milliseconds in zip(keys, cast("list[int]", pipeline.execute()), strict=True):
        sample.seen += 1
        if milliseconds == _NO_TTL:
            sample.without_ttl.append(key)
        # Every part of a chord starts the TTL of its list anew.
        elif key.endswith(b".j") and 0 <= milliseconds / 1000 < parameters.chord_expires - _STALE_SECONDS:
            sample.stale_chords += 1
