"""A private redis-server on loopback, as good as the role's, and a certificate authority for it."""

import contextlib
import ipaddress
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tests.integration.lab_files import free_port

HOST = "127.0.0.1"
DEADLINE_SECONDS = 10
SECRETS = {
    "celery-worker": "worker-secret/1@x",
    "celery-exporter": "exporter-secret-2",
    "celery-powerful": "powerful-secret-3",
}
_KEYS = "~celery-task-meta-* ~celery-taskset-meta-*"
# The rights that the redis role gives; client|setinfo exists from Redis 7.2 on only.
USERS = {
    "default": "off resetpass",
    "celery-worker": f"{_KEYS} &celery-task-meta-* &celery-taskset-meta-* -@all +ping +select "
    "+client|setname +get +mget +set +setex +del +expire +exists +multi +exec +discard +publish +subscribe "
    "+unsubscribe +evalsha +script|load +sismember +sadd +zadd +zcount +zrange",
    "celery-exporter": "%R~celery-task-meta-* %R~celery-taskset-meta-* -@all "
    "+info +scan +ttl +pttl +ping +select +dbsize +time",
    "celery-powerful": "~* &* +@all",
}


class Authority:
    """Issues certificates, good and bad, into a directory."""

    def __init__(self, directory: Path, name: str = "ca"):
        self.directory, self.file = directory, directory / f"{name}.crt"
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"doctor test {name}")])
        self.file.write_bytes(self._sign(self._name, self._key, 3650, [], is_ca=True))

    def issue(self, name, *, days=365.0, addresses=(HOST,)):
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        paths = self.directory / f"{name}.crt", self.directory / f"{name}.key"
        paths[0].write_bytes(self._sign(subject, key, days, addresses, is_ca=False))
        paths[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return paths

    def _sign(self, subject, key, days, addresses, *, is_ca):
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=30))
            .not_valid_after(now + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        )
        if addresses:
            names = [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def write_logins(directory: Path, passwords: dict[str, str], **users: str) -> None:
    """Write the env file of each name with the login of its user; a user of no name leaves none."""
    for name, user in users.items():
        path = directory / f"{name}.env"
        path.unlink(missing_ok=True)
        if user:
            path.touch(mode=0o640)
            password = passwords.get(user, "no-such-password")
            path.write_text(f'LOGIN_USER="{user}"\nLOGIN_PASSWORD="{password}"\n')


@dataclass
class RedisServer:
    """One server; the keyword arguments of start() replace lines of its configuration."""

    directory: Path
    authority: Authority
    certificate: tuple[Path, Path]
    port: int = field(default_factory=free_port)
    users: dict[str, str] = field(default_factory=lambda: dict(USERS))

    @contextlib.contextmanager
    def running(self, **lines):
        self.directory.mkdir(parents=True, exist_ok=True)
        configuration = self._configuration(lines)
        process = subprocess.Popen(
            [shutil.which("redis-server") or "/usr/bin/redis-server", configuration],
            cwd=self.directory,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            self._wait(process)
            yield self
        finally:
            process.kill()
            process.wait()

    def _configuration(self, lines):
        acl = self.directory / "users.acl"
        acl.write_text(
            "".join(
                f"user {name} {'' if name == 'default' else f'on >{SECRETS[name]} '}{rights}\n"
                for name, rights in self.users.items()
            )
        )
        settings = {
            "bind": HOST,
            "port": "0",
            "tls-port": str(self.port),
            "tls-cert-file": str(self.certificate[0]),
            "tls-key-file": str(self.certificate[1]),
            "tls-ca-cert-file": str(self.authority.file),
            "tls-auth-clients": "optional",
            "tls-protocols": '"TLSv1.2 TLSv1.3"',
            "aclfile": str(acl),
            "dir": str(self.directory),
            "appendonly": "yes",
            "save": '""',
            "maxmemory": "64mb",
            "maxmemory-policy": "noeviction",
            "enable-debug-command": "no",
            "loglevel": "warning",
            "logfile": str(self.directory / "redis.log"),
        } | {name.replace("_", "-"): value for name, value in lines.items()}
        path = self.directory / "redis.conf"
        path.write_text("".join(f"{name} {value}\n" for name, value in settings.items() if value is not None))
        return path

    def _wait(self, process):
        deadline = time.monotonic() + DEADLINE_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                socket.create_connection((HOST, self.port), 1).close()
                return
            if process.poll() is not None:
                break
            time.sleep(0.02)
        log = self.directory / "redis.log"
        raise AssertionError(f"redis-server did not start: {log.read_text() if log.exists() else 'no log'}")
