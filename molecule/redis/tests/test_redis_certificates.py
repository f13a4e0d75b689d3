"""Certificates are renewed while clients stay connected, and an expired one can be replaced."""

from scenario_support import CeleryHost, Site, until
from testinfra.host import Host

SERVED = (
    "echo | openssl s_client -connect localhost:6379 2>/dev/null | openssl x509 -noout -fingerprint -enddate"
)


def test_expired_certificate_is_reported_then_renewed_without_restart(
    site: Site, server: Host, worker: CeleryHost
) -> None:
    pid = server.check_output("redis-admin info server | grep ^process_id")
    before = server.check_output(SERVED)
    expire_now(site, server)
    assert server.check_output(SERVED) != before
    code, report = worker.cli("doctor")
    assert code == 1
    assert any("expired" in finding["title"].lower() for finding in report["findings"]), report
    failing = worker.host.run("runuser -u celery -- /opt/celery/venv/bin/celery-results smoke --timeout 20")
    assert failing.rc == 1
    assert "certificate" in failing.stdout + failing.stderr

    run = site.run()

    assert run.returncode == 0, run.stdout[-3000:]
    assert server.check_output("redis-admin info server | grep ^process_id") == pid
    code, report = worker.cli("doctor --fail-on warning")
    assert code == 0, report


def expire_now(site: Site, server: Host) -> None:
    """Put a certificate of our own authority in place that expired an hour ago, and have it served."""
    old = server.check_output("cat /etc/redis/tls/server.crt")
    expired = site.expired(old)
    server.check_output(f"printf %s '{expired}' > /etc/redis/tls/server.crt")
    server.check_output(
        "redis-admin config set tls-cert-file /etc/redis/tls/server.crt tls-key-file /etc/redis/tls/server.key"
    )
    until(lambda: "notAfter" in server.run(SERVED).stdout, 10, "the server serves again")
