"""What a stage of a migration may follow, and what is said to who types another."""

import datetime as dt
import json
import re
from pathlib import Path

import pytest
from plugins.filter.migration import (
    MOST_NAMED,
    STAGES,
    migration_call_problems,
    migration_checked,
    migration_commands,
    migration_confirm_problems,
    migration_gate,
    migration_names,
    migration_next,
    migration_problems,
    migration_record,
    migration_report,
    migration_site_calls,
    migration_trouble,
    migration_under_way,
    migration_unlike,
    migration_walk,
)

from celery_results.migration.verify import compare

PROJECT = Path(__file__).parents[2]
ROLES = ["redis", "postgresql", "mysql", "sqlite", "rabbitmq"]
NOW = dt.datetime.now(dt.UTC)


def asked(stage, source="redis", target="postgresql", broker="redis"):
    return {"stage": stage, "source": source, "target": target, "broker": broker, "inventory": ["prod.yml"]}


def record(stage, state="done", age_seconds=0, **more):
    at = (NOW - dt.timedelta(seconds=age_seconds)).isoformat()
    return {"source": "redis", "target": "postgresql", "stage": stage, "state": state, "at": at, **more}


def host(of=None, names=None):
    return {"record": of or {}, "names": {"RESULT": "redis", "BROKER": "redis"} if names is None else names}


def refusals(stage, *records, **options):
    hosts = {f"host{number}": host(of) for number, of in enumerate(records)}
    return migration_problems(asked(stage), hosts, **options)


@pytest.mark.parametrize("position", range(len(STAGES)))
def test_the_present_stage_may_be_repeated_and_the_next_one_taken(position):
    now = record(STAGES[position])
    assert refusals(STAGES[position], now, now) == []
    for following in STAGES[position + 1 : position + 2]:
        assert refusals(following, now, now) == []


@pytest.mark.parametrize(
    ("present", "wrong"),
    [
        (None, "dual_write"),
        ("prepare", "backfill"),
        ("dual_write", "cutover"),
        ("dual_write", "prepare"),
        ("backfill", "cutover"),
        ("backfill", "dual_write"),
        ("cutover", "verify"),
        ("cutover", "dual_write"),
        ("verify", "finish"),
    ],
)
def test_a_stage_out_of_its_order_is_refused_with_the_right_command(present, wrong):
    now = record(present) if present else None
    right = STAGES[STAGES.index(present) + 1] if present else "prepare"
    (problem,) = refusals(wrong, now, now)
    assert f"playbooks/migrate/{right}.yml -e source=redis -e target=postgresql -e broker=redis" in problem
    assert "-i prod.yml" in problem


def test_copy_and_comparison_may_be_repeated_in_any_order():
    assert refusals("backfill", record("verify")) == []
    assert refusals("verify", record("backfill")) == []


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_was_interrupted_is_completed_first(stage):
    begun = [record(stage, "begun"), record(stage)]
    assert refusals(stage, *begun) == []
    for other in set(STAGES) - {stage}:
        (problem, *_) = refusals(other, *begun)
        assert f"{stage} was begun" in problem
        assert "host0" in problem
        assert "host1" not in problem


def test_a_host_that_has_not_begun_is_named():
    (problem,) = refusals("backfill", record("dual_write"), record("prepare"))
    assert "dual_write was begun and has not ended on host1" in problem
    assert refusals("dual_write", record("dual_write"), record("prepare")) == []


def test_the_way_back_is_open_until_finish_has_begun():
    for stage in STAGES[:-1]:
        assert refusals("rollback", record(stage)) == []
        assert refusals("rollback", record(stage, "begun")) == []
    assert "Nothing to go back from" in refusals("rollback", None)[0]
    (problem,) = refusals("rollback", record("finish", "begun"))
    assert "no way back" in problem
    assert "-e source=postgresql -e target=redis" in problem


def test_a_rollback_that_was_interrupted_is_completed_first():
    back = record("rollback", "begun", **{"from": "cutover"})
    assert refusals("rollback", back) == []
    for stage in STAGES:
        assert "playbooks/migrate/rollback.yml" in refusals(stage, back)[0]
    assert migration_next({"a": host(back)}) == "rollback"


def test_a_cutover_rests_on_a_recent_comparison():
    assert refusals("cutover", record("verify", age_seconds=3500)) == []
    (problem,) = refusals("cutover", record("verify", age_seconds=3700))
    assert re.search("6[12] minutes ago", problem)
    assert "playbooks/migrate/verify.yml" in problem
    assert refusals("cutover", record("verify", age_seconds=3700), verify_valid_seconds=4000) == []
    # A cutover that was begun is completed, however long ago the comparison was.
    assert refusals("cutover", record("cutover", "begun", age_seconds=9999)) == []


