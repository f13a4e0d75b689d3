"""The application of benchmarks/broker.py, and its client: round OPERATIONS TASKS, or unread TASKS."""

import json
import statistics
import sys
import time

from celery import Celery, group

app = Celery("broker_app")
app.config_from_object("celeryconfig")


@app.task(name="bench.echo")  # type: ignore[untyped-decorator] # Celery has no types
def echo(value: int) -> int:
    """Give back what came."""
    return value


def one_round(operations: int, tasks: int) -> None:
    """Print p50 and p99 of single calls in ms, and tasks per second of many at once."""
    times = []
    for number in range(operations):
        began = time.perf_counter()
        if echo.delay(number).get(timeout=60) != number:
            raise RuntimeError(number)
        times.append((time.perf_counter() - began) * 1e3)
    began = time.perf_counter()
    values = group(echo.s(number) for number in range(tasks)).apply_async().get(timeout=600)
    rate = tasks / (time.perf_counter() - began)
    if values != list(range(tasks)):
        raise RuntimeError("wrong results")
    percentiles = statistics.quantiles(times, n=100)
    print(json.dumps({"p50": percentiles[49], "p99": percentiles[98], "rate": rate}))


def send_unread(tasks: int) -> None:
    """Send so many tasks for each line of input, read none of their results, and say when all have run."""
    for _ in sys.stdin:
        for number in range(tasks):
            echo.delay(number)
        # Empty: all are taken, and but for the last few done.
        with app.connection_for_read() as connection:
            while connection.default_channel.queue_declare("celery", passive=True).message_count:
                time.sleep(0.1)
        print("done", flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "round":
        one_round(int(sys.argv[2]), int(sys.argv[3]))
    else:
        send_unread(int(sys.argv[2]))
