"""Give a Debian cluster of PostgreSQL what its files say and it does not have yet, or say what it lacks."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import ssl
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.module_utils.basic import AnsibleModule

try:
    import psycopg2  # type: ignore[import-untyped]
    import psycopg2.extras  # type: ignore[import-untyped]
except ImportError:
    psycopg2 = None

if TYPE_CHECKING:
    from collections.abc import Iterator

DOCUMENTATION = """
module: postgresql_cluster
short_description: apply the files of a Debian cluster of PostgreSQL to the running server
description:
  - Starts a server that does not run, reloads one that was given its files before they changed or that
    serves another
    certificate than the file's, and restarts one for which a setting waits. The server itself is asked.
  - A server that does not start with new settings gets those back with which it ran last, and the task fails.
  - Connects by the unix socket as the user postgres.
options:
  version: {description: major version of the cluster, type: str, required: true}
  cluster: {description: its name, type: str, default: main}
  data_directory: {description: its data, type: path, required: true}
  config_file: {description: our settings, type: path, required: true}
  hba_file: {description: who may connect, type: path, required: true}
  files: {description: other files that are read at a reload, type: list, elements: path, default: []}
  certificate_file: {description: the certificate that the server shall show, type: path, required: true}
  address: {description: where it listens, type: str, default: 127.0.0.1}
  port: {description: its port, type: int, default: 5432}
  settings:
    description: names of the settings that config_file has, for state checked
    type: list
    elements: str
    default: []
  state: {description: what is wanted, type: str, choices: [applied, checked], default: applied}
author: celery-results
"""
EXAMPLES = """
- name: Give the server what it does not have yet
  postgresql_cluster:
    version: "17"
    data_directory: /var/lib/postgresql/17/main
    config_file: /etc/postgresql/17/main/conf.d/celery-results.conf
    hba_file: /etc/postgresql/17/main/pg_hba.conf
    certificate_file: /etc/postgresql/17/main/tls/server.crt