def test_another_migration_is_named():
    hosts = {"a": host(record("dual_write"))}
    (problem,) = migration_problems(asked("prepare", target="mysql"), hosts)
    assert "from redis to postgresql already" in problem
    assert "status.yml -e source=redis -e target=postgresql" in problem


def test_what_is_deployed_must_be_the_source():
    def problem(names, stage="prepare"):
        (text,) = migration_problems(asked(stage), {"a": host(names=names)})
        return text

    assert "site.yml -e backend=redis -e broker=redis" in problem({})
    assert "-e source=mysql -e target=postgresql" in problem({"RESULT": "mysql", "BROKER": "redis"})
    assert "add -e broker=rabbitmq" in problem({"RESULT": "redis", "BROKER": "rabbitmq"})
    assert "leave out -e broker=redis" in problem({"RESULT": "redis"})
    assert "add -e broker=rabbitmq" in problem({"RESULT": "redis", "BROKER": "rabbitmq"}, stage="plan")


def test_a_finish_that_was_interrupted_may_find_the_target_deployed():
    hosts = {"a": host(record("finish", "begun"), {"RESULT": "postgresql", "BROKER": "redis"})}
    assert migration_problems(asked("finish"), hosts) == []


def test_a_finished_migration_is_none():
    assert migration_record(json.dumps(record("finish"))) == {}
    assert migration_record(json.dumps(record("finish", "begun")))["stage"] == "finish"
    assert migration_record("skipped, since /etc/celery/migration.json does not exist") == {}


def test_the_names_of_a_deployment_are_read():
    assert migration_names(["BROKER=redis", "RESULT=redis"]) == {"RESULT": "redis", "BROKER": "redis"}
    assert migration_names(["skipped, since /etc/celery/celery.env does not exist"]) == {}


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        (None, "mysql", "No source"),
        ("redis", None, "No target"),
        ("redis", "mongodb", "target=mongodb cannot be migrated"),
        ("redis", "redis", "both redis"),
        ("redis", "rabbitmq", "drain"),
        ("rabbitmq", "redis", "plan.yml"),
    ],
)
def test_source_and_target_are_judged_by_name(source, target, words):
    (problem,) = migration_call_problems(asked("prepare", source, target), ROLES)
    assert words in problem


def test_the_plan_of_a_drain_is_allowed():
    assert migration_call_problems(asked("plan", "rabbitmq", "redis"), ROLES) == []
    assert migration_call_problems(asked("plan"), ROLES) == []


def test_a_drain_is_planned_with_the_broker_that_is_deployed_and_with_none_of_rabbitmqs_side():
    to_rpc = {**asked("plan", "redis", "rabbitmq"), "extra": 1}
    assert migration_site_calls(to_rpc) == [
        {"backend": "redis", "broker": "redis"},
        {"backend": "rabbitmq", "broker": "rabbitmq"},
    ]
    assert migration_problems(to_rpc, {"a": host()}) == []
    # site.yml -e backend=rabbitmq needs no -e broker=, nor does the plan of its end.
    from_rpc = {**asked("plan", "rabbitmq", "postgresql"), "broker": None}
    assert migration_site_calls(from_rpc)[1] == {"backend": "postgresql", "broker": ""}
    deployed = {"RESULT": "rabbitmq", "BROKER": "rabbitmq"}
    assert migration_problems(from_rpc, {"a": host(names=deployed)}) == []
    (problem,) = migration_problems({**from_rpc, "broker": "redis"}, {"a": host(names=deployed)})
    assert "add -e broker=rabbitmq" in problem


def test_the_plan_of_a_drain_names_the_one_command_there_is():
    (command,) = migration_commands({**asked("plan", "rabbitmq", "postgresql"), "broker": ""})
    assert command.endswith("ansible-playbook -i prod.yml site.yml -e backend=postgresql -e broker=rabbitmq")
    (command,) = migration_commands(asked("plan", "redis", "rabbitmq"))
    assert command.endswith("ansible-playbook -i prod.yml site.yml -e backend=rabbitmq")
    gate = migration_gate(asked("plan", "redis", "rabbitmq"), "prepare")
    assert "prepare.yml" not in gate
    assert "playbooks/migrate/plan.yml -e source=redis -e target=rabbitmq" in gate


