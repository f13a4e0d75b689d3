"""RabbitMQ on a scenario's host: over AMQP as one of its logins, and by our own tool."""

import json

from scenario_support import CeleryHost, Site
from testinfra.host import Host

ATTEMPT = """
import ssl, amqp
tls = {{"cert_reqs": ssl.CERT_REQUIRED, "ca_certs": "/etc/celery/tls/ca.crt", "server_hostname": "localhost"}}
connection = amqp.Connection(host="127.0.0.1:5671", userid={user!r}, password={password!r}, virtual_host={vhost!r},
    ssl=tls, confirm_publish=True, connect_timeout=10, read_timeout=10, write_timeout=10)
try:
    connection.connect()
    channel = connection.channel()
    {code}
    print("allowed")
except (amqp.exceptions.AMQPError, OSError) as error:
    print("refused", type(error).__name__, error)
"""


def attempt(worker: CeleryHost, site: Site, user: str, code: str = "pass", vhost: str = "celery") -> str:
    """Do something over AMQP as one of the logins; return `allowed` or what the server says to it."""
    secrets = site.secrets()
    password = secrets.get(f"rabbitmq_{user.removeprefix('celery-')}_password", "guest")
    return worker.python(ATTEMPT.format(user=user, password=password, vhost=vhost, code=code))


def pid(server: Host) -> str:
    """Give the process that systemd has for the node."""
    return str(server.check_output("systemctl show -p MainPID --value rabbitmq-server"))


def told(server: Host) -> dict[str, object]:
    """Ask our own tool what differs."""
    answer: dict[str, object] = json.loads(server.check_output("celery-results-rabbitmq pending"))
    return answer
