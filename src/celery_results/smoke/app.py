"""What the worker runs: ``celery -A celery_results.smoke.app worker``. Not for import by anything else."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time

from celery.signals import worker_ready, worker_shutdown

from celery_results.smoke.application import Run, build

READY_FILE = "ready"
_LOOK_SECONDS = 0.5
_WARM_SECONDS = 2.0

_run = Run.from_environment(os.environ)
app = build("celeryconfig", _run)


def _tell_parent(**_arguments: object) -> None:
    (_run.directory / READY_FILE).touch()


def _tidy_up(**_arguments: object) -> None:
    # Where the parent lives, the directory is its own to remove, after it has read the log.
    if os.getppid() != _run.parent:
        shutil.rmtree(_run.directory, ignore_errors=True)


def _end_with_parent() -> None:
    """End after a parent that was killed: by TERM, then by KILL; Celery's pool children follow by themselves.

    A thread, because PR_SET_PDEATHSIG cannot also wait, escalate and remove the private directory.
    """
    while os.getppid() == _run.parent:
        time.sleep(_LOOK_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_WARM_SECONDS)
    _tidy_up()
    os.kill(os.getpid(), signal.SIGKILL)


worker_ready.connect(_tell_parent, weak=False)
worker_shutdown.connect(_tidy_up, weak=False)
threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()
