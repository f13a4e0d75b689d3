"""What every verb of the command line shares: its options and how it fails."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from celery_results.settings import PREFIX, environment

if TYPE_CHECKING:
    from collections.abc import Callable

DEFAULT_CONFIG_DIRECTORY = Path("/etc/celery")


@dataclass
class State:
    """What ``main`` must know to print an error the way it was asked for."""

    as_json: bool = False
    debug: bool = False
    environments: list[dict[str, str]] = field(default_factory=list, repr=False)


@dataclass(frozen=True)
class Common:
    """The options of every verb."""

    config_directory: Path
    env_file: Path | None
    as_json: bool
    debug: bool
    state: State = field(default_factory=State, repr=False)

    def environment(self) -> dict[str, str]:
        """Give the environment of the deployed processes.

        Without --env-file: celery.env of the config directory, or, where there is none, a CELERYCONFIG_*
        environment that is already set (a container's, a unit's).
        """
        env_file = self.env_file or self.config_directory / "celery.env"
        if self.env_file is None and f"{PREFIX}RESULT_NAME" in os.environ and not env_file.exists():
            return self.read(None)
        return self.read(env_file)

    def read(self, env_file: Path | None) -> dict[str, str]:
        """Read an env file, and have its secrets masked in whatever `main` prints."""
        values = environment(env_file)
        self.state.environments.append(values)
        return values


def common_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of every verb; the function gets them as its argument ``common``."""

    @click.option(
        "--config-directory",
        type=click.Path(path_type=Path, file_okay=False),
        default=DEFAULT_CONFIG_DIRECTORY,
        show_default=True,
        help="Where celeryconfig.py and the env files are.",
    )
    @click.option(
        "--env-file",
        type=click.Path(path_type=Path, dir_okay=False),
        help="The environment to use instead of CONFIG_DIRECTORY/celery.env.",
    )
    @click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of text.")
    @click.option("--debug", is_flag=True, help="Print a traceback with an error.")
    @click.pass_context
    @functools.wraps(function)
    def wrapper(
        context: click.Context,
        /,
        *,
        config_directory: Path,
        env_file: Path | None,
        as_json: bool,
        debug: bool,
        **rest: object,
    ) -> object:
        state = context.ensure_object(State)
        state.as_json, state.debug = as_json, debug
        return function(common=Common(config_directory, env_file, as_json, debug, state), **rest)

    return wrapper
