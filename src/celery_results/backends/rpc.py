"""Celery's rpc backend, which also gives up on a server that stays away.

Celery 5.7 declares the queue for replies before it sends a task, and tries that again without end and without
saying so: apply_async hangs in every process that has sent before, for as long as RabbitMQ is away. Whatever
task_publish_retry_policy says holds for the task only, which is sent afterwards.
"""

from __future__ import annotations

from celery._state import task_join_will_block
from celery.backends.rpc import RPCBackend as CeleryRPCBackend
from kombu.common import maybe_declare


class RPCBackend(CeleryRPCBackend):  # type: ignore[misc] # Celery has no types
    """Declare the queue for replies as patiently as the task is sent, and no longer."""

    def on_task_call(self, producer: object, task_id: str) -> None:
        """Declare the queue for replies; raises kombu's OperationalError when the policy's retries are over.

        A prefork child that runs a task may not wait for results, so it needs no queue.
        """
        del task_id  # one queue for all tasks of this thread
        if not task_join_will_block():
            policy = self.app.conf.task_publish_retry_policy or {}
            queue = self.binding(producer.channel)  # type: ignore[attr-defined]
            maybe_declare(queue, retry=True, **policy)  # type: ignore[no-untyped-call]
