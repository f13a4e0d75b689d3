"""Doctor against real Redis servers: each live finding provoked once, and a good server that gives none."""

import contextlib
import json
import socket
import threading
import time

import pytest
import redis
from tests.integration.doctor_case import by_code, doctor, serious
from tests.integration.doctor_redis_server import HOST, SECRETS, USERS, Authority, RedisServer, write_logins
from tests.integration.lab_files import free_port

from celery_results.cli import main

SETTINGS = """
import os as _os
import ssl as _ssl
from urllib.parse import quote as _quote

_user, _password = _os.environ["LOGIN_USER"], _quote(_os.environ["LOGIN_PASSWORD"], safe="")
result_backend = f"rediss://{{_user}}:{{_password}}@{host}:{port}/0"
redis_backend_use_ssl = {{
    "ssl_cert_reqs": _ssl.CERT_REQUIRED,
    "ssl_check_hostname": True,
    "ssl_ca_certs": "{ca}",
}}
redis_socket_connect_timeout = 5
redis_socket_timeout = 30
result_backend_always_retry = True
result_backend_max_retries = 10
accept_content = ["json"]
result_expires = 86400
"""


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def certificate(authority):
    return authority.issue("server")


@pytest.fixture
def server(tmp_path, authority, certificate, monkeypatch):
    # Whatever this machine has on 6379 is none of these tests' business.
    monkeypatch.setattr("celery_results.doctor.servers.redis.network.DEFAULT_PORT", free_port())
    return RedisServer(tmp_path / "redis", authority, certificate)


@pytest.fixture
def examine(tmp_path, server, capsys):
    """Run the command as an operator does, and give what it found."""

    def run(*arguments, expect, login="celery-worker", monitor="celery-exporter", ca=None, extra=""):
        directory = tmp_path / "config"
        directory.mkdir(exist_ok=True)
        text = SETTINGS.format(host=HOST, port=server.port, ca=ca or server.authority.file) + extra
        (directory / "celeryconfig.py").write_text(text)
        write_logins(directory, SECRETS, celery=login, monitor=monitor)
        secrets = SECRETS.values()
        return by_code(
            doctor(directory, *arguments, capsys=capsys, secrets=secrets, ends=lambda _: bool(expect))
        )

    return run


def client(server, user="celery-powerful"):
    return redis.Redis(
        host=HOST,
        port=server.port,
        username=user,
        password=SECRETS[user],
        ssl=True,
        ssl_ca_certs=str(server.authority.file),
    )


def test_good_server_gives_neither_error_nor_warning(server, examine):
    with server.running(), client(server) as admin:
        admin.set("celery-task-meta-1", "{}", ex=3600)
        found = examine("--fail-on", "warning", expect=0)
    assert serious(found) == set()
    assert "CRB001" not in found  # the exporter's rights suffice for every check


def test_person_gets_a_list_and_a_closing_line(server, tmp_path, examine, capsys):
    with server.running(appendonly="no"):
        examine(expect=0)
        main(["doctor", "--config-directory", str(tmp_path / "config")])
    output = capsys.readouterr().out
    assert "CRB607" in output
    assert "docs/doctor.md#crb607" in output
    assert output.splitlines()[-1].startswith("doctor: 0 errors, 1 warning, ")


def test_expired_certificate_is_read_and_no_password_is_sent(server, examine, authority):
    server.certificate = authority.issue("expired", days=-3)
    with server.running():
        found = examine(expect=1)
    assert serious(found) == {"CRB501"}
    assert "3 days ago" in found["CRB501"]["found"]
    assert "cannot trust" in found["CRB001"]["found"]


def test_certificate_that_expires_soon(server, examine, authority):
    server.certificate = authority.issue("soon", days=12.5)
    with server.running():
        found = examine(expect=0)
    assert serious(found) == {"CRB502"}
    assert found["CRB502"]["found"].startswith("12 days left")


def test_certificate_for_another_address(server, examine, authority):
    server.certificate = authority.issue("other-name", addresses=["192.0.2.1"])
    with server.running():
        found = examine(expect=1)
    assert serious(found) == {"CRB503"}
    assert "192.0.2.1" in found["CRB503"]["found"]


def test_expired_certificate_for_another_address_from_another_authority(server, examine, authority, tmp_path):
    server.certificate = authority.issue("all-wrong", days=-1, addresses=["192.0.2.1"])
    other = Authority(tmp_path, "other-ca")
    with server.running():
        found = examine(expect=1, ca=other.file)
    assert serious(found) == {"CRB501", "CRB503", "CRB504"}


def test_untrusted_authority(server, examine, tmp_path):
    other = Authority(tmp_path, "other-ca")
    with server.running():
        found = examine(expect=1, ca=other.file)
    assert serious(found) == {"CRB504"}


