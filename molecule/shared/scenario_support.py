"""What the scenarios' tests share: their hosts by role, Python run as the Celery user, runs of site.yml."""

import base64
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host
from testinfra.utils.ansible_runner import AnsibleRunner

PROJECT = Path(__file__).parents[2]
APPLICATION_PRELUDE = """
from celery import Celery, chain, chord, group
app = Celery("test")
app.config_from_object("celeryconfig")
"""


# Run by the controller's Python, which has cryptography; the certificate to copy comes on its standard input.
EXPIRE = """
import datetime, sys
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
ca = x509.load_pem_x509_certificate(open(sys.argv[1] + "/ca.crt", "rb").read())
ca_key = serialization.load_pem_private_key(open(sys.argv[1] + "/ca.key", "rb").read(), None)
old = x509.load_pem_x509_certificate(sys.stdin.buffer.read())
now = datetime.datetime.now(datetime.timezone.utc)
builder = (x509.CertificateBuilder().subject_name(old.subject).issuer_name(ca.subject).public_key(old.public_key())
    .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(days=30))
    .not_valid_after(now - datetime.timedelta(hours=1)))
for extension in old.extensions:
    builder = builder.add_extension(extension.value, extension.critical)
print(builder.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode())
"""


def until(condition: Callable[[], Any], seconds: float = 30, what: str = "the condition") -> Any:
    """Poll until `condition` is true; return its value, or fail after so many `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.2)
    pytest.fail(f"{what}: not within {seconds} s")


def descendants(pid: int) -> list[int]:
    """Give the processes that one has started, and those that they have."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    pairs = [[int(number) for number in line.split()] for line in listed.splitlines()]
    found = [pid]
    for each in found:
        found += [child for child, parent in pairs if parent == each]
    return found[1:]


