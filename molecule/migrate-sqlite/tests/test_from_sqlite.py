"""From a file to a server, with one time back after the cutover: nothing that the load was told is lost."""

from tests.soak.scenario import MigrationSite, Soak


def test_check_mode_of_a_stage_changes_nothing_and_says_so(site: MigrationSite, soak: Soak) -> None:
    before = soak.fingerprints()
    run = site.stage("prepare", "--check")
    assert run.returncode == 0, run.stdout[-6000:]
    assert "Check mode: nothing was changed" in run.stdout
    site.assert_hidden(run.stdout)
    assert soak.fingerprints() == before


def test_to_the_cutover_and_back_to_dual_write(site: MigrationSite, soak: Soak) -> None:
    site.does("plan", "prepare", "dual_write", "backfill", "verify", "cutover")
    soak.goes_on()
    soak.check("source", "target")
    site.does("rollback")
    soak.goes_on()
    soak.check("source", "target")


def test_the_walk_stops_at_the_gate_and_goes_on_to_the_end(site: MigrationSite, soak: Soak) -> None:
    site.does("walk")
    site.does("walk", confirm="all")
    soak.goes_on()
    soak.stop()
    report = soak.check("celery", sample=0, final=True, at_least=200)
    assert report["on_their_way"] == 0
