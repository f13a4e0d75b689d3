"""Ask a store ten times a second for a result that is not there, in a process of its own.

In the copying process an answer would also wait for Python's interpreter lock, and tell of that.
The settings, secrets included, reach the other process through its standard input.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, Final, Self

from celery_results.stores.endpoint import of_settings

if TYPE_CHECKING:
    from celery_results.stores.endpoint import Endpoint

_PERIOD_SECONDS: Final = 0.1
_START: Final = "from celery_results.migration.probe import main; main()"
# What an endpoint is made of; the rest of somebody's settings may be anything.
_NEEDED: Final = ("result_", "redis_", "database_")


class Probe:
    """One store's answers; ends with this process, however that ends."""

    def __init__(self, endpoint: Endpoint) -> None:
        """Start asking."""
        settings = {name: value for name, value in endpoint.settings.items() if name.startswith(_NEEDED)}
        self._process = subprocess.Popen(  # noqa: S603 - this interpreter, and a constant
            [sys.executable, "-c", _START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,  # Ctrl-C is for the copy, which ends this one
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError), self._process.stdin as pipe:
            pipe.write(pickle.dumps(settings))
        os.set_blocking(self._process.stdout.fileno(), False)
        self._rest = b""

    def answers(self) -> list[float]:
        """Give the seconds of each answer since the last call; one that failed counts for nothing."""
        assert self._process.stdout is not None
        try:
            self._rest += os.read(self._process.stdout.fileno(), 1 << 16)
        except BlockingIOError:
            return []
        *lines, self._rest = self._rest.split(b"\n")
        return [float(line) for line in lines]

    def __enter__(self) -> Self:
        """Give itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the other process."""
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def watchable(endpoint: Endpoint) -> bool:
    """Tell whether there is a server to watch, and settings that can be handed to another process."""
    if endpoint.place.startswith("sqlite"):
        return False
    try:
        pickle.dumps({name: value for name, value in endpoint.settings.items() if name.startswith(_NEEDED)})
    except (pickle.PicklingError, TypeError, AttributeError):
        return False
    return True


def main() -> None:
    """Be the other process: settings on standard input, one line with seconds for each answer."""
    settings: dict[str, Any] = pickle.load(sys.stdin.buffer)  # noqa: S301 - from our parent, by a pipe
    store = of_settings(settings, "the store").source()
    connected = False
    while True:
        began = time.perf_counter()
        try:
            if connected:
                store.ping()
                sys.stdout.write(f"{time.perf_counter() - began:.6f}\n")
                sys.stdout.flush()
            else:
                store.connect()
                store.ping()
                connected = True
        except BrokenPipeError:
            os._exit(0)  # the copy is over; nothing is left to flush
        except Exception:  # noqa: BLE001 - whatever a driver raises: the copy itself will tell
            connected = False
        time.sleep(_PERIOD_SECONDS)
