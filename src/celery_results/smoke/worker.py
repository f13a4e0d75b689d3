"""The worker process of a run: started, watched, and ended whatever happens."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

import celery_results
from celery_results import interruption
from celery_results.errors import WorkerError

if TYPE_CHECKING:
    from types import TracebackType

    from celery_results.redaction import Redactor
    from celery_results.smoke.application import Run

# The name is written by celery_results.smoke.app, which cannot be imported outside of the worker.
READY_FILE = "ready"
_LOG_LINES = 20
_POLL_SECONDS = 0.02
_WARM_SECONDS = 6.0
# After Ctrl-C or an error nobody waits for the results of what runs.
_IMPATIENT_SECONDS = 1.0


def last_lines(text: str) -> str:
    """Give the end of a log."""
    return "\n".join(text.rstrip().splitlines()[-_LOG_LINES:])


class Worker:
    """A context manager: inside, the process runs; afterwards it and its children do not."""

    def __init__(self, run: Run, environ: dict[str, str], config_directory: Path, redactor: Redactor) -> None:
        """Prepare; nothing is started before the context is entered."""
        self._run = run
        self._redactor = redactor
        self._log = run.directory / "worker.log"
        package = Path(celery_results.__file__).parent.parent
        path = [str(config_directory.absolute()), str(package), *filter(None, [environ.get("PYTHONPATH")])]
        self._environ = (
            environ
            | run.to_environment()
            | {
                "PYTHONPATH": os.pathsep.join(path),
                "PYTHONDONTWRITEBYTECODE": "1",  # the config directory is no place for __pycache__
                "PYTHONUNBUFFERED": "1",
                "TMPDIR": str(run.directory),  # what it leaves when killed goes with the directory
            }
        )
        self._process: subprocess.Popen[bytes] | None = None
        self._told_to_stop = 0.0

    def __enter__(self) -> Self:
        """Start the process, in a session of its own: Ctrl-C reaches the parent only, which then ends it."""
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and fixed arguments
                self._command(),
                env=self._environ,
                cwd=self._run.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Ask it to end, and make it end."""
        process = self._started()
        self.ask_to_stop()
        try:
            warm_seconds = _WARM_SECONDS if kind is None else _IMPATIENT_SECONDS
            process.wait(max(0.0, self._told_to_stop + warm_seconds - time.monotonic()))
        except subprocess.TimeoutExpired:
            pass
        finally:
            # The group: a pool child can outlive its parent in a task that does not return.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def ask_to_stop(self) -> None:
        """Send TERM once: Celery finishes what it has begun, and goes."""
        process = self._started()
        if not self._told_to_stop:
            self._told_to_stop = time.monotonic()
            if process.poll() is None:
                process.terminate()

    def wait_until_ready(self, seconds: float) -> None:
        """Return when the worker takes tasks; raise with the end of its log if it does not."""
        deadline = time.monotonic() + seconds
        process = self._started()
        while not (self._run.directory / READY_FILE).exists():
            interruption.check()
            code = process.poll()
            if code is not None:
                raise WorkerError(
                    expected="the worker process to start with the deployed settings",
                    found=f"it ended with code {code}; its log ends:\n{self.log_tail()}",
                    do="correct what the log names: the broker, or a file that this user may not read",
                )
            if time.monotonic() > deadline:
                raise WorkerError(
                    expected=f"the worker process to take tasks within {seconds:.0f} s",
                    found=f"it does not; its log ends:\n{self.log_tail()}",
                    do="see whether the broker answers; on a slow machine give --timeout more seconds",
                )
            time.sleep(_POLL_SECONDS)

    def log(self) -> str:
        """Give the log so far, without secrets."""
        try:
            return self._redactor.clean(self._log.read_text(encoding="utf-8", errors="replace"))
        except OSError:
            return ""

    def log_tail(self) -> str:
        """Give the log's last lines."""
        return last_lines(self.log())

    def _started(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "the context was not entered"
        return self._process

    def _command(self) -> list[str]:
        return [
            *(sys.executable, "-m", "celery", "--quiet", "--app", "celery_results.smoke.app", "worker"),
            *("--pool", "prefork", "--concurrency", "2", "--queues", self._run.queue),
            *("--hostname", f"{self._run.queue}@%h", "--loglevel", "INFO"),
            *("--without-gossip", "--without-mingle", "--without-heartbeat"),
        ]
