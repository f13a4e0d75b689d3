"""The result backend: Celery's tables, its payloads and its rules, with one statement for each operation."""

from __future__ import annotations

import contextlib
import functools
import time
import zlib
from typing import TYPE_CHECKING, Any, Final

from celery import states
from celery.backends.base import BaseBackend
from celery.exceptions import ImproperlyConfigured
from celery.result import ResultSet, result_from_tuple
from celery.utils.time import maybe_timedelta

from celery_results.backends.database import payload
from celery_results.backends.database.chord import current_header
from celery_results.backends.database.cleanup import delete_expired
from celery_results.backends.database.dialect import Session, Tables
from celery_results.backends.database.errors import DatabaseBackendError, Fault, explained
from celery_results.backends.database.pool import PoolTimeoutError, shared_pool
from celery_results.backends.database.scan import Scanner
from celery_results.backends.database.storage import Storage
from celery_results.backends.database.url import parse
from celery_results.backends.database.waiting import Wait, each_ready, seconds_left, shared_wait

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

# As Celery's own database class: it retries by default, three times.
DEFAULT_RETRIES: Final = 3
# Ids in one query; larger groups are read in parts, so that memory is bounded.
MOST_IDS: Final = 10_000
_NOTIFY: Final = "SELECT pg_notify(%s, %s)"


