"""Time a first run, a second run and the smoke test of site.yml on one pair of hosts; print a table.

    .venv/bin/python benchmarks/provision.py [--backend redis] [--release 13] [--rounds 3]

The hosts are two containers (server, worker) that it starts and removes. Wall seconds, the median of the
rounds with minimum and maximum; ratios to the first run of the same round. What is measured is the playbooks
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


def one_round(backend: str, release: str) -> dict[str, float]:
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
                "ansible_connection": "community.docker.docker",
                "ansible_python_interpreter": "/usr/bin/python3",
                # The network is theirs alone; the rules would be timed, nftables' installation too.
                "firewall_enabled": True,
            }
            groups: dict[str, object] = {backend: {"hosts": {server: {}}}, "celery": {"hosts": {worker: {}}}}
            inventory.write_text(json.dumps({"all": {"vars": variables, "children": groups}}))

            def playbook(name: str) -> None:
                subprocess.run(
                    ["ansible-playbook", "-i", "inventory/groups.yml", "-i", inventory, name, "-e", f"backend={backend}"],
                    cwd=PROJECT, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"ANSIBLE_NOCOLOR": "1"},
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
    options = parser.parse_args()
    rounds = [one_round(options.backend, options.release) for _ in range(options.rounds)]
    print(f"{options.backend}, Debian {options.release}, server and worker host, {options.rounds} rounds")
    print(f"{'step':24}{'median s':>10}{'min':>8}{'max':>8}{'of first run':>14}")
    for step in rounds[0]:
        seconds = [result[step] for result in rounds]
        ratio = statistics.median(result[step] / result["first run"] for result in rounds)
        print(
            f"{step:24}{statistics.median(seconds):10.1f}{min(seconds):8.1f}{max(seconds):8.1f}{ratio:14.2f}"
        )


if __name__ == "__main__":
    main()
