"""What a migration may do next: pure functions from the hosts' records to refusals and commands."""

from __future__ import annotations

import datetime as dt
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

STAGES = ("prepare", "dual_write", "backfill", "verify", "cutover", "finish")
# These two change nothing that a later run of them would not find again.
REPEATABLE = ("backfill", "verify")
MOVABLE = ("redis", "postgresql", "mysql", "sqlite")
NOT_KEPT = (
    "rabbitmq sends results to whoever waits for them and keeps none (rpc): there is nothing to copy. "
    "The plan says how its clients drain: "
)
DRAINS = ("rabbitmq",)
# By `celery-results verify` (src/celery_results/migration/verify/compare.py).
MOST_NAMED = 1000


class Call:
    """The playbook and its variables, as they are to be typed again."""

    def __init__(self, asked: Mapping[str, Any]) -> None:
        """Keep {"stage", "source", "target", "broker", "inventory": [path]}."""
        self.stage = str(asked["stage"])
        self.source, self.target = str(asked["source"]), str(asked["target"])
        self.broker = str(asked.get("broker") or "")
        self.inventory = list(asked.get("inventory") or [])

    def command(self, stage: str, source: str = "", target: str = "", more: str = "") -> str:
        """Return the command of a stage."""
        return (
            self._program(f"playbooks/migrate/{stage}.yml")
            + f" -e source={source or self.source} -e target={target or self.target}{self._broker()}{more}"
        )

    def site(self, backend: str) -> str:
        """Return the command that deploys one backend."""
        broker = f" -e broker={self.source}" if self.source in DRAINS and not self.broker else self._broker()
        return f"{self._program('site.yml')} -e backend={backend}{'' if backend in DRAINS else broker}"

    def _program(self, playbook: str) -> str:
        return f"ansible-playbook {''.join(f'-i {path} ' for path in self.inventory)}{playbook}"

    def _broker(self) -> str:
        return f" -e broker={self.broker}" if self.broker else ""


def migration_call_problems(asked: Mapping[str, Any], available: Iterable[str]) -> list[str]:
    """Judge source and target by name; `available` are the backends that have a role."""
    usable = [name for name in MOVABLE if name in set(available)]
    problems = []
    for variable in ("source", "target"):
        value = str(asked.get(variable) or "")
        if not value:
            problems.append(
                f"No {variable}: add -e {variable}=<backend>, one of {', '.join(usable)}. For example "
                f"ansible-playbook playbooks/migrate/plan.yml -e source=redis -e target=postgresql"
            )
        elif value in DRAINS:
            if asked["stage"] != "plan":
                problems.append(f"{variable}={value}: {NOT_KEPT}{Call(asked).command('plan')}")
        elif value not in usable:
            problems.append(f"{variable}={value} cannot be migrated. Possible: {', '.join(usable)}")
    if not problems and asked["source"] == asked["target"]:
        problems.append(f"source and target are both {asked['source']}: name two backends")
    return problems


