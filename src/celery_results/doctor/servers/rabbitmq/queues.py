"""Settings of the task queues: what RabbitMQ refuses, what it loses, and what waits too long."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from celery import Celery
from kombu.transport.base import to_rabbitmq_queue_arguments

from celery_results.doctor import longest
from celery_results.doctor.findings import Finding, error, info, warning

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from celery_results.doctor.subject import Settings, Subject

GLOBAL_QOS = error(
    "CRB440",
    "Workers do not notice that their queue is a quorum queue",
    "Remove worker_detect_quorum_queues = False: with global QoS, which Celery then uses before "
    "RabbitMQ 4.0, the server refuses a worker of a quorum queue (540 NOT_IMPLEMENTED).",
)
REFUSED_OPTION = error(
    "CRB441",
    "A quorum queue is given options that it does not have",
    "Remove the option, or make it a classic queue: RabbitMQ refuses to declare it so (406 "
    "PRECONDITION_FAILED), and workers do not start.",
)
DIRECT_EXCHANGE = warning(
    "CRB442",
    "Tasks for later wait in a worker, not on the server",
    "Set task_default_exchange_type = 'topic' (and type='topic' of the queue's own Exchange): delayed "
    "delivery of quorum queues does not work with direct exchanges. The server's exchange of that name "
    "has to be deleted once, for its type cannot be changed.",
)
CLASSIC_ETA = info(
    "CRB443",
    "Tasks for later occupy a worker and are sent again",
    "Use quorum queues (task_default_queue_type = 'quorum') if tasks have an eta or countdown above the"
    " server's consumer_timeout (30 minutes by default): from a classic queue a worker takes such a "
    "task at once and holds it; the server then closes the worker's channel and delivers its tasks "
    "anew.",
)
NOT_DURABLE = error(
    "CRB444",
    "A task queue does not survive a restart of the server",
    "Set durable=True: RabbitMQ forgets the queue with its tasks otherwise, and 4.3 refuses to declare it.",
)
TRANSIENT = warning(
    "CRB445",
    "Queued tasks do not survive a restart of the server",
    "Set task_default_delivery_mode = 'persistent', which is Celery's default (and delivery_mode=2 of "
    "the queue's own Exchange).",
)
OUTLASTS = warning(
    "CRB446",
    "A task may run longer than the server waits for its acknowledgement",
    "Set task_time_limit below the server's consumer_timeout (30 minutes by default), or raise that: "
    "the server closes the channel of a worker that is later, and delivers the task again while it "
    "runs.",
)

CONSUMER_TIMEOUT_SECONDS: Final = 1800
# What RabbitMQ 3.10 and 4.0 refuse for a quorum queue (406).
_NOT_FOR_QUORUM: Final = (
    "x-max-priority",
    "x-queue-mode",
    "x-queue-master-locator",
    "x-queue-version",
)
_OPTIONS: Final = ("expires", "message_ttl", "max_length", "max_length_bytes", "max_priority")
_PERSISTENT: Final = frozenset({2, "persistent", None})


@dataclass(frozen=True)
class TaskQueue:
    """A queue as a worker declares it."""

    name: str
    durable: bool
    exclusive: bool
    auto_delete: bool
    arguments: Mapping[str, Any]
    exchange: str
    exchange_type: str  # direct also where there is no exchange: both go by the nameless one
    delivery_mode: object

    @property
    def is_quorum(self) -> bool:
        """Whether the settings ask for a quorum queue."""
        return self.arguments.get("x-queue-type") == "quorum"


def task_queues(settings: Settings) -> list[TaskQueue]:
    """Ask Celery which queues a worker of these settings consumes."""
    app = Celery("doctor", set_as_current=False)
    app.conf.update(settings)
    return [_task_queue(queue) for queue in app.amqp.queues.values()]


def _task_queue(queue: Any) -> TaskQueue:  # noqa: ANN401 - kombu has no types
    named = {option: getattr(queue, option) for option in _OPTIONS}
    exchange = queue.exchange
    has_exchange = exchange is not None and bool(exchange.name)
    return TaskQueue(
        name=str(queue.name),
        durable=bool(queue.durable),
        exclusive=bool(queue.exclusive),
        auto_delete=bool(queue.auto_delete),
        arguments=to_rabbitmq_queue_arguments(dict(queue.queue_arguments or {}), **named),
        exchange=str(exchange.name) if has_exchange else "",
        exchange_type=str(exchange.type) if has_exchange else "direct",
        delivery_mode=getattr(exchange, "delivery_mode", None),
    )


def check(subject: Subject) -> Iterator[Finding]:
    """Judge the task queues of the settings."""
    settings = subject.settings
    every = task_queues(settings)
    quorum = [queue for queue in every if queue.is_quorum]
    if quorum and not settings.get("worker_detect_quorum_queues", True):
        yield GLOBAL_QOS.finding(f"worker_detect_quorum_queues = False, and {quorum[0].name} is one")
    for queue in every:
        yield from _queue(queue)
    classic = sorted(queue.name for queue in every if not queue.is_quorum)
    if classic:
        yield CLASSIC_ETA.finding(f"classic queues: {', '.join(classic)}{longest.eta(settings)}")
    mode = settings.get("task_default_delivery_mode")
    if mode not in _PERSISTENT:
        yield TRANSIENT.finding(f"task_default_delivery_mode = {mode!r}")
    yield from _acknowledgement(settings)


def _queue(queue: TaskQueue) -> Iterator[Finding]:
    if not queue.durable or queue.auto_delete:
        yield NOT_DURABLE.finding(
            f"queue {queue.name}: durable={queue.durable}, auto_delete={queue.auto_delete}"
        )
    if queue.is_quorum:
        refused = [name for name in _NOT_FOR_QUORUM if name in queue.arguments]
        refused += [name for name in ("exclusive", "auto_delete") if getattr(queue, name)]
        refused += [] if queue.durable else ["durable=False"]
        if refused:
            yield REFUSED_OPTION.finding(f"queue {queue.name}: {', '.join(refused)}")
        if queue.exchange_type == "direct":
            yield DIRECT_EXCHANGE.finding(f"queue {queue.name}: its exchange is direct")
    if queue.delivery_mode not in _PERSISTENT:
        yield TRANSIENT.finding(f"queue {queue.name}: its exchange has delivery_mode={queue.delivery_mode!r}")


def _acknowledgement(settings: Settings) -> Iterator[Finding]:
    late = longest.acknowledges_late(settings)
    seconds = longest.run(settings)
    if late and (seconds is None or seconds > CONSUMER_TIMEOUT_SECONDS):
        limit = "and tasks have no time limit" if seconds is None else f"and tasks may run {seconds:,.0f} s"
        yield OUTLASTS.finding(f"{late}, {limit}")
