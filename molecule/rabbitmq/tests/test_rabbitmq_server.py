"""The server as a client and as an attacker meet it."""

import json
from collections.abc import Iterator

import pytest
from rabbitmq_host import attempt, told
from scenario_support import CeleryHost, Site
from testinfra.host import Host

PORT = 5671
UUID = "00000000-0000-4000-8000-00000000000a"
OTHERS = "00000000-0000-4000-8000-00000000000b"


@pytest.fixture(scope="module")
def queues(server: Host, worker: CeleryHost, site: Site) -> Iterator[None]:
    """Reply queues of two clients, for the attacks."""
    for name in (UUID, OTHERS):
        # As Celery does; one that stays would be a quorum queue, the default of the virtual host.
        code = f"channel.queue_declare({name!r}, durable=True, auto_delete=True)"
        assert attempt(worker, site, "celery-worker", code) == "allowed"
    yield
    for name in (UUID, OTHERS):
        server.run(f"rabbitmqctl -q delete_queue -p celery {name}")


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("application:get_env(rabbit, tcp_listeners)", "{ok,[]}"),
        ("application:get_env(rabbit, heartbeat)", "{ok,60}"),
        ("application:get_env(rabbit, channel_max)", "{ok,512}"),
        ("application:get_env(rabbit, consumer_timeout)", "{ok,86400000}"),
        ("lists:sort(element(2, application:get_env(rabbit, auth_mechanisms)))", "['AMQPLAIN','PLAIN']"),
        ("vm_memory_monitor:get_vm_memory_high_watermark()", "0.4"),
        ("proplists:get_value(verify, element(2, application:get_env(rabbit, ssl_options)))", "verify_peer"),
        ("node()", "rabbit@localhost"),
    ],
)
def test_live_settings(server: Host, question: str, answer: str) -> None:
    assert server.check_output(f'rabbitmqctl eval "{question}."').replace(" ", "").strip() == answer


def test_publishers_are_blocked_before_a_small_disk_is_full(server: Host) -> None:
    limit = int(server.check_output("rabbitmqctl eval 'rabbit_disk_monitor:get_disk_free_limit().'"))
    size = int(server.check_output("df --block-size=1 --output=size /var/lib/rabbitmq | tail -n 1"))
    assert 50_000_000 <= limit <= size // 10


def test_it_listens_with_tls_on_named_addresses_only(server: Host) -> None:
    found = server.check_output("ss -Hltn | awk '{print $4}'").splitlines()
    erlang = [
        place for place in found if place.rpartition(":")[2] in {"4369", "5671", "5672", "15671", "15672"}
    ]
    erlang += [place for place in found if place.rpartition(":")[2] in {"25672", "15691", "15692"}]
    outside = {place for place in erlang if not place.startswith("127.")}
    assert all(place.endswith(f":{PORT}") for place in outside), found
    assert not any(place.startswith(("0.0.0.0", "*", "[::]")) for place in erlang), found  # noqa: S104
    assert {f"127.0.0.1:{port}" for port in (4369, 5671, 15671, 15691, 25672)} <= set(erlang)
    assert not any(place.endswith((":5672", ":15672", ":15692")) for place in found)


@pytest.mark.parametrize("port", [5671, 15671, 15691])
def test_plain_text_and_old_tls_are_refused(server: Host, port: int) -> None:
    for old in ("-tls1", "-tls1_1"):
        refused = server.run(
            f"echo | timeout 10 openssl s_client -connect 127.0.0.1:{port} {old} -cipher ALL:@SECLEVEL=0"
        )
        assert "Cipher is (NONE)" in refused.stdout
    for good in ("-tls1_2", "-tls1_3"):
        served = server.run(
            f"echo | timeout 10 openssl s_client -connect 127.0.0.1:{port} {good} -CAfile /etc/rabbitmq/tls/ca.crt "
            "-verify_ip 127.0.0.1"
        )
        assert "Verify return code: 0 (ok)" in served.stdout
    plain = server.run(f"printf 'AMQP\\0\\0\\11\\1' | timeout 5 nc -w 3 127.0.0.1 {port} | head -c 4")
    assert "AMQP" not in plain.stdout


