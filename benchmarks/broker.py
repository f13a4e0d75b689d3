"""Compare rpc over our RabbitMQ with Debian's as it is installed, and fill a reply queue that nobody reads.

    .venv/bin/python benchmarks/broker.py [--parts rpc unread] [--rounds 5] [--operations 300] [--tasks 1000] [--replies 10000]

It starts private nodes on loopback (those of tests/integration) and one worker of two processes for each contestant:

    distribution    plain TCP, guest, the node's and Celery's defaults: nothing is confirmed
    tls             the same node and defaults over TLS, chain and name verified
    classic         what the bundle deploys, with rabbitmq_queue_type: classic
    quorum          what the bundle deploys

Contestants take turns in every round. A round is `operations` times delay().get(), one after the other, and then
`tasks` sent at once and collected. Figures are medians of the rounds with minimum and maximum; ratios are of this run.
`unread` sends tasks whose results are never read, and shows what the replies cost the server while they wait.
"""

import argparse
import json
import os
import shutil
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[1]
sys.path[:0] = [str(PROJECT), str(PROJECT / "src")]

from tests.integration.rabbitmq_lab import RabbitmqLab  # noqa: E402

from celery_results.settings import read_env_file  # noqa: E402

APPLICATION = Path(__file__).with_name("broker_app.py")
READY_SECONDS = 60
SAMPLES = 5


class DistributionNode(RabbitmqLab):
    """A node as the package leaves it, but for its address, and with a TLS listener beside the plain one."""

    def _prepare(self) -> None:
        super()._prepare()
        settings = {
            "listeners.tcp.1": f"{self.address}:{self.plain}",
            "listeners.ssl.1": f"{self.address}:{self.port}",
            "ssl_options.cacertfile": self.authority.file,
            "ssl_options.certfile": self.directory / "server.crt",
            "ssl_options.keyfile": self.directory / "server.key",
        }
        text = "".join(f"{name} = {value}\n" for name, value in settings.items())
        (self.directory / "rabbitmq.conf").write_text(text)

    def connection(self, login: str = "guest", **changes: Any) -> Any:  # noqa: ANN401 - py-amqp's
        """Connect as the package's own user."""
        self.passwords["guest"] = "guest"
        options = {"userid": login, "virtual_host": "/", **changes}
        return super().connection(login, **options)


