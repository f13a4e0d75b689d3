"""The soak's checker fails on three builds that break a promise."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    ("broken", "offence"),
    [
        ("drop", "missing in postgresql"),
        ("shift", "shifted in postgresql"),
        ("part", "stranded"),
    ],
)
def test_a_build_that_breaks_a_promise_is_seen(walk, broken, offence):
    made = walk(broken)
    made.roll_clients("dual_write")
    made.roll_workers("dual_write")
    made.copy()
    made.goes_on()
    made.stop_load()
    report = made.check("source", "target", final=True, bound=10.0)
    assert not report["ok"]
    assert offence in report["offences"], report
