"""What is wrong with a call of site.yml: pure functions from facts to messages, each with its remedy."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

# ansible-core 2.19 templates by its own rules (trusted templates, no implicit booleans); others are untried.
ANSIBLE_CORE_AT_LEAST = (2, 19)
ANSIBLE_CORE_BELOW = (2, 20)
PYTHON_AT_LEAST = (3, 11)
INSTALL = "pip install -r requirements/controller.txt"
EXAMPLE_HOST = {"celery": "worker1.example.com", "celery_client": "web1.example.com"}
OTHER_GROUPS = ("celery", "celery_client", "redis_sentinel", "redis_cluster")
# No server: a file, which only the programs of one host can share.
EMBEDDED = ("sqlite",)
# Stores nothing: results are messages of the broker.
OVER_BROKER = ("rabbitmq",)
# Two of three still agree when one is lost; two of four do not.
ODD_SENTINELS = "an odd number, three at least"


@dataclass(frozen=True)
class Call:
    """What was typed, and what the inventory says; made by the action plugin preflight_facts."""

    facts: Mapping[str, Any]
    backends: tuple[str, ...]
    brokers: tuple[str, ...]
    aliases: Mapping[str, str]

    @property
    def backend(self) -> str | None:
        """Return what -e backend= says."""
        return self._extra("backend")

    @property
    def broker(self) -> str | None:
        """Return what -e broker= says."""
        return self._extra("broker")

    @property
    def available(self) -> list[str]:
        """Return the backends whose role is there."""
        return [name for name in self.backends if name in self.facts["roles"]]

    @property
    def servers(self) -> list[str]:
        """Return the known servers that this call is about, each once."""
        names = dict.fromkeys(name for name in (self.backend, self.broker) if name)
        return [name for name in names if name in self.available]

    def hosts(self, group: str) -> list[str]:
        """Return the hosts of a group; an unknown group has none."""
        return list(self.facts["groups"].get(group, []))

    def command(self, arguments: str) -> str:
        """Return the command to type."""
        inventory = "".join(f"-i {source} " for source in self.facts["inventory"])
        return f"ansible-playbook {inventory}site.yml {arguments}"

    def _extra(self, name: str) -> str | None:
        value = self.facts["extra"].get(name)
        return None if value in (None, "") else str(value)


def controller(call: Call) -> Iterator[str]:
    """Judge the controller's own software."""
    found = call.facts["controller"]
    core = version(found["ansible_core"])
    if not ANSIBLE_CORE_AT_LEAST <= core < ANSIBLE_CORE_BELOW:
        yield f"ansible-core {found['ansible_core']} is not supported, 2.19 is: {INSTALL}"
    if version(found["python"]) < PYTHON_AT_LEAST:
        yield (
            f"Ansible runs on Python {found['python']}, 3.11 or newer is needed. Make an environment with a "
            f"newer one: make deps; or python3.11 -m venv .venv && .venv/bin/{INSTALL}"
        )
    if found["missing"]:
        yield f"The controller lacks {', '.join(found['missing'])}: {INSTALL} ({found['executable']})"


def variables(call: Call) -> Iterator[str]:
    """Look for the bundle's own group_vars."""
    hosts = call.facts["hosts_without_topology"]
    if hosts:
        own = " ".join(f"-i {source}" for source in call.facts["inventory"]) or "-i YOUR_INVENTORY"
        yield (
            f"The variables of inventory/group_vars/all are not there for {', '.join(hosts)}. Name the "
            f"bundled groups beside your inventory: ansible-playbook -i inventory/groups.yml {own} site.yml "
            f"-e backend={call.backend or 'redis'}"
        )


