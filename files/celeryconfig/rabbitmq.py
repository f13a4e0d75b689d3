"""RabbitMQ, as the broker and as the way back for results: deployed as celeryconfig_rabbitmq.py.

base.py calls one function or both, each with the description of a server of its own.
"""

import ssl as _ssl
from types import SimpleNamespace as _Namespace
from typing import Any as _Any
from urllib.parse import quote as _quote

from celery.exceptions import ImproperlyConfigured as _ImproperlyConfigured
from kombu.entity import Exchange as _Exchange
from kombu.entity import Queue as _Queue

# py-amqp waits for ever for a confirmation, also while an alarm blocks publishers. A server that confirms
# nothing for so long counts as gone; what it has taken all the same is then there twice.
_ANSWER_TIMEOUT_SECONDS = 15


def _url(server: _Namespace) -> str:
    """Any character may occur in a password or a vhost, so both enter the URL percent-encoded."""
    username, password = _quote(server.username, safe=""), _quote(server.password, safe="")
    credentials = f"{username}:{password}@" if password else ""
    return f"{server.scheme}://{credentials}{server.hosts[0]}/{_quote(server.database or '/', safe='')}"


def _tls(server: _Namespace) -> dict[str, _Any]:
    """Verify chain and name; kombu defaults to verifying neither. With mTLS also show a certificate."""
    own = {"certfile": server.tls_cert_file, "keyfile": server.tls_key_file}
    return {
        "cert_reqs": _ssl.CERT_REQUIRED,
        "ca_certs": server.tls_ca_file,
        # None: the URL's own name. Without this entry py-amqp sends no name and compares none.
        "server_hostname": None,
        **(own if server.tls_cert_file else {}),
    }


def _queue(name: str, queue_type: str) -> _Queue:
    """Describe a task queue that the server has already: this login may send to it, not declare it."""
    exchange = _Exchange(name, type="topic", no_declare=True)  # type: ignore[no-untyped-call]
    arguments = {"x-queue-type": "quorum"} if queue_type == "quorum" else None
    return _Queue(  # type: ignore[no-untyped-call]
        name, exchange, routing_key=name, queue_arguments=arguments, no_declare=True
    )


def result_settings(server: _Namespace) -> dict[str, _Any]:
    """Return the settings that send results back to whoever sent the task."""
    if server.broker != "rabbitmq":
        raise _ImproperlyConfigured(
            "rpc results are messages that travel over the broker: CELERYCONFIG_BROKER_NAME must be rabbitmq "
            f"and is {server.broker or 'not set'}; with another broker take another result backend"
        )
    # Celery's class, which in ours does not wait without end for a server that is away (docs/rabbitmq.md).
    bundled = "" if server.implementation == "stock" else "celery_results.backends.rpc:RPCBackend+"
    return {
        "result_backend": f"{bundled}rpc://",
        # A result that waits in its client's queue survives a kill of the server; without this it does not,
        # though its task has run. Nothing survives the end of the client's connection, by which an orderly
        # stop of the server begins: its queue goes with it.
        "result_persistent": True,
    }


def broker_settings(server: _Namespace) -> dict[str, _Any]:
    """Return the settings that send and receive tasks."""
    queue_type = server.options.get("queue_type", "quorum")
    queues = [_queue(name, queue_type) for name in server.options.get("queues", ["celery"])]
    return {
        "broker_url": _url(server),
        "broker_use_ssl": _tls(server) if server.tls_enabled else None,
        # Celery's 120 notice a worker's server that vanished after four minutes, and so do firewalls.
        "broker_heartbeat": 30,
        "broker_transport_options": {
            # Without it a task that the server refuses or cannot store is lost in silence: apply_async
            # returns before the server has looked at it. Costs one round trip.
            "confirm_publish": True,
            "read_timeout": _ANSWER_TIMEOUT_SECONDS,
            "write_timeout": _ANSWER_TIMEOUT_SECONDS,
        },
        # Waits of 0, 1, 2, 3 and 4 s: a server that is being restarted is back by then. Celery's own three
        # retries are over in less than a second.
        "task_publish_retry_policy": {
            "max_retries": 5,
            "interval_start": 0,
            "interval_step": 1,
            "interval_max": 4,
        },
        # Quorum queues keep what they have confirmed through a kill -9, and limit redeliveries.
        "task_default_queue_type": queue_type,
        "task_create_missing_queue_type": queue_type,
        # Tasks for later wait on the server and not in a worker (quorum queues only). And with direct
        # exchanges Celery sends through the nameless one, by which a login may write into any queue,
        # results of others included.
        "task_default_exchange_type": "topic",
        "task_create_missing_queue_exchange_type": "topic",
        # A client that may declare a queue may also delete it. The worker declares: it may have more queues.
        **({} if server.login == "worker" else {"task_queues": queues}),
    }