def networks_of(name: str) -> dict[str, str]:
    """Return the address that the host of this name has on each of its networks, by their names."""
    shown = subprocess.run(
        ["docker", "inspect", "-f", "{{json .NetworkSettings.Networks}}", name],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return {network: settings["IPAddress"] for network, settings in json.loads(shown.stdout).items()}


def reaches(name: str, address: str, port: int) -> bool:
    """Tell whether the host of this name gets a TCP connection within 3 s."""
    shell = f"timeout 3 bash -c 'exec 3<>/dev/tcp/{address}/{port}' && echo open"
    tried = subprocess.run(
        ["docker", "exec", name, "bash", "-c", shell], capture_output=True, text=True, check=False
    )
    return "open" in tried.stdout


class CeleryHost:
    """A host that has the deployed celeryconfig."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def command(self, code: str, env_file: str = "celery.env", more_path: str = "") -> str:
        """Return the shell command that runs `code` as the Celery user under the deployed settings."""
        encoded = base64.b64encode((APPLICATION_PRELUDE + code).encode()).decode()
        inner = (
            f"set -a; . /etc/celery/{env_file}; set +a; cd /var/lib/celery; "
            f"export PYTHONPATH=/etc/celery:{more_path}; "
            f"echo {encoded} | base64 -d | exec /opt/celery/venv/bin/python -"
        )
        return f"runuser -u celery -- sh -c {shlex.quote(inner)}"

    def python(self, code: str, env_file: str = "celery.env", more_path: str = "") -> str:
        """Run `code`, in which `app` is a Celery application with the deployed settings; return its output."""
        result = self.host.run(self.command(code, env_file, more_path))
        assert result.rc == 0, f"{result.stdout}\n{result.stderr}"
        return str(result.stdout).strip()

    def cli(self, arguments: str) -> Any:
        """Run a verb of celery-results with --json; return (exit code, document)."""
        result = self.host.run(f"runuser -u celery -- /opt/celery/venv/bin/celery-results {arguments} --json")
        return result.rc, json.loads(result.stdout)


class Site:
    """Runs of the project's playbooks against the scenario's hosts, as a user starts them."""

    def __init__(self) -> None:
        self.ephemeral = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"])
        self.environment = os.environ | {
            "ANSIBLE_CONFIG": str(self.ephemeral / "ansible.cfg"),
            "NO_COLOR": "1",
        }

    @property
    def state_directory(self) -> Path:
        """Return where the controller keeps secrets and authority, where the controller is this machine."""
        return Path(os.environ["MOLECULE_INVENTORY_FILE"]).parent / ".state"

    def state(self, command: str) -> str:
        """Run a shell `command` in the state directory, on the controller, which may be a host."""
        if self.state_directory.exists():
            where: list[str] = ["sh", "-c", f"cd {self.state_directory} && {command}"]
        else:
            first = AnsibleRunner(os.environ["MOLECULE_INVENTORY_FILE"]).get_hosts("celery")[0]
            checkout = "/srv/celery-result-backends/inventory/.state"
            where = ["docker", "exec", first, "sh", "-c", f"cd {checkout} && {command}"]
        return subprocess.run(where, capture_output=True, text=True, check=True).stdout

    def arguments(self, *more: str, playbook: str = "site.yml", **variables: Any) -> list[str]:
        backend = os.environ.get("MOLECULE_BACKEND", "redis")
        return [
            "ansible-playbook",
            f"--inventory={PROJECT}/inventory/groups.yml",
            f"--inventory={os.environ['MOLECULE_INVENTORY_FILE']}",
            f"--inventory={PROJECT}/molecule/shared/inventory/connection.yml",
            f"--extra-vars={json.dumps({'backend': backend} | variables)}",
            *more,
            str(PROJECT / playbook),
        ]

    def start(self, *more: str, **variables: Any) -> subprocess.Popen[str]:
        """Start a run; what Ansible says of errors is in its `stdout` too."""
        return subprocess.Popen(
            self.arguments(*more, **variables),
            env=self.environment,
            cwd=PROJECT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    @staticmethod
    def kill(process: subprocess.Popen[str]) -> None:
        """Kill a run and all that it has started on this machine.

        Ansible's workers have sessions of their own, and one that has lost its parent waits for its host for ever.
        """
        os.killpg(process.pid, signal.SIGSTOP)
        for pid in descendants(process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()

    def run(self, *more: str, **variables: Any) -> subprocess.CompletedProcess[str]:
        """Run to the end."""
        with self.start(*more, **variables) as process:
            output, _ = process.communicate(timeout=600)
        return subprocess.CompletedProcess(process.args, process.returncode, output)

    def assert_nothing_to_do(self, *more: str, **variables: Any) -> None:
        """Run to the end; fail if the run fails, changes anything on any host, or prints a secret."""
        run = self.run(*more, **variables)
        assert run.returncode == 0, run.stdout[-3000:]
        recap = dict(re.findall(r"^(\S+) +: ok=\d+ +changed=(\d+) ", run.stdout, re.MULTILINE))
        assert recap, run.stdout[-3000:]
        assert set(recap.values()) == {"0"}, run.stdout[-3000:]
        self.assert_hidden(run.stdout)

    def assert_clean_check_ended_well(self) -> None:
        """Fail if the run in check mode that prepare.yml made on the clean host failed, or printed a secret."""
        output = (self.ephemeral / "clean-check.log").read_text()
        assert "failed=0" in output
        self.assert_hidden(output)

    def secrets(self) -> dict[str, str]:
        """Return every generated secret by its name."""
        lines = self.state("grep -H . secrets/*").splitlines()
        return {Path(name).name: value for name, value in (line.split(":", 1) for line in lines)}

    def forget_secrets(self) -> dict[str, str]:
        """Remove the generated secrets, so that the next run makes new ones; return those that were."""
        old = self.secrets()
        for name in old:
            (self.state_directory / "secrets" / name).unlink()
        return old

    def assert_replaced(self, old: dict[str, str], output: str) -> dict[str, str]:
        """Fail unless every secret is another one now, and none of both is in what a run printed; return the new."""
        new = self.secrets()
        assert set(new) == set(old)
        assert not set(new.values()) & set(old.values())
        for secret in (*old.values(), *new.values()):
            assert secret not in output
        return new

    def expired(self, certificate: str) -> str:
        """Return the PEM of `certificate` as our own authority would have issued it, over since an hour ago."""
        return subprocess.run(
            [sys.executable, "-c", EXPIRE, str(self.state_directory / "tls")],
            input=certificate,
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    def assert_hidden(self, output: str) -> None:
        """Fail if a generated secret is in what a run printed."""
        secrets = self.secrets()
        assert len(secrets) >= 3
        for name, secret in secrets.items():
            assert secret not in output, name
