"""A real Redis on a loopback address of its own, set up as the bundle does it."""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import ipaddress
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROOT = Path(__file__).parents[2]
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
class RedisLab:
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
        program = shutil.which("redis-server")
        if program is None:
            message = "these tests need a real server: apt-get install --yes redis-server"
            raise FileNotFoundError(message)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.passwords = self.passwords or {name: f"{name}:/@#%?{secrets.token_hex(12)}" for name in LOGINS}
        self.authority = Authority(self.directory)
        certificate, key = self.authority.issue(self.address)
        self.port = _free_port(self.address)
        acl_file = self.directory / "users.acl"
        acl_file.write_text("".join(f"{line}\n" for line in self._acl_lines()))
        config = {
            "bind": self.address,
            "port": _free_port(self.address) if self.plain_port else 0,
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
        config_file = self.directory / "redis.conf"
        config_file.write_text("".join(f"{name} {value}\n" for name, value in config.items()))
        with (self.directory / "redis.log").open("wb") as log:
            self.process = subprocess.Popen([program, config_file], stdout=log, stderr=log)
        self._wait()

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def admin(self) -> redis.Redis:
        return redis.Redis(
            host=self.address,
            port=self.port,
            username="admin",
            password=self.passwords["admin"],
            ssl=True,
            ssl_ca_certs=str(self.authority.file),
            socket_timeout=5,
            decode_responses=True,
        )

    def write_config(self, directory: Path, *, broker: bool = False, **changes: str) -> Path:
        """Write what the celery role writes to /etc/celery; changes go to all env files."""
        directory.mkdir(parents=True)
        for name in ("base", "redis"):
            deployed = "celeryconfig" if name == "base" else f"celeryconfig_{name}"
            shutil.copy(ROOT / "files" / "celeryconfig" / f"{name}.py", directory / f"{deployed}.py")
        files = {"celery.env": "worker", "client.env": "client", "monitor.env": "exporter"}
        for name, login in files.items():
            self.write_env(directory / name, login, broker=broker, **changes)
        return directory

    def write_env(self, path: Path, login: str, *, broker: bool = False, **changes: str) -> None:
        values = {
            **self._connection_values("RESULT", login),
            **(self._connection_values("BROKER", "broker") if broker else {}),
            "CELERYCONFIG_LOGIN": "monitor" if login == "exporter" else login,
            "CELERYCONFIG_RESULT_EXPIRES_SECONDS": "86400",
            "CELERYCONFIG_RESULT_EXTENDED": "false",
            "CELERYCONFIG_RESULT_SERIALIZER": "json",
            **changes,
        }
        path.write_text("".join(f"{name}={quoted(value)}\n" for name, value in values.items()))
        path.chmod(0o600)

    def _connection_values(self, role: str, login: str) -> dict[str, str]:
        prefix = f"CELERYCONFIG_{role}_"
        return {
            f"{prefix}NAME": "redis",
            f"{prefix}SCHEME": "rediss",
            f"{prefix}HOSTS": f"{self.address}:{self.port}",
            f"{prefix}DATABASE": "1" if role == "BROKER" else "0",
            f"{prefix}USERNAME": f"celery-{login}",
            f"{prefix}PASSWORD": self.passwords[login],
            f"{prefix}TLS_ENABLED": "true",
            f"{prefix}TLS_CA_FILE": str(self.authority.file),
            f"{prefix}TLS_CERT_FILE": "",
            f"{prefix}TLS_KEY_FILE": "",
            f"{prefix}OPTIONS": "{}",
        }

    def _acl_lines(self) -> list[str]:
        lines = []
        for user, rules in {**ACL, **self.acl}.items():
            if user == "default":
                lines.append(f"user default {rules}")
                continue
            name = user if user == "admin" else f"celery-{user}"
            digest = hashlib.sha256(self.passwords[user].encode()).hexdigest()
            lines.append(f"user {name} on #{digest} resetkeys resetchannels -@all {rules}")
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


def quoted(value: str) -> str:
    escaped = "".join(f"\\{character}" if character in '\\"$`' else character for character in value)
    return f'"{escaped}"'


def _free_port(address: str) -> int:
    with socket.create_server((address, 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@dataclass(frozen=True)
class Answer:
    """What one run of the command gave."""

    code: int
    stdout: str
    stderr: str
    seconds: float

    @property
    def document(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.stdout)
        return document

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