class Contestant:
    """One way to deploy: settings, a worker, and clients."""

    def __init__(
        self, name: str, directory: Path, environ: Mapping[str, str], client: Mapping[str, str]
    ) -> None:
        """Start the worker, and wait until it takes tasks."""
        self.name = name
        shutil.copy(APPLICATION, directory / "broker_app.py")
        self._directory = directory
        path = {"PYTHONPATH": f"{directory}:{PROJECT / 'src'}"}
        base = {name: value for name, value in os.environ.items() if not name.startswith("CELERY")}
        self._environ, self._client = {**base, **path, **environ}, {**base, **path, **client}
        log = (directory / "worker.log").open("w")
        worker = f"-m celery -A broker_app worker --concurrency=2 --loglevel=INFO --hostname={name}@bench"
        self._worker = subprocess.Popen(
            [sys.executable, *worker.split()],
            cwd=directory,
            env=self._environ,
            stdout=log,
            stderr=log,
        )
        deadline = time.monotonic() + READY_SECONDS
        while " ready." not in (directory / "worker.log").read_text():
            if time.monotonic() > deadline or self._worker.poll() is not None:
                raise RuntimeError((directory / "worker.log").read_text())
            time.sleep(0.1)

    def client(self, *arguments: object) -> subprocess.Popen[str]:
        """Start broker_app.py as a client; it prints JSON lines."""
        return subprocess.Popen(
            [sys.executable, "broker_app.py", *map(str, arguments)],
            cwd=self._directory,
            env=self._client,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def measured(self, operations: int, tasks: int) -> dict[str, float]:
        """Run one round; p50 and p99 in ms, tasks per second."""
        output, _ = (client := self.client("round", operations, tasks)).communicate()
        if client.returncode:
            raise RuntimeError(f"{self.name}: the client failed")
        figures: dict[str, float] = json.loads(output)
        return figures

    def end(self) -> None:
        """Stop the worker."""
        self._worker.terminate()
        self._worker.wait()


def deployed(name: str, lab: RabbitmqLab, directory: Path) -> Contestant:
    """Make a contestant of what the bundle deploys."""
    config = lab.write_config(directory)
    return Contestant(
        name, config, read_env_file(config / "celery.env"), read_env_file(config / "client.env")
    )


def by_default(name: str, node: RabbitmqLab, directory: Path) -> Contestant:
    """Make a contestant of Celery's defaults: a URL, and over TLS what verifies the server."""
    directory.mkdir()
    tls = name == "tls"
    scheme, port = ("amqps", node.port) if tls else ("amqp", node.plain)
    settings = [f'broker_url = "{scheme}://guest:guest@{node.address}:{port}//"', 'result_backend = "rpc://"']
    if tls:
        verified = {
            "ca_certs": str(node.authority.file),
            "server_hostname": None,
            "cert_reqs": int(ssl.CERT_REQUIRED),
        }
        settings += [f"broker_use_ssl = {verified!r}"]
    (directory / "celeryconfig.py").write_text("\n".join([*settings, ""]))
    return Contestant(name, directory, {}, {})


def rpc(contestants: list[Contestant], options: argparse.Namespace) -> None:
    """Print round trips and throughput."""
    figures: dict[str, list[dict[str, float]]] = {each.name: [] for each in contestants}
    for each in contestants:
        each.measured(20, 50)
    for number in range(options.rounds):
        turn = contestants[number % len(contestants) :] + contestants[: number % len(contestants)]
        for each in turn:
            figures[each.name].append(each.measured(options.operations, options.tasks))
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
    base = {
        key: statistics.median(found[key] for found in figures["distribution"])
        for key in ("p50", "p99", "rate")
    }
    print(f"{'':14}{'p50 ms':>22}{'ratio':>7}{'p99 ms':>24}{'ratio':>7}{'tasks/s':>24}{'ratio':>7}")
    for name, found in figures.items():
        line = f"{name:14}"
        for key, width in (("p50", 22), ("p99", 24), ("rate", 24)):
            values = sorted(each[key] for each in found)
            middle = statistics.median(values)
            digits = 0 if key == "rate" else 2
            text = f"{middle:.{digits}f} [{values[0]:.{digits}f}..{values[-1]:.{digits}f}]"
            line += f"{text:>{width}}{middle / base[key]:>7.2f}"
        print(line)


def unread(contestant: Contestant, lab: RabbitmqLab, replies: int) -> None:
    """Print what the server holds while nobody reads, and after the client has gone."""
    print(f"{'unread replies':>14}{'queue: memory kB':>18}{'in memory':>11}{'node: MB':>10}")

    def show() -> None:
        columns = ("name", "messages", "memory", "messages_ram")
        waiting = [
            row
            for row in lab.table("queues", *columns)
            if len(row["name"]) == len("00000000-0000-0000-0000-000000000000")
        ]
        lab.evaluate("rabbit_misc:append_rpc_all_nodes([node()], erlang, garbage_collect, []).")
        node = int(lab.evaluate("erlang:memory(total)."))
        total, memory, resident = (
            sum(int(row[key]) for row in waiting) for key in ("messages", "memory", "messages_ram")
        )
        print(f"{total:>14}{memory / 1e3:>18.0f}{resident:>11}{node / 1e6:>10.1f}")

    client = contestant.client("unread", replies // SAMPLES)
    assert client.stdin is not None
    assert client.stdout is not None
    show()
    for _ in range(SAMPLES):
        client.stdin.write("more\n")
        client.stdin.flush()
        client.stdout.readline()
        show()
    client.communicate()
    show()


def main() -> None:
    """Read the options, start the nodes, and run the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parts = ["rpc", "unread"]
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--operations", type=int, default=300)
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--replies", type=int, default=10_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="crb-bench-") as name:
        directory = Path(name)
        nodes: dict[str, RabbitmqLab] = {
            "classic": RabbitmqLab(directory / "c", queue_type="classic"),
            "quorum": RabbitmqLab(directory / "q"),
            "distribution": DistributionNode(directory / "d"),
        }
        contestants: list[Contestant] = []
        try:
            for node in nodes.values():
                node.start()
            contestants += [
                by_default(name, nodes["distribution"], directory / name) for name in ("distribution", "tls")
            ]
            contestants += [deployed(name, nodes[name], directory / name) for name in ("classic", "quorum")]
            if "rpc" in options.parts:
                rpc(contestants, options)
            if "unread" in options.parts:
                unread(contestants[-1], nodes["quorum"], options.replies)
        finally:
            for each in contestants:
                each.end()
            for node in nodes.values():
                node.stop()


if __name__ == "__main__":
    main()
