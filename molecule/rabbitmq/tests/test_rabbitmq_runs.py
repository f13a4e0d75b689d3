"""Runs of the playbooks: in check mode, with changes, interrupted, with a backup; and what they print."""

import json

from rabbitmq_host import attempt, pid, told
from scenario_support import CeleryHost, Site, until
from testinfra.host import Host

DIRECTORY = "/var/backups/celery-results/rabbitmq"
TLS = "/etc/rabbitmq/tls/server.crt"
SERVED = "echo | openssl s_client -connect 127.0.0.1:5671 2>/dev/null | openssl x509 -noout -fingerprint"


def evaluated(server: Host, expression: str) -> str:
    return str(server.check_output(f"rabbitmqctl eval '{expression}.'")).strip()


def test_check_mode_on_the_clean_host_left_nothing_and_leaked_nothing(site: Site) -> None:
    site.assert_clean_check_ended_well()


def test_check_mode_on_the_deployed_host_finds_nothing_to_do(site: Site) -> None:
    site.assert_nothing_to_do("--check", "--diff", "-vvv")


def expire_now(site: Site, server: Host) -> None:
    """Put a certificate of our own authority in place that expired an hour ago, and have it served."""
    before = server.check_output(SERVED)
    expired = site.expired(server.check_output(f"cat {TLS}"))
    server.check_output(f"printf %s '{expired}' > {TLS}")
    server.check_output("rabbitmqctl eval 'ssl:clear_pem_cache().'")
    until(lambda: server.check_output(SERVED) != before, 10, "the expired certificate is served")


def test_passwords_settings_and_certificate_change_without_a_restart_and_are_never_shown(
    site: Site, server: Host, worker: CeleryHost
) -> None:
    """Every task that touches a secret runs as `changed` here, in the loudest mode there is."""
    before = pid(server)
    expire_now(site, server)
    assert told(server)["expired"] is True
    served = server.check_output(SERVED)
    old = site.forget_secrets()
    cookie = server.check_output("cat /var/lib/rabbitmq/.erlang.cookie")
    # What nobody should have done by hand: the run finds and undoes it.
    server.check_output(
        "rabbitmqctl -q add_user guest guest; rabbitmqctl -q set_user_tags guest administrator; "
        "rabbitmqctl -q add_vhost somebody; rabbitmqctl -q add_user somebody elses-password; "
        "rabbitmqctl -q set_permissions -p somebody celery-client '.*' '.*' '.*'; "
        "rabbitmqctl -q set_permissions -p celery celery-monitor '.*' '.*' '.*'; "
        "rabbitmqctl -q set_user_tags celery-client administrator; "
        "rabbitmqctl -q clear_policy -p celery celery-results-replies; "
        "rabbitmqctl -q set_vm_memory_high_watermark 0.7"
    )

    run = site.run(
        "--diff", "-vvv", rabbitmq_config={"heartbeat": 77}, rabbitmq_consumer_timeout_seconds=7200
    )

    assert run.returncode == 0, run.stdout[-3000:]
    site.assert_replaced(old, run.stdout)
    hashes = [user["password_hash"] for user in definitions(server)["users"]]
    for secret in (*hashes, cookie):
        assert secret not in run.stdout
    assert pid(server) == before
    assert server.check_output(SERVED) != served
    assert evaluated(server, "application:get_env(rabbit, heartbeat)") == "{ok,77}"
    assert evaluated(server, "application:get_env(rabbit, consumer_timeout)") == "{ok,7200000}"
    assert evaluated(server, "vm_memory_monitor:get_vm_memory_high_watermark()") == "0.4"
    users = server.check_output("rabbitmqctl -q list_users")
    assert "guest" not in users
    assert "administrator" not in users
    # Somebody else's user and virtual host are left alone.
    assert "somebody" in users
    assert "celery-client" not in server.check_output("rabbitmqctl -q list_permissions -p somebody")
    assert "celery-results-replies" in server.check_output("rabbitmqctl -q list_policies -p celery")
    refused = server.run(f"rabbitmqctl -q authenticate_user celery-worker {old['rabbitmq_worker_password']}")
    assert refused.rc != 0
    assert attempt(worker, site, "celery-worker") == "allowed"
    assert attempt(worker, site, "celery-monitor", "channel.basic_get('celery')").startswith("refused")
    server.check_output("rabbitmqctl -q delete_user somebody; rabbitmqctl -q delete_vhost somebody")


def definitions(server: Host) -> dict[str, list[dict[str, str]]]:
    found: dict[str, list[dict[str, str]]] = json.loads(
        server.check_output("cat /etc/rabbitmq/celery-results.json")
    )
    return found


def test_a_login_that_is_no_longer_ours_is_removed(server: Host) -> None:
    """As after an update of the bundle which does without one: what was recorded as ours then, and is not now."""
    server.check_output("rabbitmqctl -q add_user celery-former x; rabbitmqctl -q add_user celery-theirs x")
    record = json.loads(server.check_output("cat /etc/rabbitmq/celery-results.applied"))
    record["users"] = sorted([*record["users"], "celery-former"])
    server.check_output(f"echo '{json.dumps(record)}' > /etc/rabbitmq/celery-results.applied")
    assert told(server)["definitions"] == ["users celery-former (too many)"]
    server.check_output("celery-results-rabbitmq apply")
    users = server.check_output("rabbitmqctl -q list_users")
    assert "celery-former" not in users
    assert "celery-theirs" in users
    server.check_output("rabbitmqctl -q delete_user celery-theirs")


