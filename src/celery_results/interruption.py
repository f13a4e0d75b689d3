"""Ctrl-C, TERM and HUP end a command in order, through KeyboardInterrupt.

An exception that a signal raises is lost where Python happens to run a destructor or a weak reference's
callback (it is printed as ignored), and the command would go on. So the wish is remembered too.

Where KeyboardInterrupt itself has left a text given to exec() or eval(), `python -m` ends by SIGINT at last,
whatever exit code was given meanwhile (CPython's unhandled_keyboard_interrupt, Python/pythonrun.c). That
looks for this very class only, so it is one derived from it.
"""

from __future__ import annotations

import signal
import threading

_asked = threading.Event()


class Interruption(KeyboardInterrupt):
    """The end was asked for."""


def install() -> None:
    """Have the three signals end this process in order."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)


def check() -> None:
    """Raise if the end was asked for and the exception got lost."""
    if _asked.is_set():
        raise Interruption


def _interrupt(_number: int, _frame: object) -> None:
    _asked.set()
    raise Interruption