@pytest.mark.parametrize("user", ["guest", "celery-nobody", ""])
def test_nobody_else_gets_in(worker: CeleryHost, site: Site, user: str) -> None:
    said = attempt(worker, site, user)
    assert said.startswith("refused"), said
    assert attempt(worker, site, "celery-worker") == "allowed", "the control"


def test_there_are_no_users_but_ours_and_none_may_administer(server: Host) -> None:
    users = json.loads(server.check_output("rabbitmqctl -q --formatter json list_users"))
    assert {user["user"] for user in users} == {"celery-worker", "celery-client", "celery-monitor"}
    assert not any(user["tags"] for user in users)
    assert "guest" not in server.check_output("rabbitmqctl -q list_users")


def test_no_login_may_use_another_virtual_host(server: Host, worker: CeleryHost, site: Site) -> None:
    server.check_output("rabbitmqctl -q add_vhost somebody")
    try:
        for user in ("celery-worker", "celery-client", "celery-monitor"):
            assert attempt(worker, site, user, vhost="somebody").startswith("refused")
        for path in ("api/overview", "api/users", "api/definitions"):
            code = server.run(
                "curl --silent --cacert /etc/rabbitmq/tls/ca.crt --output /dev/null --write-out '%{http_code}' "
                f"--user celery-worker:{site.secrets()['rabbitmq_worker_password']} https://127.0.0.1:15671/{path}"
            )
            assert code.stdout in {"401", "403", ""}, f"{path}: {code.stdout}"
    finally:
        server.check_output("rabbitmqctl -q delete_vhost somebody")


def publish(exchange: str, key: str) -> str:
    return f"channel.basic_publish_confirm(amqp.Message('x'), exchange={exchange!r}, routing_key={key!r})"


CONSUME = "channel.basic_consume({queue!r}); connection.drain_events(timeout=1)"
ALLOWED = {
    "celery-worker": [
        "channel.queue_declare('celery', durable=True, auto_delete=False, arguments={'x-queue-type': 'quorum'})",
        publish("", UUID),
        "channel.basic_get('celery')",
    ],
    "celery-client": [
        f"channel.queue_declare({UUID!r}, durable=True, auto_delete=True)",
        publish("celery", "celery"),
        f"channel.basic_get({UUID!r})",
    ],
    "celery-monitor": [publish("celery-results.probe", "")],
}
DENIED = {
    "celery-worker": [
        "channel.queue_declare('mine', durable=True)",
        "channel.queue_declare('xcelery', durable=True)",
        "channel.queue_declare('celery2', durable=True)",
        "channel.exchange_declare('mine', 'fanout', durable=True, auto_delete=False)",
        "channel.queue_bind('celery', exchange='amq.topic', routing_key='#')",
        publish("amq.topic", "x"),
        publish("amq.fanout", ""),
        publish("celery-results.probe", ""),
        "channel.exchange_delete('celery-results.probe')",
        f"channel.queue_declare('x{UUID}', durable=True)",
        f"channel.queue_declare('{UUID}x', durable=True)",
    ],
    "celery-client": [
        # Through the nameless exchange, a client could write into the replies of others.
        publish("", OTHERS),
        publish("", "celery"),
        "channel.basic_get('celery')",
        "channel.queue_purge('celery')",
        "channel.queue_delete('celery')",
        "channel.exchange_delete('celery')",
        "channel.queue_declare('mine', durable=True)",
        publish("celery.pidbox", ""),
        "channel.exchange_declare('celery.pidbox', 'fanout', durable=False, auto_delete=False)",
        f"channel.queue_bind({UUID!r}, exchange='celery', routing_key='#')",
        publish("celery_delayed_3", "x"),
    ],
    "celery-monitor": [
        publish("", "celery"),
        publish("celery", "celery"),
        "channel.basic_get('celery')",
        f"channel.basic_get({UUID!r})",
        "channel.queue_declare('celery', durable=True)",
        "channel.queue_declare('', exclusive=True)",
        "channel.queue_bind('celery', exchange='celery-results.probe')",
    ],
}


@pytest.mark.usefixtures("queues")
@pytest.mark.parametrize("user", DENIED)
def test_least_privilege(worker: CeleryHost, site: Site, user: str) -> None:
    for code in ALLOWED[user]:
        assert attempt(worker, site, user, code) == "allowed", f"{user} may: {code}"
    for code in DENIED[user]:
        said = attempt(worker, site, user, code)
        assert said.startswith("refused"), f"{user} must not: {code}"
        assert "ACCESS_REFUSED" in said, f"{user}, {code}: {said}"


