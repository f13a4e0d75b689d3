"""Ctrl-C, TERM and HUP end a command in order, through KeyboardInterrupt.

An exception that a signal raises is lost where Python happens to run a destructor or a weak reference's
callback (it is printed as ignored), and the command would go on. So the wish is remembered too.
"""

from __future__ import annotations

import signal
import threading

_asked = threading.Event()


def install() -> None:
    """Have the three signals end this process in order."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)


def check() -> None:
    """Raise if the end was asked for and the exception got lost."""
    if _asked.is_set():
        raise KeyboardInterrupt


def _interrupt(_number: int, _frame: object) -> None:
    _asked.set()
    raise KeyboardInterrupt
