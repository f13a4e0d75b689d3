"""Say whether the application can be imported and whether this host's worker answers.

Runs with the interpreter, account, environment and import path of the worker; called by celery-units.
Exit code 1 with one line on stderr that names the variable to look at.
"""
# ruff: noqa: INP001 - a script, copied to the host

from __future__ import annotations

import argparse
import time

from celery import Celery, __version__
from celery.app.utils import find_app
from celery.utils.nodenames import default_nodename

OLDEST = (5, 7)


def load(name: str) -> tuple[Celery, bool]:
    """Import the application as `celery --app` does, with its settings; say whether workers can be asked.

    Over a transport without broadcast, such as SQS, they cannot.
    """
    if tuple(map(int, __version__.split(".")[:2])) < OLDEST:
        raise SystemExit(
            f"Celery {__version__} is installed, which is older than 5.7: celery_requirements_file or "
            "celery_python_packages asks for it; allow 5.7 there"
        )
    try:
        app = find_app(name)
        app.loader.import_default_modules()
        with app.connection_for_write() as connection:
            broadcast = "fanout" in connection.transport.implements.exchange_type
    except Exception as error:
        raise SystemExit(
            f"celery_app {name} cannot be imported: {type(error).__name__}: {error}. Is celery_app right, is "
            "its code in celery_app_directory and readable for the user celery, are its packages in "
            "celery_requirements_file?"
        ) from error
    if not (app.conf.result_backend and app.conf.broker_url):
        raise SystemExit(
            f'celery_app {name} does not use these settings: it needs app.config_from_object("celeryconfig")'
        )
    return app, broadcast and app.conf.worker_enable_remote_control


def wait(app: Celery, seconds: float) -> None:
    """Wait until this host's worker answers."""
    node = default_nodename(None)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if app.control.ping(destination=[node], timeout=1.0):
                return
        except OSError:
            time.sleep(1)
    raise SystemExit(
        f"the worker {node} does not answer after {seconds:.0f} s (celery_start_timeout_seconds): "
        "see journalctl -u celery-worker"
    )


def main() -> None:
    """Check the application, then wait for its worker if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("app")
    parser.add_argument("--wait", type=float, default=0.0, metavar="SECONDS")
    arguments = parser.parse_args()
    app, askable = load(arguments.app)
    if arguments.wait and askable:
        wait(app, arguments.wait)


if __name__ == "__main__":
    main()
