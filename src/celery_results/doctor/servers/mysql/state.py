"""What a MariaDB or MySQL server says of itself, judged; no function here asks it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from celery_results.doctor.findings import Finding, could_not_check, error, info, warning

PLAIN_TEXT = warning(
    "CRB561",
    "The server takes connections without TLS",
    "Set require_secure_transport = ON: a client that forgets TLS sends every result in plain text, and "
    "nobody notices.",
)
OBSOLETE = warning(
    "CRB562",
    "The server takes TLS versions that are broken",
    "Set tls_version = TLSv1.2,TLSv1.3.",
)
ISOLATION = warning(
    "CRB563",
    "The server's sessions begin as REPEATABLE READ",
    "Set transaction_isolation = READ-COMMITTED: otherwise a clean-up by a client without an "
    "isolation_level of its "
    "own blocks every new result.",
)
FLUSH = warning(
    "CRB564",
    "A crash loses results that were acknowledged",
    "Set innodb_flush_log_at_trx_commit = 1: with 0 a killed server loses up to a second of results.",
)
FLUSH_LATER = info(
    "CRB565",
    "A power failure loses up to a second of results",
    "Set innodb_flush_log_at_trx_commit = 1 and sync_binlog = 1 (mysql_durability: always), unless that is "
    "the choice "
    "that was made.",
)
NAMES = warning(
    "CRB566",
    "The server asks the name service about each connection",
    "Set skip_name_resolve = ON, with accounts by address: a slow name service delays every connection, a "
    "false one "
    "lets others in.",
)
LOCAL_INFILE = warning(
    "CRB567",
    "LOAD DATA LOCAL is on",
    "Set local_infile = OFF: with it a server may ask its clients for their files.",
)
SMALL_RESULTS = error(
    "CRB568",
    "Results above 64 KiB are refused",
    "ALTER TABLE ... MODIFY result LONGBLOB (site.yml does): Celery's own tables have BLOB, and the task "
    "of a larger "
    "result fails.",
)
NO_FRACTION = warning(
    "CRB569",
    "Completion times lose their fraction",
    "ALTER TABLE ... MODIFY date_done DATETIME(6) (site.yml does): results of one second cannot be put in "
    "order.",
)
CASE = warning(
    "CRB570",
    "Task ids that differ in case only are the same",
    "ALTER TABLE ... MODIFY task_id VARCHAR(155) COLLATE utf8mb4_bin (site.yml does): a client may read "
    "another "
    "task's result.",
)
NO_INDEX = warning(
    "CRB571",
    "The clean-up reads the whole table and blocks new results",
    "CREATE INDEX ix_<table>_date_done ON <table> (date_done) (site.yml does): only tables that Celery 5.7 "
    "made have it.",
)
NO_TABLES = error(
    "CRB572",
    "The tables are not there",
    "Run site.yml for the server, which makes them; the login of the workers may not.",
)
SMALL_NUMBERS = info(
    "CRB573",
    "Ids end at 2,147,483,647",
    "ALTER TABLE ... MODIFY id BIGINT (site.yml does): after so many results every further one is refused.",
)
FEW_CONNECTIONS = warning(
    "CRB574",
    "Most connections of the server have been in use at once",
    "Raise max_connections (mysql_max_connections) before the last one is taken: then workers cannot store "
    "results.",
)
SMALL_POOL = warning(
    "CRB575",
    "The results do not fit into the buffer pool",
    "Raise innodb_buffer_pool_size (mysql_innodb_buffer_pool_size): the clean-up was measured three times "
    "slower where "
    "the table did not fit.",
)
SMALL_PACKET = warning(
    "CRB576",
    "Large results are refused",
    "Raise max_allowed_packet above the largest result, for example to 64M.",
)
RECYCLE = warning(
    "CRB577",
    "The server closes idle connections before their pool renews them",
    "Set pool_recycle in database_engine_options below the server's wait_timeout.",
)
LOGS_FOR_EVER = warning(
    "CRB578",
    "The binary logs are never removed",
    "Set binlog_expire_logs_seconds, for example 259200 (mysql_binlog_keep_days: 3): they fill the disk.",
)
LARGE_LOGS = warning(
    "CRB579",
    "The binary logs take much disk",
    "Lower binlog_expire_logs_seconds (mysql_binlog_keep_days), or make sure that the disk has room for it.",
)
REPLICA = error(
    "CRB580",
    "The settings lead to a server that is read-only",
    "Name the primary: a replica refuses every result.",
)
NOT_CLEANED = warning(
    "CRB581",
    "Expired results are not removed",
    "Run celery beat (one for the application): it starts celery.backend_cleanup every night. See in the "
    "worker's log "
    "whether that task fails.",
)
TOO_OLD = warning(
    "CRB582",
    "The server's version is no longer maintained",
    "Install MariaDB 10.6 or later, or MySQL 8.0 or later.",
)
NOT_UTC = info(
    "CRB583",
    "The server's time zone is not UTC",
    "Set default_time_zone = '+00:00': NOW() in your own queries then means what date_done means.",
)

NO_BINARY_LOG: Final = 1381
_TABLES: Final = {"celery_taskmeta": "task_id", "celery_tasksetmeta": "taskset_id"}
_USED_SHARE: Final = 0.8
_SMALLEST_PACKET_BYTES: Final = 16 * 2**20
_MANY_LOG_BYTES: Final = 20 * 2**30
_OLDEST: Final = {"mariadb": (10, 6), "mysql": (8, 0)}
# The clean-up runs once a day; one night may fail.
_PATIENCE: Final = timedelta(days=2)
_DEFAULT_EXPIRY: Final = timedelta(days=1)
_UTC: Final = frozenset({"+00:00", "UTC", "Etc/UTC"})


def judge(variables: Mapping[str, str], status: Mapping[str, str]) -> Iterator[Finding]:
    """Judge settings and counters, by the names of SHOW GLOBAL VARIABLES and STATUS in small letters.

    What a server does not mention is not held against it.
    """
    yield from _version(variables.get("version", ""))
    if _is(variables, "require_secure_transport", "OFF"):
        yield PLAIN_TEXT.finding("require_secure_transport = OFF")
    versions = {version.strip() for version in variables.get("tls_version", "").split(",")}
    if versions & {"TLSv1", "TLSv1.0", "TLSv1.1"}:
        yield OBSOLETE.finding(f"tls_version = {variables['tls_version']}")
    level = variables.get("transaction_isolation") or variables.get("tx_isolation") or "READ-COMMITTED"
    if level != "READ-COMMITTED":
        yield ISOLATION.finding(f"transaction_isolation = {level}")
    yield from _durability(variables)
    if _is(variables, "skip_name_resolve", "OFF"):
        yield NAMES.finding("skip_name_resolve = OFF")
    if _is(variables, "local_infile", "ON"):
        yield LOCAL_INFILE.finding("local_infile = ON")
    yield from _limits(variables, status)
    if "read_only" in variables and not _is(variables, "read_only", "OFF"):
        yield REPLICA.finding(f"read_only = {variables['read_only']}")
    zone = variables.get("time_zone", "UTC")
    zone = variables.get("system_time_zone", "UTC") if zone == "SYSTEM" else zone
    if zone not in _UTC:
        yield NOT_UTC.finding(f"time_zone = {zone}")


def _limits(variables: Mapping[str, str], status: Mapping[str, str]) -> Iterator[Finding]:
    limit, used = int(variables.get("max_connections", 0)), int(status.get("max_used_connections", 0))
    if limit and used >= _USED_SHARE * limit:
        yield FEW_CONNECTIONS.finding(f"{used} of {limit} since the server started")
    packet = int(variables.get("max_allowed_packet", _SMALLEST_PACKET_BYTES))
    if packet < _SMALLEST_PACKET_BYTES:
        yield SMALL_PACKET.finding(f"max_allowed_packet = {packet:,} bytes")
    keeps = (variables.get("binlog_expire_logs_seconds", "1"), variables.get("expire_logs_days", "0"))
    if _is(variables, "log_bin", "ON") and not any(float(value) for value in keeps):
        yield LOGS_FOR_EVER.finding("binlog_expire_logs_seconds = 0")


def _is(variables: Mapping[str, str], name: str, value: str) -> bool:
    found = {"1": "ON", "0": "OFF"}.get(variables.get(name, ""), variables.get(name, ""))
    return found.upper() == value


def _version(version: str) -> Iterator[Finding]:
    product = "mariadb" if "mariadb" in version.lower() else "mysql"
    try:
        major, minor = (int(part) for part in version.partition("-")[0].split(".")[:2])
    except ValueError:
        yield could_not_check("the server's version", f"it says {version or 'nothing'}")
        return
    if (major, minor) < _OLDEST[product]:
        yield TOO_OLD.finding(version)


def _durability(variables: Mapping[str, str]) -> Iterator[Finding]:
    flush = variables.get("innodb_flush_log_at_trx_commit", "1")
    if flush == "0":
        yield FLUSH.finding("innodb_flush_log_at_trx_commit = 0")
    elif flush not in {"1", "3"}:
        yield FLUSH_LATER.finding(f"innodb_flush_log_at_trx_commit = {flush}")
    elif _is(variables, "log_bin", "ON") and variables.get("sync_binlog", "1") != "1":
        yield FLUSH_LATER.finding(f"sync_binlog = {variables['sync_binlog']}")


def judge_pool(settings: Mapping[str, Any], variables: Mapping[str, str]) -> Iterator[Finding]:
    """Compare the pool of the settings with the server's patience."""
    options = settings.get("database_engine_options")
    recycle = options.get("pool_recycle", -1) if isinstance(options, Mapping) else 3600
    wait = int(variables.get("wait_timeout", 0))
    if wait and not 0 <= int(recycle) < wait:
        yield RECYCLE.finding(f"pool_recycle is {recycle}, the server's wait_timeout {wait} s")