def test_a_setting_that_the_server_refuses_is_named_and_changes_nothing(site: Site, server: Host) -> None:
    file = "/etc/rabbitmq/conf.d/90-celery-results.conf"
    before, text = pid(server), server.check_output(f"cat {file}")
    run = site.run(rabbitmq_config={"log.console.level": "talkative"})
    assert run.returncode != 0
    assert "rabbitmq_config" in run.stdout
    assert server.check_output(f"cat {file}") == text
    assert pid(server) == before


def test_another_type_for_a_queue_that_is_there_is_refused_and_changes_nothing(
    site: Site, server: Host
) -> None:
    run = site.run(rabbitmq_queue_type="classic")
    assert run.returncode != 0
    assert "a queue keeps its type" in run.stdout
    assert "delete_queue --vhost celery NAME" in run.stdout
    assert "changed=0" in run.stdout
    # Not even the rights of workers that use delayed delivery now.
    assert "celery_delayed_" in server.check_output("rabbitmqctl -q list_permissions --vhost celery")


def test_a_killed_run_is_completed_by_the_next(site: Site, server: Host) -> None:
    """Killed right after the file was written: the restart that applies it never came."""
    wanted = {"tcp_listen_options.backlog": 777}
    first = site.start(rabbitmq_config=wanted)
    until(
        lambda: server.run("grep -rlE 'backlog = 777' /etc/rabbitmq").rc == 0, 120, "the settings are written"
    )
    site.kill(first)
    before = pid(server)

    run = site.run(rabbitmq_config=wanted)

    assert run.returncode == 0, run.stdout[-3000:]
    assert pid(server) != before
    assert "{backlog,777}" in evaluated(server, "application:get_env(rabbit, tcp_listen_options)")
    assert told(server)["restart"] == []


def test_a_node_that_somebody_restarted_is_not_restarted_again(site: Site, server: Host) -> None:
    """And what was taken out of the inventory since, of the runs above, is gone from the node."""
    run = site.run()
    assert run.returncode == 0, run.stdout[-3000:]
    assert evaluated(server, "application:get_env(rabbit, heartbeat)") == "{ok,60}"
    server.check_output("systemctl restart rabbitmq-server")
    assert told(server)["restart"] == []
    server.check_output("rm /etc/rabbitmq/celery-results.applied")
    assert told(server)["restart"] == []
    server.check_output("celery-results-rabbitmq apply")


def test_definitions_come_back_from_a_backup(site: Site, server: Host, worker: CeleryHost) -> None:
    server.check_output(
        "rabbitmqctl -q add_user somebody elses-password; rabbitmqctl -q add_vhost theirs; "
        "rabbitmqctl -q set_permissions -p theirs somebody '.*' '' ''; "
        "rabbitmqctl -q set_policy -p theirs kept '^x$' '{\"max-length\": 7}'"
    )
    reply = "00000000-0000-4000-8000-00000000000c"
    declared = f"channel.queue_declare({reply!r}, durable=True, auto_delete=True)"
    assert attempt(worker, site, "celery-worker", declared) == "allowed"
    artefact = server.check_output("celery-results-backup-rabbitmq")
    server.check_output(f"cd {DIRECTORY} && sha256sum -c --quiet *.sha256")
    assert server.file(DIRECTORY).mode == 0o700
    assert server.service("celery-results-backup-rabbitmq.timer").is_enabled
    assert reply not in server.check_output(f"cat {artefact}")
    # The timer's service has less rights than root on a terminal.
    server.check_output("systemctl start celery-results-backup-rabbitmq.service")
    before = pid(server)
    server.check_output("rabbitmqctl -q delete_vhost theirs; rabbitmqctl -q delete_user somebody")
    # A password that changed since the backup stays changed.
    (site.state_directory / "secrets" / "rabbitmq_client_password").unlink()
    assert site.run().returncode == 0

    restore = site.run(playbook="playbooks/restore.yml", backup=artefact)

    assert restore.returncode == 0, restore.stdout[-3000:]
    assert "somebody" in server.check_output("rabbitmqctl -q list_permissions -p theirs")
    assert "kept" in server.check_output("rabbitmqctl -q list_policies -p theirs")
    assert attempt(worker, site, "celery-client") == "allowed"
    assert pid(server) == before
    assert server.run("ls /etc/rabbitmq/*.restore").rc != 0
    server.check_output("rabbitmqctl -q delete_vhost theirs; rabbitmqctl -q delete_user somebody")


def test_a_damaged_backup_is_refused_and_changes_nothing(server: Host) -> None:
    artefact = server.check_output("celery-results-backup-rabbitmq")
    server.check_output(f"head -c 500 {artefact} > /root/damaged.json; echo '{{}}' > /root/empty.json")
    for name, said in (("damaged", "damaged"), ("empty", "damaged")):
        refused = server.run(f"celery-results-rabbitmq restore /root/{name}.json")
        assert refused.rc == 1
        assert said in refused.stderr
    assert told(server)["definitions"] == []


def test_data_of_a_node_with_another_name_are_refused_with_the_remedy(site: Site, server: Host) -> None:
    data = "/var/lib/rabbitmq/mnesia"
    # Stopped: a running node that does not find its disk any more takes the default limit for it.
    server.check_output(
        "systemctl stop rabbitmq-server && "
        f"mkdir {data}/rabbit@elsewhere && mv {data}/rabbit@localhost /var/lib/rabbitmq/aside"
    )
    try:
        run = site.run("--check")
    finally:
        server.check_output(
            f"mv /var/lib/rabbitmq/aside {data}/rabbit@localhost && rmdir {data}/rabbit@elsewhere && "
            "systemctl start rabbitmq-server"
        )
    assert run.returncode != 0
    assert "holds the data of a node of another name: rabbit@elsewhere" in run.stdout
    assert "mnesia.old" in run.stdout
