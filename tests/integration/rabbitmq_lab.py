"""A real RabbitMQ on a loopback address of its own, set up as the bundle does it."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import signal
import ssl
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import amqp
from tests.integration.lab_files import (
    LOGIN_FILES,
    RESULTS,
    ROOT,
    Lab,
    free_port,
    quoted,
    write_env,
    write_settings,
)
from tests.integration.redis_lab import Authority

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

START_SECONDS = 90.0
CONTROL_SECONDS = 60
LOGINS = ("worker", "client", "monitor")
VHOST = "celery"
QUEUES = ("celery",)
PROBE = "celery-results.probe"

# What weakens the deployed settings, for `weaken`.
ANY_CERTIFICATE = ('"cert_reqs": _ssl.CERT_REQUIRED', '"cert_reqs": _ssl.CERT_NONE')
ANY_NAME = ('"server_hostname": None,', "")

# The role's patterns; docs/rabbitmq.md says what each part is for.
UUID = "[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}"
SMOKE = "celery-results-smoke-[0-9a-f]{12}"
CONTROL = rf"(.+\.)?celery\.pidbox|celeryev(\.{UUID})?"
DELAYED = "celery_delayed_([0-9]+|delivery)"


def permissions(queue_type: str = "quorum", queues: Sequence[str] = QUEUES) -> dict[str, dict[str, str]]:
    """Give configure, write and read of each login: patterns of queues and exchanges, anchored."""
    quorum = queue_type == "quorum"
    tasks = "|".join([*(re.escape(name) for name in queues), SMOKE])
    worker = f"{tasks}|{CONTROL}" + (f"|{DELAYED}" if quorum else "")
    return {
        "worker": {
            "configure": f"^({worker}|{UUID})$",
            "write": rf"^({worker}|amq\.default)$",
            "read": f"^({worker}|{UUID})$",
        },
        "client": {
            "configure": f"^({UUID})$",
            "write": f"^({tasks}" + ("|celery_delayed_27" if quorum else "") + ")$",
            "read": f"^({UUID})$",
        },
        "monitor": {"configure": "^$", "write": rf"^{re.escape(PROBE)}$", "read": "^$"},
    }


def password_hash(password: str) -> str:
    """Give what a definitions file holds: base64 of a salt of 4 bytes and SHA-256 of salt and password."""
    salt = secrets.token_bytes(4)
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


@dataclass
class RabbitmqLab(Lab):
    """One node and the files of one Celery host."""

    directory: Path
    queue_type: str = "quorum"
    permissions: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    # Users besides those of the role, by name: password, tags.
    users: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    plain_port: bool = False
    config: Mapping[str, object] = field(default_factory=dict)
    address: str = field(
        default_factory=lambda: f"127.{secrets.randbelow(200) + 20}.{secrets.randbelow(250)}.9"
    )
    passwords: dict[str, str] = field(default_factory=dict)
    port: int = 0
    plain: int = 0
    process: subprocess.Popen[bytes] | None = None
    _ports: dict[str, int] = field(default_factory=dict)
    _epmd: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Make the files on the first call; on a later one start the same node again."""
        first = not self.port
        if first:
            self._prepare()
        if self._epmd is None:
            # Its own port mapper: nodes side by side know nothing of each other, and none outlives its test.
            epmd = ["epmd", "-address", "127.0.0.1", "-port", str(self._ports["epmd"])]
            self._epmd = subprocess.Popen(epmd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        with (self.directory / "node.out").open("ab") as log:
            self.process = subprocess.Popen(
                [_program("rabbitmq-server")],
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._wait()
        if first:
            # As the role does: a queue that is seconds old is not found again after kill -9 otherwise.
            self.evaluate("[dets:sync(Table) || Table <- dets:all()].")

    def kill(self) -> None:
        """End the node as a power failure would: kill -9."""
        if self.process is not None:
            # The group: the process itself is the shell script that started the node.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def stop(self) -> None:
        """End everything that was started here."""
        self.kill()
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait()
            self._epmd = None

    def control(self, *arguments: str) -> str:
        """Run rabbitmqctl against this node; it takes more than a second of processor time."""
        return subprocess.run(
            [_program("rabbitmqctl"), "--quiet", *arguments],
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=CONTROL_SECONDS,
            check=True,
        ).stdout

    def evaluate(self, expression: str) -> str:
        """Have the node evaluate an Erlang expression."""
        return self.control("eval", expression).strip()

    def table(self, what: str, *columns: str) -> list[dict[str, Any]]:
        """List queues, exchanges or bindings of the vhost."""
        arguments = ["--vhost", VHOST] if what != "connections" else []
        answer = self.control("--formatter", "json", f"list_{what}", *arguments, *columns)
        rows: list[dict[str, Any]] = json.loads(answer or "[]")
        return rows

    def queues(self) -> dict[str, int]:
        """Give the messages in each queue, ready or not yet acknowledged."""
        return {row["name"]: row["messages"] for row in self.table("queues", "name", "messages")}

    def log(self) -> str:
        """Give the node's log."""
        return (self.directory / "log" / "node.log").read_text(errors="replace")

    def connection(self, login: str = "worker", **changes: Any) -> amqp.Connection:
        """Connect as py-amqp does, chain and name verified, and log in."""
        options: dict[str, Any] = {
            "host": f"{self.address}:{self.port}",
            "userid": f"celery-{login}",
            "password": self.passwords[login],
            "virtual_host": VHOST,
            "ssl": {
                "cert_reqs": ssl.CERT_REQUIRED,
                "ca_certs": str(self.authority.file),
                "server_hostname": self.address,
            },
            "connect_timeout": 5,
            "read_timeout": 15,
            "write_timeout": 15,
            "confirm_publish": True,
        }
        connection = amqp.Connection(**{**options, **changes})
        connection.connect()
        return connection

    def environment(self) -> dict[str, str]:
        """Give the node's environment; nothing of the machine's own installation is read."""
        directory = self.directory
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("RABBITMQ", "ERL_"))
        }
        return {
            **kept,
            "HOME": str(directory),
            "RABBITMQ_NODENAME": f"crb{self._ports['dist']}@localhost",
            "RABBITMQ_CONF_ENV_FILE": str(directory / "rabbitmq-env.conf"),
            "RABBITMQ_CONFIG_FILE": str(directory / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(directory / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(directory / "data"),
            "RABBITMQ_LOG_BASE": str(directory / "log"),
            "RABBITMQ_LOGS": str(directory / "log" / "node.log"),
            "RABBITMQ_PID_FILE": str(directory / "node.pid"),
            "RABBITMQ_DIST_PORT": str(self._ports["dist"]),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                "+S 1:1 +sbwt none +sbwtdcpu none +sbwtdio none -kernel inet_dist_use_interface {127,0,0,1}"
            ),
            "RABBITMQ_CTL_ERL_ARGS": "+S 1:1 +sbwt none",
            "ERL_EPMD_PORT": str(self._ports["epmd"]),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "LANG": "C.UTF-8",
        }

    def write_config(
        self, directory: Path, *, result: bool = True, broker: bool = True, **changes: str
    ) -> Path:
        """Write what the celery role writes to /etc/celery; changes go to all env files."""
        write_settings(directory, "rabbitmq")
        for name, login in LOGIN_FILES.items():
            self.write_env(directory / name, login, result=result, broker=broker, **changes)
        return directory

    def add_broker(self, directory: Path) -> Path:
        """Give the files that another lab has written this broker, in place of any other."""
        shutil.copy(ROOT / "files" / "celeryconfig" / "rabbitmq.py", directory / "celeryconfig_rabbitmq.py")
        for name, login in {"celery.env": "worker", "client.env": "client"}.items():
            path = directory / name
            kept = [line for line in path.read_text().splitlines() if "CELERYCONFIG_BROKER_" not in line]
            values = self._connection_values("BROKER", login)
            path.write_text("\n".join([*kept, *(f"{key}={quoted(values[key])}" for key in values), ""]))
        return directory

    def write_env(
        self, path: Path, login: str, *, result: bool = True, broker: bool = True, **changes: str
    ) -> None:
        """Write one env file, its owner's alone."""
        values = {
            **(self._connection_values("RESULT", login) if result else {}),
            **(self._connection_values("BROKER", login) if broker else {}),
            "CELERYCONFIG_LOGIN": login,
            **RESULTS,
            **changes,
        }
        write_env(path, values)

    def _connection_values(self, role: str, login: str) -> dict[str, str]:
        return self.connection_values(
            role,
            login,
            name="rabbitmq",
            scheme="amqps",
            database=VHOST,
            username=f"celery-{login}",
            options=json.dumps({"queue_type": self.queue_type, "queues": list(QUEUES)}),
        )

    def _prepare(self) -> None:
        for name in ("data", "log"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        self.passwords = self.passwords or {name: f"{name}:/@#%?{secrets.token_hex(12)}" for name in LOGINS}
        self.authority = Authority(self.directory)
        certificate, key = self.authority.issue(self.address)
        self.port, self.plain = free_port(self.address), free_port(self.address)
        self._ports = {name: free_port("127.0.0.1") for name in ("epmd", "dist")}
        definitions = self.directory / "definitions.json"
        definitions.write_text(json.dumps(self.definitions(), indent=1))
        config = {
            "listeners.tcp.1" if self.plain_port else "listeners.tcp": (
                f"{self.address}:{self.plain}" if self.plain_port else "none"
            ),
            "listeners.ssl.1": f"{self.address}:{self.port}",
            "ssl_options.cacertfile": self.authority.file,
            "ssl_options.certfile": certificate,
            "ssl_options.keyfile": key,
            "ssl_options.versions.1": "tlsv1.3",
            "ssl_options.versions.2": "tlsv1.2",
            "ssl_options.verify": "verify_peer",
            "ssl_options.fail_if_no_peer_cert": "false",
            "load_definitions": definitions,
            "disk_free_limit.absolute": "50MB",
            "vm_memory_high_watermark.absolute": "500MB",
            "log.file.level": "info",
            **self.config,
        }
        (self.directory / "rabbitmq.conf").write_text("".join(f"{k} = {v}\n" for k, v in config.items()))
        (self.directory / "enabled_plugins").write_text("[].\n")
        (self.directory / "rabbitmq-env.conf").touch()
        (self.directory / "advanced.config").write_text("[].\n")

    def definitions(self) -> dict[str, Any]:
        """Give the users, permissions, queues and the probe as the role declares them."""
        granted = {**permissions(self.queue_type), **self.permissions}
        users = {f"celery-{name}": (self.passwords[name], "") for name in LOGINS} | dict(self.users)
        of_a_queue = {"x-queue-type": "quorum"} if self.queue_type == "quorum" else {}
        lasting = {"vhost": VHOST, "durable": True, "auto_delete": False}
        return {
            "users": [
                {
                    "name": name,
                    "password_hash": password_hash(password),
                    "hashing_algorithm": "rabbit_password_hashing_sha256",
                    "tags": tags,
                }
                for name, (password, tags) in users.items()
            ],
            "vhosts": [{"name": VHOST}],
            "permissions": [
                {"user": f"celery-{name}", "vhost": VHOST, **patterns} for name, patterns in granted.items()
            ],
            "exchanges": [
                {"name": PROBE, "type": "fanout", "internal": False, "arguments": {}, **lasting},
                *(
                    {"name": name, "type": "topic", "internal": False, "arguments": {}, **lasting}
                    for name in QUEUES
                ),
            ],
            "queues": [{"name": name, "arguments": of_a_queue, **lasting} for name in QUEUES],
            "bindings": [
                {
                    "source": name,
                    "vhost": VHOST,
                    "destination": name,
                    "destination_type": "queue",
                    "routing_key": name,
                    "arguments": {},
                }
                for name in QUEUES
            ],
            "policies": [
                {
                    "name": "celery-results-replies",
                    "vhost": VHOST,
                    "pattern": f"^{UUID}$",
                    "apply-to": "queues",
                    "priority": 10,
                    "definition": {
                        "expires": 604_800_000,
                        "message-ttl": 604_800_000,
                        "max-length": 100_000,
                        "overflow": "reject-publish",
                        "queue-mode": "lazy",
                    },
                }
            ],
        }

    def _wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        failure: Exception | None = None
        while time.monotonic() < deadline:
            try:
                self.connection(connect_timeout=2, read_timeout=5).close()
            except (OSError, amqp.exceptions.AMQPError) as error:
                failure = error
            else:
                return
            assert self.process is not None
            if self.process.poll() is not None:
                break
            time.sleep(0.1)
        message = f"rabbitmq-server did not start ({failure}):\n{(self.directory / 'node.out').read_text()}"
        raise RuntimeError(message)


def _program(name: str) -> str:
    """Find the script behind Debian's wrapper, which insists on root or the user rabbitmq."""
    found = sorted(Path("/usr/lib/rabbitmq/lib").glob(f"rabbitmq_server-*/sbin/{name}"))
    if not found:
        message = "these tests need a real server: apt-get install --yes rabbitmq-server"
        raise FileNotFoundError(message)
    return str(found[-1])
