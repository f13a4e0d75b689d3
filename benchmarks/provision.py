"""Time a first run, a second run and the smoke test of site.yml on one pair of hosts; print a table.

    .venv/bin/python benchmarks/provision.py [--backend redis] [--release 13] [--rounds 3]
                                             [--strategies bundle_linear linear]

The hosts are two containers (server, worker) that it starts and removes. Wall seconds, the median of the
rounds with minimum and maximum; ratios to the first run of the same round. Strategies take turns: bundle_linear
is the bundle's, over Mitogen's connections; linear is Ansible's own. What is measured is the playbooks
with package installation; the images must exist (`make images`).
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

PROJECT = Path(__file__).parents[1]
PREFIX = "crb-bench"


def docker(*arguments: str) -> None:
    """Run docker; raise with its message if it fails."""
    subprocess.run(["docker", *arguments], check=True, stdout=subprocess.DEVNULL)


def start_host(name: str, release: str) -> None:
    """Start a host with systemd and wait until it runs."""
    docker(
        "run", "-d", "--name", name, "--hostname", name, "--network", PREFIX, "--cgroupns", "host",
        "--cap-add", "SYS_ADMIN", "--cap-add", "NET_ADMIN", "--security-opt", "seccomp=unconfined",
        "--tmpfs", "/run", "--tmpfs", "/run/lock", "--tmpfs", "/tmp:exec",
        "-v", "/sys/fs/cgroup:/sys/fs/cgroup:rw", f"crb-debian:{release}",
    )  # fmt: skip
    wait = "until [ -S /run/dbus/system_bus_socket ]; do sleep 0.1; done; systemctl is-system-running --wait"
    docker("exec", name, "timeout", "60", "sh", "-c", wait)


def remove(names: list[str]) -> None:
    """Remove the hosts and their network, if they are there."""
    subprocess.run(["docker", "rm", "-f", "-v", *names], check=False, capture_output=True)
    subprocess.run(["docker", "network", "rm", PREFIX], check=False, capture_output=True)


def timed(action: Callable[[], None]) -> float:
    """Return the wall seconds of `action`."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def one_round(backend: str, release: str, strategy: str) -> dict[str, float]:
    """Return the seconds of each step on two fresh hosts."""
    server, worker = f"{PREFIX}-server", f"{PREFIX}-worker"
    remove([server, worker])
    try:
        docker("network", "create", PREFIX)
        start_host(server, release)
        start_host(worker, release)
        with tempfile.TemporaryDirectory() as directory:
            inventory = Path(directory) / "hosts.json"
            variables = {
                "ansible_connection": "docker",  # Mitogen replaces it by its short name only
                "ansible_python_interpreter": "/usr/bin/python3",
                # The network is theirs alone; the rules would be timed, nftables' installation too.
                "firewall_enabled": True,
            }
            groups: dict[str, object] = {backend: {"hosts": {server: {}}}, "celery": {"hosts": {worker: {}}}}
            inventory.write_text(json.dumps({"all": {"vars": variables, "children": groups}}))

            environ = os.environ | {"ANSIBLE_NOCOLOR": "1", "ANSIBLE_STRATEGY": strategy}

            def playbook(name: str) -> None:
                subprocess.run(
                    ["ansible-playbook", "-i", "inventory/groups.yml", "-i", inventory, name, "-e", f"backend={backend}"],
                    cwd=PROJECT, check=True, stdout=subprocess.DEVNULL, env=environ,
                )  # fmt: skip

            return {
                "first run": timed(lambda: playbook("site.yml")),
                "second run": timed(lambda: playbook("site.yml")),
                "smoke playbook": timed(lambda: playbook("playbooks/smoke.yml")),
                "celery-results smoke": timed(
                    lambda: docker(
                        "exec",
                        worker,
                        "runuser",
                        "-u",
                        "celery",
                        "--",
                        "/opt/celery/venv/bin/celery-results",
                        "smoke",
                    )
                ),
            }
    finally:
        remove([server, worker])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend", default="redis")
    parser.add_argument("--release", default="13", choices=["12", "13"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--strategies", nargs="+", default=["bundle_linear"], choices=["bundle_linear", "linear"]
    )
    options = parser.parse_args()
    rounds: dict[str, list[dict[str, float]]] = {strategy: [] for strategy in options.strategies}
    for _ in range(options.rounds):
        for strategy, results in rounds.items():
            results.append(one_round(options.backend, options.release, strategy))
    for strategy, results in rounds.items():
        report(f"{options.backend}, Debian {options.release}, server and worker host, {strategy}", results)


def report(title: str, results: list[dict[str, float]]) -> None:
    """Print the table of one strategy."""
    print(f"{title}, {len(results)} rounds")
    print(f"{'step':24}{'median s':>10}{'min':>8}{'max':>8}{'of first run':>14}")
    for step in results[0]:
        seconds = [result[step] for result in results]
        ratio = statistics.median(result[step] / result["first run"] for result in results)
        print(
            f"{step:24}{statistics.median(seconds):10.1f}{min(seconds):8.1f}{max(seconds):8.1f}{ratio:14.2f}"
        )


if __name__ == "__main__":
    main()