def backend(call: Call) -> Iterator[str]:
    """Judge the choice of the backend."""
    if call.backend is None:
        inventory = call.facts["inventory_choice"].get("backend")
        if inventory:
            yield (
                f"backend={inventory} is set in the inventory, but it chooses the hosts, and that only the "
                f"command line can: {call.command(f'-e backend={inventory}')}"
            )
            return
        first = call.available[0] if call.available else "redis"
        make = call.facts["inventory"][:1] if len(call.facts["inventory"]) == 1 else []
        yield (
            f"No backend is chosen. Available: {', '.join(call.available)}\n"
            f"  make deploy backend={first}{''.join(f' inventory={source}' for source in make)}\n"
            f"  {call.command(f'-e backend={first}')}"
        )
        return
    yield from wrong_name(call, "backend", call.backend, call.backends)


def broker(call: Call) -> Iterator[str]:
    """Judge the choice of the broker."""
    if call.broker is not None:
        yield from wrong_name(call, "broker", call.broker, call.brokers)
        if call.backend in OVER_BROKER and call.broker != call.backend:
            yield (
                f"backend={call.backend} stores no results: they travel over the broker (rpc), which cannot "
                f"be {call.broker} then. Leave out broker={call.broker}, or choose one that stores them: "
                + call.command(f"-e backend=postgresql -e broker={call.backend}")
            )
        return
    inventory = call.facts["inventory_choice"].get("broker")
    if inventory:
        yield (
            f"broker={inventory} is set in the inventory, but it chooses the hosts, and that only the "
            "command line can: " + call.command(f"-e backend={call.backend or 'redis'} -e broker={inventory}")
        )


def wrong_name(call: Call, variable: str, value: str, known: tuple[str, ...]) -> Iterator[str]:
    """Yield what was probably meant by a name that cannot be used."""
    usable = [name for name in known if name in call.available]
    if value in usable:
        return
    if value in known:
        yield (
            f"{variable}={value} is not available yet (no roles/{value}/tasks/connection.yml). "
            f"Available: {', '.join(usable)}"
        )
        return
    folded = value.strip().casefold()
    candidates = [*known, *call.aliases]
    meant = next(iter(difflib.get_close_matches(folded, candidates, n=1, cutoff=0.6)), None)
    meant = call.aliases.get(meant, meant) if meant else None
    if meant is None or meant.split()[0] not in known:
        yield f"{variable}={value} is not known. Available: {', '.join(usable)}"
        return
    if meant.split()[0] not in usable:
        yield (
            f"{variable}={value} is not known; {meant} may be meant, but is not available yet. "
            f"Available: {', '.join(usable)}"
        )
        return
    other = f"-e backend={call.backend} " if variable == "broker" and call.backend else ""
    yield (
        f"{variable}={value} is not known. Did you mean {meant.split()[0]}?\n"
        f"  {call.command(f'{other}-e {variable}={meant}')}"
    )


def groups(call: Call) -> Iterator[str]:
    """Look for empty groups, and for hosts that cannot be in two of them."""
    for server in call.servers:
        if not call.hosts(server):
            hint = similar(call, server)
            yield f"The group {server} has no hosts. In your inventory:\n{snippet(server)}{hint}"
    workers, clients = call.hosts("celery"), call.hosts("celery_client")
    if not workers and not clients:
        yield (
            "The groups celery (workers) and celery_client (only send tasks and read results) have no hosts. "
            f"In your inventory:\n{snippet('celery')}{similar(call, 'celery')}"
        )
    both = [host for host in workers if host in clients]
    if both:
        yield (
            f"{', '.join(both)}: in both groups celery and celery_client. A host has one login: leave it in "
            "celery, which may send tasks too (/etc/celery/client.env), or in celery_client"
        )


def snippet(group: str) -> str:
    """Return the inventory lines that give a group a host."""
    return f"  {group}:\n    hosts:\n      {EXAMPLE_HOST.get(group, 'results.example.com')}: {{}}"


def similar(call: Call, group: str) -> str:
    """Return a hint where the inventory has a group of a similar name."""
    ours = {*call.backends, *OTHER_GROUPS}
    own = [name for name, hosts in call.facts["groups"].items() if hosts and name not in ours]
    meant = [name for name in own if group in name] or difflib.get_close_matches(group, own, n=1, cutoff=0.7)
    return f"\nYour inventory has a group {meant[0]}: is {group} meant?" if meant else ""


