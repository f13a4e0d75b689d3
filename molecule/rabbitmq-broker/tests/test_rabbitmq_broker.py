"""RabbitMQ carries the tasks, and each backend keeps the results: one after the other on the same hosts."""

import json
from pathlib import Path
from urllib.parse import quote

import pytest
from scenario_support import CeleryHost, Site
from testinfra.host import Host

PROJECT = "/srv/proj"
# A result that another process reads again: what rpc does not offer, and what says that the backend keeps it.
SEND = """
from celery import chord
from proj.celery import add, together
result = add.delay(2, 3)
assert result.get(timeout=30) == 5
assert chord([add.s(1, 1), add.s(2, 2)], together.s()).apply_async().get(timeout=30) == 6
print(result.id)
"""
BACKENDS = {
    "redis": "celery_results.backends.redis:RedisBackend+rediss",
    "postgresql": "celery_results.backends.database:DatabaseBackend+postgresql",
    "mysql": "celery_results.backends.database:DatabaseBackend+mysql",
    "sqlite": "celery_results.backends.database:DatabaseBackend+sqlite",
}


def assert_used(worker: CeleryHost, backend: str) -> None:
    """See that tasks go over the broker and come back through the backend, and read one again elsewhere."""
    task_id = worker.python(SEND, more_path=PROJECT)
    again = f"print(app.AsyncResult({task_id!r}).get(timeout=10), app.conf.result_backend)"
    value, used = worker.python(again, env_file="client.env").split()
    assert value == "5"
    assert used.startswith(BACKENDS[backend])
    assert worker.python("print(app.connection_for_write().as_uri().split('@')[1])").endswith(":5772/tasks")


def test_redis_keeps_the_results(worker: CeleryHost) -> None:
    """As the scenario has deployed it."""
    assert_used(worker, "redis")


@pytest.mark.parametrize("backend", ["postgresql", "mysql", "sqlite"])
def test_another_backend_keeps_the_results(site: Site, worker: CeleryHost, backend: str) -> None:
    run = site.run(backend=backend, broker="rabbitmq")
    assert run.returncode == 0, run.stdout[-3000:]
    assert_used(worker, backend)


def test_a_broker_that_somebody_else_runs(
    site: Site, server: Host, worker: CeleryHost, server_name: str, tmp_path: Path
) -> None:
    """A vhost and a login that are not ours, by a URL; Celery declares there what it needs."""
    password = "p@ss/word%"
    server.check_output(
        f"rabbitmqctl -q add_vhost theirs && rabbitmqctl -q add_user theirs '{password}' && "
        "rabbitmqctl -q set_permissions --vhost theirs theirs '.*' '.*' '.*'"
    )
    theirs = {
        "celery_broker_url": f"amqps://theirs:{quote(password, safe='')}@{server_name}:5772/theirs",
        "celery_broker_tls_ca_file": "/etc/celery/tls/ca.crt",
    }
    (tmp_path / "broker.json").write_text(json.dumps(theirs))
    run = site.run(f"--extra-vars=@{tmp_path}/broker.json", backend="redis")
    assert run.returncode == 0, run.stdout[-3000:]
    assert password not in run.stdout
    settings = "import json; print(json.dumps([app.conf.broker_use_ssl, app.conf.broker_transport_options]))"
    tls, options = json.loads(worker.python(settings))
    assert tls["ca_certs"] == "/etc/celery/tls/ca.crt"
    assert options["confirm_publish"] is True
    code = "from proj.celery import add; print(add.delay(2, 3).get(timeout=30))"
    assert worker.python(code, more_path=PROJECT) == "5"
    shown = server.check_output("rabbitmqctl -q list_queues --vhost theirs name")
    assert "celery" in shown.split()


def test_the_server_has_the_queue_type_that_was_asked_for(server: Host) -> None:
    shown = server.check_output("rabbitmqctl --quiet list_queues --vhost tasks name type durable")
    assert ["celery", "classic", "true"] in [line.split() for line in shown.splitlines()]