def judge_tables(
    columns: Iterable[Mapping[str, Any]], indexes: Iterable[Mapping[str, Any]]
) -> Iterator[Finding]:
    """Judge the columns (t, c, type, collation_name) and the first columns of indexes (t, c)."""
    found = {(str(row["t"]), str(row["c"])): row for row in columns}
    indexed = {(str(row["t"]), str(row["c"])) for row in indexes}
    for table, key in _TABLES.items():
        if (table, "id") not in found:
            yield NO_TABLES.finding(f"{table} is not there, or this login may not see it")
            continue
        result = found.get((table, "result"))
        if result and str(result["type"]).lower() in {"blob", "tinyblob"}:
            yield SMALL_RESULTS.finding(f"{table}.result is {result['type']}")
        done = found.get((table, "date_done"))
        if done and str(done["type"]).lower() == "datetime":
            yield NO_FRACTION.finding(f"{table}.date_done is {done['type']}")
        name = found.get((table, key))
        if name and str(name["collation_name"]).endswith("_ci"):
            yield CASE.finding(f"{table}.{key} has the collation {name['collation_name']}")
        if (table, "date_done") not in indexed:
            yield NO_INDEX.finding(f"{table} has no index on date_done")
        if str(found[table, "id"]["type"]).lower().startswith("int"):
            yield SMALL_NUMBERS.finding(f"{table}.id is {found[table, 'id']['type']}")