def test_certificate_of_tomorrow(server, examine, monkeypatch):
    with server.running():
        monkeypatch.setattr("celery_results.doctor.servers.redis.live.datetime", Yesteryear)
        found = examine(expect=1)
    assert "CRB511" in found


class Yesteryear:
    """A clock that went wrong by more than the certificate's age."""

    @staticmethod
    def now(zone):
        from datetime import datetime, timedelta  # noqa: PLC0415 - the name is what is replaced

        return datetime.now(zone) - timedelta(days=365)


def test_obsolete_tls(server, examine):
    with server.running(tls_protocols='"TLSv1.1 TLSv1.2"', tls_ciphers='"ALL:@SECLEVEL=0"'):
        found = examine(expect=0)
    assert serious(found) == {"CRB505"}


def test_client_certificate_that_the_server_wants(server, examine):
    with server.running(tls_auth_clients="yes"):
        found = examine(expect=1)
    assert "CRB506" in serious(found)


def test_client_certificate_that_the_settings_name(server, examine, authority):
    certificate, key = authority.issue("client")
    extra = f"redis_backend_use_ssl |= {{'ssl_certfile': '{certificate}', 'ssl_keyfile': '{key}'}}\n"
    with server.running(tls_auth_clients="yes"):
        found = examine("--fail-on", "warning", expect=0, extra=extra)
    assert serious(found) == set()


def test_unix_socket(server, examine):
    path = server.directory / "redis.sock"
    extra = (
        f"result_backend = f'redis+socket://{{_user}}:{{_password}}@{path}?virtual_host=0'\n"
        "redis_backend_use_ssl = None\n"
    )
    with server.running(unixsocket=str(path), appendonly="no"):
        found = examine(expect=0, extra=extra)
    assert serious(found) == {"CRB607"}
    assert "CRB001" not in found


def test_plain_text_on_the_port_of_the_settings(server, examine):
    with server.running(tls_port=None, port=str(server.port)):
        found = examine(expect=1)
    assert serious(found) == {"CRB507"}


def test_plain_text_port_beside_the_tls_port(server, examine):
    plain = free_port()
    with server.running(port=str(plain)):
        found = examine(expect=1)
    assert serious(found) == {"CRB507"}
    assert str(plain) in found["CRB507"]["found"]


def test_plain_text_on_the_well_known_port(server, examine, monkeypatch):
    """Some other Redis of the host: 6379 itself may be taken on the machine that runs the test."""
    with socket.create_server((HOST, 0)) as listener, server.running():
        threading.Thread(target=answer_pings, args=(listener,), daemon=True).start()
        monkeypatch.setattr(
            "celery_results.doctor.servers.redis.network.DEFAULT_PORT", listener.getsockname()[1]
        )
        found = examine(expect=0)
    assert serious(found) == {"CRB508"}


def answer_pings(listener):
    with contextlib.suppress(OSError):
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.recv(64)
                connection.sendall(b"-NOAUTH Authentication required.\r\n")


def test_default_user_without_password(server, examine):
    server.users["default"] = "on nopass ~* &* +@all"
    with server.running():
        found = examine(expect=1)
    assert serious(found) == {"CRB509"}


def test_default_user_who_may_only_ping_does_no_harm(server, examine):
    server.users["default"] = "on nopass -@all +ping"
    with server.running():
        assert serious(examine(expect=0)) == set()


def test_login_that_may_do_everything(server, examine):
    with server.running():
        found = examine(expect=0, login="celery-powerful")
    assert serious(found) == {"CRB510"}
    assert "CONFIG GET" in found["CRB510"]["found"]


def test_server_that_is_down(examine):
    found = examine(expect=1)
    assert serious(found) == {"CRB003"}


def test_wrong_password(server, examine):
    with server.running():
        found = examine(expect=1, login="celery-unknown")
    assert serious(found) == {"CRB004"}


def test_wrong_monitor_password(server, examine):
    with server.running():
        found = examine(expect=0, monitor="celery-unknown")
    assert serious(found) == {"CRB005"}
    assert "INFO" in found["CRB001"]["found"]


def test_without_a_monitor_login_what_was_not_checked_is_said(server, examine):
    with server.running():
        found = examine(expect=0, monitor=None)
    assert serious(found) == set()
    assert "monitor.env" in found["CRB001"]["remedy"]


@pytest.mark.parametrize(
    ("code", "expect", "lines"),
    [
        ("CRB601", 1, {"maxmemory_policy": "allkeys-lru"}),
        ("CRB602", 0, {"maxmemory_policy": "volatile-ttl"}),
        ("CRB603", 0, {"maxmemory": "0"}),
        ("CRB607", 0, {"appendonly": "no"}),
    ],
)
def test_configuration_of_the_server(server, examine, code, expect, lines):
    with server.running(**lines):
        assert serious(examine(expect=expect)) == {code}


