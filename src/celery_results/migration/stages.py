"""Who runs in which stage: the settings of this host, and those that the workers answer with over the broker.

A worker answers `inspect conf` with its settings, from which Celery has taken the passwords
(celery/app/utils.py, filter_hidden_settings); the stage of the dual backend is among them.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from celery import Celery

from celery_results.backends.dual.options import SETTING, STAGES
from celery_results.deployed import DUAL
from celery_results.errors import UnreachableError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

NO_STAGE: Final = "none"
# So long nothing more was heard: who has not answered by then is asked again.
_SILENCE_SECONDS: Final = 1.5
_BESIDE: Final = 1.0


@dataclass(frozen=True)
class Runs:
    """What a process stores results with; `stage` is None where it has one backend only."""

    name: str
    backend: str
    stage: str | None

    @classmethod
    def of_settings(cls, name: str, settings: Mapping[str, Any]) -> Runs:
        """Read it from settings, with or without their passwords."""
        backend = str(settings.get("result_backend") or "none")
        if not backend.startswith(DUAL):
            return cls(name, place(backend), None)
        options = settings.get(SETTING)
        stage = str(options.get("stage")) if isinstance(options, Mapping) else ""
        if not isinstance(options, Mapping) or stage not in STAGES:
            return cls(name, "the dual backend", "unknown")
        primary, mirror = STAGES[stage].primary, STAGES[stage].mirror
        sides = [options[side].get("result_backend") for side in (primary, mirror)]
        return cls(name, " -> ".join(place(str(side)) for side in sides), stage)

    def words(self) -> str:
        """Say it."""
        stage = "no stage" if self.stage is None else f"the stage {self.stage}"
        return f"{stage} ({self.backend})"


def place(backend: str) -> str:
    """Name a backend without its class, login and query: redis://host:6379/0."""
    parts = backend.split(";")
    if "://" in parts[0] and "+" in parts[0].partition("://")[0]:
        head, _, rest = parts[0].partition("+")
        # redis+socket:// is a scheme; db+postgresql:// and package.module:Class+redis:// are none.
        if ":" in head or head in {"db", "database"}:
            parts[0] = rest
    return ";".join(re.sub(r"//[^/]*@", "//", part.partition("?")[0]) for part in parts)


def workers(settings: Mapping[str, Any], expected: Sequence[str], seconds: float) -> list[Runs] | None:
    """Ask all workers, for so many seconds at most; None where the settings name no broker.

    Raises UnreachableError for a broker that does not answer.
    """
    app = Celery("celery_results", set_as_current=False)
    app.config_from_object(dict(settings))
    if not app.conf.broker_url and not app.conf.broker_write_url:
        return None
    end = time.monotonic() + seconds
    app.conf.update(
        broker_connection_timeout=seconds,
        broker_transport_options={
            **(settings.get("broker_transport_options") or {}),
            "socket_connect_timeout": seconds,
            "socket_timeout": seconds,
            "max_retries": 1,
        },
    )
    if str(app.conf.broker_url).partition("://")[0] in {"amqp", "amqps", "pyamqp"}:
        del app.conf.broker_transport_options["socket_connect_timeout"]
        del app.conf.broker_transport_options["socket_timeout"]

    def ask() -> dict[str, Any]:
        answers: dict[str, Any] = {}
        missing: list[str] | None = None
        while True:
            left = end - time.monotonic()
            if left <= 0 or missing == []:
                return answers
            inspect = app.control.inspect(destination=missing, timeout=min(_SILENCE_SECONDS, left))
            answers |= inspect.conf() or {}
            missing = [name for name in expected if name not in answers]

    try:
        answers = _within(seconds + _BESIDE, ask)
    except Exception as error:
        raise UnreachableError(
            expected="the broker to answer the login of these settings",
            found=type(error).__name__,
            do="see that it runs (celery-results doctor), then ask again",
        ) from error
    return [
        Runs.of_settings(name, answer if isinstance(answer, Mapping) else {})
        for name, answer in sorted(answers.items())
    ]


def problems(found: Sequence[Runs], stage: str | None, expected: Sequence[str]) -> list[str]:
    """Say which worker is not as it should be; `stage` is one of STAGES, NO_STAGE or None for any."""
    told = []
    for worker in found:
        if stage is not None and worker.stage != (None if stage == NO_STAGE else stage):
            wanted = "no stage" if stage == NO_STAGE else f"the stage {stage}"
            told.append(
                f"{worker.name} runs in {worker.words()} instead of {wanted}: "
                "restart it, so that it reads its settings"
            )
    names = {worker.name for worker in found}
    told += [
        f"{name} does not answer: start it, or see why it does not (its log, the broker)"
        for name in expected
        if name not in names
    ]
    return told


def _within(seconds: float, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Do it in a thread that nobody waits for any longer than this: a broker that hangs holds its client."""
    outcome: list[dict[str, Any] | Exception] = []

    def run() -> None:
        try:
            outcome.append(work())
        except Exception as error:  # noqa: BLE001 - raised again where it is waited for
            outcome.append(error)

    thread = threading.Thread(target=run, name="celery-results-stage", daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise TimeoutError
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]
