"""How long a wait goes on, and what it gives of a set of results; no server is needed for these."""

from __future__ import annotations

import time
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import TimeoutError as CeleryTimeoutError
from celery.result import AsyncResult, GroupResult, ResultSet

from celery_results.backends.database.waiting import each_ready, seconds_left

APP = Celery("waits", backend="cache+memory://", set_as_current=False)


def test_a_wait_without_an_end_looks_every_interval():
    assert seconds_left(None, 0.5, "never") == 0.5


def test_a_wait_that_ends_soon_looks_at_its_end():
    assert seconds_left(time.monotonic() + 60, 0.5, "not yet") == 0.5
    assert 0 < seconds_left(time.monotonic() + 0.2, 0.5, "not yet") <= 0.2


def test_a_wait_that_is_over_says_so():
    with pytest.raises(CeleryTimeoutError, match="it took too long"):
        seconds_left(time.monotonic() - 0.001, 0.5, "it took too long")


def test_only_what_nobody_has_read_is_asked_for_and_each_node_learns_of_it():
    read, unread, twin = (AsyncResult(name, app=APP) for name in ("read", "unread", "unread"))
    read._maybe_set_cache({"task_id": "read", "status": "SUCCESS", "result": 1})
    group = GroupResult("group", [AsyncResult("member", app=APP)], app=APP)
    asked: list[list[str]] = []

    def get_many(ids: Any) -> list[tuple[str, dict[str, Any]]]:
        asked.append(list(ids))
        return [(name, {"task_id": name, "status": "SUCCESS", "result": 2}) for name in ids]

    given = dict(each_ready(ResultSet([read, group, unread, twin], app=APP), get_many))
    assert asked == [["unread"]]
    assert given["read"]["result"] == 1
    assert given["group"] == group.results
    assert given["unread"]["result"] == 2
    assert [node._cache["result"] for node in (unread, twin)] == [2, 2]
