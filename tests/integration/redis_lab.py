"""A real Redis on a loopback address of its own, set up as the bundle does it."""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import ipaddress
import os
import secrets
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from tests.integration.lab_files import (
    LOGIN_FILES,
    RESULTS,
    ROOT,
    Lab,
    free_port,
    write_env,
    write_settings,
)
from tests.integration.verbs_support import Ran

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

START_SECONDS = 10.0
LOGINS = ("worker", "client", "reader", "exporter", "broker", "admin")
TASK, GROUP = "celery-task-meta-*", "celery-taskset-meta-*"
TRANSACTION = "+multi +exec +discard"
CONNECT = "+ping +select +client|setname"
ACL = {
    "default": "off resetpass ~* &* +@all",
    "worker": f"~{TASK} ~{GROUP} &{TASK} &{GROUP} {CONNECT} {TRANSACTION} +get +mget +set +setex +del "
    "+expire +exists +publish +subscribe +unsubscribe +evalsha +script|load "
    "+sismember +sadd +zadd +zcount +zrange",
    "client": f"%R~{TASK} ~{GROUP} &{TASK} {CONNECT} {TRANSACTION} +get +mget +set +setex +del "
    f"+subscribe +unsubscribe (~{TASK} +del) (&{GROUP} +publish)",
    "reader": f"%R~{TASK} %R~{GROUP} &{TASK} {CONNECT} +get +mget +subscribe +unsubscribe",
    "exporter": f"%R~{TASK} %R~{GROUP} {CONNECT} +info +dbsize +time +scan +ttl +pttl",
    "broker": f"~celery-results-smoke* ~unacked* {CONNECT} {TRANSACTION} +watch +unwatch +lpush +rpush +rpop "
    "+brpop +llen +del +exists +pexpire +zadd +zrem +zrange +zrangebyscore +zrevrangebyscore +hset +hget "
    "+hdel +smembers +set +get +evalsha +script|load",
    "admin": "~* &* +@all",
}


