"""Every result of one store comes out of the other as Celery put it in: state, value, time, life."""

from __future__ import annotations

import pytest
from celery.result import GroupResult
from tests.integration.copy_case import VALUES, Copying, fill, save_groups, seen

WAYS = (
    ("redis", "postgresql"),
    ("postgresql", "redis"),
    ("redis", "mysql"),
    ("mysql", "redis"),
    ("sqlite", "postgresql"),
    ("postgresql", "sqlite"),
    ("postgresql", "mysql"),
    ("mysql", "postgresql"),
    ("redis", "sqlite"),
    ("redis", "redis"),
)


@pytest.fixture(params=WAYS, ids="-".join)
def way(request, stores):
    return stores.new(request.param[0]), stores.new(request.param[1])


def counts(**found):
    return {"read": 0, "copied": 0, "present": 0, "expired": 0, "failed": 0} | found


def test_celery_reads_on_the_target_what_it_stored_in_the_source(way, tmp_path):
    source, target = way
    stored = fill(source)
    groups = save_groups(source)
    ran = Copying(tmp_path, source, target).run("--debug")
    assert ran.code == 0, ran
    assert ran.document["results"] == counts(read=len(stored), copied=len(stored))
    assert ran.document["groups"] == counts(read=2, copied=2)
    before, after = source.app(), target.app()
    for identifier, state in stored.items():
        expected = seen(before, identifier)
        assert expected["state"] == state
        assert seen(after, identifier) == expected
    assert seen(after, next(name for name in stored if name.startswith("large-")))["value"] == VALUES["large"]
    for group in groups:
        assert GroupResult.restore(group.id, app=after).as_tuple() == group.as_tuple()