def topology(call: Call) -> Iterator[str]:
    """Several hosts of one server."""
    if "redis" in call.servers:
        yield from redis_groups(call)
    for server in call.servers:
        kind = call.facts["topology"].get(server, "standalone")
        if kind != "standalone" and kind not in call.facts["roles"][server]:
            others = [
                name for name in call.facts["groups"] if name.startswith(f"{server}_") and call.hosts(name)
            ]
            yield (
                f"{server} as {kind} is not available yet: leave one host in the group {server}"
                + (f", and none in {', '.join(others)}" if others else "")
            )


def redis_groups(call: Call) -> Iterator[str]:
    """Look for groups of Redis that contradict each other."""
    sentinels, nodes = call.hosts("redis_sentinel"), call.hosts("redis_cluster")
    if sentinels and nodes:
        yield "redis_sentinel and redis_cluster both have hosts: a cluster fails over by itself. Empty one"
    if sentinels and not call.hosts("redis"):
        yield "redis_sentinel has hosts, but the group redis, which they would watch, has none"
    if sentinels and len(sentinels) % 2 == 0:
        yield f"redis_sentinel has {len(sentinels)} hosts: a majority needs {ODD_SENTINELS}"


def embedded(call: Call) -> Iterator[str]:
    """See that a database without a server is used on one host only."""
    if call.backend not in EMBEDDED or call.backend not in call.available:
        return
    name = call.backend
    hosts, workers, clients = call.hosts(name), call.hosts("celery"), call.hosts("celery_client")
    instead = f"For several hosts use a server: {call.command('-e backend=postgresql')}"
    if len(hosts) > 1:
        yield (
            f"{name} has {len(hosts)} hosts ({', '.join(hosts)}): its database is one file. "
            f"Leave one host in the group {name}. {instead}"
        )
    if len(workers) > 1:
        yield (
            f"{name} cannot serve {len(workers)} hosts in the group celery ({', '.join(workers)}): its "
            f"database is a file on one of them. Leave one host there. {instead}"
        )
    elif workers and hosts and workers[0] not in hosts:
        yield (
            f"{name} is for {hosts[0]}, but the workers run on {workers[0]}, which cannot open it: "
            f"put the same host in both groups, {name} and celery. {instead}"
        )
    if clients:
        yield (
            f"{name} cannot serve the group celery_client ({', '.join(clients)}): only programs on the "
            f"host of the file, of the user celery, can read it. Leave that group empty. {instead}"
        )
    elif hosts and not workers:
        yield f"{name} needs the host of its file in the group celery: add {hosts[0]} there"


def application(call: Call) -> Iterator[str]:
    """See that workers have a broker, and only one."""
    workers = {host: call.facts["celery"].get(host, {}) for host in call.hosts("celery")}
    if call.backend in OVER_BROKER:
        if urls := [host for host, has in workers.items() if has.get("broker_url")]:
            yield (
                f"backend={call.backend} sends results over its own broker, but celery_broker_url (for "
                f"{', '.join(urls)}) names another: leave it out, or choose the backend that stores them"
            )
    elif call.broker is None:
        lacking = [host for host, has in workers.items() if has.get("app") and not has.get("broker_url")]
        if lacking:
            chosen = f"-e backend={call.backend or 'redis'} -e broker=redis"
            yield (
                f"celery_app is set for {', '.join(lacking)}, but a worker needs a broker: "
                f"{call.command(chosen)}, or celery_broker_url in the inventory for a broker of your own"
            )
    elif urls := [host for host, has in workers.items() if has.get("broker_url")]:
        yield (
            f"broker={call.broker} and celery_broker_url (for {', '.join(urls)}) exclude each other: "
            "leave out one of them"
        )