@pytest.mark.usefixtures("queues")
def test_the_queue_of_tasks_is_quorum_and_replies_are_bounded(server: Host) -> None:
    rows = json.loads(
        server.check_output("rabbitmqctl -q --formatter json list_queues -p celery name type policy")
    )
    found = {row["name"]: (str(row["type"]), row["policy"]) for row in rows}
    assert found["celery"][0].endswith("quorum") or found["celery"][0] == "rabbit_quorum_queue", found
    assert found["celery"][1] in {"", None}
    assert "classic" in found[UUID][0]
    assert found[UUID][1] == "celery-results-replies"
    policy = json.loads(server.check_output("rabbitmqctl -q --formatter json list_policies -p celery"))[0]
    limits = (
        json.loads(policy["definition"]) if isinstance(policy["definition"], str) else policy["definition"]
    )
    assert limits["message-ttl"] == limits["expires"] == 604_800_000
    assert limits["max-length"] == 100_000
    assert limits["overflow"] == "reject-publish"


def test_feature_flags_and_alarms_are_as_they_should_be(server: Host) -> None:
    assert told(server) == {
        "running": True,
        "restart": [],
        "settings": [],
        "tls": False,
        "definitions": [],
        "features": [],
        "alarms": [],
        "listening": [],
        "expired": False,
        "recorded": True,
    }


def test_the_cookie_is_secret_and_long(server: Host) -> None:
    cookie = server.file("/var/lib/rabbitmq/.erlang.cookie")
    assert cookie.mode == 0o400
    assert cookie.user == "rabbitmq"
    assert len(cookie.content_string.strip()) >= 40


def test_another_cookie_than_the_nodes_is_explained(server: Host) -> None:
    """What rabbitmqctl says of it is a page of Erlang; ours names the file and the remedy."""
    path = "/var/lib/rabbitmq/.erlang.cookie"
    server.check_output(
        f"cp -p {path} /root/cookie; chmod 600 {path}; echo another-cookie-altogether > {path}"
    )
    try:
        said = server.run("celery-results-rabbitmq pending")
        assert said.rc == 1
        assert "refuses the cookie in /var/lib/rabbitmq/.erlang.cookie" in said.stderr
        assert "restart" in said.stderr
        assert "another-cookie" not in said.stderr
    finally:
        server.check_output(f"cat /root/cookie > {path}; chmod 400 {path}; rm /root/cookie")
    assert told(server)["running"] is True


def test_no_secret_is_kept_on_the_server_in_clear_text(server: Host, site: Site) -> None:
    text = server.check_output(
        "cat /etc/rabbitmq/*.conf /etc/rabbitmq/*.json /etc/rabbitmq/*.applied /etc/rabbitmq/conf.d/*; "
        "journalctl -u rabbitmq-server --no-pager; cat /var/log/rabbitmq/*"
    )
    for name, secret in site.secrets().items():
        assert secret not in text, name
    definitions = server.file("/etc/rabbitmq/celery-results.json")
    assert (definitions.mode, definitions.user, definitions.group) == (0o640, "root", "rabbitmq")
    assert "password_hash" in definitions.content_string


def test_the_exporter_answers_with_tls(server: Host) -> None:
    asked = server.check_output(
        "python3 -c \"import ssl, urllib.request as r; c = ssl.create_default_context(cafile='/etc/rabbitmq/tls/ca.crt'); "
        "print(r.urlopen('https://127.0.0.1:15691/metrics', context=c).read().decode())\""
    )
    assert "rabbitmq_build_info" in asked


def test_debians_unit_is_kept_and_brought_back(server: Host) -> None:
    shown = server.check_output(
        "systemctl show rabbitmq-server -p LimitNOFILE -p Restart -p User -p FragmentPath"
    )
    assert "LimitNOFILE=65536" in shown
    assert "Restart=always" in shown
    assert "User=rabbitmq" in shown
    assert "/lib/systemd/system/rabbitmq-server.service" in shown
    assert server.service("rabbitmq-server").is_enabled
    assert server.package("logrotate").is_installed
