"""The command line: finds its verbs as modules, prints errors as expected / found / do.

Exit codes of every verb: 0 all holds; 1 a check failed or a server did not answer; 2 wrong usage, or a
configuration that cannot be read; 130 interrupted.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import traceback
from typing import TYPE_CHECKING

import click

from celery_results import __version__, commands
from celery_results.errors import CeleryResultsError
from celery_results.options import State
from celery_results.redaction import redactor_for

if TYPE_CHECKING:
    from collections.abc import Sequence

USAGE = 2
INTERRUPTED = 130


class Verbs(click.Group):
    """A group whose commands are the modules of ``celery_results.commands``, imported when used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the verbs without importing them."""
        del ctx
        return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(commands.__path__))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of one verb."""
        if cmd_name not in self.list_commands(ctx):
            return None
        module = importlib.import_module(f"{commands.__name__}.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        return command


@click.group(
    cls=Verbs,
    name="celery-results",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Exit codes: 0 all holds, 1 a check failed, 2 usage or unreadable configuration, 130 interrupted.",
)
@click.version_option(__version__, prog_name="celery-results")
def group() -> None:
    """Prove, diagnose and migrate Celery result backends."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and give its exit code: a verb returns it, or None for 0."""
    state = State()
    try:
        code = group.main(
            args=None if arguments is None else list(arguments),
            prog_name="celery-results",
            obj=state,
            standalone_mode=False,
        )
    except CeleryResultsError as error:
        _print_error(error, error, state)
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return USAGE
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 - a defect of ours: its message may quote a secret
        plain = CeleryResultsError(
            expected="no such error",
            found=f"{type(error).__name__}: {error}",
            do="report it, with the output of the same command and --debug",
        )
        _print_error(plain, error, state)
        return plain.exit_code
    return code if isinstance(code, int) else 0


def _print_error(error: CeleryResultsError, cause: BaseException, state: State) -> None:
    clean = redactor_for(*state.environments).clean
    if state.debug:
        click.echo(clean("".join(traceback.format_exception(cause))), err=True)
    details = {key: clean(getattr(error, key)) for key in ("expected", "found", "do")}
    if state.as_json:
        click.echo(json.dumps({"ok": False, "error": details}))
    else:
        lines = [f"{key:<8} {text}" for key, text in details.items()]
        click.echo("error: " + "\n       ".join(lines), err=True)
