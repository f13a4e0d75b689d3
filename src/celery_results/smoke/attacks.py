"""Try what must be refused: the backend's own attempts and those against our settings."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from celery_results.smoke import certificates
from celery_results.smoke.catalog import BROKER_PREFIX
from celery_results.smoke.outcome import NotRun
from celery_results.smoke.refusals import Accepted, Target

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from celery_results.settings import Connection
    from celery_results.smoke.catalog import Entry
    from celery_results.smoke.checks import Steps
    from celery_results.smoke.recorder import Recorder
    from celery_results.smoke.refusals import Attempt, Plugin
    from celery_results.smoke.session import Session


@dataclass(frozen=True)
class Attacks:
    """The logins of this host, and who records what came of them."""

    plugin: Plugin
    recorder: Recorder
    login: Connection
    client: Connection | None
    monitor: Connection | None
    environ: Mapping[str, str]
    config_directory: Path
    role: str = "RESULT"

    def run(self, entries: Iterable[Entry], session: Session) -> None:
        """Try each, once."""
        target = Target(
            login=self.login,
            client=self.client,
            monitor=self.monitor,
            environ=self.environ,
            config_directory=self.config_directory,
            directory=session.directory,
            result_key=_key(session),
            role=self.role,
        )
        own = self.plugin.ATTEMPTS if self.role == "RESULT" else self.plugin.BROKER_ATTEMPTS
        attempts = {**certificates.ATTEMPTS, **own}
        for entry in entries:
            attempt = attempts.get(entry.name.removeprefix(BROKER_PREFIX))
            self.recorder.step(entry, _attempt(attempt, target, session))


def _key(session: Session) -> str:
    task_id = session.victim.id if session.victim is not None else str(uuid.uuid4())
    key_of = getattr(session.primary(session.app.backend), "get_key_for_task", None)
    if key_of is None:
        return task_id
    key: str | bytes = key_of(task_id)
    return key.decode() if isinstance(key, bytes) else key


def _attempt(attempt: Attempt | None, target: Target, session: Session) -> Steps:
    if attempt is None:
        raise NotRun("this backend has no such way in")
    before = session.victim and session.fresh(session.victim.id).result
    note = attempt(target)
    if session.victim is not None and session.fresh(session.victim.id).result != before:
        raise Accepted("the server refused, and yet the stored result is another one now")
    return note
    yield  # a check has steps; this one has a single one
