"""RabbitMQ as the broker of another result backend, and the attacks on a broker of its own login."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest
from tests.integration.lab_files import weaken
from tests.integration.rabbitmq_lab import (
    ANY_CERTIFICATE,
    ANY_NAME,
    QUEUES,
    VHOST,
    RabbitmqLab,
    permissions,
)
from tests.integration.redis_lab import ACL, only, smoke

from celery_results.smoke.catalog import NAMES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.integration.redis_lab import RedisLab

BROKER_CHECKS = [name for name in NAMES if name.startswith("broker_")]


@pytest.fixture(scope="module")
def broker(tmp_path_factory) -> Iterator[RabbitmqLab]:
    with RabbitmqLab(tmp_path_factory.mktemp("rabbitmq")) as node:
        yield node


@pytest.fixture
def config(redis_lab, broker: RabbitmqLab, tmp_path) -> Path:
    return broker.add_broker(redis_lab.write_config(tmp_path / "etc"))


def test_redis_results_over_rabbitmq_hold_and_nothing_is_left(redis_lab, broker, config):
    answer = smoke(config, "--json")
    assert answer.code == 0, answer.stdout + answer.stderr
    assert (answer.document["backend"], answer.document["broker"]) == ("redis", "rabbitmq")
    assert answer.names("passed") == [name for name in NAMES if name != "witness"]
    assert answer.names("not_offered") == []
    assert [name for name in broker.queues() if not name.startswith("celery_delayed_")] == list(QUEUES)
    with redis_lab.admin() as admin:
        assert admin.info("keyspace") == {}
    secrets = [*redis_lab.passwords.values(), *broker.passwords.values()]
    assert not [password for password in secrets if password in answer.stdout]


def test_a_client_host_attacks_the_broker_too(config):
    (config / "client.env").replace(config / "celery.env")
    answer = smoke(config, "--json")
    assert answer.code == 0, answer.stdout + answer.stderr
    assert set(BROKER_CHECKS) <= set(answer.names("passed"))


def test_a_weak_broker_fails_the_check_of_the_broker_only(broker, config):
    right = permissions(broker.queue_type)["worker"]
    broker.control("set_permissions", "--vhost", VHOST, "celery-worker", ".*", ".*", ".*")
    try:
        answer = smoke(config, "--json", *only("foreign_key", *BROKER_CHECKS))
    finally:
        patterns = [right[name] for name in ("configure", "write", "read")]
        broker.control("set_permissions", "--vhost", VHOST, "celery-worker", *patterns)
    assert (answer.code, answer.names("failed")) == (1, ["broker_foreign_key"]), answer.stdout
    assert answer.check("broker_foreign_key")["remedy"]


@pytest.mark.parametrize(
    ("failed", "changes"),
    [("broker_untrusted_ca", (ANY_CERTIFICATE, ANY_NAME)), ("broker_wrong_name", (ANY_NAME,))],
)
def test_settings_that_do_not_verify_the_broker_fail(config, failed, changes):
    weaken(config / "celeryconfig_rabbitmq.py", *changes)
    answer = smoke(config, "--json", *only("untrusted_ca", "wrong_name", failed))
    assert (answer.code, answer.names("failed")) == (1, [failed]), answer.stdout + answer.stderr


def test_a_broker_that_is_down_is_said_with_its_own_names(broker, config):
    for name in ("celery.env", "client.env"):
        path = config / name
        path.write_text(path.read_text().replace(f":{broker.port}", ":1"))
    answer = smoke(config)
    assert answer.code == 1
    assert "expected amqps://celery-worker@" in answer.stderr
    assert "CELERYCONFIG_BROKER_HOSTS" in answer.stderr
    assert "CELERYCONFIG_RESULT_" not in answer.stderr


@pytest.mark.parametrize(
    "more", ["~celery-task-meta-*", "+scan", "+config|get", "&celery-task-meta-*"], ids=lambda more: more[1:7]
)
def test_a_redis_broker_login_that_may_more_fails_the_check(start_redis, tmp_path, more):
    lab: RedisLab = start_redis(
        acl={"broker": f"{ACL['broker']} {more}" + (" +publish" if "&" in more else "")}
    )
    config = lab.write_config(tmp_path / "etc", broker=True)
    answer = smoke(config, "--json", *only(*BROKER_CHECKS))
    assert (answer.code, answer.names("failed")) == (1, ["broker_foreign_key"]), answer.stdout
    with contextlib.suppress(KeyError), lab.admin() as admin:
        assert admin.info("keyspace") == {}
