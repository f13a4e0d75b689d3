"""What preflight refuses: most of it as a pure function, the wiring with the shipped playbook."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from plugins.action import run_lock
from plugins.action.run_lock import Holder, start_time, verdict
from plugins.filter.addresses import client_addresses
from plugins.filter.preflight import host_notes, host_problems, preflight_problems
from plugins.modules.run_lock import swap

ROOT = Path(__file__).parents[2]
CONSTANTS = yaml.safe_load((ROOT / "inventory/group_vars/all/preflight.yml").read_text())


def facts(**changes):
    """Return the facts of a call that is right, with changes."""
    return {
        "controller": {
            "ansible_core": "2.19.14",
            "python": "3.11.7",
            "executable": "/venv/python",
            "missing": [],
        },
        "extra": {"backend": "redis", "broker": None},
        "inventory_choice": {},
        "inventory": [],
        "groups": {"all": ["db1", "worker1"], "redis": ["db1"], "celery": ["worker1"], "celery_client": []},
        "hosts_without_topology": [],
        "roles": {"redis": ["standalone"]},
        "topology": {"redis": "standalone"},
        "celery": {"worker1": {"app": False, "broker_url": False}},
        "state_directories": {"/inventory/.state": ["db1", "worker1"]},
        "state_paths": {"/inventory/.state": state_path()},
    } | changes


def state_path(**changes):
    right = {
        "kind": "directory",
        "directory": "/inventory/.state",
        "mode": 0o700,
        "writable": True,
        "user": "me",
    }
    return right | changes


def problems(**changes):
    return preflight_problems(
        facts(**changes),
        CONSTANTS["preflight_backends"],
        CONSTANTS["preflight_brokers"],
        CONSTANTS["preflight_backend_aliases"],
    )


def choose(backend, broker=None):
    return {"backend": backend, "broker": broker}


def groups(**changes):
    return facts()["groups"] | changes


def test_right_call_passes():
    assert problems() == []


def test_missing_backend_prints_the_commands():
    (problem,) = problems(extra=choose(None))
    assert "make deploy backend=redis\n" in problem
    assert "ansible-playbook site.yml -e backend=redis" in problem


def test_commands_name_the_inventory_that_was_given():
    (problem,) = problems(extra=choose(None), inventory=["prod.yml"])
    assert "make deploy backend=redis inventory=prod.yml" in problem
    assert "ansible-playbook -i prod.yml site.yml -e backend=redis" in problem


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("rdis", "redis"),
        ("Redis", "redis"),
        ("redis ", "redis"),
        ("valkey", "redis -e redis_implementation=valkey"),
        ("valky", "redis -e redis_implementation=valkey"),
        ("rpc", "rabbitmq"),
        ("amqp", "rabbitmq"),
        ("rabbit-mq", "rabbitmq"),
        ("postgres", "postgresql"),
        ("pgsql", "postgresql"),
        ("psql", "postgresql"),
        ("postgressql", "postgresql"),
        ("mariadb", "mysql"),
        ("mongo", "mongodb"),
        ("sqlite3", "sqlite"),
    ],
)
def test_misspelt_backend_is_answered_with_the_command(typed, meant):
    everything = {name: ["standalone"] for name in CONSTANTS["preflight_backends"]}
    (problem,) = problems(extra=choose(typed), roles=everything)
    assert f"backend={typed} is not known" in problem
    assert f"ansible-playbook site.yml -e backend={meant}" in problem
    # and without the role nothing is offered that would be refused in turn
    (problem,) = problems(extra=choose(typed), roles={})
    assert "is not available yet" in problem
    assert "ansible-playbook" not in problem


@pytest.mark.parametrize("typed", ["celery", "all", "x", "redis,celery", "localhost"])
def test_unknown_backend_lists_what_there_is(typed):
    (problem,) = problems(extra=choose(typed))
    assert f"backend={typed} is not known" in problem
    assert "redis" in problem


def test_backend_without_a_role_is_not_available_yet():
    (problem,) = problems(extra=choose("mysql"))
    assert (
        problem
        == "backend=mysql is not available yet (no roles/mysql/tasks/connection.yml). Available: redis"
    )


@pytest.mark.parametrize(
    ("broker", "message"),
    [
        ("rabbitmq", r"broker=rabbitmq is not available yet"),
        ("amqp", r"broker=amqp is not known; rabbitmq may be meant, but is not available yet"),
        ("valkey", r"-e backend=redis -e broker=redis"),
        ("redi", r"-e backend=redis -e broker=redis"),
        ("postgresql", r"broker=postgresql is not known"),
    ],
)
def test_wrong_broker(broker, message):
    (problem,) = problems(extra=choose("redis", broker))
    assert message in problem


OVER_BROKER = {"roles": {"redis": ["standalone"], "rabbitmq": ["standalone"]}}


def over_broker(**changes):
    return problems(**OVER_BROKER, groups=groups(rabbitmq=["db1"]), **changes)


def test_results_that_travel_over_the_broker_need_no_other():
    worker = {"worker1": {"app": True, "broker_url": False}}
    assert over_broker(extra=choose("rabbitmq"), celery=worker) == []
    assert over_broker(extra=choose("rabbitmq", "rabbitmq"), celery=worker) == []


def test_results_that_travel_over_the_broker_refuse_another():
    (problem,) = over_broker(extra=choose("rabbitmq", "redis"))
    assert "they travel over the broker (rpc), which cannot be redis then" in problem
    (problem,) = over_broker(extra=choose("rabbitmq"), celery={"worker1": {"app": True, "broker_url": True}})
    assert "celery_broker_url (for worker1) names another" in problem


@pytest.mark.parametrize("name", ["backend", "broker"])
def test_choice_in_the_inventory_is_moved_to_the_command_line(name):
    extra = choose(None if name == "backend" else "redis")
    (problem,) = problems(extra=extra, inventory_choice={name: "redis"})
    assert f"{name}=redis is set in the inventory" in problem
    assert f"-e {name}=redis" in problem


def test_server_group_without_hosts_prints_an_inventory():
    (problem,) = problems(groups=groups(redis=[], redis_servers=["db1"]))
    assert yaml.safe_load(problem.split("\n", 1)[1].rsplit("\n", 1)[0]) == {
        "redis": {"hosts": {"results.example.com": {}}}
    }
    assert "group redis_servers: is redis meant?" in problem


def test_broker_group_without_hosts_is_named():
    roles = {"redis": ["standalone"], "postgresql": ["standalone"]}
    found = problems(
        extra=choose("postgresql", "redis"), roles=roles, groups=groups(redis=[], postgresql=["db1"])
    )
    assert [text.split(".")[0] for text in found] == ["The group redis has no hosts"]


def test_no_celery_host_at_all_is_refused_but_clients_alone_are_enough():
    (problem,) = problems(groups=groups(celery=[]))
    assert "celery:\n    hosts:" in problem
    assert problems(groups=groups(celery=[], celery_client=["web1"])) == []


def test_host_that_is_worker_and_client_is_refused():
    (problem,) = problems(groups=groups(celery_client=["worker1", "web1"]))
    assert problem.startswith("worker1: in both groups")


@pytest.mark.parametrize(
    ("changed", "kind", "message"),
    [
        ({"redis": ["a", "b"]}, "replication", "redis as replication is not available yet"),
        (
            {"redis_sentinel": ["a", "b", "c"]},
            "sentinel",
            "leave one host in the group redis, and none in redis_sent",
        ),
        (
            {"redis_sentinel": ["a", "b"]},
            "sentinel",
            "redis_sentinel has 2 hosts: a majority needs an odd number",
        ),
        (
            {"redis": [], "redis_sentinel": ["a"]},
            "sentinel",
            "the group redis, which they would watch, has none",
        ),
        (
            {"redis_sentinel": ["a"], "redis_cluster": ["b"]},
            "cluster",
            "redis_sentinel and redis_cluster both",
        ),
    ],
)
def test_contradictory_or_missing_topology(changed, kind, message):
    found = problems(groups=groups(**changed), topology={"redis": kind})
    assert message in "\n".join(found)


def test_topology_is_available_once_its_task_file_is_there():
    roles = {"redis": ["standalone", "replication"]}
    assert problems(groups=groups(redis=["a", "b"]), topology={"redis": "replication"}, roles=roles) == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sqlite": ["a", "b"], "celery": ["a"]}, "sqlite has 2 hosts (a, b)"),
        ({"sqlite": ["a"], "celery": ["a", "b"]}, "cannot serve 2 hosts in the group celery (a, b)"),
        ({"sqlite": ["a"], "celery": ["b"]}, "sqlite is for a, but the workers run on b"),
        ({"sqlite": ["a"], "celery": ["a"], "celery_client": ["web"]}, "the group celery_client (web)"),
    ],
)
def test_a_database_file_is_for_one_host(changed, message):
    roles = {"redis": ["standalone"], "sqlite": ["standalone"]}
    call = {"extra": choose("sqlite"), "roles": roles, "inventory": ["prod.yml"]}
    (problem,) = problems(groups=groups(redis=[], **changed), **call)
    assert message in problem
    assert "ansible-playbook -i prod.yml site.yml -e backend=postgresql" in problem


def test_a_database_file_on_the_workers_host_passes_and_needs_that_host():
    call = {"extra": choose("sqlite"), "roles": {"sqlite": ["standalone"]}}
    assert problems(groups=groups(sqlite=["worker1"]), **call) == []
    (problem,) = problems(groups=groups(sqlite=["a"], celery=[]), **call)[1:]
    assert problem == "sqlite needs the host of its file in the group celery: add a there"


def test_application_needs_a_broker_and_only_one():
    (problem,) = problems(celery={"worker1": {"app": True, "broker_url": False}})
    assert "-e backend=redis -e broker=redis" in problem
    assert "celery_broker_url" in problem
    assert problems(celery={"worker1": {"app": True, "broker_url": True}}) == []
    assert (
        problems(celery={"worker1": {"app": True, "broker_url": False}}, extra=choose("redis", "redis")) == []
    )
    (problem,) = problems(
        celery={"worker1": {"app": True, "broker_url": True}}, extra=choose("redis", "redis")
    )
    assert "exclude each other" in problem


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ansible_core": "2.18.7"}, "ansible-core 2.18.7 is not supported"),
        ({"ansible_core": "2.20.0"}, "ansible-core 2.20.0 is not supported"),
        ({"python": "3.10.12"}, "3.11 or newer is needed"),
        ({"missing": ["community.crypto", "flit_core"]}, "lacks community.crypto, flit_core"),
    ],
)
def test_controller_is_told_what_to_install(changed, message):
    (problem,) = problems(controller=facts()["controller"] | changed)
    assert message in problem
    assert "pip install -r requirements/controller.txt" in problem


def test_prerelease_of_a_supported_ansible_passes():
    assert problems(controller=facts()["controller"] | {"ansible_core": "2.19.15rc1"}) == []


def test_inventory_elsewhere_without_the_bundled_variables():
    (problem,) = preflight_problems(facts(hosts_without_topology=["db1"], inventory=["prod.yml"]))
    assert "ansible-playbook -i inventory/groups.yml -i prod.yml site.yml -e backend=redis" in problem


@pytest.mark.parametrize(
    ("directories", "path", "message"),
    [
        ({"": ["db1"]}, None, "state_directory is undefined, expected an absolute path"),
        ({"None/.state": ["db1"]}, None, "state_directory is None/.state, expected an absolute path"),
        ({"/inventory/.state": ["db1"]}, {"mode": 0o755}, "chmod 700 /inventory/.state"),
        ({"/inventory/.state": ["db1"]}, {"mode": 0o710}, "chmod 700 /inventory/.state"),
        ({"/inventory/.state": ["db1"]}, {"kind": "other"}, "is not a directory"),
        ({"/inventory/.state": ["db1"]}, {"writable": False}, "/inventory/.state is not writable for me"),
        ({"/inventory/.state": ["db1"], "/other": ["worker1"]}, {}, "differs between hosts"),
    ],
)  # fmt: skip
def test_state_directory(directories, path, message):
    paths = {} if path is None else {name: state_path(**path) for name in directories}
    (problem,) = problems(state_directories=directories, state_paths=paths)
    assert message in problem


def test_everything_wrong_is_told_at_once():
    found = problems(
        extra=choose("rdis", "rabit"),
        groups=groups(celery=[]),
        state_paths={"/inventory/.state": state_path(mode=0o777)},
    )
    assert len(found) == 4


def debian(version, name="Debian"):
    return {
        "distribution": name,
        "distribution_version": version,
        "distribution_major_version": version.split(".", maxsplit=1)[0],
    }


RELEASES = (CONSTANTS["preflight_releases_tested"], CONSTANTS["preflight_releases_untested"])


@pytest.mark.parametrize("host", [debian("12.15"), debian("13.1"), debian("13")])
def test_tested_releases_pass_in_silence(host):
    assert host_problems(host, *RELEASES) == host_notes(host, *RELEASES) == []


@pytest.mark.parametrize("number", ["22.04", "24.04"])
def test_untested_releases_pass_with_a_note(number):
    assert host_problems(debian(number, "Ubuntu"), *RELEASES) == []
    assert host_notes(debian(number, "Ubuntu"), *RELEASES) == [
        f"Ubuntu {number} takes the same code paths as Debian, but is not tested"
    ]


@pytest.mark.parametrize(
    "host", [debian("11.9"), debian("20.04", "Ubuntu"), debian("24.10", "Ubuntu"), debian("9.4", "Rocky")]
)
def test_other_releases_are_refused_unless_accepted(host):
    (problem,) = host_problems(host, *RELEASES)
    assert "-e preflight_unsupported_release_accepted=true" in problem
    assert host_problems(host, *RELEASES, accepted=True) == []
    assert "was accepted" in host_notes(host, *RELEASES)[0]


def test_client_addresses_are_those_that_others_see():
    found = client_addresses(
        {
            "all_ipv4_addresses": ["192.0.2.7", "127.0.0.1", "10.0.0.9"],
            "all_ipv6_addresses": ["fe80::1%eth0", "::1", "2001:db8:0::7"],
        }
    )
    assert found == ["10.0.0.9", "192.0.2.7", "2001:db8::7"]
    assert client_addresses({}) == []


MINE = Holder("here", "boot1 pid:[1]", 100, "5000", "me", "2026-01-01T10:00:00+00:00")
OTHER = {"controller": "here", "machine": "boot1 pid:[1]", "pid": 99, "started": "4000", "run": "here/99"}


@pytest.mark.parametrize(
    ("holder", "alive", "age", "expected"),
    [
        ({}, False, 0, "replace"),
        ({}, True, 9999, "refuse"),
        ({"since": "2026-01-01T10:00:01+00:00"}, True, 0, "wait"),
        ({"since": "2026-01-01T09:59:59+00:00"}, True, 0, "refuse"),
        ({"controller": "elsewhere"}, False, 3599, "refuse"),
        ({"controller": "elsewhere"}, False, 3601, "replace"),
        # a container or a machine of the same name: its process ids mean nothing here
        ({"machine": "boot1 pid:[2]"}, False, 0, "refuse"),
        ({"machine": "boot0 pid:[1]"}, False, 3601, "replace"),
    ],
)
def test_lock_of_another_run(holder, alive, age, expected):
    found = OTHER | {"since": "2026-01-01T09:00:00+00:00"} | holder
    assert verdict(found, MINE, alive=alive, age=age, stale_after=3600) == expected


def test_of_two_runs_that_hold_what_the_other_wants_only_one_waits():
    later = Holder("here", "boot1 pid:[1]", 200, "5000", "me", MINE.since)
    answers = [
        verdict({**vars(other), "run": other.run}, mine, alive=True, age=0, stale_after=3600)
        for mine, other in ((MINE, later), (later, MINE))
    ]
    assert sorted(answers) == ["refuse", "wait"]


def test_start_time_tells_a_process_from_a_dead_one_and_from_a_zombie():
    assert start_time(os.getpid()) == start_time(os.getpid()) != ""
    with subprocess.Popen([sys.executable, "-c", ""], stdin=subprocess.DEVNULL) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert Path(f"/proc/{child.pid}/stat").read_text().split()[2] == "Z"
        assert start_time(child.pid) == ""
    assert start_time(child.pid) == ""
    assert run_lock.this_run().pid == os.getpid()
    with multiprocessing.get_context("fork").Pool(1) as workers:
        assert workers.apply(run_lock.this_run) == run_lock.this_run()


def take(path, run, replace=""):
    return swap(str(path), "taken", {"run": run, "user": "me"}, replace)


def test_lock_is_taken_once_kept_by_its_holder_and_released_by_it_alone(tmp_path):
    path = tmp_path / "lock"
    assert take(path, "a")["taken"]
    assert take(path, "a")["taken"]
    refused = take(path, "b")
    assert not refused["taken"]
    assert refused["holder"]["run"] == "a"
    assert refused["age_seconds"] < 60
    swap(str(path), "released", {"run": "b"}, "")
    assert not take(path, "b")["taken"]
    swap(str(path), "released", {"run": "a"}, "")
    assert take(path, "b")["taken"]


def test_takeover_succeeds_for_one_of_two(tmp_path):
    path = tmp_path / "lock"
    take(path, "dead")
    assert take(path, "b", replace="dead")["taken"]
    assert not take(path, "c", replace="dead")["taken"]


def test_lock_cut_short_by_a_crash_is_free(tmp_path):
    path = tmp_path / "lock"
    path.write_text('{"run": "a')
    assert take(path, "b")["taken"]


def test_lock_is_no_way_through_a_symbolic_link(tmp_path):
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        take(tmp_path / "lock", "a")
    assert not (tmp_path / "elsewhere").exists()


@pytest.fixture(scope="module")
def roles(tmp_path_factory):
    """Return a roles directory in which redis is available, whatever the checkout has."""
    directory = tmp_path_factory.mktemp("roles")
    for file in ("connection.yml", "topology_standalone.yml"):
        (directory / "redis/tasks").mkdir(parents=True, exist_ok=True)
        (directory / "redis/tasks" / file).write_text("---\n")
    return directory


def preflight(roles, *arguments):
    """Run the shipped playbook; only its first play, as no host is reached in these tests."""
    return subprocess.run(
        [Path(sys.executable).with_name("ansible-playbook"), "playbooks/preflight.yml", *arguments],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_ROLES_PATH": str(roles), "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_playbook_refuses_without_backend_and_prints_the_command(roles):
    run = preflight(roles)
    assert run.returncode == 2
    assert "make deploy backend=redis\n" in run.stdout
    assert "Check the hosts" not in run.stdout


def test_playbook_reads_inventory_limit_and_extra_vars(roles, tmp_path):
    (tmp_path / "hosts.yml").write_text(
        yaml.safe_dump(
            {
                "all": {"hosts": {"db1": {}, "worker1": {}}, "vars": {"broker": "redis"}},
                "redis_sentinel": {"hosts": {"db1": {}, "worker1": {}}},
                "celery": {
                    "hosts": {"worker1": {"celery_app": "proj", "celery_broker_url": "{{ missing }}"}}
                },
                "celery_client": {"hosts": {"worker1": {}}},
            }
        )
    )
    (tmp_path / ".state").mkdir(mode=0o755)
    # --limit leaves localhost out, and every server
    run = preflight(
        roles, "-i", "inventory/groups.yml", "-i", str(tmp_path), "-e", "backend=redis", "-l", "celery"
    )
    assert run.returncode == 2
    for message in (
        "broker=redis is set in the inventory",
        "The group redis has no hosts",
        "worker1: in both groups",
        "redis_sentinel has 2 hosts",
        "redis as sentinel is not available yet",
        f"chmod 700 {tmp_path}/.state",
    ):
        assert message in run.stdout
    assert "needs a broker" not in run.stdout
    assert "Check the hosts" not in run.stdout


def test_playbook_tells_how_to_add_the_bundled_groups(roles, tmp_path):
    (tmp_path / "hosts.yml").write_text("redis: {hosts: {db1: {}}}\ncelery: {hosts: {db1: {}}}\n")
    run = preflight(roles, "-i", str(tmp_path / "hosts.yml"), "-e", "backend=redis")
    assert run.returncode == 2
    assert f"-i inventory/groups.yml -i {tmp_path}/hosts.yml site.yml -e backend=redis" in run.stdout


LOCKED_PLAY = """
- hosts: localhost
  connection: local
  gather_facts: false
  vars: {ansible_python_interpreter: "{{ ansible_playbook_python }}"}
  tasks:
    - run_lock: {state: taken, path: "{{ directory }}/lock"}
    - command: {argv: ["mkfifo", "{{ directory }}/{{ run }}"]}
    - command: {argv: ["cat", "{{ directory }}/{{ run }}"]}
    - run_lock: {state: released, path: "{{ directory }}/lock"}
