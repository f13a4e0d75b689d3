"""PostgreSQL on a scenario's host: as root by the socket, and as a client over the network."""

import shlex

from scenario_support import until
from testinfra.host import Host

VERSION = "$(ls /usr/lib/postgresql)"
UNIT = f"postgresql@{VERSION}-main"
DATABASE = "celery_results"
CA = "/etc/celery/tls/ca.crt"
PORT = "$(pg_lsclusters -h | awk '{print $3}')"


def sql(server: Host, statement: str, database: str = DATABASE) -> str:
    """Run a statement as the superuser."""
    command = f"cd / && runuser -u postgres -- psql -XAtq -p {PORT} -v ON_ERROR_STOP=1 -d {database} -c {shlex.quote(statement)}"
    return str(server.check_output(command)).strip()


def client(user: str, password: str, statement: str = "SELECT 1", /, **parameters: str) -> str:
    """Return the command of a client on the host itself, over TCP and TLS."""
    values = {
        "host": "localhost",
        "dbname": DATABASE,
        "user": user,
        "sslmode": "verify-full",
        "sslrootcert": CA,
    } | parameters
    address = " ".join(f"{name}={value}" for name, value in values.items())
    return f"PGPASSWORD={shlex.quote(password)} psql -XAtq {shlex.quote(address)} -c {shlex.quote(statement)}"


def started(server: Host) -> str:
    """Return when the server was started: another answer means another process."""
    return sql(server, "SELECT pg_postmaster_start_time()")


def answers(server: Host) -> bool:
    return bool(server.run("cd / && runuser -u postgres -- psql -XAtqc 'SELECT 1'").stdout.strip() == "1")


def wait_until_it_answers(server: Host) -> None:
    until(lambda: answers(server), 60, "the server answers")
