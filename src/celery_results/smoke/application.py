"""The Celery application of both sides: the deployed settings, and a queue of its own."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery import Celery
from kombu.entity import Exchange, Queue

from celery_results.errors import SettingsError
from celery_results.smoke import tasks, transport

if TYPE_CHECKING:
    from collections.abc import Mapping

_ENVIRONMENT = "CELERY_RESULTS_SMOKE_"
# For a broker that can (RabbitMQ): what a killed run leaves behind goes by itself.
QUEUE_EXPIRES_SECONDS = 600
_BROKER_SECONDS = 10.0


@dataclass(frozen=True)
class Run:
    """What the worker process must know of the run that it belongs to."""

    queue: str
    directory: Path
    private_broker: bool
    parent: int
    task_seconds: int

    def to_environment(self) -> dict[str, str]:
        """Give the variables that `from_environment` reads in the worker."""
        return {
            f"{_ENVIRONMENT}QUEUE": self.queue,
            f"{_ENVIRONMENT}DIRECTORY": str(self.directory),
            f"{_ENVIRONMENT}PRIVATE_BROKER": "true" if self.private_broker else "false",
            f"{_ENVIRONMENT}PARENT": str(self.parent),
            f"{_ENVIRONMENT}TASK_SECONDS": str(self.task_seconds),
        }

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Run:
        """Read what the parent process wrote."""
        try:
            return cls(
                queue=environ[f"{_ENVIRONMENT}QUEUE"],
                directory=Path(environ[f"{_ENVIRONMENT}DIRECTORY"]),
                private_broker=environ[f"{_ENVIRONMENT}PRIVATE_BROKER"] == "true",
                parent=int(environ[f"{_ENVIRONMENT}PARENT"]),
                task_seconds=int(environ[f"{_ENVIRONMENT}TASK_SECONDS"]),
            )
        except KeyError as error:
            raise SettingsError(
                expected=f"the environment variable {error.args[0]}",
                found="none",
                do="start the worker through `celery-results smoke`",
            ) from None


def build(settings: str | Mapping[str, Any], run: Run) -> Any:  # noqa: ANN401 - Celery has no types
    """Make an app of the settings (a module's name, as users do, or their values) for this run."""
    app = Celery("celery_results.smoke", set_as_current=isinstance(settings, str))
    app.config_from_object(settings if isinstance(settings, str) else dict(settings))
    app.conf.update(_own_settings(run, app.conf))
    tasks.register(app, run.directory)
    return app


def build_reader(settings: Mapping[str, Any], **changes: object) -> Any:  # noqa: ANN401 - Celery has no types
    """Make an app that only asks the result backend, once: what fails shall fail now, not after retries."""
    app = Celery("celery_results.smoke", set_as_current=False)
    app.config_from_object(dict(settings))
    options = dict(settings.get("result_backend_transport_options") or {})
    once = {"max_retries": 1, "interval_start": 0, "interval_step": 0, "interval_max": 0}
    options["retry_policy"] = once
    app.conf.update(
        result_backend_always_retry=False,
        result_backend_transport_options=options,
        # For results that travel over the broker. The name also keeps kombu from handing out the pooled
        # connection of another app to the same server, whatever that app's TLS settings are.
        broker_transport_options={
            **(settings.get("broker_transport_options") or {}),
            **once,
            "client_properties": {"connection_name": f"celery-results-smoke-{uuid.uuid4()}"},
        },
        **changes,
    )
    return app


def stop_waiting(app: Any) -> None:  # noqa: ANN401 - Celery has no types
    """Have the app's results no longer unsubscribe when they are destroyed, be it at the end of the process.

    Each would ask for a new connection, with every retry of the settings, were the server gone meanwhile.
    """
    if subscribed := getattr(getattr(app.backend, "result_consumer", None), "subscribed_to", None):
        subscribed.clear()


def dispose(app: Any) -> None:  # noqa: ANN401 - Celery has no types
    """Close an app, and remove the queue of a backend to which results come as messages.

    That queue goes by itself only if somebody has waited in it, and with result_expires otherwise.
    """
    stop_waiting(app)
    try:
        if replies := getattr(app.backend, "binding", None):
            with app.connection_for_write() as connection:
                replies(connection.default_channel).delete()
    finally:
        app.close()


def connect_to_broker(settings: Mapping[str, Any]) -> None:
    """Show that the broker answers these settings; raise at once if it does not."""
    app = Celery("celery_results.smoke", set_as_current=False)
    app.config_from_object(dict(settings))
    try:
        with app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, timeout=_BROKER_SECONDS)
            connection.default_channel.close()
    finally:
        app.close()


def _queue(run: Run, deployed: Any) -> Queue:  # noqa: ANN401 - Celery has no types
    """Make a queue of the deployed kind, declared by those logins that declare their queues."""
    kind = deployed.task_default_exchange_type
    foreign = any(queue.no_declare for queue in deployed.task_queues or ())
    quorum = deployed.task_default_queue_type == "quorum"
    # The nameless exchange of a direct queue needs no declaration; another goes with the queue.
    name = "" if kind == "direct" else run.queue
    exchange = Exchange(name, type=kind, auto_delete=True, no_declare=foreign)  # type: ignore[no-untyped-call]
    return Queue(  # type: ignore[no-untyped-call]
        run.queue,
        exchange,
        routing_key=run.queue,
        expires=QUEUE_EXPIRES_SECONDS,
        queue_arguments={"x-queue-type": "quorum"} if quorum else None,
        no_declare=foreign,
    )


def _own_settings(run: Run, deployed: Any) -> dict[str, Any]:  # noqa: ANN401 - Celery has no types
    name = "" if deployed.task_default_exchange_type == "direct" else run.queue
    own: dict[str, Any] = {
        "task_queues": [_queue(run, deployed)],
        "task_default_queue": run.queue,
        "task_default_exchange": name,
        "task_default_routing_key": run.queue,
        "task_routes": None,
        "task_always_eager": False,
        "task_ignore_result": False,
        "task_annotations": None,
        "task_time_limit": run.task_seconds,
        "imports": (),
        "include": (),
        "beat_schedule": {},
        "worker_enable_remote_control": False,
        "worker_send_task_events": False,
        "worker_state_db": None,
        # A broker that cannot be reached shall end the worker, with the reason in its log.
        "broker_connection_retry_on_startup": False,
    }
    return own | (transport.settings(run.directory / "broker") if run.private_broker else {})
