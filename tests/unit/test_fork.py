"""A fork and the threads that are opening a connection."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

import pytest

from celery_results.backends.database import fork

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Opening:
    """A thread inside `held_off` until it is told to leave."""

    def __init__(self) -> None:
        self.inside, self.leave, self.left_at = threading.Event(), threading.Event(), 0.0
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        assert self.inside.wait(10)

    def _run(self) -> None:
        with fork.held_off():
            self.inside.set()
            self.leave.wait(10)
            self.left_at = time.monotonic()

    def end(self) -> None:
        self.leave.set()
        self.thread.join(10)


@pytest.fixture
def opening() -> Iterator[Opening]:
    opening = Opening()
    yield opening
    opening.end()


def forked() -> float:
    """Fork; give the time at which this process went on. The child must pass the gate at once."""
    pid = os.fork()
    if pid == 0:
        passed = False
        try:
            with fork.held_off():
                passed = not fork._gate._inside - 1
        finally:
            os._exit(not passed)
    at = time.monotonic()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    return at


def test_a_fork_waits_for_a_connection_that_is_being_opened(opening: Opening) -> None:
    threading.Timer(0.2, opening.leave.set).start()
    at = forked()
    assert 0 < opening.left_at <= at


def test_who_comes_later_lets_the_fork_go_first(opening: Opening) -> None:
    later: list[float] = []

    def once_a_fork_waits(work: Callable[[], object]) -> None:
        while not fork._gate._closed:
            time.sleep(0.001)
        work()

    def enter() -> None:
        with fork.held_off():
            later.append(time.monotonic())

    def leave() -> None:
        time.sleep(0.1)
        opening.leave.set()

    threads = [threading.Thread(target=once_a_fork_waits, args=[work]) for work in (enter, enter, leave)]
    for thread in threads:
        thread.start()
    at = forked()
    for thread in threads:
        thread.join(10)
    assert len(later) == 2
    assert opening.left_at <= at < min(later)


def test_a_fork_does_not_wait_long_for_a_server_that_does_not_answer(
    opening: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fork, "MOST_SECONDS", 0.05)
    forked()
    assert not opening.left_at


def test_a_connection_is_not_opened_while_a_fork_is_under_way() -> None:
    fork._gate.close()
    thread = threading.Thread(target=lambda: fork.held_off().__enter__())
    try:
        thread.start()
        thread.join(0.1)
        assert thread.is_alive()
    finally:
        fork._gate.open()
    thread.join(10)
    assert not thread.is_alive()
    fork._gate.begin()


def test_a_fork_out_of_the_block_itself_leaves_the_parents_gate_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fork, "MOST_SECONDS", 0.05)
    with fork.held_off():
        forked()
    assert fork._gate._inside == 0


def test_a_descriptor_that_is_blinded_reads_as_empty() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"of the parent")
    fork.blind(reading)
    assert os.read(reading, 10) == b""
    os.close(reading)
    os.close(writing)
