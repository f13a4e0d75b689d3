"""What compositions of tasks prove."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery import chain as chain_of
from celery import chord as chord_of
from celery import group as group_of
from celery.result import GroupResult

from celery_results.smoke.checks import expect
from celery_results.smoke.outcome import CheckFailed

if TYPE_CHECKING:
    from celery_results.smoke.checks import Steps
    from celery_results.smoke.session import Session

_SIZE = 4
_DOUBLES = [0, 2, 4, 6]


def _additions(session: Session) -> Any:  # noqa: ANN401 - Celery has no types
    return group_of([session.signature("add", i, i) for i in range(_SIZE)], app=session.app)


def group(session: Session) -> Steps:
    """Join the results of a group."""
    result = session.send(_additions(session))
    yield
    expect(_DOUBLES, session.get(result), "the joined values")
    return f"{_SIZE} results joined in order"


def group_save_restore(session: Session) -> Steps:
    """Save a group, find it again by its id, delete it."""
    result = session.send(_additions(session))
    result.save()
    yield
    restored = GroupResult.restore(result.id, app=session.app)
    if restored is None:
        raise CheckFailed("the saved group is not found by its id")
    expect(_DOUBLES, session.get(restored), "the restored group's values")
    restored.delete()
    if GroupResult.restore(result.id, app=session.app) is not None:
        raise CheckFailed("the group is still there after delete()")
    return "saved, restored, joined, deleted"


def chord(session: Session) -> Steps:
    """Have the workers count a group's parts and run the body once."""
    result = session.send(chord_of(_additions(session), session.signature("total"), app=session.app))
    yield
    expect(sum(_DOUBLES), session.get(result), "the body's value")
    return f"body run after {_SIZE} parts"


def chain(session: Session) -> Steps:
    """Have each task get the value of the one before."""
    steps = [session.signature("add", 2, 2), session.signature("add", 4), session.signature("multiply", 8)]
    result = session.send(chain_of(*steps, app=session.app))
    yield
    expect(64, session.get(result), "the last value")
    expect([8, 4], [session.get(result.parent), session.get(result.parent.parent)], "the values before")
    return "3 links, each value stored"
