"""A client that stores one result after another while a test does its worst to the server."""

from collections.abc import Callable

from scenario_support import CeleryHost, until

NOTES = "/var/lib/celery/acknowledged"
ENOUGH = "/var/lib/celery/enough"
LOG = "/tmp/store.log"
# Ends by itself, should the test be over before it says so.
STORE_AND_NOTE = f"""
import os, time
deadline = time.monotonic() + 120
number = 0
with open("{NOTES}", "w", buffering=1) as acknowledged:
    while not os.path.exists("{ENOUGH}") and time.monotonic() < deadline:
        app.backend.store_result(f"kill-{{number}}", number, "SUCCESS")
        acknowledged.write(f"{{number}}\\n")
        number += 1
"""
COUNT_LOST = f"""
noted = [int(line) for line in open("{NOTES}").read().split()]
lost = [n for n in noted if (r := app.AsyncResult(f"kill-{{n}}")).state != "SUCCESS" or r.result != n]
print(len(noted), len(lost))
"""


class Storing:
    """The client, from its start; what the server acknowledged is noted on the worker's host."""

    def __init__(self, worker: CeleryHost) -> None:
        self._worker = worker
        command = worker.command(STORE_AND_NOTE)
        worker.host.check_output(f"rm -f {NOTES} {ENOUGH}; nohup {command} >{LOG} 2>&1 &")

    def acknowledged(self) -> int:
        """Count the results that were acknowledged so far."""
        return int(self._worker.host.run(f"wc -l <{NOTES}").stdout or 0)

    def go_on(self, count: int, seconds: float) -> None:
        """Wait until more than `count` further results are acknowledged, at most so many `seconds`."""
        before = self.acknowledged()
        until(lambda: self.acknowledged() > before + count, seconds, "stores go on")

    def outlive(self, kill: Callable[[], object], times: int, count: int) -> tuple[int, int]:
        """Kill the server so often, more than `count` stores before and after each; see `end`."""
        self.go_on(count, 30)
        for _ in range(times):
            kill()
            self.go_on(count, 60)
        return self.end()

    def end(self) -> tuple[int, int]:
        """End it, which must have met no error; return how many were acknowledged, how many are lost."""
        host = self._worker.host
        host.check_output(f"touch {ENOUGH}")
        until(lambda: host.run("pgrep -u celery -f 'venv/bin/python -$'").rc != 0, 60, "the writer ends")
        assert host.run(f"cat {LOG}").stdout == ""
        noted, lost = self._worker.python(COUNT_LOST).split()
        return int(noted), int(lost)
