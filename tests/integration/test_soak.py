"""A migration by hand under a load that never stops: nothing is lost, and no chord is left behind."""

from __future__ import annotations

import json

from tests.integration.dual_case import until


def test_nothing_is_lost_from_redis_to_postgresql_under_load(walk):
    """Every stage in its order; the load runs all the time."""
    made = walk()
    # Clients first, this once: what a client forgets on one side alone would stay on the other.
    made.roll_clients("dual_write")
    made.roll_workers("dual_write")
    made.copy()
    made.repair()
    made.verify()
    made.roll_clients("bridge")
    made.roll_workers("cutover")
    made.roll_clients("cutover")
    made.verify()
    report = made.check_both()
    assert report["ok"], json.dumps([report["offences"], report["offenders"]])
    for stage in ("drain", "new"):
        made.roll_workers(stage)
        made.roll_clients(stage)
        until(lambda: made.chords_of_the_old_side() == 0, "chords of the old side do not end")
    made.stop_load()
    report = made.check("target", final=True)
    assert report["ok"], json.dumps([report["offences"], report["offenders"]])
    assert report["on_their_way"] == 0
    assert report["acknowledged"] > 100
    assert {"chord", "broken chord", "chain", "forgotten", "saved group"} <= report["kinds"].keys()