def test_the_numbered_commands_are_the_stages_in_their_order_and_exist():
    lines = migration_commands(asked("plan"))
    playbooks = [name for line in lines for name in re.findall(r"playbooks/migrate/(\w+)\.yml", line)]
    assert playbooks == [*STAGES, "rollback", "status"]
    assert [line.partition(".")[0] for line in lines[:6]] == ["1", "2", "3", "4", "5", "6"]
    for line, name in zip(lines, playbooks, strict=True):
        call = f"ansible-playbook -i prod.yml playbooks/migrate/{name}.yml"
        assert line.endswith(f"{call} -e source=redis -e target=postgresql -e broker=redis")
        assert (PROJECT / f"playbooks/migrate/{name}.yml").is_file()


def test_no_host_is_deployed_as_usual_while_results_are_moved():
    assert migration_under_way({}) == ""
    assert "status.yml -e source=redis -e target=postgresql" in migration_under_way(
        record("prepare", "begun")
    )


@pytest.mark.parametrize(
    ("following", "confirm", "stages"),
    [
        ("prepare", "", []),
        ("prepare", "prepare", ["prepare"]),
        ("prepare", "dual_write", []),
        ("prepare", "prepare, dual_write", ["prepare", "dual_write"]),
        ("backfill", "all", ["backfill", "verify", "cutover", "finish"]),
        ("", "all", []),
        ("rollback", "all", []),
    ],
)
def test_a_walk_ends_at_the_first_gate_that_is_not_confirmed(following, confirm, stages):
    assert migration_walk(following, confirm) == stages


def test_check_mode_looks_at_the_next_stage_only():
    assert migration_walk("dual_write", "all", check=True) == ["dual_write"]
    assert migration_walk("dual_write", "", check=True) == []
    told = migration_checked(asked("dual_write"))
    assert "nothing was changed" in told
    assert "playbooks/migrate/dual_write.yml -e source=redis -e target=postgresql -e broker=redis" in told


def test_a_gate_that_there_is_not_is_refused():
    assert migration_confirm_problems("") == []
    assert migration_confirm_problems("prepare,all") == []
    assert "yes" in migration_confirm_problems("yes")[0]


def test_what_comes_next():
    assert migration_next({"a": host(), "b": host()}) == "prepare"
    assert migration_next({"a": host(record("verify")), "b": host(record("verify"))}) == "cutover"
    assert migration_next({"a": host(record("cutover", "begun")), "b": host(record("verify"))}) == "cutover"
    assert migration_next({"a": host(record("finish"))}) == ""
    assert "confirm=cutover" in migration_gate(asked("plan"), "cutover")
    assert "site.yml -e backend=postgresql -e broker=redis" in migration_gate(asked("plan"), "")
    assert len(migration_commands(asked("plan"))) == len(STAGES) + 2


def test_what_is_left_after_the_last_comparison_is_counted_with_the_command_that_goes_on():
    assert MOST_NAMED == compare._MOST_NAMED
    found = [{"verdict": "missing", "id": f"id{number}", "fields": []} for number in range(1000)]
    report = {"ok": False, "missing": 4321, "extra": 0, "different": 7, "moving": 0, "findings": found}
    told = migration_unlike({"rc": 1, "stdout": json.dumps(report)}, asked("verify"))
    assert "4,321 missing, 7 different. A comparison names 1,000 at most" in told
    assert "playbooks/migrate/verify.yml -e source=redis -e target=postgresql -e broker=redis" in told
    assert "missing: id0" in told
    away = {"ok": False, "error": {"expected": "a", "found": "b", "do": "c"}}
    assert migration_unlike({"rc": 1, "stdout": json.dumps(away)}, asked("verify")).startswith("expected: a")


def test_the_trouble_of_a_verb_is_told_in_words():
    def run(document, rc=1):
        return {"rc": rc, "stdout": json.dumps(document), "stderr": ""}

    assert migration_trouble(run({"ok": True}, 0)) == ""
    alone = "w1 runs with redis alone"
    assert migration_trouble(run({"ok": False, "problems": [alone]})) == alone
    error = {"error": {"expected": "a", "found": "b", "do": "c"}}
    assert migration_trouble(run(error)) == "expected: a\nfound:    b\ndo:       c"
    finding = {"verdict": "missing", "id": "x", "fields": []}
    assert migration_trouble(run({"ok": False, "findings": [finding]})) == "missing: x"
    left = {"operation": "TASK", "id": "x", "reason": "away"}
    assert "TASK x: away" in migration_trouble(run({"ok": False, "left": [left], "overflowed": True}))
    assert migration_trouble({"rc": 2, "stdout": "", "stderr": "Usage: ..."}) == "Usage: ..."
    assert migration_report({"stdout": "no json"})["ok"] is False
