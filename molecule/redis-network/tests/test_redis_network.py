"""A server with two addresses, seen from the hosts that may reach it and from one that may not."""

from scenario_support import CeleryHost, Site, networks_of, reaches
from testinfra.host import Host


def test_it_listens_on_the_named_addresses_and_port_only(
    server: Host, server_name: str, address: str
) -> None:
    listening = server.check_output("ss -Hltn sport = :7379 or sport = :6379 | awk '{print $4}'")
    (other_address,) = set(networks_of(server_name).values()) - {address}
    assert f"{address}:7379" in listening
    assert "127.0.0.1:7379" in listening
    assert other_address not in listening
    assert "0.0.0.0" not in listening  # noqa: S104 - looked for, not bound
    assert ":6379" not in listening


def test_a_worker_stores_and_a_client_reads(worker: CeleryHost, client: CeleryHost) -> None:
    worker.python("app.backend.store_result('shared', {'n': 1}, 'SUCCESS')")
    assert client.python("print(app.AsyncResult('shared').get(timeout=10)['n'])") == "1"
    assert worker.python("print(app.backend.app.conf.result_backend.count(':7379/'))") == "1"


def test_a_client_host_has_no_login_that_can_store(client: CeleryHost, site: Site) -> None:
    everything = client.host.check_output("cat /etc/celery/*.env")
    assert site.secrets()["redis_worker_password"] not in everything
    assert site.secrets()["redis_admin_password"] not in everything
    attempt = client.host.run(client.command("app.backend.store_result('forged', 1, 'SUCCESS')"))
    assert attempt.rc != 0
    assert "NoPermission" in attempt.stderr


def test_strangers_are_dropped_and_ssh_is_not(server: Host, stranger: str, address: str) -> None:
    server.check_output("systemd-run --unit=other-service python3 -m http.server 22 --bind 0.0.0.0")
    try:
        assert not reaches(stranger, address, 7379)
        assert reaches(stranger, address, 22)
        server.check_output("nft delete table inet celery_results_redis")
        assert reaches(stranger, address, 7379), "the control: without the rule, the port is open"
        server.check_output("systemctl restart celery-results-firewall")
        assert not reaches(stranger, address, 7379)
    finally:
        server.check_output("systemctl stop other-service")


def test_limiting_a_run_to_the_workers_touches_and_needs_nothing_else(site: Site) -> None:
    site.assert_nothing_to_do("--limit", "celery,localhost")
