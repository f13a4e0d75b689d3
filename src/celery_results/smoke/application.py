"""The Celery application of both sides: the deployed settings, and a queue of its own."""

from __future__ import annotations

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
_QUEUE_EXPIRES_SECONDS = 600
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
    app.conf.update(_own_settings(run))
    tasks.register(app, run.directory)
    return app


def build_reader(settings: Mapping[str, Any], **changes: object) -> Any:  # noqa: ANN401 - Celery has no types
    """Make an app that only asks the result backend, once: what fails shall fail now, not after retries."""
    app = Celery("celery_results.smoke", set_as_current=False)
    app.config_from_object(dict(settings))
    options = dict(settings.get("result_backend_transport_options") or {})
    options["retry_policy"] = {"max_retries": 1, "interval_start": 0, "interval_step": 0, "interval_max": 0}
    app.conf.update(result_backend_always_retry=False, result_backend_transport_options=options, **changes)
    return app


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


def _own_settings(run: Run) -> dict[str, Any]:
    exchange = Exchange("")  # type: ignore[no-untyped-call]
    queue = Queue(  # type: ignore[no-untyped-call]
        run.queue,
        exchange,
        routing_key=run.queue,
        expires=_QUEUE_EXPIRES_SECONDS,
    )
    own: dict[str, Any] = {
        "task_queues": [queue],
        "task_default_queue": run.queue,
        "task_default_exchange": "",
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
