"""Archive in this process and kill it, -9, at the point whose number is given: started by the tests.

Arguments: the URL, the directory, the number. Ends with code 0 where there were fewer points.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from datetime import timedelta
from pathlib import Path

from celery_results.archive.mover import Mover, Plan
from celery_results.archive.rows import Rows
from celery_results.backends.database.storage import Storage
from celery_results.deployed import cutoff

url, directory, number = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
points = itertools.count(1)


def reached(point: str) -> None:
    """End without any clean-up."""
    if next(points) == number:
        sys.stdout.write(point)
        sys.stdout.flush()
        os.kill(os.getpid(), signal.SIGKILL)


storage = Storage.at(url)
directory.mkdir(exist_ok=True)
source = {"dialect": storage.driver.name, "server": "", "database": "any", "table": "celery_taskmeta"}
plan = Plan(directory, cutoff(timedelta(days=30)), source, chunk_rows=700)
with storage.session() as session:
    Mover(plan, Rows(storage, session), lambda _progress: None, lambda: False, reached).run()
