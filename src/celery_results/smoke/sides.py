"""While results go to two stores: which of them is attacked, and whether the other one gets them too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from celery_results.settings import RESULT, TARGET, alone, connection_from_env, primary_role, stage
from celery_results.smoke import refusals

if TYPE_CHECKING:
    from collections.abc import Mapping

    from celery_results.smoke.session import Session

# What celery_results.backends.dual calls the store of each role.
_NAMES: Final = {RESULT: "old", TARGET: "new"}
_MIRROR_PATIENCE_SECONDS: Final = 5.0


@dataclass(frozen=True)
class Sides:
    """Of the settings under an environment: the stage of a migration, and the role of its primary."""

    stage: str
    role: str
    names: Mapping[str, str]

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Sides:
        """Read it; without a migration there is one side, which is the primary."""
        connections = {role: connection_from_env(environ, role) for role in (RESULT, TARGET)}
        names = {role: connection.name for role, connection in connections.items() if connection}
        return cls(stage(environ), primary_role(environ), names)

    def alone(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Give the environment of the primary by itself, also of a client that is in another stage."""
        return alone(environ, self.role)

    def primary(self, backend: Any) -> Any:  # noqa: ANN401 - Celery has no types
        """Give the primary's own backend."""
        return self._side(backend, self.role) if self.stage else backend

    def forget_chord(self, backend: Any, group_id: str) -> None:  # noqa: ANN401 - Celery has no types
        """Remove what Celery leaves of a chord, on both sides: each was told of its parts."""
        for role, name in self.names.items():
            plugin = refusals.find(name)
            if plugin and (self.stage or role == RESULT):
                plugin.forget_chord(self._side(backend, role) if self.stage else backend, group_id)

    def document(self, session: Session | None) -> dict[str, Any] | None:
        """Tell the stage, what is where, and whether the stored result is on both sides; None if not asked.

        A mirror that does not have it is no failure here: tasks go on without it, and it is repaired.
        """
        if not self.stage:
            return None
        other = TARGET if self.role == RESULT else RESULT
        on_both: bool | None = None
        if session is not None and session.victim is not None and self.stage != "drain":
            mirror, task_id = session.app.backend.mirror, session.victim.id

            def is_there() -> bool:
                own = session.app.backend.primary if mirror.name != _NAMES[other] else None
                read = (lambda work: work(own)) if own is not None else mirror.read
                meta = read(lambda backend: backend._get_task_meta_for(task_id))  # noqa: SLF001
                return bool(meta) and meta["status"] == "SUCCESS"

            on_both = session.wait_for(is_there, _MIRROR_PATIENCE_SECONDS)
        return {
            "stage": self.stage,
            "primary": self.names[self.role],
            "mirror": self.names[other],
            "on_both": on_both,
        }

    @staticmethod
    def _side(backend: Any, role: str) -> Any:  # noqa: ANN401 - Celery has no types
        mirror = backend.mirror
        return mirror.backend() if mirror.name == _NAMES[role] else backend.primary