def state(call: Call) -> Iterator[str]:
    """See that secrets and the CA can be kept."""
    found: Mapping[str, list[str]] = call.facts["state_directories"]
    if len(found) > 1:
        places = "; ".join(f"{path or 'undefined'} for {', '.join(hosts)}" for path, hosts in found.items())
        yield (
            f"state_directory differs between hosts ({places}), so that they would get different secrets: "
            "set it once, in group_vars/all or with -e state_directory=/absolute/path"
        )
    for path in found:
        about = call.facts["state_paths"].get(path)
        if about is None:
            yield (
                f"state_directory is {path or 'undefined'}, expected an absolute path: "
                "-e state_directory=/absolute/path, or in group_vars/all"
            )
        elif about["kind"] == "other":
            yield f"state_directory {path} is not a directory: move it away, or set another state_directory"
        elif not about["writable"]:
            yield (
                f"state_directory {path}: {about['directory']} is not writable for {about['user']}: give it "
                "to that user, or set another state_directory"
            )
        elif about["kind"] == "directory" and about["mode"] & 0o077:
            yield f"state_directory {path} holds secrets, and others may enter it: chmod 700 {path}"


RULES: tuple[Callable[[Call], Iterator[str]], ...] = (
    controller,
    backend,
    broker,
    groups,
    topology,
    embedded,
    application,
    state,
)


def version(text: str) -> tuple[int, ...]:
    """Return the numbers before the first part that is none: 2.19.14rc1 is 2.19."""
    numbers: list[int] = []
    for part in text.split("."):
        if not part.isdecimal():
            break
        numbers.append(int(part))
    return tuple(numbers)


def preflight_problems(
    facts: Mapping[str, Any],
    backends: Iterable[str] = (),
    brokers: Iterable[str] = (),
    aliases: Mapping[str, str] | None = None,
) -> list[str]:
    """Return everything that is wrong with a call; an empty list lets it pass."""
    call = Call(facts, tuple(backends), tuple(brokers), aliases or {})
    # Without the bundled variables every other rule would complain about something that is right.
    unset = [*variables(call)]
    rules = (controller,) if unset else RULES
    return unset + [problem for rule in rules for problem in rule(call)]


def host_problems(
    facts: Mapping[str, Any],
    tested: Mapping[str, list[str]],
    untested: Mapping[str, list[str]],
    *,
    accepted: bool = False,
) -> list[str]:
    """Return what forbids to touch a host: its release."""
    if accepted or release_in(facts, tested) or release_in(facts, untested):
        return []
    supported = "; ".join(f"{name} {', '.join(map(str, numbers))}" for name, numbers in tested.items())
    risk = "At your own risk: -e preflight_unsupported_release_accepted=true"
    return [f"{release(facts)} is not supported; tested: {supported}. {risk}"]


def host_notes(
    facts: Mapping[str, Any], tested: Mapping[str, list[str]], untested: Mapping[str, list[str]]
) -> list[str]:
    """Return what to tell about a host that is let pass."""
    if release_in(facts, tested):
        return []
    if release_in(facts, untested):
        return [f"{release(facts)} takes the same code paths as Debian, but is not tested"]
    return [f"{release(facts)} is not supported, and was accepted"]


def release(facts: Mapping[str, Any]) -> str:
    """Return a release as people write it."""
    return f"{facts['distribution']} {facts['distribution_version']}"


def release_in(facts: Mapping[str, Any], releases: Mapping[str, list[str]]) -> bool:
    """Tell whether a release is listed, by its full or its major number."""
    numbers = {str(facts["distribution_version"]), str(facts["distribution_major_version"])}
    return not numbers.isdisjoint(map(str, releases.get(facts["distribution"], [])))


class FilterModule:
    """The filters."""

    def filters(self) -> dict[str, Callable[..., list[str]]]:
        """Return them by name."""
        return {
            "preflight_problems": preflight_problems,
            "host_problems": host_problems,
            "host_notes": host_notes,
        }
