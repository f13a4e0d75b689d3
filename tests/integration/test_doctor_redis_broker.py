"""Doctor against a real Redis as the broker: each live finding provoked once, and a good one without any."""

import pytest
from tests.integration.doctor_case import by_code, doctor, serious
from tests.integration.doctor_redis_server import HOST, SECRETS, USERS, Authority, RedisServer, write_logins
from tests.integration.lab_files import free_port

PASSWORDS = SECRETS | {"celery-broker": "broker-secret/4@x"}
BROKER = (
    "~celery ~_kombu.* ~unacked* ~celery-results-smoke* &* -@all +ping +select +client|setname +multi +exec "
    "+watch +unwatch +lpush +rpush +rpop +brpop +llen +del +exists +zadd +zrem +zrangebyscore "
    "+zrevrangebyscore +hset +hget +hdel +smembers +sadd +set +get +evalsha +script|load +publish +subscribe "
    "+psubscribe"
)
SETTINGS = """
import os as _os
import ssl as _ssl
from urllib.parse import quote as _quote

_user, _password = _os.environ["LOGIN_USER"], _quote(_os.environ["LOGIN_PASSWORD"], safe="")
result_backend = "file:///nowhere"
broker_url = f"rediss://{{_user}}:{{_password}}@{host}:{port}/1"
broker_use_ssl = {{
    "ssl_cert_reqs": _ssl.CERT_REQUIRED,
    "ssl_check_hostname": True,
    "ssl_ca_certs": "{ca}",
}}
broker_transport_options = {{"socket_timeout": 30, "socket_connect_timeout": 5}}
accept_content = ["json"]
"""
RESULTS = """
_is_monitor = _user == "celery-exporter"
_login = f"{{_user}}:{{_password}}" if _is_monitor else f"celery-worker:{{_quote('{password}', safe='')}}"
result_backend = f"rediss://{{_login}}@{host}:{port}/0"
redis_backend_use_ssl = broker_use_ssl
redis_socket_connect_timeout = 5
redis_socket_timeout = 30
result_backend_always_retry = True
result_backend_max_retries = 10
"""


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def server(tmp_path, authority, monkeypatch):
    monkeypatch.setattr("celery_results.doctor.servers.redis.network.DEFAULT_PORT", free_port())
    monkeypatch.setitem(SECRETS, "celery-broker", PASSWORDS["celery-broker"])
    users = USERS | {"celery-broker": BROKER}
    return RedisServer(tmp_path / "redis", authority, authority.issue("server"), users=users)


@pytest.fixture
def examine(tmp_path, server, capsys):
    """Run the command as an operator does, and give what it found."""

    def run(*, expect=0, login="celery-broker", monitor="celery-exporter", results="", ca=None):
        directory = tmp_path / "config"
        directory.mkdir(exist_ok=True)
        place = {"host": HOST, "port": server.port, "ca": ca or server.authority.file}
        text = SETTINGS.format(**place)
        if results:
            text += results.format(password=PASSWORDS["celery-worker"], **place)
        (directory / "celeryconfig.py").write_text(text)
        write_logins(directory, PASSWORDS, celery=login, monitor=monitor)
        arguments = "--fail-on", "warning"
        secrets = PASSWORDS.values()
        return by_code(
            doctor(directory, *arguments, capsys=capsys, secrets=secrets, ends=lambda _: bool(expect))
        )

    return run


def test_good_broker_gives_neither_error_nor_warning(server, examine):
    with server.running():
        found = examine()
    assert serious(found) == set()
    assert "CRB001" not in found
    # Of the results, in files, doctor knows nothing; that is all there is to say.
    assert found["CRB002"]["found"] == "doctor has no checks for file\n"


def test_memory_and_persistence_of_the_broker_count(server, examine):
    with server.running(maxmemory="0", appendonly="no"):
        found = examine(expect=1)
    assert serious(found) == {"CRB603", "CRB607"}
    assert found["CRB607"]["found"] == f"the broker {HOST}:{server.port}: appendonly no\n"


@pytest.mark.parametrize(("policy", "expected"), [("allkeys-lru", {"CRB227"}), ("volatile-lru", set())])
def test_policy_that_throws_tasks_away(server, examine, policy, expected):
    with server.running(maxmemory_policy=policy):
        found = examine(expect=1 if expected else 0)
    assert serious(found) == expected


def test_broker_that_is_not_there(examine):
    assert serious(examine(expect=1)) == {"CRB003"}


def test_broker_of_another_authority(server, examine, tmp_path):
    other = Authority(tmp_path, "other")
    with server.running():
        found = examine(expect=1, ca=other.file)
    assert serious(found) == {"CRB504"}
    assert "cannot trust" in found["CRB001"]["found"]


def test_wrong_password(server, examine):
    with server.running():
        found = examine(expect=1, login="celery-nobody")
    assert serious(found) == {"CRB004"}
    with server.running():
        found = examine(expect=1, monitor="celery-nobody")
    assert serious(found) == {"CRB005"}
    assert "may not run INFO" in found["CRB001"]["found"]


def test_without_a_monitor_login_the_state_is_said_not_to_be_looked_at(server, examine):
    with server.running():
        found = examine(monitor=None)
    assert "could not check its memory and its policy" in found["CRB001"]["found"]


def test_login_that_may_do_everything(server, examine):
    with server.running():
        found = examine(expect=1, login="celery-powerful")
    assert serious(found) == {"CRB510"}
    assert "the broker" in found["CRB510"]["found"]


def test_login_that_reads_results_of_the_same_server(server, examine):
    server.users["celery-broker"] = f"~celery-task-meta-* {BROKER}"
    with server.running():
        found = examine(expect=1, results=RESULTS)
    # One server for both is a warning of its own; its memory is looked at once.
    assert serious(found) == {"CRB214", "CRB228"}


def test_broker_beside_results_on_one_server_is_looked_at_once(server, examine):
    with server.running(maxmemory="0"):
        found = examine(expect=1, results=RESULTS)
    assert serious(found) == {"CRB214", "CRB603"}
    assert found["CRB603"]["found"] == "maxmemory 0\n"


def test_monitors_login_for_results_serves_for_the_broker_on_the_same_server(server, examine):
    without_broker = f"{RESULTS}if _is_monitor:\n    del broker_url\n"
    with server.running(maxmemory_policy="allkeys-lru"):
        found = examine(expect=1, results=without_broker)
    assert serious(found) == {"CRB214", "CRB227", "CRB601"}
    assert "CRB001" not in found
