"""Replies that nobody reads, on a node as it was deployed."""

import json

from rabbitmq_host import attempt
from scenario_support import CeleryHost, Site, until
from testinfra.host import Host

REPLIES = "00000000-0000-4000-8000-00000000000c"


def test_ten_thousand_unread_replies_stay_out_of_memory(server: Host, worker: CeleryHost, site: Site) -> None:
    def is_on_disk_only() -> bool:
        question = (
            "rabbitmqctl -q --formatter json list_queues -p celery name memory messages message_bytes_ram"
        )
        rows = json.loads(server.check_output(question))
        row = next(row for row in rows if row["name"] == REPLIES)
        # `memory` leaves the bodies out, and on 3.10 a minute may pass until the queue's process has given back
        # what it needed for receiving them.
        return bool(
            row["messages"] == 10_000 and row["message_bytes_ram"] < 1_000_000 and row["memory"] < 10_000_000
        )

    code = (
        # As Celery declares it.
        f"channel.queue_declare({REPLIES!r}, durable=True, auto_delete=True); body = 'x' * 1000; "
        f"[channel.basic_publish(amqp.Message(body, delivery_mode=2), routing_key={REPLIES!r}) for _ in range(10_000)]"
    )
    assert attempt(worker, site, "celery-worker", code) == "allowed"
    try:
        # 10 MB of replies; what was only on its way to the disk is gone within seconds.
        until(is_on_disk_only, 60, "10,000 replies are there, and not in memory")
    finally:
        server.check_output(f"rabbitmqctl -q delete_queue -p celery {REPLIES}")
