"""Certificates are renewed while clients stay connected, and an expired one can be replaced."""

import subprocess
import sys

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
    issue = f"""
import datetime
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
ca = x509.load_pem_x509_certificate(open("{site.state_directory}/tls/ca.crt", "rb").read())
ca_key = serialization.load_pem_private_key(open("{site.state_directory}/tls/ca.key", "rb").read(), None)
old = x509.load_pem_x509_certificate(open(0, "rb").read())
now = datetime.datetime.now(datetime.timezone.utc)
builder = (x509.CertificateBuilder().subject_name(old.subject).issuer_name(ca.subject).public_key(old.public_key())
    .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(days=30))
    .not_valid_after(now - datetime.timedelta(hours=1)))
for extension in old.extensions:
    builder = builder.add_extension(extension.value, extension.critical)
print(builder.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode())
"""
    old = server.check_output("cat /etc/redis/tls/server.crt")
    expired = subprocess.run(
        [sys.executable, "-c", issue], input=old, capture_output=True, text=True, check=True
    )
    server.check_output(f"printf %s '{expired.stdout}' > /etc/redis/tls/server.crt")
    server.check_output(
        "redis-admin config set tls-cert-file /etc/redis/tls/server.crt tls-key-file /etc/redis/tls/server.key"
    )
    until(lambda: "notAfter" in server.run(SERVED).stdout, 10, "the server serves again")
