"""What a deployed server must refuse. Each module here is one backend's, found by the name of the connection.

An attempt first shows that the genuine login works the same way, so that a server which is down or a wrong
address is never taken for a refusal. It returns how it was refused, raises `Accepted` where the attack
worked, and lets any other exception through: then nothing is proven, which is a failure too.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, cast

from celery_results.errors import SettingsError

if TYPE_CHECKING:
    from pathlib import Path

    from celery_results.settings import Connection
    from celery_results.smoke.diagnosis import Hint


@dataclass(frozen=True)
class Target:
    """The genuine logins of this host, and what there is to attack."""

    login: Connection
    client: Connection | None
    monitor: Connection | None
    environ: Mapping[str, str] = field(repr=False)
    config_directory: Path
    directory: Path
    # Where the server keeps a result; of a task that does not exist, where this host cannot store one.
    result_key: str
    # Which of the settings lead to the login's server: CELERYCONFIG_<role>_*.
    role: str = "RESULT"


class Accepted(Exception):  # noqa: N818 - an answer, not an accident
    """The server took what it should have refused."""


Attempt = Callable[[Target], str]


class Plugin(Protocol):
    """What a module here offers."""

    @property
    def ATTEMPTS(self) -> Mapping[str, Attempt]:  # noqa: N802 - a module's constant
        """Give the attempts of this backend, by the names in the catalog."""

    @property
    def BROKER_ATTEMPTS(self) -> Mapping[str, Attempt]:  # noqa: N802 - a module's constant
        """Give the attempts on it as a broker, by the same names; none where it is no broker."""

    @property
    def HINTS(self) -> Sequence[Hint]:  # noqa: N802 - a module's constant
        """Give what this server's messages mean, and what to do."""

    @property
    def NOT_OFFERED(self) -> Mapping[str, str]:  # noqa: N802 - a module's constant
        """Give the checks of what this backend does not have by design, each with the reason."""

    def forget_chord(self, backend: Any, group_id: str) -> None:  # noqa: ANN401 - Celery has no types
        """Remove what Celery itself leaves of a chord."""


def find(name: str) -> Plugin | None:
    """Find the module of this backend, if there is one: its hints help the other checks too."""
    known = [module.name for module in pkgutil.iter_modules(__path__)]
    return load(name) if name in known else None


def load(name: str) -> Plugin:
    """Find the module of this backend; without one nothing can be said about refusals."""
    known = sorted(module.name for module in pkgutil.iter_modules(__path__))
    if name not in known:
        raise SettingsError(
            expected=f"refusals for the backend {name} (there are some for: {', '.join(known)})",
            found=f"no module celery_results.smoke.refusals.{name}",
            do="add it, or prove only what needs none: --only value --only exception ... (see --list)",
        )
    return cast("Plugin", importlib.import_module(f"{__name__}.{name}"))
