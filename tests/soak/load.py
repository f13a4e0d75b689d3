"""A load that never stops until it is told to, and notes what it sends before it does.

    python -m soak.load run --env-file /etc/celery/celery.env --directory /var/lib/celery/soak

runs until the file `stop` is in the directory. As a user's deployment would, it restarts its clients when the
settings beside the env file change: what they are about to send is sent, and those that come next take over
the waits. The clients are threads of a process of their own, `work`, which Celery's settings are loaded for.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

WITH_ENVIRONMENT = 'set -a; . "$1"; set +a; shift; exec "$@"'
STOP_SECONDS = 60.0


def fingerprint(env_file: Path) -> str:
    """Digest all that a client reads once, when it starts."""
    digest = hashlib.sha256()
    for path in [env_file, *sorted(env_file.parent.glob("celeryconfig*.py"))]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def start(arguments: argparse.Namespace) -> subprocess.Popen[bytes]:
    module = __spec__.name if __spec__ else "soak.load"
    work = [sys.executable, "-m", module, "work", "--env-file", str(arguments.env_file)]
    work += ["--directory", str(arguments.directory), "--threads", str(arguments.threads)]
    work += ["--rate", str(arguments.rate), "--slow", str(arguments.slow)]
    return subprocess.Popen(["/bin/sh", "-euc", WITH_ENVIRONMENT, "sh", str(arguments.env_file), *work])


def stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def run(arguments: argparse.Namespace) -> None:
    """Keep the clients running under the settings of the moment; `starts` counts their starts."""
    told = arguments.directory / "stop"
    while not told.exists():
        deployed = fingerprint(arguments.env_file)
        process = start(arguments)
        with (arguments.directory / "starts").open("a") as starts:
            starts.write(f"{time.time():.3f} {deployed}\n")
        while process.poll() is None and not told.exists() and fingerprint(arguments.env_file) == deployed:
            time.sleep(0.2)
        if process.poll() is None:
            stop(process)
        elif process.returncode:
            time.sleep(1.0)


def work(arguments: argparse.Namespace) -> None:
    """Be the clients, until SIGTERM."""
    from .clients import Clients  # noqa: PLC0415 # the settings are there only now

    clients = Clients(arguments.directory, arguments.rate, arguments.slow)
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    threads: list[tuple[Callable[..., None], tuple[Any, ...]]] = [
        (clients.adopt, ()),
        (clients.reread, ()),
        *[(clients.operate, (random.Random(), arguments.threads)) for _ in range(arguments.threads)],  # noqa: S311
    ]
    for target, given in threads:
        threading.Thread(target=target, args=given, daemon=True).start()
    ended.wait()
    clients.finish_sending()
    # Whoever waits for an answer stops waiting, as in a process that is killed: the next one takes over.
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("verb", choices=["run", "work"])
    parser.add_argument("--env-file", type=Path, required=True)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=6)
    parser.add_argument("--rate", type=float, default=8.0, help="operations a second, of all threads")
    parser.add_argument("--slow", type=float, default=8.0, help="seconds of a chord's part, at most")
    arguments = parser.parse_args()
    arguments.directory.mkdir(parents=True, exist_ok=True)
    {"run": run, "work": work}[arguments.verb](arguments)


if __name__ == "__main__":
    main()
