"""The mirror as the dual backend uses it: asked within a bound, left alone while it is down, never missed.

What it does not take is journalled by id; nothing that happens to it is an error of a task or a client.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, Final, TypeVar

from celery.exceptions import ImproperlyConfigured, SoftTimeLimitExceeded
from kombu.utils.compat import detect_environment

from celery_results.backends.dual.breaker import Breaker
from celery_results.backends.dual.helper import Helpers, LateError
from celery_results.backends.dual.side import blocking_driver, build_mirror
from celery_results.migration.journal import Entry, Journal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from celery_results.backends.dual.options import Options

logger = logging.getLogger(__name__)
T = TypeVar("T")
# More than this part of the bound is slow.
_SLOW: Final = 0.5


class MirrorDownError(ConnectionError):
    """The breaker is open: nobody has asked the mirror."""


class Mirror:
    """The side that may fail. One for each dual backend; breaker and helpers are the process's."""

    def __init__(self, app: Any, options: Options) -> None:  # noqa: ANN401 # Celery has no types
        """Build it, if that can be done without a server; raises ImproperlyConfigured for wrong settings.

        What else goes wrong is tried again with its first use: a worker starts without its mirror.
        """
        self.name = options.stage.mirror
        self.settings: Mapping[str, Any] = options.sides[self.name]
        self.seconds = options.mirror_seconds
        self.journal = Journal(options.journal, options.journal_bytes)
        self.place = (str(self.settings["result_backend"]), str(options.journal))
        if self.place not in _shared:
            _warn_of_driver(app, self.settings)
        # Celery makes a backend for each thread: all of a process learn at once that the mirror is down.
        self.breaker, self._helpers = _shared.setdefault(
            self.place, (Breaker(options.breaker_seconds), Helpers())
        )
        self._app = app
        self._backend: Any = None
        try:
            self.backend()
        except ImproperlyConfigured:
            raise
        except Exception as error:  # noqa: BLE001 # whatever a class raises
            logger.warning("The mirror cannot be built yet: %s", type(error).__name__)

    def built(self) -> Any:  # noqa: ANN401 # a backend
        """Give the backend, or None if it cannot be built yet."""
        return self._backend

    def backend(self) -> Any:  # noqa: ANN401 # a backend
        """Build it once."""
        if self._backend is None:
            self._backend = build_mirror(self._app, self.settings, self.seconds)
        return self._backend

    def write(self, entry: Entry, work: Callable[[Any], object]) -> bool:
        """Do `work` with the backend; what fails is journalled as `entry`. Says whether it was done."""
        try:
            self._run(work)
        except MirrorDownError:
            self.owe(entry)
            return False
        except SoftTimeLimitExceeded:  # the task's: nobody knows what was written
            self.owe(entry)
            raise
        except Exception as error:  # noqa: BLE001 # whatever a backend raises
            self.owe(entry)
            self._tell(f"did not take {entry.operation} {entry.id}, which is journalled", error)
            return False
        except BaseException:  # such as the end of the process
            self.owe(entry)
            raise
        return True

    def read(self, work: Callable[[Any], T]) -> T | None:
        """Do `work` with the backend; give None if that fails."""
        try:
            return self._run(work)
        except MirrorDownError:
            return None
        except Exception as error:  # noqa: BLE001 # the primary's answer stands
            self._tell("could not be read", error)
            return None

    def offer(self, work: Callable[[Any], object]) -> bool | None:
        """Do `work` with the backend. True: done; False: it answers, but refused; None: it is away."""
        try:
            self._run(work)
        except MirrorDownError:
            return None
        except Exception as error:  # noqa: BLE001 # whatever a backend raises
            self._tell("did not take what it lacks", error)
            return None if self._is_servers(error) else False
        return True

    def long(self, work: Callable[[Any], object], seconds: float) -> None:
        """Do what takes its time, such as a cleanup; it is not journalled."""
        try:
            self._run(work, seconds)
        except MirrorDownError:
            logger.warning("The mirror is down: nothing was cleaned up there")
        except Exception as error:  # noqa: BLE001 # the primary's was done
            self._tell("could not be cleaned up", error)

    def owe(self, *entries: Entry) -> None:
        """Note what the mirror lacks; if even that fails, the full comparison must find it."""
        try:
            self.journal.append(entries)
        except OSError as error:
            logger.error(  # noqa: TRY400 # the trace says no more
                "The mirror lacks %d writes, such as %s, and the journal cannot be written: %s",
                len(entries),
                entries[0].id,
                error,
            )

    def _run(self, work: Callable[[Any], T], seconds: float | None = None) -> T:
        if not self.breaker.enter():
            raise MirrorDownError
        began = time.monotonic()
        limit = self.seconds if seconds is None else seconds
        was_closed = self.breaker.closed
        try:
            value = self._helpers.run(lambda: work(self.backend()), limit)
        except Exception as error:
            if self._is_servers(error):
                self.breaker.failed()
            else:
                self.breaker.doubtful()
            raise
        except BaseException:
            self.breaker.doubtful()
            raise
        self.breaker.succeeded(slow=time.monotonic() - began > _SLOW * limit)
        if not was_closed and self.breaker.closed:
            logger.info("The mirror answers again")
        return value

    def _is_servers(self, error: Exception) -> bool:
        """Tell a server that is away from a value that it does not take."""
        if isinstance(error, OSError) or self._backend is None:
            return True
        return bool(self._backend.exception_safe_to_retry(error))

    def _tell(self, what: str, error: Exception) -> None:
        # A driver's message may repeat the value that it refused, not the address that it did not reach.
        reason = f": {error}" if isinstance(error, LateError) or self._is_servers(error) else ""
        logger.warning("The mirror %s: %s%s", what, type(error).__name__, reason)


_shared: Final[dict[tuple[str, str], tuple[Breaker, Helpers]]] = {}


def _warn_of_driver(app: Any, settings: Mapping[str, Any]) -> None:  # noqa: ANN401 # Celery has no types
    pool = detect_environment()  # type: ignore[no-untyped-call]
    driver = blocking_driver(app, settings)
    if driver is not None and pool != "default":
        logger.warning(
            "The mirror's driver %s does not know %s: while its server hangs, no task of this process"
            " goes on. Use the bundled backend or the driver psycopg or pymysql, or another pool",
            driver,
            pool,
        )