"""
RETURN = """
actions: {description: what was done (start, reload, restart), type: list, returned: always}
differences: {description: what the server has otherwise, type: list, returned: state is checked}
"""

SOCKET_DIRECTORY = "/var/run/postgresql"
ANSWER_SECONDS = 60
# A server that recovers after a crash is awaited, however large its WAL is.
RECOVERY_SECONDS = 3600
SSL_REQUEST = struct.pack("!ii", 8, 80877103)
POLL_SECONDS = 0.1
LOG_LINES = 12


@contextlib.contextmanager
def as_postgres() -> Iterator[None]:
    """Let the server see the user postgres at the other end of its socket."""
    user = pwd.getpwnam("postgres")
    os.setegid(user.pw_gid)
    os.seteuid(user.pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


class Server:
    """One cluster."""

    def __init__(self, module: AnsibleModule) -> None:
        """Connect to nothing yet."""
        self.module, self.options = module, module.params
        self.pid_file = Path(self.options["data_directory"]) / "postmaster.pid"
        self.good_copy = Path(f"{self.options['config_file']}.applied")

    def process(self) -> tuple[int, int] | None:
        """Return pid and port of the running server, whatever its files say now."""
        try:
            lines = self.pid_file.read_text(encoding="utf-8").splitlines()
            pid, port = int(lines[0]), int(lines[3])
            os.kill(pid, 0)
        except (OSError, ValueError, IndexError):
            return None
        return pid, port

    def connect(self, port: int) -> Any:  # noqa: ANN401 - psycopg2 has no types
        """Connect; raises psycopg2.OperationalError."""
        with as_postgres():
            connection = psycopg2.connect(
                host=SOCKET_DIRECTORY,
                port=port,
                dbname="postgres",
                user="postgres",
                connect_timeout=10,
                application_name="celery-results role postgresql",
            )
        connection.autocommit = True
        return connection

    def query(self, statement: str, *arguments: object) -> list[dict[str, Any]]:
        """Run a query in a connection of its own."""
        found = self.process()
        connection = self.connect(found[1] if found else self.options["port"])
        try:
            with connection.cursor(cursor_factory=psycopg2.extras.RealDictCursor) as cursor:
                cursor.execute(statement, arguments or None)
                return [dict(row) for row in cursor.fetchall()] if cursor.description else []
        finally:
            connection.close()

    def answers(self) -> bool:
        """Wait for a server that starts or recovers; return whether there is one that answers."""
        began, problem = time.monotonic(), ""
        while self.process():
            try:
                self.query("SELECT 1")
            except psycopg2.OperationalError as failure:
                problem = str(failure)
            else:
                return True
            waited = time.monotonic() - began
            recovering = "starting up" in problem or "recovery" in problem
            if waited > (RECOVERY_SECONDS if recovering else ANSWER_SECONDS):
                self.module.fail_json(msg=f"PostgreSQL runs and does not answer: {problem.strip()}")
            time.sleep(POLL_SECONDS)
        return False

    def control(self, action: str) -> str:
        """Start or restart with Debian's tool, by systemd where there is one; return what it complains of."""
        command = ["/usr/bin/pg_ctlcluster", self.options["version"], self.options["cluster"], action]
        code, out, err = self.module.run_command(command)
        return "" if code == 0 else (out + err).strip() or f"exit code {code}"

    def begin(self, action: str) -> None:
        """Start or restart, wait until it answers, and go back to what worked where it does not."""
        problem = self.control(action)
        if not self._up():
            log = self.log()
            if not self.good_copy.exists():
                self.module.fail_json(msg=f"PostgreSQL did not {action}: {problem}\n{log}")
            shutil.copy2(self.good_copy, self.options["config_file"])
            if Path("/run/systemd/system").exists():
                unit = f"postgresql@{self.options['version']}-{self.options['cluster']}.service"
                self.module.run_command(["systemctl", "reset-failed", unit])
            self.control("start")
            back = "the ones of before are in place again and it runs" if self._up() else "it does not run"
            self.module.fail_json(
                msg=f"PostgreSQL does not start with these settings; {back}. What is new is in "
                f"postgresql_config or another variable of this role.\n{log}"
            )

    def _up(self) -> bool:
        deadline = time.monotonic() + 10
        while not self.process():
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_SECONDS)
        return self.answers()

    def log(self) -> str:
        """Return the end of the server's log."""
        name = f"postgresql-{self.options['version']}-{self.options['cluster']}.log"
        try:
            lines = (
                Path("/var/log/postgresql", name).read_text(encoding="utf-8", errors="replace").splitlines()
            )
        except OSError:
            return ""
        return "\n".join(lines[-LOG_LINES:])

    def newest_file(self) -> float:
        """Return when the last of the files that a reload reads was written, in seconds since 1970."""
        names = [self.options["config_file"], self.options["hba_file"], *self.options["files"]]
        return max(os.stat(name).st_mtime for name in names if os.path.exists(name))  # noqa: PTH110, PTH116

    def loaded_at(self) -> float:
        """Return when the server read its files."""
        return float(self.query("SELECT extract(epoch FROM pg_conf_load_time())::float8 AS at")[0]["at"])

    def shows_its_certificate(self) -> bool:
        """Say whether clients are shown the certificate that is in the file."""
        begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
        try:
            text = Path(self.options["certificate_file"]).read_text(encoding="ascii")
            wanted = ssl.PEM_cert_to_DER_cert(begin + text.split(begin)[1].split(end)[0] + end)
            found = self.process()
            address = self.options["address"], found[1] if found else self.options["port"]
            with socket.create_connection(address, timeout=5) as plain:
                plain.sendall(SSL_REQUEST)
                if plain.recv(1) != b"S":
                    return False
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
                with context.wrap_socket(plain) as encrypted:
                    return encrypted.getpeercert(binary_form=True) == wanted
        except (OSError, IndexError, ValueError):
            return False

    def waiting(self) -> list[str]:
        """Return the settings that wait for a restart."""
        rows = self.query("SELECT name FROM pg_settings WHERE pending_restart ORDER BY name")
        return [row["name"] for row in rows]


