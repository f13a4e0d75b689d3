"""rpc between hosts: a server that wants certificates, a worker, a sender, and a stranger."""

import re

from scenario_support import CeleryHost, Site, reaches, until
from testinfra.host import Host

PROJECT = "/srv/proj"
# Connects as the settings say, but for what `changes` says, and prints what came of it.
CONNECT = """
import amqp, ssl
connection = app.connection_for_write()
tls = dict(connection.ssl) | {changes_of_tls}
options = dict(
    host=f"{{connection.hostname}}:{{connection.port}}", userid=connection.userid, password=connection.password,
    virtual_host=connection.virtual_host, ssl=tls | {{"server_hostname": connection.hostname}}, connect_timeout=5,
    read_timeout=5,
) | {changes}
try:
    amqp.Connection(**options).connect()
    print("connected")
except Exception as error:
    print(type(error).__name__, error)
"""


def connect(host: CeleryHost, changes: str = "{}", changes_of_tls: str = "{}") -> str:
    return host.python(CONNECT.format(changes=changes, changes_of_tls=changes_of_tls))


def test_beyond_loopback_it_listens_on_one_address_and_port_only(server: Host, address: str) -> None:
    listening = server.check_output("ss -Hltn | awk '{print $4}'").split()
    beyond = {each for each in listening if not each.startswith(("127.", "[::1]"))}
    assert beyond == {f"{address}:5771"}


def test_a_client_host_gets_the_results_of_a_worker_host(client: CeleryHost) -> None:
    send = "print(app.send_task('proj.celery.add', (2, 3){}).get(timeout=30))"
    assert client.python(send.format("")) == "5"
    assert client.python(send.format(", countdown=1")) == "5"
    assert client.python("print(app.connection_for_write().virtual_host)") == "shop"


def test_a_client_host_has_no_login_that_takes_tasks(client: CeleryHost, site: Site) -> None:
    assert site.secrets()["rabbitmq_worker_password"] not in client.host.check_output("cat /etc/celery/*.env")
    take = "app.connection_for_write().default_channel.basic_get('celery')"
    refused = client.host.run(client.command(take))
    assert refused.rc != 0
    assert "ACCESS_REFUSED" in refused.stderr


def test_a_certificate_is_wanted(worker: CeleryHost) -> None:
    assert connect(worker) == "connected"
    without = connect(worker, changes_of_tls="{'certfile': None, 'keyfile': None}")
    assert "connected" not in without
    # TLS 1.3 tells a client only after its own handshake that it is refused.
    assert "SSL" in without or "reset" in without or "closed" in without, without


def test_a_certificate_of_another_authority_is_refused(worker: CeleryHost) -> None:
    worker.host.check_output(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=stranger "
        "-keyout /var/lib/celery/stranger.key -out /var/lib/celery/stranger.crt && "
        "chown celery /var/lib/celery/stranger.*"
    )
    own = "{'certfile': '/var/lib/celery/stranger.crt', 'keyfile': '/var/lib/celery/stranger.key'}"
    said = connect(worker, changes_of_tls=own)
    # OpenSSL's words for the server's alert differ from release to release of Erlang.
    assert re.search("unknown ca|bad certificate", said, re.IGNORECASE), said


def test_another_vhost_is_refused(worker: CeleryHost) -> None:
    for vhost in ("celery", "/"):
        assert "NOT_ALLOWED" in connect(worker, changes=f"{{'virtual_host': {vhost!r}}}")


def test_strangers_are_dropped(server: Host, worker: CeleryHost, stranger: str, address: str) -> None:
    assert not reaches(stranger, address, 5771)
    server.check_output("nft delete table inet celery_results_rabbitmq")
    try:
        until(lambda: reaches(stranger, address, 5771), 10, "the control: without the rule, the port is open")
    finally:
        server.check_output("systemctl restart celery-results-firewall")
    assert not reaches(stranger, address, 5771)
    assert connect(worker) == "connected"


def test_limiting_a_run_to_the_celery_hosts_touches_and_needs_nothing_else(site: Site) -> None:
    site.assert_nothing_to_do("--limit", "celery:celery_client:localhost")