def migration_site_calls(asked: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return what site.yml would be called with for the source, and for the target.

    Results that travel over the broker can have no other one: it comes and goes with them.
    """
    names = [str(asked[variable]) for variable in ("source", "target")]
    broker = str(asked.get("broker") or "")
    return [{"backend": name, "broker": name if name in DRAINS else broker} for name in names]


def migration_record(text: str) -> dict[str, Any]:
    """Read a host's record; {} where there is none, or where its migration has come to its end."""
    record: dict[str, Any] = json.loads(text) if text.startswith("{") else {}
    return {} if (record.get("stage"), record.get("state")) == ("finish", "done") else record


def migration_names(lines: Iterable[str]) -> dict[str, str]:
    """Read `RESULT=redis` lines: what the deployed celery.env names; {} where there is none."""
    return dict(line.split("=", 1) for line in lines if "=" in line)


def migration_problems(
    asked: Mapping[str, Any], hosts: Mapping[str, Mapping[str, Any]], verify_valid_seconds: int = 3600
) -> list[str]:
    """Judge whether a stage may run now.

    `hosts`: {host: {"record": as migration_record gives it, "names": as migration_names does}}.
    """
    call = Call(asked)
    begun = {host: has["record"] for host, has in hosts.items() if has["record"]}
    others = {
        (record["source"], record["target"])
        for record in begun.values()
        if (record["source"], record["target"]) != (call.source, call.target)
    }
    if others:
        source, target = min(others)
        return [
            f"Results are being moved from {source} to {target} already. See where that is: "
            + call.command("status", source, target)
        ]
    if call.stage == "status":
        return []
    problems = list(_deployment_problems(call, hosts))
    if call.stage == "plan":
        return problems
    turn = _rollback_problems(call, begun) if call.stage == "rollback" else _order(call, hosts)
    return problems + turn + _age_problems(call, begun, verify_valid_seconds)


def _deployment_problems(call: Call, hosts: Mapping[str, Mapping[str, Any]]) -> Iterable[str]:
    """See that the hosts use the source, and the broker that the command names."""
    for host, has in hosts.items():
        names, record = has["names"], has["record"]
        if record.get("stage") == "finish":
            continue  # it may store on the target alone already
        if not names:
            yield f"{host} has no /etc/celery/celery.env: deploy it first, {call.site(call.source)}"
        elif names.get("RESULT") != call.source:
            yield (
                f"{host} keeps its results in {names.get('RESULT')}, not in {call.source}: "
                + call.command(call.stage, source=names.get("RESULT", ""))
                + f", or deploy it with {call.site(call.source)}"
            )
        elif names.get("BROKER", "") != (call.broker or (call.source if call.source in DRAINS else "")):
            found = names.get("BROKER", "")
            yield (
                f"{host} was deployed with broker={found}: add -e broker={found}"
                if found
                else f"{host} was deployed without a broker of ours: leave out -e broker={call.broker}"
            )


def _positions(hosts: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[int, bool]]:
    """Return for each host (the number of its stage, whether it is done); -1 before the first."""
    positions = {}
    for host, has in hosts.items():
        record = has["record"]
        stage = record.get("stage")
        positions[host] = (
            STAGES.index(stage) if stage in STAGES else -1,
            record.get("state", "done") == "done",
        )
    return positions


def _order(call: Call, hosts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """See that the stage is the present one, or the next."""
    back = [host for host, has in hosts.items() if has["record"].get("stage") == "rollback"]
    if back:
        return [f"A rollback was begun on {', '.join(back)} and has not ended: {call.command('rollback')}"]
    positions = _positions(hosts)
    wanted = STAGES.index(call.stage)
    least, most = min(at for at, _ in positions.values()), max(at for at, _ in positions.values())
    undone = [host for host, (at, done) in positions.items() if at == most and not done]
    behind = [host for host, (at, _) in positions.items() if at < most]
    complete = least == most and not undone
    repeated = complete and call.stage in REPEATABLE and STAGES[most] in REPEATABLE
    if wanted == most or repeated or (complete and wanted == most + 1):
        return []
    if not complete:
        where = ", ".join(sorted({*undone, *behind}))
        undone_yet = f"{STAGES[most]} was begun and has not ended on {where}. Go on with it"
        return [f"{undone_yet}: {call.command(STAGES[most])}{_way_back(call, most)}"]
    if most < 0:
        return [f"Nothing is prepared yet. Begin with {call.command('plan')}, then {call.command('prepare')}"]
    following = call.command(STAGES[most + 1])
    return [f"The hosts are in stage {STAGES[most]}. Next: {following}{_way_back(call, most)}"]


def _way_back(call: Call, position: int) -> str:
    return f"; or back: {call.command('rollback')}" if STAGES[position] != "finish" else ""


def _rollback_problems(call: Call, begun: Mapping[str, Mapping[str, Any]]) -> list[str]:
    if not begun:
        return [
            f"Nothing to go back from: no host has begun to move results from {call.source} to {call.target}"
        ]
    finishing = [host for host, record in begun.items() if record["stage"] == "finish"]
    if finishing:
        return [
            f"finish has begun on {', '.join(finishing)}: {call.source} gets no results any more, so there "
            f"is no way back. Go on with {call.command('finish')}, and then move them back: "
            + call.command("plan", call.target, call.source)
        ]
    return []


def _age_problems(call: Call, begun: Mapping[str, Mapping[str, Any]], seconds: int) -> list[str]:
    """See that the comparison on which a cutover rests is a recent one."""
    if call.stage != "cutover":
        return []
    now = dt.datetime.now(dt.UTC)
    ages = [
        int((now - dt.datetime.fromisoformat(record["at"])).total_seconds())
        for record in begun.values()
        if record["stage"] == "verify" and record["state"] == "done"
    ]
    if not ages or max(ages) <= seconds:
        return []
    compared = f"The stores were compared {max(ages) // 60} minutes ago; at most {seconds // 60} may pass"
    return [f"{compared} (migration_verify_valid_seconds). Compare them again: {call.command('verify')}"]


def migration_under_way(record: Mapping[str, Any], inventory: Sequence[str] = ()) -> str:
    """Say why a host cannot be deployed as usual; empty where no results are being moved."""
    if not record:
        return ""
    call = Call({**record, "stage": "status", "inventory": inventory})
    return (
        f"Results are being moved from {record['source']} to {record['target']} (stage {record['stage']}): "
        f"this would end it half way. See where it is: {call.command('status')}"
    )


def migration_next(hosts: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the stage that comes next, or that has to be completed; empty after the last."""
    if any(has["record"].get("stage") == "rollback" for has in hosts.values()):
        return "rollback"
    positions = _positions(hosts)
    least, most = min(at for at, _ in positions.values()), max(at for at, _ in positions.values())
    if least != most or not all(done for _, done in positions.values()):
        return STAGES[most]
    return STAGES[most + 1] if most + 1 < len(STAGES) else ""


def migration_walk(following: str, confirm: str, check: bool = False) -> list[str]:  # noqa: FBT001, FBT002 # a filter's
    """Return the stages that playbooks/migrate.yml runs: from the next one up to the first not confirmed.

    With `check` only the next one: no other can be its turn while that is not done.
    """
    confirmed = {name.strip() for name in confirm.split(",")}
    stages: list[str] = []
    for stage in STAGES[STAGES.index(following) :] if following in STAGES else ():
        if "all" not in confirmed and stage not in confirmed:
            break
        stages.append(stage)
    return stages[:1] if check else stages


def migration_confirm_problems(confirm: str) -> list[str]:
    """Refuse a gate that there is not."""
    unknown = sorted({name.strip() for name in confirm.split(",")} - {*STAGES, "all", ""})
    gates = f"{', '.join(STAGES)}, or all"
    return [f"confirm={confirm}: no such stage as {', '.join(unknown)}. Possible: {gates}"] if unknown else []


def migration_gate(asked: Mapping[str, Any], following: str) -> str:
    """Say how to go on from a gate of playbooks/migrate.yml."""
    call = Call(asked)
    if {call.source, call.target} & set(DRAINS):
        return f"Nothing is copied, and there are no stages. What to do instead: {call.command('plan')}"
    if not following:
        return (
            f"Results are kept in {call.target} alone. From now on: {call.site(call.target)}\n"
            f"{call.source} still has what it had. To move them back: "
            + call.command("plan", call.target, call.source)
        )
    if following == "rollback":
        return f"A rollback was begun. Complete it: {call.command('rollback')}"
    walk = call.command("plan").replace("playbooks/migrate/plan.yml", "playbooks/migrate.yml")
    return (
        f"The next stage is {following}. Run it alone: {call.command(following)}\n"
        f"or with everything that follows up to the next gate: {walk} -e confirm={following}\n"
        f"or to the end: {walk} -e confirm=all\n"
        f"The way back: {call.command('rollback')}"
    )


def migration_checked(asked: Mapping[str, Any]) -> str:
    """Say what a run in check mode has shown."""
    call = Call(asked)
    return (
        "Check mode: nothing was changed. Settings that would change are shown above; copies, comparisons, "
        "repairs and restarts are not tried, nor a later stage before this one is done: "
        f"{call.command(call.stage)}"
    )


def migration_commands(asked: Mapping[str, Any]) -> list[str]:
    """Return the numbered commands of a whole migration; of a drain the only one: its steps the verb says."""
    call = Call(asked)
    if {call.source, call.target} & set(DRAINS):
        return [f"   to deploy {call.target}, when it is its turn: {call.site(call.target)}"]
    return [f"{number}. {call.command(stage)}" for number, stage in enumerate(STAGES, 1)] + [
        f"   back, at any time before finish: {call.command('rollback')}",
        f"   where is it: {call.command('status')}",
    ]


def migration_report(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON document that one of our verbs printed; what else it said, as {"error": text}."""
    try:
        report = json.loads(run.get("stdout") or "")
    except ValueError:
        report = None
    if isinstance(report, dict):
        return report
    return {
        "ok": False,
        "error": str(run.get("stderr") or run.get("msg") or "it printed nothing").strip()[-2000:],
    }


def migration_trouble(run: Mapping[str, Any]) -> str:
    """Say in words what one of our verbs found; empty where it is content."""
    report = migration_report(run)
    if run.get("rc") == 0 and report.get("ok", True):
        return ""
    error = report.get("error")
    if isinstance(error, dict):
        return f"expected: {error['expected']}\nfound:    {error['found']}\ndo:       {error['do']}"
    if error:
        return str(error)
    lines = [str(problem) for problem in report.get("problems", [])]
    lines += [f"{left['operation']} {left['id']}: {left['reason']}" for left in report.get("left", [])[:20]]
    lines += [f"failed: {failure['id']}: {failure['reason']}" for failure in report.get("failures", [])[:20]]
    lines += [
        f"{finding['verdict']}: {finding['id']} {', '.join(finding.get('fields') or [])}".rstrip()
        for finding in report.get("findings", [])[:20]
    ]
    if report.get("overflowed"):
        lines.append(
            "the journal was full: only a comparison that finds nothing can say that nothing is owed"
        )
    return "\n".join(lines) or json.dumps(report)[:2000]


def migration_unlike(run: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """Say how far two stores differ after the last comparison of a stage, and how to go on."""
    report = migration_report(run)
    verdicts = ("missing", "extra", "different", "moving")
    counted = ", ".join(f"{report[verdict]:,} {verdict}" for verdict in verdicts if report.get(verdict))
    if not counted:
        return migration_trouble(run)
    return (
        f"The last one counted {counted}. A comparison names {MOST_NAMED:,} at most, which are repaired; "
        "this again goes on with the rest: "
        f"{Call(asked).command(str(asked['stage']))}\n{migration_trouble(run)}"
    )


class FilterModule:
    """The filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return them by name."""
        return {
            function.__name__: function
            for function in (
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
        }
