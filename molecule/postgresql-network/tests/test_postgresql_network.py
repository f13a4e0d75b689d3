"""A server on a host and a port of its own, with client certificates; a worker, a reader, and a stranger."""

import subprocess

from postgresql_host import sql
from scenario_support import CeleryHost, Site, until
from testinfra.host import Host

PROJECT = "/srv/proj"
TLS = "sslmode=verify-full sslrootcert=/etc/celery/tls/ca.crt"
CERTIFICATE = "sslcert=/etc/celery/tls/client.crt sslkey=/etc/celery/tls/client.key"
CONNECT = """
import os, psycopg
print(psycopg.connect("{address} connect_timeout=5", password=os.environ["CELERYCONFIG_RESULT_PASSWORD"])
      .execute("SELECT 1").fetchone()[0])
"""


def test_it_listens_on_the_named_addresses_and_port_only(server: Host, address: str) -> None:
    listening = server.check_output("ss -Hltn sport = :7432 or sport = :5432 | awk '{print $4}'").split()
    assert {f"{address}:7432", "127.0.0.1:7432"} <= set(listening)
    assert not [item for item in listening if item.endswith(":5432") or item.startswith(("0.0.0.0", "*"))]  # noqa: S104 - looked for


def test_a_task_runs_in_the_worker_and_the_client_reads_its_result(
    worker: CeleryHost, client: CeleryHost
) -> None:
    code = "from proj.celery import add; print(add.delay(2, 3).get(timeout=30))"
    assert worker.python(code, more_path=PROJECT) == "5"
    worker.python("app.backend.store_result('shared', {'n': 1}, 'SUCCESS')")
    assert client.python("print(app.AsyncResult('shared').get(timeout=10)['n'])") == "1"


def test_a_client_host_has_no_login_that_can_store(client: CeleryHost, site: Site) -> None:
    assert site.secrets()["postgresql_worker_password"] not in client.host.check_output(
        "cat /etc/celery/*.env"
    )
    attempt = client.host.run(client.command("app.backend.store_result('forged', 1, 'SUCCESS')"))
    assert attempt.rc != 0
    assert "permission denied" in attempt.stderr


def test_a_password_alone_is_not_enough(worker: CeleryHost, server_name: str) -> None:
    base = f"host={server_name} port=7432 user=celery_worker dbname=celery_results {TLS}"
    refused = worker.host.run(worker.command(CONNECT.format(address=base)))
    assert "requires a valid client certificate" in refused.stderr
    assert worker.python(CONNECT.format(address=f"{base} {CERTIFICATE}")) == "1"


def test_a_certificate_of_another_authority_is_refused(worker: CeleryHost, server_name: str) -> None:
    worker.host.check_output(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=stranger "
        "-keyout /var/lib/celery/stranger.key -out /var/lib/celery/stranger.crt && "
        "chown celery /var/lib/celery/stranger.*"
    )
    address = (
        f"host={server_name} port=7432 user=celery_worker dbname=celery_results {TLS} "
        "sslcert=/var/lib/celery/stranger.crt sslkey=/var/lib/celery/stranger.key"
    )
    refused = worker.host.run(worker.command(CONNECT.format(address=address)))
    assert refused.rc != 0
    assert "unknown ca" in refused.stderr or "certificate" in refused.stderr


def test_a_stranger_is_stopped_by_the_firewall_and_by_the_server(
    server: Host, stranger: str, address: str
) -> None:
    def answer() -> str:
        # A request for TLS, as libpq sends it: S, and then nothing without a login.
        shell = f"exec 3<>/dev/tcp/{address}/7432 && printf '\\0\\0\\0\\x08\\x04\\xd2\\x16\\x2f' >&3 && head -c 1 <&3"
        return subprocess.run(
            ["docker", "exec", stranger, "timeout", "3", "bash", "-c", shell],
            capture_output=True, text=True, check=False,
        ).stdout  # fmt: skip

    assert answer() == ""
    server.check_output("nft delete table inet celery_results_postgresql")
    try:
        until(lambda: answer() == "S", 10, "the control: without the rule, the port is open")
    finally:
        server.check_output("systemctl restart celery-results-firewall")
    assert answer() == ""
    rules = sql(
        server, "SELECT string_agg(DISTINCT address, ',') FROM pg_hba_file_rules WHERE type = 'hostssl'"
    )
    assert "0.0.0.0" not in rules  # noqa: S104 - looked for
    assert "all" not in rules


def test_limiting_a_run_to_the_workers_touches_and_needs_nothing_else(site: Site) -> None:
    site.assert_nothing_to_do("--limit", "celery,localhost", broker="redis")