def applied(server: Server) -> list[str]:
    """Bring the server to what its files say; return what was done."""
    module = server.module
    actions = []
    if not server.answers():
        actions.append("start")
        if module.check_mode:
            return actions
        server.begin("start")
    else:
        newest = server.newest_file()
        if server.loaded_at() < newest or not server.shows_its_certificate():
            actions.append("reload")
            if not module.check_mode:
                server.query("SELECT pg_reload_conf()")
                settle(server, newest)
        if server.waiting():
            actions.append("restart")
            if module.check_mode:
                return actions
            server.begin("restart")
    if not module.check_mode and actions:
        shutil.copy2(module.params["config_file"], server.good_copy)
    return actions


def settle(server: Server, newest: float) -> None:
    """Wait until the server has read its files; the certificate is read last."""
    deadline = time.monotonic() + ANSWER_SECONDS
    while server.loaded_at() < newest or not (server.waiting() or server.shows_its_certificate()):
        if time.monotonic() > deadline:
            server.module.fail_json(msg=f"PostgreSQL does not take its files in.\n{server.log()}")
        time.sleep(POLL_SECONDS)


def differences(server: Server) -> list[str]:
    """Return what the live server has otherwise than the files say."""
    config_file = server.module.params["config_file"]
    names = [name for name in server.module.params["settings"] if "." not in name]
    found = {
        row["name"].lower(): row
        for row in server.query(
            "SELECT name, current_setting(name) AS value, source, sourcefile, sourceline, pending_restart"
            " FROM pg_settings WHERE lower(name) = ANY(%s)",
            names,
        )
    }
    lacking = []
    for name in names:
        row = found.get(name)
        if row is None:
            lacking.append(f"{name} is no setting of this server")
        elif row["pending_restart"]:
            lacking.append(f"{name} waits for a restart")
        elif row["sourcefile"] != config_file:
            where = f"{row['sourcefile']}:{row['sourceline']}" if row["sourcefile"] else row["source"]
            lacking.append(f"{name} is {row['value']}, as {where} says")
    lacking += file_errors(server)
    if server.loaded_at() < server.newest_file():
        lacking.append("files have changed since the server read them")
    if not server.shows_its_certificate():
        lacking.append("clients are shown another certificate than the file's, or none")
    if server.query("SELECT pg_is_in_recovery() AS standby")[0]["standby"]:
        lacking.append("the server is a standby: it takes no results")
    return lacking


def file_errors(server: Server) -> list[str]:
    """Return the lines that the server could not take, or that let in who should stay out."""
    settings = server.query(
        "SELECT sourcefile, sourceline, error FROM pg_file_settings"
        " WHERE error IS NOT NULL AND error <> 'setting could not be applied'"
    )
    rules = server.query(
        "SELECT line_number, auth_method, error FROM pg_hba_file_rules"
        " WHERE error IS NOT NULL OR auth_method IN ('trust', 'password', 'md5')"
    )
    return [f"{row['sourcefile']}:{row['sourceline']}: {row['error']}" for row in settings] + [
        f"pg_hba.conf line {row['line_number']}: {row['error'] or row['auth_method']}" for row in rules
    ]


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "version": {"type": "str", "required": True},
            "cluster": {"type": "str", "default": "main"},
            "data_directory": {"type": "path", "required": True},
            "config_file": {"type": "path", "required": True},
            "hba_file": {"type": "path", "required": True},
            "files": {"type": "list", "elements": "path", "default": []},
            "certificate_file": {"type": "path", "required": True},
            "address": {"type": "str", "default": "127.0.0.1"},
            "port": {"type": "int", "default": 5432},
            "settings": {"type": "list", "elements": "str", "default": []},
            "state": {"choices": ["applied", "checked"], "default": "applied"},
        },
        supports_check_mode=True,
    )
    if psycopg2 is None:
        module.fail_json(msg="the package python3-psycopg2 is missing")
    server = Server(module)
    try:
        if module.params["state"] == "applied":
            actions = applied(server)
            module.exit_json(changed=bool(actions), actions=actions)
        module.exit_json(changed=False, differences=differences(server))
    except psycopg2.Error as failure:
        module.fail_json(msg=f"PostgreSQL: {str(failure).strip()}")


if __name__ == "__main__":
    main()
