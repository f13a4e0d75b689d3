"""Redis to PostgreSQL with a way back at each stage: the load runs on, and nothing that it was told is lost.

The tests are one walk, in this order.
"""

import pytest
from testinfra.host import Host
from testinfra.utils.ansible_runner import AnsibleRunner
from tests.soak.scenario import MigrationSite, Soak

STAGES = ("prepare", "dual_write", "backfill", "verify")


@pytest.fixture(scope="module")
def postgresql(hosts: AnsibleRunner) -> Host:
    return hosts.get_host(hosts.get_hosts("postgresql")[0])


def empty(postgresql: Host) -> None:
    """Do what the way back tells."""
    postgresql.check_output(
        "runuser -u postgres -- psql -d celery_results -c 'TRUNCATE celery_taskmeta, celery_tasksetmeta'"
    )


def test_plan_changes_nothing(site: MigrationSite, soak: Soak) -> None:
    before = soak.fingerprints()
    site.does("plan")
    assert soak.fingerprints() == before
    soak.check("celery")


@pytest.mark.parametrize("stage", ["dual_write", "finish"])
def test_a_stage_before_its_turn_is_refused_with_the_command_to_type(
    site: MigrationSite, soak: Soak, stage: str
) -> None:
    before = soak.fingerprints()
    site.refuses(stage, "playbooks/migrate/prepare.yml -e source=redis -e target=postgresql")
    assert soak.fingerprints() == before


@pytest.mark.parametrize("last", ["prepare", "dual_write", "verify"])
def test_the_way_back_before_cutover_leaves_the_source_alone_and_complete(
    site: MigrationSite, soak: Soak, postgresql: Host, last: str
) -> None:
    stages = STAGES[: STAGES.index(last) + 1]
    for stage in stages:
        site.does(stage)
        soak.check(*(["source", "target"] if stage == "verify" else []))
    if last == "dual_write":
        before = soak.fingerprints()
        run = site.run(backend="redis", broker="redis")
        assert run.returncode != 0, run.stdout[-3000:]
        assert "playbooks/migrate/" in run.stdout
        site.refuses("cutover", "playbooks/migrate/backfill.yml -e source=redis -e target=postgresql")
        assert soak.fingerprints() == before
    site.does("rollback")
    soak.goes_on()
    soak.check("celery")
    empty(postgresql)


def test_up_to_the_cutover_both_stores_have_everything(site: MigrationSite, soak: Soak) -> None:
    site.does(*STAGES, "cutover")
    soak.goes_on()
    soak.check("source", "target")


def test_the_way_back_from_cutover_is_dual_write_and_loses_nothing(site: MigrationSite, soak: Soak) -> None:
    site.does("rollback")
    soak.goes_on()
    soak.check("source", "target")


def test_from_there_it_goes_on_to_the_end(site: MigrationSite, soak: Soak) -> None:
    site.does("backfill", "verify", "cutover")
    soak.check("source", "target")
    site.does("finish")
    soak.goes_on()
    soak.stop()
    report = soak.check("celery", sample=0, final=True, at_least=500)
    assert report["on_their_way"] == 0