class Authority:
    """A certificate authority, and what it signs."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"test {secrets.token_hex(4)}")])
        basic = x509.BasicConstraints(ca=True, path_length=None)
        self.file = self._write("ca.crt", self._sign(self.name, self.key.public_key(), [(basic, True)]))

    def issue(self, address: str) -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, address)])
        certificate = self._sign(subject, key.public_key(), [(names, False), (usage, False)])
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return self._write("server.crt", certificate), self._write("server.key", private)

    def _sign(self, subject: x509.Name, key: Any, extensions: Sequence[tuple[Any, bool]]) -> bytes:
        now = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(days=1))
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical=critical)
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def _write(self, name: str, content: bytes) -> Path:
        path = self.directory / name
        path.write_bytes(content)
        path.chmod(0o600)
        return path


@dataclass
class RedisLab(Lab):
    """One server and the files of one Celery host."""

    directory: Path
    acl: Mapping[str, str] = field(default_factory=dict)
    plain_port: bool = False
    address: str = field(
        default_factory=lambda: f"127.{secrets.randbelow(200) + 20}.{secrets.randbelow(250)}.7"
    )
    passwords: dict[str, str] = field(default_factory=dict)
    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.passwords = self.passwords or {name: f"{name}:/@#%?{secrets.token_hex(12)}" for name in LOGINS}
        self.authority = Authority(self.directory)
        certificate, key = self.authority.issue(self.address)
        self.port = free_port(self.address)
        acl_file = self.directory / "users.acl"
        acl_file.write_text("".join(f"{line}\n" for line in self._acl_lines()))
        config = {
            "bind": self.address,
            "port": free_port(self.address) if self.plain_port else 0,
            "tls-port": self.port,
            "tls-cert-file": certificate,
            "tls-key-file": key,
            "tls-ca-cert-file": self.authority.file,
            "tls-auth-clients": "no",
            "aclfile": acl_file,
            "dir": self.directory,
            "save": '""',
            "maxmemory": "100mb",
            "maxmemory-policy": "noeviction",
        }
        (self.directory / "redis.conf").write_text("".join(f"{k} {v}\n" for k, v in config.items()))
        self.restart()

    def restart(self) -> None:
        """Start a killed server again, on its port and with what it has on the disk."""
        program = shutil.which("redis-server")
        if program is None:
            message = "these tests need a real server: apt-get install --yes redis-server"
            raise FileNotFoundError(message)
        with (self.directory / "redis.log").open("ab") as log:
            self.process = subprocess.Popen([program, self.directory / "redis.conf"], stdout=log, stderr=log)
        self._wait()

    def kill(self) -> None:
        """End the server as a power failure would: kill -9."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def stop(self) -> None:
        self.kill()

    def url(self, login: str, database: int = 0) -> str:
        """Give the address of a database as Celery takes it, TLS verified."""
        password = quote(self.passwords[login], safe="")
        return (
            f"rediss://{_user(login)}:{password}@{self.address}:{self.port}/{database}"
            f"?ssl_cert_reqs=required&ssl_ca_certs={quote(str(self.authority.file), safe='')}"
        )

    def admin(self) -> redis.Redis:
        return self.client("admin")

    def client(self, login: str) -> redis.Redis:
        """Give a client with a login; it connects at its first command."""
        return redis.Redis(
            host=self.address,
            port=self.port,
            username=_user(login),
            password=self.passwords[login],
            ssl=True,
            ssl_ca_certs=str(self.authority.file),
            socket_timeout=5,
            decode_responses=True,
        )

    def write_config(self, directory: Path, *, broker: bool = False, **changes: str) -> Path:
        """Write what the celery role writes to /etc/celery; changes go to all env files."""
        write_settings(directory, "redis")
        for name, login in {**LOGIN_FILES, "monitor.env": "exporter"}.items():
            self.write_env(directory / name, login, broker=broker, **changes)
        return directory

    def write_env(self, path: Path, login: str, *, broker: bool = False, **changes: str) -> None:
        values = {
            **self._connection_values("RESULT", login),
            **(self._connection_values("BROKER", "broker") if broker else {}),
            "CELERYCONFIG_LOGIN": "monitor" if login == "exporter" else login,
            **RESULTS,
            **changes,
        }
        write_env(path, values)

    def _connection_values(self, role: str, login: str) -> dict[str, str]:
        return self.connection_values(
            role,
            login,
            name="redis",
            scheme="rediss",
            database="1" if role == "BROKER" else "0",
            username=f"celery-{login}",
            options="{}",
        )

    def _acl_lines(self) -> list[str]:
        lines = []
        for user, rules in {**ACL, **self.acl}.items():
            if user == "default":
                lines.append(f"user default {rules}")
                continue
            digest = hashlib.sha256(self.passwords[user].encode()).hexdigest()
            lines.append(f"user {_user(user)} on #{digest} resetkeys resetchannels -@all {rules}")
        return lines

    def _wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(redis.ConnectionError), self.admin() as client:
                client.ping()
                return
            assert self.process is not None
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        message = f"redis-server did not start:\n{(self.directory / 'redis.log').read_text()}"
        raise RuntimeError(message)


def _user(login: str) -> str:
    return login if login == "admin" else f"celery-{login}"


@dataclass(frozen=True)
class Answer(Ran):
    """What one run of smoke gave."""

    seconds: float

    def check(self, name: str) -> dict[str, Any]:
        return next(check for check in self.document["checks"] if check["name"] == name)

    def names(self, status: str) -> list[str]:
        return [check["name"] for check in self.document["checks"] if check["status"] == status]


def command(config_directory: Path, *arguments: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "celery_results",
        "smoke",
        "--config-directory",
        str(config_directory),
        *arguments,
    ]


def command_environment(temporary: Path) -> dict[str, str]:
    temporary.mkdir(exist_ok=True)
    return {**os.environ, "PYTHONPATH": str(ROOT / "src"), "TMPDIR": str(temporary)}


def only(*names: str) -> list[str]:
    """Ask smoke for these checks alone."""
    return [argument for name in names for argument in ("--only", name)]


def smoke(config_directory: Path, *arguments: str) -> Answer:
    """Run the command as a user does."""
    began = time.monotonic()
    done = subprocess.run(
        command(config_directory, *arguments),
        env=command_environment(config_directory / "tmp"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return Answer(done.returncode, done.stdout, done.stderr, time.monotonic() - began)