def test_memory_that_fills_up_and_keys_that_were_evicted(server, examine):
    with server.running(maxmemory="4mb", maxmemory_policy="allkeys-lru"), client(server) as admin:
        while not admin.info("stats")["evicted_keys"]:
            admin.set(f"filler-{time.monotonic_ns()}", "x" * 10_000)
        found = examine(expect=1)
    assert {"CRB601", "CRB606"} <= serious(found)
    assert {"CRB604", "CRB605"} & serious(found)


def test_snapshot_that_failed(server, examine):
    with server.running(), client(server) as admin:
        (server.directory / "dump.rdb").mkdir()
        (server.directory / "dump.rdb" / "in-the-way").touch()
        admin.bgsave()
        wait_until(lambda: admin.info("persistence")["rdb_last_bgsave_status"] == "err")
        found = examine(expect=1)
    assert serious(found) == {"CRB609"}


def wait_until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_replica(server, examine):
    with server.running(replicaof=f"{HOST} {free_port()}"):
        assert "CRB618" in serious(examine(expect=1))


def test_cluster_node(server, examine):
    with server.running(cluster_enabled="yes"):
        assert "CRB619" in serious(examine(expect=1))


def test_keys_without_ttl(server, examine):
    with server.running(), client(server) as admin:
        admin.set("celery-task-meta-1", "{}", ex=3600)
        admin.set("celery-task-meta-2", "{}")
        admin.set("celery-taskset-meta-3.t", "1")
        admin.set("a-key-of-somebody-else", "1")
        found = examine(expect=0)
    assert serious(found) == {"CRB612"}
    assert found["CRB612"]["found"].startswith("2 of 3 keys, all there are")


def test_sample_of_keys_is_bounded(server, examine, monkeypatch):
    monkeypatch.setattr("celery_results.doctor.servers.redis.keys.LARGEST_SAMPLE", 1000)
    with server.running(), client(server) as admin:
        pipeline = admin.pipeline(transaction=False)
        for number in range(5000):
            pipeline.set(f"celery-task-meta-{number}", "{}")
        pipeline.execute()
        found = examine(expect=0)
    assert "a sample of 1,0" in found["CRB612"]["found"]


def test_key_prefix_of_the_users_own(server, examine):
    prefix = r"app[1]*"
    rights = USERS["celery-exporter"].replace("~celery", r"~*celery")
    server.users["celery-exporter"] = rights
    extra = f"result_backend_transport_options = {{'global_keyprefix': {prefix!r}}}\n"
    with server.running(), client(server) as admin:
        admin.set(f"{prefix}_celery-task-meta-1", "{}")
        admin.set("app1_celery-task-meta-1", "{}")
        found = examine(expect=0, extra=extra)
    assert found["CRB612"]["found"].startswith("1 of 1 keys")


def test_chord_that_nobody_finishes(server, examine):
    with server.running(), client(server) as admin:
        admin.zadd("celery-taskset-meta-1.j", {"[1]": 0})
        admin.expire("celery-taskset-meta-1.j", 86400 - 7200)
        admin.zadd("celery-taskset-meta-2.j", {"[1]": 0})
        admin.expire("celery-taskset-meta-2.j", 86400 - 60)
        found = examine(expect=0)
    assert found["CRB613"]["found"].startswith("1 of 2 keys")


def test_monitor_without_the_right_to_scan(server, examine):
    server.users["celery-exporter"] = USERS["celery-exporter"].replace("+scan", "").replace("+time", "")
    with server.running():
        found = examine("--fail-on", "warning", expect=0)
    assert "could not check the TTL of results" in found["CRB001"]["found"]
    assert "could not check the server's clock" in found["CRB001"]["found"]


def test_clock_that_differs(server, examine, monkeypatch):
    clock = time.time
    monkeypatch.setattr("celery_results.doctor.servers.redis.live.WALL_CLOCK", lambda: clock() + 60)
    with server.running():
        found = examine(expect=0)
    assert serious(found) == {"CRB614"}
    assert "behind this host" in found["CRB614"]["found"]


def test_settings_of_the_users_own_without_env_file_and_monitor(server, tmp_path, capsys):
    """Another module name, the password in the URL, a server as Debian installs it."""
    (tmp_path / "mine.py").write_text(f'result_backend = "redis://{HOST}:{server.port}/0"\n')
    server.users["default"] = "on nopass ~* &* +@all"
    lines = {"tls_port": None, "port": str(server.port), "appendonly": "no", "maxmemory": "0"}
    with server.running(**lines):
        code = main(["doctor", "--config-directory", str(tmp_path), "--module", "mine", "--json"])
    found = {finding["code"] for finding in json.loads(capsys.readouterr().out)["findings"]}
    assert code == 1
    assert {"CRB123", "CRB202", "CRB207", "CRB208", "CRB509", "CRB510", "CRB603", "CRB607"} <= found