"""


def locked_run(directory, name):
    """Start a run that takes the lock, says so with a pipe, and goes on when that is written to."""
    (directory / "play.yml").write_text(LOCKED_PLAY)
    arguments = [str(directory / "play.yml"), "-e", f"directory={directory}", "-e", f"run={name}"]
    return subprocess.Popen(
        [Path(sys.executable).with_name("ansible-playbook"), *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def release(pipe):
    os.close(os.open(pipe, os.O_WRONLY))


def wait_for(path):
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.05)


def test_second_run_is_refused_until_the_first_ends_or_is_killed(tmp_path):
    with locked_run(tmp_path, "first") as first:
        wait_for(tmp_path / "first")
        with locked_run(tmp_path, "second") as second:
            output = second.communicate(timeout=60)[0]
        assert second.returncode == 2
        assert "localhost is being changed by another run" in output
        assert f"process {first.pid}" in output
        # The main process alone: what it has started lives on for a while, as after a crash.
        os.kill(first.pid, signal.SIGKILL)
        os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOWAIT)
        with locked_run(tmp_path, "third") as third:
            wait_for(tmp_path / "third")
            release(tmp_path / "third")
            third.communicate(timeout=60)
        release(tmp_path / "first")
    assert third.returncode == 0
    assert (tmp_path / "lock").read_text() == ""