class DatabaseBackend(BaseBackend):  # type: ignore[misc] # Celery has no types
    """Results in PostgreSQL, MySQL, MariaDB or SQLite, in tables that somebody else made.

    Raises `ImproperlyConfigured` at construction for a URL or option that cannot be used, for result_expires
    None or 0 (results that never go, or all at once) and for database_engine_callback (there is no engine).
    """

    supports_native_join = True

    def __init__(
        self,
        app: Any = None,  # noqa: ANN401 # Celery has no types
        url: str | None = None,
        expires: Any = None,  # noqa: ANN401 # seconds or timedelta
        engine_options: Mapping[str, Any] | None = None,
        **kwargs: Any,  # noqa: ANN401 # Celery's
    ) -> None:
        """Read the settings; nothing is connected."""
        super().__init__(app, expires=expires, expires_type=maybe_timedelta, url=url, **kwargs)
        conf = self.app.conf
        self.url = url or conf.database_url
        if not self.url:
            raise ImproperlyConfigured(
                "result_backend: expected celery_results.backends.database:DatabaseBackend+<SQLAlchemy URL>,"
                " found no URL"
            )
        always_retry = conf.get("result_backend_always_retry")
        given = conf.value_set_for("result_backend_always_retry") and always_retry is not None
        self.always_retry = bool(always_retry) if given else True
        max_retries = conf.get("result_backend_max_retries")
        given = conf.value_set_for("result_backend_max_retries") and max_retries is not None
        self.max_retries = max_retries if given else DEFAULT_RETRIES
        if conf.database_engine_callback is not None:
            raise ImproperlyConfigured(
                "database_engine_callback: this backend has no SQLAlchemy engine; unset it"
            )
        _check_expiry(self.expires)
        self.engine_options = {**(conf.database_engine_options or {}), **(engine_options or {})}
        self._address = parse(self.url)
        self._tables = Tables.of_settings(conf.database_table_names, conf.database_table_schemas)
        self._pool = shared_pool(self._address, self.engine_options)
        self._driver = self._pool.driver
        self._sql = self._driver.statements(self._tables)
        self._listens = self._driver.name == "postgresql" and self._address.listen
        self._channel = f"celery_results_{zlib.crc32(repr(self._tables).encode()):08x}"
        self._scanner = Scanner()
        self._extended = bool(conf.find_value_for_key("extended", "result"))

    # Faults

    def _run(self, work: Callable[[Session], Any]) -> Any:  # noqa: ANN401 # what work gives
        try:
            return self._pool.run(work)
        except DatabaseBackendError:
            raise
        except Exception as error:
            better = explained(self._driver.fault(error), error)
            if better is not None:
                raise better from error
            raise

    def _rows(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        rows: list[tuple[Any, ...]] = self._run(lambda session: session.execute(statement, parameters))
        return rows

    def exception_safe_to_retry(self, exc: BaseException) -> bool:
        """Retry what may go better: a lost connection, a lock, a deadlock, a timeout, a full server."""
        return isinstance(exc, PoolTimeoutError) or self._driver.fault(exc) in {Fault.LOST, Fault.BUSY}

    # Results

    def _store_result(
        self,
        task_id: str,
        result: object,
        state: str,
        traceback: str | None = None,
        request: object = None,
        **_: object,
    ) -> None:
        meta = self._get_result_meta(
            result=payload.as_bytes(self.encode(result)),
            state=state,
            traceback=traceback,
            request=request,
            format_date=False,
            encode=True,
        )
        row = [task_id, *payload.row_of(meta, self.encode, extended=self._extended)]
        row[3] = self._driver.moment(row[3])
        statement = self._sql.store_extended if self._extended else self._sql.store
        ready = self._listens and state in states.READY_STATES

        def work(session: Session) -> None:
            awaited = session.execute(statement, row)
            if ready and awaited and awaited[0][0]:
                self._announce(session, task_id)

        self._run(work)

    def _announce(self, session: Session, task_id: str) -> None:
        """Tell who waits. The result is stored: nothing that happens here may say otherwise."""
        try:
            session.execute(_NOTIFY, (self._channel, task_id))
        except Exception:  # noqa: BLE001 # they will look for themselves
            with contextlib.suppress(Exception):
                session.close()

    def _meta(self, row: Sequence[Any]) -> dict[str, Any]:
        meta = payload.meta_of(
            row, self._driver.moment, self.decode, legacy_pickle=self._address.legacy_pickle
        )
        decoded: dict[str, Any] = self.meta_from_decoded(meta)
        return decoded

    def _get_task_meta_for(self, task_id: str) -> dict[str, Any]:
        statement = self._sql.select_extended if self._extended else self._sql.select
        rows = self._rows(statement, task_id)
        return self._meta(rows[0]) if rows else self._absent(task_id)

    def _absent(self, task_id: str) -> dict[str, Any]:
        return payload.absent(task_id, extended=self._extended)

    def get_task_meta(self, task_id: str, cache: bool = True) -> dict[str, Any]:  # noqa: FBT001, FBT002 # Celery's
        """Give the meta of one task; while a chord waits for its header, from one query for all of it."""
        header = current_header()
        if header is not None and task_id in header.ids:
            meta = header.meta(task_id, self._count_ready, self._read)
            return meta or self._absent(task_id)
        walked = cache and not super().is_cached(task_id)
        met = self._scanner.meta(task_id, self._read, self._absent) if walked else None
        found: dict[str, Any] = met or super().get_task_meta(task_id, cache=cache)
        return found

    def is_cached(self, task_id: str) -> bool:
        """Say whether the meta is at hand: Celery's report of a failed chord looks at no other."""
        header = current_header()
        return bool(super().is_cached(task_id)) or (header is not None and task_id in header.metas)

    def task_result_exists(self, task_id: str) -> bool:
        """Say whether anything is stored for this task, be it PENDING."""
        return bool(self._ensure_retryable(self._rows, self._sql.exists, task_id))

    def _forget(self, task_id: str) -> None:
        self._rows(self._sql.forget, task_id)

    def _read(self, task_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Read many results, `MOST_IDS` with one query."""
        statement = self._sql.select_many_extended if self._extended else self._sql.select_many
        rows = (
            row
            for part in _parts(task_ids)
            for row in self._ensure_retryable(self._rows, statement, self._driver.ids(part))
        )
        return {row[0]: self._meta(row) for row in rows}

    def _count_ready(self, task_ids: Sequence[str]) -> int:
        return sum(
            self._ensure_retryable(self._rows, self._sql.count_ready, self._driver.ids(part))[0][0]
            for part in _parts(task_ids)
        )

    # Groups

    def _save_group(self, group_id: str, result: ResultSet) -> ResultSet:
        self._learn(result)
        value = payload.as_bytes(self.encode(self.prepare_value(result)))
        self._rows(self._sql.save_group, group_id, value, self._driver.moment(payload.utc_now()))
        return result

    def _restore_group(self, group_id: str) -> dict[str, Any] | None:
        rows = self._rows(self._sql.select_group, group_id)
        if not rows:
            return None
        stored_id, result, date_done = rows[0]
        value = payload.value_of(result, self.decode, stored_id, legacy_pickle=self._address.legacy_pickle)
        group = value if value is None else result_from_tuple(value, self.app)
        self._learn(group)
        return {
            "taskset_id": stored_id,
            "result": group,
            "date_done": self._driver.moment(date_done),
        }

    def _delete_group(self, group_id: str) -> None:
        self._rows(self._sql.delete_group, group_id)

    def _learn(self, result: object) -> None:
        if isinstance(result, ResultSet):
            self._scanner.learn(list(leaves(result.results)))

    def apply_chord(self, header_result_args: Any, body: Any, **kwargs: Any) -> None:  # noqa: ANN401 # Celery's
        """Start a chord as Celery does: `celery.chord_unlock` waits for the header."""
        self._learn(self.app.GroupResult(*header_result_args))
        super().apply_chord(header_result_args, body, **kwargs)

    # Waiting

    def _wait(self, ids: Collection[str]) -> contextlib.closing[Wait]:
        return contextlib.closing(shared_wait(self._pool, self._channel if self._listens else None, ids))

    def wait_for(  # Celery's
        self,
        task_id: str,
        timeout: float | None = None,
        interval: float = 0.5,
        no_ack: bool = True,  # noqa: ARG002, FBT001, FBT002 # Celery's
        on_interval: Callable[[], object] | None = None,
    ) -> dict[str, Any]:
        """Wait until a task is ready and give its meta; raises celery.exceptions.TimeoutError.

        `interval` (seconds) bounds the time between two looks; a result is mostly seen much earlier.
        """
        self._ensure_not_eager()
        end = None if timeout is None else time.monotonic() + timeout
        with self._wait([task_id]) as wait:
            while True:
                began = time.monotonic()
                meta = self.get_task_meta(task_id)
                if meta["status"] in states.READY_STATES:
                    return meta
                if on_interval:
                    on_interval()
                seconds = seconds_left(end, interval, "The operation timed out.")
                wait.pause(seconds, time.monotonic() - began)

    def get_many(  # noqa: PLR0913, PLR0917 # Celery's
        self,
        task_ids: Iterable[str],
        timeout: float | None = None,
        interval: float | None = 0.5,
        no_ack: bool = True,  # noqa: ARG002, FBT001, FBT002 # Celery's
        on_message: Callable[[dict[str, Any]], object] | None = None,
        on_interval: Callable[[], object] | None = None,
        max_iterations: int | None = None,
        READY_STATES: Collection[str] = states.READY_STATES,  # noqa: N803 # Celery's
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Give (id, meta) of each task as it becomes ready; every look is one query for `MOST_IDS` tasks.

        Raises celery.exceptions.TimeoutError; ends early after `max_iterations` looks.
        """
        waiting = set(task_ids)
        end = None if timeout is None else time.monotonic() + timeout
        for task_id in tuple(waiting):
            if super().is_cached(task_id):
                waiting.discard(task_id)
                yield task_id, self._cache[task_id]
        looks = 0
        look_at: Collection[str] | None = None
        with self._wait(waiting) as wait:
            while waiting:
                began = time.monotonic()
                for task_id, meta in self._read(sorted(waiting if look_at is None else look_at)).items():
                    if meta["status"] not in READY_STATES or task_id not in waiting:
                        continue
                    waiting.discard(task_id)
                    if meta["status"] == states.SUCCESS:
                        self._cache[task_id] = meta
                    if on_message is not None:
                        on_message(meta)
                    yield task_id, meta
                looks += 1
                if not waiting or (max_iterations and looks >= max_iterations):
                    return
                if on_interval:
                    on_interval()
                seconds = seconds_left(end, interval or 0.5, f"Operation timed out ({timeout})")
                look_at = wait.pause(seconds, time.monotonic() - began)

    def iter_native(  # noqa: PLR0913, PLR0917 # Celery's
        self,
        result: ResultSet,
        timeout: float | None = None,
        interval: float = 0.5,
        no_ack: bool = True,  # noqa: FBT001, FBT002 # Celery's
        on_message: Callable[[dict[str, Any]], object] | None = None,
        on_interval: Callable[[], object] | None = None,
    ) -> Iterator[tuple[str, Any]]:
        """Give (id, meta) of each result of a set as it becomes ready, (id, results) of each group in it."""
        self._ensure_not_eager()
        self._learn(result)
        get_many = functools.partial(
            self.get_many,
            timeout=timeout,
            interval=interval,
            no_ack=no_ack,
            on_message=on_message,
            on_interval=on_interval,
        )
        yield from each_ready(result, get_many)

    # Expiry

    def cleanup(self) -> None:
        """Delete what has expired, in batches; beat calls this as celery.backend_cleanup."""
        cutoff: dt.datetime = payload.utc_now() - self.expires
        delete_expired(Storage(self._driver, self._tables), cutoff)

    def __reduce__(self, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:  # noqa: ANN401
        """Pickle by what makes another such backend."""
        more = {"url": self.url, "expires": self.expires, "engine_options": self.engine_options}
        return super().__reduce__(args, {**(kwargs or {}), **more})


def leaves(results: Iterable[Any]) -> Iterator[str]:
    """Give the ids of all tasks in these results and the groups among them."""
    for result in results:
        if isinstance(result, ResultSet):
            yield from leaves(result.results)
        else:
            yield result.id


def _check_expiry(expires: dt.timedelta | None) -> None:
    if expires is not None and expires.total_seconds() > 0:
        return
    reason = "results would never expire" if expires is None else "the next cleanup would delete every result"
    raise ImproperlyConfigured(
        f"result_expires: expected seconds above 0, found {expires!r}: with it on a database {reason};"
        " set as long a time as you need"
    )


def _parts(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for begin in range(0, len(ids), MOST_IDS):
        yield ids[begin : begin + MOST_IDS]