def judge_size(variables: Mapping[str, str], size_bytes: int) -> Iterator[Finding]:
    """Compare the tables with the buffer pool."""
    pool = int(variables.get("innodb_buffer_pool_size", 0))
    if pool and size_bytes > pool:
        yield SMALL_POOL.finding(f"{size_bytes / 2**20:,.0f} MiB of tables, {pool / 2**20:,.0f} MiB of pool")


def judge_logs(size_bytes: int) -> Iterator[Finding]:
    """Judge the size of all binary logs."""
    if size_bytes > _MANY_LOG_BYTES:
        yield LARGE_LOGS.finding(f"{size_bytes / 2**30:,.0f} GiB")


def judge_oldest(oldest: datetime | None, settings: Mapping[str, Any], now: datetime) -> Iterator[Finding]:
    """Compare the oldest finished result (naive, in UTC) with the expiry of the settings."""
    expires = settings.get("result_expires", _DEFAULT_EXPIRY)
    if oldest is None or not expires:
        return
    kept = expires if isinstance(expires, timedelta) else timedelta(seconds=float(expires))
    overdue = now - oldest.replace(tzinfo=UTC) - kept
    if overdue > _PATIENCE:
        yield NOT_CLEANED.finding(f"the oldest result expired {overdue.days} days ago")
