"""The result database of this host's deployed settings, for the verbs that work on its rows."""

from __future__ import annotations

import contextlib
import re
import signal
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click
from celery.exceptions import ImproperlyConfigured

from celery_results.backends.database.errors import Fault, explained
from celery_results.backends.database.storage import Storage
from celery_results.errors import SettingsError, UnreachableError
from celery_results.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from celery_results.backends.dual.options import Options
    from celery_results.options import Common

# Celery's own class and ours take the same URL behind their names; the driver is ours to choose.
_DATABASE = re.compile(
    r"(?:db|database|celery_results\.backends\.database:\w+)\+(?P<dialect>\w+)(?:\+\w+)?(?P<rest>://.*)",
    re.DOTALL,
)
DUAL = "celery_results.backends.dual"
_TRANSPORT = "result_backend_transport_options"
_AGE = re.compile(r"(?P<number>\d+)(?P<unit>[smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


@dataclass(frozen=True)
class Deployed:
    """The result database as the settings of this host name it."""

    storage: Storage
    settings: Mapping[str, Any]

    @property
    def place(self) -> dict[str, str]:
        """Name the database: no login, no password."""
        address = self.storage.driver.address
        port = f":{address.port}" if address.port else ""
        return {
            "dialect": self.storage.driver.name,
            "server": f"{address.host}{port}",
            "database": address.database,
            "table": self.storage.tables.task,
        }

    def __str__(self) -> str:
        """Name it in messages."""
        place = self.place
        return f"{place['dialect']}://{place['server']}/{place['database']}"

    @contextlib.contextmanager
    def errors_explained(self) -> Iterator[None]:
        """Raise what the driver says as expected, found, do."""
        try:
            yield
        except Exception as error:
            fault = self.storage.driver.fault(error)
            if fault is Fault.FOREIGN:
                raise
            found = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise explained(fault, error) or UnreachableError(
                expected=f"{self} to answer and to allow what this verb does",
                found=found,
                do="check the server with celery-results doctor; run this again, it goes on from where it is",
            ) from error


def deployed(common: Common) -> Deployed:
    """Read the settings; raises SettingsError where results are in no SQL database, or in two stores."""
    return _database_of(load_settings(common.config_directory, common.environment()))


def deployed_sides(common: Common) -> tuple[str, dict[str, Deployed | None]]:
    """Read the settings; give the stage of a migration and the database of each side.

    Without a migration the stage is "" and the one side is called "". A side that is no SQL database is None;
    raises SettingsError where none is.
    """
    settings = load_settings(common.config_directory, common.environment())
    if not str(settings.get("result_backend") or "").startswith(DUAL):
        return "", {"": _database_of(settings)}
    _, options = _dual_of(settings)
    own: dict[str, Any] = {_TRANSPORT: {}}
    sides = {name: {**settings, **own, **side} for name, side in options.sides.items()}
    found = {
        name: _database_of(side) if _DATABASE.fullmatch(str(side["result_backend"])) else None
        for name, side in sides.items()
    }
    if not any(found.values()):
        raise SettingsError(
            expected="a side of the dual backend in PostgreSQL, MySQL, MariaDB or SQLite",
            found="none",
            do="nothing: Redis removes expired results by itself, and celery-results doctor looks at it",
        )
    return str(settings[_TRANSPORT]["stage"]), found


def _database_of(settings: Mapping[str, Any]) -> Deployed:
    backend = str(settings.get("result_backend") or "")
    match = _DATABASE.fullmatch(backend)
    if match is None and backend.startswith(DUAL):
        raise SettingsError(
            expected="one store of results",
            found="the two of a migration",
            do="name one of them: --env-file /etc/celery/source.env or /etc/celery/target.env",
        )
    if match is None:
        raise SettingsError(
            expected="results in PostgreSQL, MySQL, MariaDB or SQLite",
            found=f"the result backend {re.split('[:+]', backend, maxsplit=1)[0] or 'none'}",
            do="use this verb on a host with such a backend; Redis removes expired results by itself, and "
            "celery-results doctor looks at it",
        )
    options = settings.get("database_engine_options") or {}
    try:
        storage = Storage.at(
            match["dialect"] + match["rest"],
            settings.get("database_table_names"),
            settings.get("database_table_schemas"),
            options.get("connect_args"),
        )
    except ImproperlyConfigured as error:
        raise SettingsError(
            expected="a result backend that this verb can open", found=str(error), do="deploy this host again"
        ) from None
    except ImportError as error:
        raise SettingsError(
            expected=f"the Python module {error.name}",
            found="no such module",
            do="deploy this host again: the celery role installs it",
        ) from None
    return Deployed(storage, settings)


def dual_application(common: Common) -> tuple[Any, Options]:
    """Make an application of this host's settings; raises SettingsError where they have no dual backend."""
    settings = load_settings(common.config_directory, common.environment())
    backend = str(settings.get("result_backend") or "")
    if not backend.startswith(DUAL):
        raise SettingsError(
            expected="the dual backend in these settings, as during a migration",
            found=f"the result backend {re.split('[:+]', backend, maxsplit=1)[0] or 'none'}",
            do="run it on a host that takes part in one, with its celery.env",
        )
    return _dual_of(settings)


def _dual_of(settings: Mapping[str, Any]) -> tuple[Any, Options]:
    from celery import Celery  # noqa: PLC0415 - half a second

    from celery_results.backends.dual.options import Options  # noqa: PLC0415

    app = Celery("celery_results", set_as_current=False)
    app.config_from_object(dict(settings))
    try:
        return app, Options.of_settings(settings.get(_TRANSPORT) or {})
    except ImproperlyConfigured as error:
        raise SettingsError(
            expected="settings of the dual backend that can be used",
            found=str(error),
            do="deploy this host again",
        ) from None


def now() -> datetime:
    """Give the time as Celery stores it: UTC, naive."""
    return datetime.now(UTC).replace(tzinfo=None)


def age(text: str) -> timedelta:
    """Read 30d, 12h, 90m, 45s or 2w; raises click.BadParameter, also for 0: it would take every result."""
    match = _AGE.fullmatch(text)
    if match is None or not int(match["number"]):
        raise click.BadParameter(f"expected a number above 0 with s, m, h, d or w, as in 30d; found {text!r}")
    try:
        return timedelta(**{_UNITS[match["unit"]]: int(match["number"])})
    except OverflowError:
        raise click.BadParameter(f"{text!r} is too long") from None


def cutoff(older_than: timedelta) -> datetime:
    """Give the time before which results are that old; raises click.BadParameter before the year 1."""
    try:
        return now() - older_than
    except OverflowError:
        raise click.BadParameter("that is before the year 1") from None


def moment(text: str) -> datetime:
    """Read 2026-01-31, or 2026-01-31T12:00:00 with or without a zone, as naive UTC; raises BadParameter."""
    try:
        read = datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(
            f"expected a time as in 2026-01-31 or 2026-01-31T12:00:00Z; found {text!r}"
        ) from None
    return read.astimezone(UTC).replace(tzinfo=None) if read.tzinfo else read


class OrderlyEnd:
    """Ctrl-C, TERM and HUP ask for the end: the batch at hand is finished. A second one ends at once."""

    def __init__(self) -> None:
        """Be asked by nobody yet."""
        self.asked = False

    def __call__(self) -> bool:
        """Tell whether the end was asked for."""
        return self.asked

    def install(self) -> OrderlyEnd:
        """Take the three signals."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._ask)
        return self

    def _ask(self, number: int, _frame: object) -> None:
        self.asked = True
        signal.signal(number, signal.default_int_handler)
