"""The application of benchmarks/database.py's end-to-end part; its settings come from the environment."""

import os

from celery import Celery


def make_app() -> Celery:
    """Give an app on the backend, broker and queue of the environment."""
    app = Celery("bench", set_as_current=False)
    app.conf.update(
        broker_url=os.environ["BENCH_BROKER"],
        result_backend=os.environ["BENCH_BACKEND"],
        task_default_queue=os.environ["BENCH_QUEUE"],
        result_cache_max=-1,
        broker_connection_retry_on_startup=True,
    )

    @app.task(name="bench.echo", shared=False)  # type: ignore[untyped-decorator] # Celery has no types
    def echo(value: int) -> int:
        return value

    return app


app = make_app() if "BENCH_BACKEND" in os.environ else None
