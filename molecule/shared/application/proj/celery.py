"""Nothing of the bundle is imported: the settings come from /etc/celery and its env file."""

import time

from celery import Celery

app = Celery("proj")
app.config_from_object("celeryconfig")


@app.task
def add(x: int, y: int) -> int:
    return x + y


@app.task
def together(numbers: list[int]) -> int:
    return sum(numbers)


@app.task
def slow(seconds: float, token: str) -> str:
    time.sleep(seconds)
    return token


@app.task
def blob(size_bytes: int) -> str:
    return "x" * size_bytes
