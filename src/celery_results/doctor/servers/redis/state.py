"""What the server says of itself: INFO and TIME."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import NoPermissionError, RedisError

from celery_results.doctor.findings import Finding, could_not_check, error, info, warning

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from redis import Redis

EVICTS = error(
    "CRB601",
    "The server throws results away when its memory is full",
    "Set maxmemory-policy noeviction: every result has a TTL, so the volatile policies take results too; "
    "their tasks "
    "stay PENDING for ever, and chords never end.",
)
EVICTS_OLDEST = warning(
    "CRB602",
    "The server throws the oldest results away when its memory is full",
    "Set maxmemory-policy noeviction, unless losing the results that expire next is what you want.",
)
NO_LIMIT = warning(
    "CRB603",
    "The server's memory has no limit",
    "Set maxmemory to at most 60 % of the machine's memory: without it the kernel kills the server, or "
    "another "
    "process, when memory runs out.",
)
FILLING = warning(
    "CRB604",
    "The server's memory is filling up",
    "Raise maxmemory, lower result_expires, or set ignore_result for tasks whose result nobody reads.",
)
FULL = error(
    "CRB605",
    "The server's memory is all but full",
    "Raise maxmemory now; then lower result_expires, or set ignore_result for tasks whose result nobody "
    "reads. With "
    "noeviction a full server refuses every result.",
)
EVICTED = warning(
    "CRB606",
    "The server has thrown keys away",
    "Set maxmemory-policy noeviction and a maxmemory that suffices; the counter starts anew with the server.",
)
NO_AOF = warning(
    "CRB607",
    "A crash loses results",
    "Set appendonly yes: snapshots alone lose everything since the last one, and appendfsync everysec "
    "loses at most "
    "about one second.",
)
AOF_FAILS = error(
    "CRB608",
    "The server cannot write its append-only file",
    "Look for a full disk or missing rights in the server's log; it refuses writes until then.",
)
SNAPSHOT_FAILS = error(
    "CRB609",
    "The server's last snapshot failed",
    "Look for a full disk, missing rights or vm.overcommit_memory = 0 in the server's log; by default "
    "Redis refuses "
    "writes after a failed snapshot.",
)
REWRITE_FAILS = warning(
    "CRB610",
    "The append-only file cannot be rewritten",
    "Look for a full disk or vm.overcommit_memory = 0 in the server's log; until then the file only grows.",
)
DROPPED_READERS = warning(
    "CRB611",
    "The server has disconnected slow readers",
    "Raise client-output-buffer-limit pubsub (64mb 32mb 60): Celery publishes whole results to those who "
    "wait.",
)
CLOCK = warning(
    "CRB614",
    "The clocks differ",
    "Run a time service (systemd-timesyncd, chrony) on both hosts: completion times and certificates "
    "depend on them.",
)
TOO_OLD = error(
    "CRB615", "The server is too old", "Install Redis 7 or Valkey: below 6 there is neither TLS nor ACL."
)
UNSUPPORTED = warning(
    "CRB616",
    "The server's version is no longer maintained",
    "Install Redis 7 or later, or Valkey.",
)
NO_SETINFO = info(
    "CRB617",
    "The server does not know CLIENT SETINFO",
    "Leave `+client|setinfo` out of ACLs: Redis before 7.2 refuses the whole user for it. Nothing else to "
    "do.",
)
REPLICA = error(
    "CRB618",
    "The settings lead to a replica",
    "Name the primary, or use sentinel://: a replica refuses every result (READONLY).",
)
IN_CLUSTER = error(
    "CRB619",
    "The server is a node of a Redis Cluster",
    "Use a server outside the cluster: Celery has no cluster backend, and keys of other nodes fail with "
    "MOVED.",
)

_FILLING_SHARE: Final = 0.75
_FULL_SHARE: Final = 0.95
CLOCK_TOLERANCE_SECONDS: Final = 2.0


def read(client: Redis) -> dict[str, Any]:
    """Ask the server what it says of itself."""
    return client.info()


def judge(told: Mapping[str, Any]) -> Iterator[Finding]:
    """Judge what INFO says; what a server does not mention is not held against it."""
    yield from _version(str(told.get("redis_version", "")), told)
    yield from _memory(told)
    yield from _persistence(told)
    dropped = int(told.get("client_output_buffer_limit_disconnections", 0))
    if dropped:
        yield DROPPED_READERS.finding(f"{dropped} connections since the server started")
    if told.get("role") == "slave":
        yield REPLICA.finding("INFO says role:slave")
    if told.get("cluster_enabled"):
        yield IN_CLUSTER.finding("INFO says cluster_enabled:1")


def _version(version: str, told: Mapping[str, Any]) -> Iterator[Finding]:
    try:
        major, minor = (int(part) for part in version.split(".")[:2])
    except ValueError:
        yield could_not_check("the server's version", f"INFO says {version or 'nothing'}")
        return
    if "valkey_version" in told:  # names itself 7.2.4 beside its own number
        return
    if major < 6:  # noqa: PLR2004 - a version, explained by the remedy
        yield TOO_OLD.finding(f"Redis {version}")
    elif major < 7:  # noqa: PLR2004
        yield UNSUPPORTED.finding(f"Redis {version}")
    elif (major, minor) < (7, 2):
        yield NO_SETINFO.finding(f"Redis {version}")


def _memory(told: Mapping[str, Any]) -> Iterator[Finding]:
    policy = told.get("maxmemory_policy", "noeviction")
    if policy == "volatile-ttl":
        yield EVICTS_OLDEST.finding(f"maxmemory-policy {policy}")
    elif policy != "noeviction":
        yield EVICTS.finding(f"maxmemory-policy {policy}")
    limit, used = int(told.get("maxmemory", -1)), int(told.get("used_memory", 0))
    if limit == 0:
        yield NO_LIMIT.finding("maxmemory 0")
    elif limit > 0 and used / limit > _FILLING_SHARE:
        kind = FULL if used / limit > _FULL_SHARE else FILLING
        yield kind.finding(f"{used / limit:.0%} of {limit / 2**20:,.0f} MiB in use")
    evicted = int(told.get("evicted_keys", 0))
    if evicted:
        yield EVICTED.finding(f"{evicted:,} keys since the server started")


def _persistence(told: Mapping[str, Any]) -> Iterator[Finding]:
    if told.get("aof_enabled") == 0:
        yield NO_AOF.finding("appendonly no")
    for name, kind in (
        ("aof_last_write_status", AOF_FAILS),
        ("rdb_last_bgsave_status", SNAPSHOT_FAILS),
        ("aof_last_bgrewrite_status", REWRITE_FAILS),
    ):
        if told.get(name, "ok") != "ok":
            yield kind.finding(f"{name}:{told[name]}")


def clock(client: Redis, remedy: str, now: Callable[[], float] = time.time) -> Iterator[Finding]:
    """Compare the server's clock with this host's."""
    try:
        before = now()
        seconds, microseconds = client.time()
        after = now()
    except NoPermissionError:
        yield could_not_check("the server's clock", "this login may not run TIME", remedy)
        return
    except (RedisError, OSError) as failure:
        yield could_not_check("the server's clock", type(failure).__name__)
        return
    ahead = seconds + microseconds / 1e6 - (before + after) / 2
    # A slow answer says nothing of the clock.
    if abs(ahead) - (after - before) / 2 > CLOCK_TOLERANCE_SECONDS:
        yield CLOCK.finding(
            f"the server is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} this host"
        )
