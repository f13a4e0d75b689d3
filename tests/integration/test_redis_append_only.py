"""What a restarted server reads back: Redis judges its own append-only file by the role's default user."""

from __future__ import annotations

import socket
import subprocess
import time
from typing import TYPE_CHECKING

import pytest
import redis
from tests.integration.lab_files import ROOT
from tests.integration.test_redis_broker_acl import rules_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WRITES = {
    # As Celery writes the parts of a chord, and kombu what it has taken and not acknowledged.
    "celery-worker": (("ZADD", "celery-taskset-meta-1.j", "1", "part"), ("INCR", "celery-taskset-meta-1.t")),
    "celery-broker": (("ZADD", "unacked_index", "1", "tag"), ("HSET", "unacked", "tag", "message")),
}


class Server:
    """A server with an append-only file and the role's users, on a socket of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        template = (ROOT / "roles/redis/templates/users.acl.j2").read_text().splitlines()
        lines = [line for line in template if line.startswith("user default ")]
        lines += [f"user {name} on >secret -@all {' '.join(rules_of(name, '7.0.15'))}" for name in WRITES]
        lines += ["user admin on >secret ~* &* +@all"]
        (directory / "users.acl").write_text("\n".join([*lines, ""]))
        self.start()

    def start(self) -> None:
        options = f"--port 0 --unixsocket {self.directory}/socket --dir {self.directory} --appendonly yes "
        options += f"--aclfile {self.directory}/users.acl --appendfsync always --save"
        command = ["redis-server", *options.split(" "), ""]
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(f"{self.directory}/socket") == 0:
                    return
            time.sleep(0.05)
        raise RuntimeError((self.directory / "log").read_text())

    def login(self, name: str) -> redis.Redis:
        return redis.Redis(unix_socket_path=f"{self.directory}/socket", username=name, password="secret")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.kill()


@pytest.mark.parametrize("login", WRITES)
def test_a_transaction_is_there_after_kill_9(server: Server, login: str) -> None:
    with server.login(login) as client, client.pipeline(transaction=True) as transaction:
        for write in WRITES[login]:
            transaction.execute_command(*write)
        transaction.execute()
    server.kill()
    server.start()
    with server.login("admin") as admin:
        assert {key.decode() for key in admin.scan_iter()} == {write[1] for write in WRITES[login]}


def test_nobody_gets_in_as_the_default_user(server: Server) -> None:
    with redis.Redis(unix_socket_path=f"{server.directory}/socket", protocol=2) as client:
        with pytest.raises(redis.exceptions.AuthenticationError):
            client.ping()
        for password in ("", "secret", "default"):
            with pytest.raises(redis.exceptions.AuthenticationError):
                client.execute_command("AUTH", "default", password)
