"""Redis on a scenario's host: its command line as one of the logins, and connections that stay open."""

from scenario_support import Site, until
from testinfra.host import Host

CLI = "redis-cli --no-auth-warning --tls --cacert /etc/redis/tls/ca.crt -h localhost"
# What who waits for a result, and a worker that waits for a task, keep open.
WAITS = {"celery-worker": "subscribe celery-task-meta-held", "celery-broker": "-n 1 brpop celery 0"}


def hold(server: Host, site: Site) -> set[str]:
    """Open a connection as each of these users, and return what the server calls them."""
    before = connected(server)
    secrets = site.secrets()
    for user, command in WAITS.items():
        password = secrets[f"redis_{user.removeprefix('celery-')}_password"]
        server.check_output(f"systemd-run --quiet {CLI} --user {user} --pass {password} {command}")
    until(lambda: len(connected(server) - before) == len(WAITS), 10, "they are connected")
    return connected(server) - before


def connected(server: Host) -> set[str]:
    """Return the ids of the connections that wait as these users."""
    lines = server.check_output("redis-admin client list").splitlines()
    clients = [dict(word.split("=", 1) for word in line.split()) for line in lines if line]
    return {each["id"] for each in clients if each["user"] in WAITS and each["cmd"] in ("subscribe", "brpop")}
