"""The server as a client and as an attacker meet it."""

import json

import pytest
from redis_host import CLI
from scenario_support import CeleryHost, Site
from testinfra.host import Host


def test_no_plain_text_port(server: Host) -> None:
    reply = server.run(
        "printf 'PING\\r\\n' | timeout 3 bash -c 'exec 3<>/dev/tcp/127.0.0.1/6379; cat >&3; head -c 7 <&3'"
    )
    assert "PONG" not in reply.stdout
    assert "NOAUTH" not in reply.stdout
    assert server.check_output("redis-admin config get port").split() == ["port", "0"]


def test_old_tls_is_refused(server: Host) -> None:
    attempt = server.run(
        "echo | timeout 5 openssl s_client -connect localhost:6379 -tls1_1 -cipher ALL:@SECLEVEL=0"
    )
    assert attempt.rc != 0
    assert "Cipher is (NONE)" in attempt.stdout
    good = server.run(
        "echo | timeout 5 openssl s_client -connect localhost:6379 -tls1_2 -CAfile /etc/redis/tls/ca.crt"
    )
    assert "Verify return code: 0 (ok)" in good.stdout


def test_untrusted_authority_is_noticed_by_the_client(server: Host) -> None:
    attempt = server.run(f"{CLI.replace('/etc/redis/tls/ca.crt', '/etc/ssl/certs/ca-certificates.crt')} ping")
    assert "certificate verify failed" in attempt.stdout + attempt.stderr


@pytest.mark.parametrize("command", ["ping", "get x", "acl whoami", "config get dir"])
def test_nobody_gets_in_without_a_login(server: Host, command: str) -> None:
    assert "NOAUTH" in server.run(f"{CLI} {command}").stdout


def test_wrong_password_is_refused(server: Host) -> None:
    assert "WRONGPASS" in server.run(f"{CLI} --user celery-worker --pass wrong ping").stderr


DENIED = {
    "celery-worker": [
        "keys '*'",
        "config get dir",
        "flushall",
        "set other 1",
        "acl list",
        "get other",
        "publish other 1",
    ],
    "celery-client": ["keys '*'", "config get dir", "set celery-task-meta-x 1", "evalsha 0 0", "get other"],
    "celery-reader": [
        "set celery-task-meta-x 1",
        "del celery-task-meta-x",
        "publish celery-task-meta-x 1",
        "keys '*'",
    ],
    "celery-exporter": ["get celery-task-meta-x", "config get dir", "set celery-task-meta-x 1", "flushall"],
    "celery-broker": ["get celery-task-meta-x", "config get dir", "flushall", "keys '*'"],
}


@pytest.mark.parametrize(
    ("user", "command"), [(user, command) for user in DENIED for command in DENIED[user]]
)
def test_least_privilege(server: Host, site: Site, user: str, command: str) -> None:
    password = site.secrets()[f"redis_{user.removeprefix('celery-')}_password"]
    assert server.run(f"{CLI} --user {user} --pass {password} ping").stdout.strip() == "PONG"
    assert "NOPERM" in server.run(f"{CLI} --user {user} --pass {password} {command}").stdout


def test_no_password_is_kept_in_clear_text_on_the_server_but_the_administrators(
    server: Host, site: Site
) -> None:
    found = server.check_output("cat /etc/redis/*.conf /etc/redis/*.acl")
    for name, secret in site.secrets().items():
        assert secret not in found, name


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("maxmemory-policy", "noeviction"),
        ("maxmemory", str(256 * 1024 * 1024)),
        ("appendonly", "yes"),
        ("appendfsync", "everysec"),
        ("save", ""),
        ("tls-protocols", "TLSv1.2 TLSv1.3"),
        ("lazyfree-lazy-expire", "yes"),
    ],
)
def test_live_settings(server: Host, setting: str, value: str) -> None:
    found = server.check_output(f"redis-admin --json config get {setting}")
    assert json.loads(found) == {setting: value}


def test_normal_work_is_denied_nothing(worker: CeleryHost, server: Host) -> None:
    """Least privilege is enough: everything that must work does, and the server refused no command of it."""
    work = "value exception retry progress_state group group_save_restore chord chain forget expiry large_result json_types"
    server.check_output("redis-admin acl log reset")
    code, report = worker.cli("smoke " + " ".join(f"--only {name}" for name in work.split()))
    assert code == 0, report
    assert server.check_output("redis-admin acl log") == ""


def test_every_result_expires(worker: CeleryHost, server: Host) -> None:
    worker.python("app.backend.store_result('ttl-probe', 1, 'SUCCESS')")
    ttl = int(server.check_output("redis-admin ttl celery-task-meta-ttl-probe"))
    assert 0 < ttl <= 86400
    worker.python("app.AsyncResult('ttl-probe').forget()")


def test_debians_unit_keeps_its_hardening(server: Host) -> None:
    shown = server.check_output(
        "systemctl show redis-server -p NoNewPrivileges -p ProtectSystem -p LimitNOFILE -p Restart"
    )
    assert "NoNewPrivileges=yes" in shown
    assert "LimitNOFILE=65535" in shown
    assert "Restart=always" in shown
    assert server.service("redis-server").is_enabled
