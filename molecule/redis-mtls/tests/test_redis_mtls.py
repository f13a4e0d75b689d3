"""The user's own authority signs everything, and a client without a certificate of it gets nothing."""

from scenario_support import CeleryHost, Site
from testinfra.host import Host

CLI = "redis-cli --no-auth-warning --tls --cacert /etc/celery/tls/ca.crt -h localhost"


def test_certificates_come_from_the_users_authority(site: Site, server: Host, worker: CeleryHost) -> None:
    own = (site.ephemeral / "own-ca" / "ca.crt").read_text()
    assert worker.host.file("/etc/celery/tls/ca.crt").content_string.strip() == own.strip()
    for path in ("/etc/redis/tls/server.crt", "/etc/celery/tls/client.crt"):
        assert ": OK" in server.check_output(f"openssl verify -CAfile /etc/celery/tls/ca.crt {path}")
    assert not (site.state_directory / "tls" / "ca.key").exists()


def test_a_client_without_a_certificate_is_refused(server: Host, site: Site) -> None:
    password = site.secrets()["redis_worker_password"]
    login = f"--user celery-worker --pass {password}"
    refused = server.run(f"{CLI} {login} ping")
    assert "PONG" not in refused.stdout
    key = "--cert /etc/celery/tls/client.crt --key /etc/celery/tls/client.key"
    assert server.check_output(f"{CLI} {key} {login} ping") == "PONG"


def test_a_certificate_of_another_authority_is_refused(server: Host, site: Site) -> None:
    password = site.secrets()["redis_worker_password"]
    server.check_output(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=stranger "
        "-keyout /root/stranger.key -out /root/stranger.crt"
    )
    refused = server.run(
        f"{CLI} --cert /root/stranger.crt --key /root/stranger.key --user celery-worker --pass {password} ping"
    )
    assert "PONG" not in refused.stdout


def test_the_clients_key_is_private(worker: CeleryHost) -> None:
    key = worker.host.file("/etc/celery/tls/client.key")
    assert key.mode == 0o640
    assert key.group == "celery"
